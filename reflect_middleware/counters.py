"""What went wrong and how often: kept in memory, and added to the ledger at most once per second.

A broken embedder under a thousand runs per second must not become a thousand writes per second.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reflect_middleware.errors import ConfigurationError, LedgerError, MissingExtraError, StoreError
from reflect_middleware.lanes import Lane
from reflect_middleware.telemetry import counted

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 1.0
"""Least time between two writes."""
NAMES = 200
"""Most counters kept while the ledger cannot be written."""
REPEAT_SECONDS = 600.0
"""After so long a failure that goes on is told again."""

RESTING = "retrieve.resting"
"""Runs without lessons while retrieval rested after failures in a row."""
LATE = "retrieve.timeout"
"""Runs without lessons because these were not found in time."""
REFUSED = "namespace"
"""Runs without lessons or record because a part of their namespace had no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How often, and the last time."""

    count: int
    last: str
    """What was said the last time; may quote content."""
    at: float
    """When, epoch seconds."""


class Counters:
    """Counts things that went wrong.

    Args:
        write: Adds counts, by name, to those in the ledger. What it cannot write is kept for the next time.
        clock: Monotonic seconds.
    """

    def __init__(
        self, write: Callable[[Mapping[str, Count]], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lane = Lane("counters")
        self._write = write
        self._clock = clock
        self._closed = False
        self.renew()

    def renew(self) -> None:
        """Start afresh, in a new process: what the parent has counted is the parent's to write."""
        self._lock = threading.RLock()  # a garbage collection inside the lock may end a run, which may fail
        self._hurry = threading.Event()
        self._pending: dict[str, Count] = {}
        self._queued, self._next = False, self._clock()
        self._told: dict[str, tuple[float, int]] = {}

    def add(self, name: str, last: str = "", *, count: int = 1) -> None:
        """Count something; never blocks.

        Args:
            name: Of the counter, a word of the code's own: there are few, and it is shown to people.
            last: What happened. It is redacted before it is kept.
            count: How often.
        """
        counted(name, count)
        with self._lock:
            before = self._pending.get(name)
            if self._closed or (before is None and len(self._pending) >= NAMES):
                return
            total = count + (before.count if before else 0)
            self._pending[name] = Count(count=total, last=last or (before.last if before else ""), at=time.time())
            queued, self._queued = self._queued, True
        if not queued:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending; `settle` writes it
                self.lane.submit(self._flush_soon)

    def repeats(self, kind: str) -> int | None:
        """How often a failure has happened since it was last told; None while it need not be told again."""
        at, before = self._told.get(kind, (None, 0))
        if at is not None and self._clock() - at < REPEAT_SECONDS:
            self._told[kind] = at, before + 1
            return None
        self._told[kind] = self._clock(), 0
        return before + 1

    def settle(self, timeout: float | None = None) -> bool:
        """Write what has been counted; False if that took more than `timeout` seconds."""
        self._hurry.set()
        try:
            if self._pending:
                self._flush_now()
            return self.lane.wait_idle(timeout)
        finally:
            self._hurry.clear()

    def close(self) -> None:
        """Count nothing more."""
        self._closed = True
        self.lane.stop()

    def _flush_now(self) -> None:
        try:
            self.lane.submit(self._flush)
        except RuntimeError:  # the interpreter is ending, and no thread begins any more
            self._flush()

    def _flush_soon(self) -> None:
        if (rest := self._next - self._clock()) > 0:
            self._hurry.wait(rest)
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending, self._queued = self._pending, {}, False
        if not pending:
            return
        self._next = self._clock() + FLUSH_SECONDS
        try:
            self._write(pending)
        except Exception:  # the ledger, which may be what is failing; counted with the next failure
            logger.debug("reflect: cannot count failures", exc_info=True)
            with self._lock:
                self._pending = {name: _sum(count, self._pending.get(name)) for name, count in pending.items()} | {
                    name: count for name, count in self._pending.items() if name not in pending
                }


def _sum(first: Count, then: Count | None) -> Count:
    if then is None:
        return first
    return Count(count=first.count + then.count, last=then.last or first.last, at=then.at)


def words(error: BaseException) -> str:
    """What a log may say of an error: never what a task, a lesson, an answer or a person has said.

    A driver's or a callable's own words can quote any of these: of them only the type is named.
    """
    name = type(error).__name__
    if isinstance(error, (LedgerError, StoreError, ConfigurationError, MissingExtraError)):
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}"
    cause = error.__cause__
    return f"{name} from {type(cause).__name__}" if cause is not None else name
