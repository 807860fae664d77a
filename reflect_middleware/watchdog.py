"""Notices that a database hangs: it neither answers nor fails, and no timeout of a driver's covers that.

A thread that waits for such a database cannot be called back. Another one takes its place on the lane, and what the
stuck one has begun is never committed, should the database wake up again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from reflect_middleware.errors import LedgerError
from reflect_middleware.lanes import Lane

fence: ContextVar[Callable[[], None] | None] = ContextVar("reflect_fence", default=None)
"""Asked before each commit, if set: raises where somebody else has taken the work over."""
HANG_SECONDS = 1.2
"""How long a run's work with the ledger may take; with a tick, less than the run waits for its commit."""
TICK_SECONDS = 0.3
"""How often is looked, while there is work."""
IDLE_TICKS = 30
"""After so many looks without work the watching thread ends; the next work starts another."""


@dataclass(slots=True, eq=False)
class _Watched:
    lane: Lane
    future: Future[Any]
    aside: Callable[[], Any]
    until: float
    given_up: bool = False

    def check(self) -> None:
        """The fence before a commit: what was given up is not committed."""
        if self.given_up:
            raise OvertakenError("The ledger answered too late; another thread has taken this work over.")


class OvertakenError(LedgerError):
    """Work was given up, since the ledger hung; whoever does it instead gives its result."""


class Watchdog:
    """Watches work on lanes of one thread."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start afresh in a forked child."""
        self._lock = threading.Lock()
        self._watched: list[_Watched] = []
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, lane: Lane, aside: Callable[[], Any], seconds: float = HANG_SECONDS) -> Iterator[None]:
        """Around work on the lane's own thread.

        Args:
            lane: Of one thread, this one.
            aside: What another thread of the lane does instead if this one is stuck; its result is the job's.
            seconds: How long the work may take.

        Raises:
            OvertakenError: At the end of work that was given up.
        """
        if (future := lane.current()) is None:
            yield
            return
        watched = _Watched(lane, future, aside, time.monotonic() + seconds)
        token = fence.set(watched.check)
        with self._lock:
            self._watched.append(watched)
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="reflect-watchdog", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter is ending: the work is done unwatched
                    thread.start()
                    self._thread = thread
        try:
            yield
        finally:
            fence.reset(token)
            with self._lock:
                self._watched.remove(watched)
            watched.check()

    def _watch(self) -> None:
        idle = 0
        while idle < IDLE_TICKS:
            time.sleep(TICK_SECONDS)
            with self._lock:
                idle = 0 if self._watched else idle + 1
                for watched in self._watched:
                    if not watched.given_up and time.monotonic() > watched.until:
                        watched.given_up = True
                        watched.lane.relieve(watched.future, watched.aside)
                if idle == IDLE_TICKS:
                    self._thread = None
