"""All worlds by name, and which of them are held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.reflecting.held_out_worlds import access, routing
from benchmarks.reflecting.office_worlds import bookings, queries, shipping, triage
from benchmarks.reflecting.other_worlds import letters, recipes
from benchmarks.reflecting.world import World

TUNING: Final[dict[str, Callable[[int], World]]] = {
    "shipping": shipping,
    "bookings": bookings,
    "queries": queries,
    "triage": triage,
    "recipes": recipes,
    "letters": letters,
}
HELD_OUT_WORLDS: Final[dict[str, Callable[[int], World]]] = {"access": access, "routing": routing}
"""Never looked at while a prompt, a rule or a setting is chosen; `--tuning-only` leaves them out."""
WORLDS: Final = TUNING | HELD_OUT_WORLDS
