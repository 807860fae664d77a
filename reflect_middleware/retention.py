"""How long episodes are kept: housekeeping in the background. What must be gone for good is purged instead."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect_middleware.errors import ConfigurationError
from reflect_middleware.lanes import Lane

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.retention_table import RetentionTable

logger = logging.getLogger(__name__)
EVERY_SECONDS = 300.0
"""How often the limits are looked at, at most, by each process that runs reflections."""
NAMES_SECONDS = 21_600.0
"""How often the names of episodes that are gone are removed: that reads all names."""
ROUND = 20_000
"""Most episodes dropped in one go; the rest follows the next time."""
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept at most; None for no limit.

    Only episodes that a reflection has read, that no reflection could use, or that were not sampled are dropped by
    number and size; those that wait for one only once they are older than twice `days`. Lessons stay.

    Raises:
        ConfigurationError: If a limit is not a number above 0.
    """

    days: float | None = None
    """Episodes that started so long ago are dropped, and reflections as old lose prompt and answer."""
    episodes: int | None = None
    """The newest so many are kept."""
    megabytes: float | None = None
    """Of SQLite's file without its free pages, or of the episodes' text on PostgreSQL; 1 is 1,000,000 bytes."""

    def __post_init__(self) -> None:
        for name in ("days", "episodes", "megabytes"):
            value = getattr(self, name)
            good = isinstance(value, int) or (isinstance(value, float) and name != "episodes")
            if value is not None and (not good or isinstance(value, bool) or not value > 0):
                kind = "a whole number" if name == "episodes" else "a number"
                raise ConfigurationError(f"Retention's {name}", value, f"{kind} above 0, or None for no limit")


class Housekeeper:
    """Applies a Reflection's retention on a thread of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.lane = Lane("housekeeping")
        self._next = self._names_next = 0.0

    def now_and_then(self) -> None:
        """Look at the limits, in the background, unless that was done a short while ago."""
        if self.core.options.retention is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_SECONDS
            self.lane.submit(lambda: self.core.safely("retention", self.apply))

    def apply(self, at: float | None = None) -> dict[str, int]:
        """Drop what is too much; gives what was dropped.

        Args:
            at: The time now, in epoch seconds.
        """
        limits, table = self.core.options.retention, self.core.parts.ledger.retention
        if limits is None:
            return {}
        at = time.time() if at is None else at
        counts = {"episodes": self._by_number(limits, table, at) + self._by_size(limits, table, at)}
        if limits.days is not None:
            age = limits.days * DAY
            counts["episodes"] += self._drop(table, at - age)
            if unread := self._drop(table, at - 2 * age, unread=True):
                logger.warning("reflect: retention dropped %d episodes that no reflection has read", unread)
            counts["unread"] = unread
        first = table.oldest()
        cutoffs = [at - limits.days * DAY] if limits.days is not None else [] if first is None else [first]
        counts["reflections"] = sum(table.empty_reflections(cutoff) for cutoff in cutoffs)
        table.forget_stale_rewards()
        if any(counts.values()):
            self.core.parts.ledger.audit.dropped(counts)
            self._names()
        return counts

    def _by_number(self, limits: Retention, table: RetentionTable, at: float) -> int:
        return 0 if limits.episodes is None else self._drop(table, at, most=table.count() - limits.episodes)

    def _by_size(self, limits: Retention, table: RetentionTable, at: float) -> int:
        dropped = 0
        while limits.megabytes is not None and dropped < ROUND and table.size() > limits.megabytes * 1_000_000:
            if not (some := table.drop(at, unread=False)):
                break
            dropped += some
        return dropped

    def _drop(self, table: RetentionTable, before: float, *, most: int = ROUND, unread: bool = False) -> int:
        dropped = 0
        while dropped < min(most, ROUND) and not self.core.closed:
            if not (some := table.drop(before, unread=unread, most=most - dropped)):
                break
            dropped += some
        return dropped

    def _names(self) -> None:
        from reflect_middleware.names_table import erase_orphans

        if time.monotonic() >= self._names_next:
            self._names_next = time.monotonic() + NAMES_SECONDS
            erase_orphans(self.core.parts.ledger.database)
