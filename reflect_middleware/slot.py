"""What a run is told by the practice that starts it, beside its config: nothing of it reaches the user's graph."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

HELD_OUT = "held-out"
"""In `Episode.reflection_id`: a run that measured, which no reflection ever reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of one run in a practice."""

    alias: str = ""
    """A name that says which rollout this is; empty for runs inside of it."""
    measured: bool = False
    """Whether it measures: no reflection reads it, nor the runs inside of it."""
    hold: float = 0.0
    """Seconds that it waits, once it ended, for the practice's own reflection before it counts for any other."""
    task_key: str = ""
    reference: Any = None

    @property
    def inner(self) -> Slot | None:
        """What runs inside of it are told: they learn by the ordinary cadence, unless it measures."""
        return replace(self, alias="", hold=0.0, task_key="", reference=None) if self.measured else None


here: ContextVar[Slot | None] = ContextVar("reflect_slot", default=None)
"""The practice's rollout that is under way here."""
