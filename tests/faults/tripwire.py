"""Where a child kills itself: at the n-th time that it passes a place. Only in children of these tests."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

COMMITTED = "faults_committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """The n-th time that this place is passed is the last thing that the child does.

    Places are named `<method of a table>:<event>`, such as `ReflectionTable.commit:statement`, where the event is
    `statement` (about to run one), `commit` (about to commit) or `committed` (back from it); or by what the child's own
    model and store say, such as `model:asked`. A `*` stands for every method.
    """

    place: str
    nth: int = 1


class Tripwire:
    """Counts the places that this process passes.

    Args:
        trip: Where to die; None for nowhere.
        last_words: Told the full name of the place.
    """

    def __init__(self, trip: Trip | None, last_words: Callable[[str], None]) -> None:
        self.trip = trip
        self.last_words = last_words
        self.passed: Counter[str] = Counter()

    def arm(self) -> None:
        """Listen to every engine of this process."""
        sa.event.listen(sa.Engine, "before_cursor_execute", lambda *_: self._sql("statement"))
        sa.event.listen(sa.Engine, "commit", self._on_commit)
        sa.event.listen(sa.pool.Pool, "checkin", self._on_checkin)

    def passing(self, place: str) -> None:
        """A place is passed: the end, if it is the one."""
        who, _, event = place.rpartition(":")
        for name in (place, f"*:{event}"):
            self.passed[name] += 1
            if self.trip is not None and self.trip.place == name and self.passed[name] == self.trip.nth:
                self.last_words(f"{who}:{event}")
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: type, name: str, place: str) -> None:
        """Let a method pass `<place>:before` and `<place>:after`."""
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.passing(f"{place}:before")
            result = method(*args, **kwargs)
            self.passing(f"{place}:after")
            return result

        setattr(owner, name, watched)

    def _sql(self, event: str) -> None:
        self.passing(f"{_method()}:{event}")

    def _on_commit(self, connection: sa.Connection) -> None:
        connection.info[COMMITTED] = True
        self._sql("commit")

    def _on_checkin(self, _: Any, record: Any) -> None:
        """Back in the pool, which is the first sign that a commit is over."""
        if record is not None and record.info.pop(COMMITTED, False):
            self._sql("committed")


def _method() -> str:
    """The table's method under way: the outermost one, which owns the transaction."""
    found, frame = "Database", sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("_table.py"):
            found = frame.f_code.co_qualname
        frame = frame.f_back
    return found
