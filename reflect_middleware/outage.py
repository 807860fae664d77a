"""The ledger is away: what is to be written waits in the spool, and is written as soon as it answers again.

Up: everything goes to the ledger. The first thing that cannot be written makes it down: everything goes to the spool,
and a thread of ours tries again, with growing pauses. Once the ledger answers it is draining: what waits is written in
order, new runs go to the ledger, and whatever concerns an earlier run queues up behind what waits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from reflect_middleware.drain import Drain
from reflect_middleware.errors import LedgerError, LedgerValueError
from reflect_middleware.lanes import Lane
from reflect_middleware.types import Episode, Namespace
from reflect_middleware.watchdog import HANG_SECONDS, OvertakenError, Watchdog

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.spool import Entry, Item, Run, Spool, Waiting

logger = logging.getLogger(__name__)
T = TypeVar("T")

SPOOL = "spool.db"
"""The spool's file in the folder."""
PAUSES = (0.5, 30.0)
"""Seconds between two attempts to reach the ledger: doubled each time, from and to."""
ATTEMPT_SECONDS = 10.0
"""How long the first use of the ledger may take, which opens it, and one step of an attempt to reach it again."""


class Outage:
    """Whether the ledger answers, and what waits until it does.

    Args:
        core: The Reflection's inner side.
        writer: The lane of one thread on which the ledger is written.
    """

    def __init__(self, core: Core, writer: Lane) -> None:
        self.core = core
        self.writer = writer
        self.lane = Lane("outage")
        self.watchdog = Watchdog()
        self._spool: Spool | None = None
        self.drained: Callable[[Run, Episode], None] = lambda _run, _episode: None
        """Told of each run that has waited and is in the ledger now."""
        self.renew(first=True)

    def renew(self, *, first: bool = False) -> None:
        """Start afresh in a forked child."""
        if not first:
            self.watchdog.renew()
            if self._spool is not None:
                self._spool.renew()
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._round: Future[bool] = Future()
        self._state: Literal["up", "draining", "down"] = "up"
        self._recovering = self._stopped = self._looked = self._used = False
        self._drain = Drain(self.core, self._written)
        self._touched: set[Namespace] = set()
        self._pause, self._up_since = PAUSES[0], time.monotonic()
        self.unreachable = False
        """Whether it is known that the ledger does not even answer, so that asking it for lessons would be in vain."""

    @property
    def spool(self) -> Spool:
        """What waits. Its file is made when something has to wait for the first time."""
        if (made := self._spool) is None:
            from reflect_middleware.spool import Spool, name_of

            options = self.core.options
            embedded = options.ledger_url == f"sqlite:///{options.path / 'ledger.db'}"
            name, fsync = "" if embedded else name_of(options.ledger_url), options.durability == "fsync"
            made = Spool(options.path / SPOOL, name, fsync=fsync, dropped=self._dropped)
            with self._lock:
                made = self._spool = self._spool or made
        return made

    @property
    def up(self) -> bool:
        """Whether the ledger is written as usual."""
        return self._state == "up"

    def run(self, direct: Callable[[], T], aside: Callable[[], T], *, fresh: bool = False, always: bool = False) -> T:
        """Work with the ledger; while it is away, what is to be done instead. For the writer's lane.

        Args:
            direct: Does the work.
            aside: Puts it into the spool.
            fresh: Nothing in the spool can concern it.
            always: It waits in any case; else it fails if waiting alone does not help.

        Raises:
            LedgerError: If the ledger refuses this very work, or needs to be mended and `always` is not set.
        """
        self._look()
        if self._state == "down" or (self._state == "draining" and not fresh):
            return aside()

        def instead() -> T:
            self.lost(TimeoutError("no answer from the ledger"))
            return aside()

        try:
            with self.watchdog.over(self.writer, instead, HANG_SECONDS if self._used else ATTEMPT_SECONDS):
                done = direct()
        except OvertakenError:
            raise
        except LedgerError as error:
            if isinstance(error, LedgerValueError) or not (always or error.temporary):
                raise
            self.lost(error)
            return aside()
        self._used = True
        return done

    def add(self, item: Item) -> bool:
        """Let something wait; True once it is in the file."""
        durable = self.spool.add(item)
        if self._state == "up":  # the last attempt has just found nothing more
            self.check()
        return durable

    def lost(self, error: BaseException) -> None:
        """The ledger could not be used: from now on everything waits, until an attempt succeeds."""
        with self._lock:
            known, self._state = self._state == "down", "down"
            if not known and time.monotonic() - self._up_since > PAUSES[1]:
                self._pause = PAUSES[0]
            self.unreachable = not self.core.options.ledger_url.startswith("sqlite")
            self._start()
        if not known:
            where = self.spool.table.file
            logger.warning("reflect: the ledger cannot be used; what is recorded waits in %s: %s", where, error)
            self.core.failed("ledger", error)

    def doubt(self) -> None:
        """Something has waited in vain, perhaps for the ledger: find out, and ask it for no lessons meanwhile."""
        with self._lock:
            if self._state == "up" and not self.core.options.ledger_url.startswith("sqlite"):
                self.unreachable = True
                self.check()

    def check(self) -> None:
        """Try now, in the background, to write what waits."""
        with self._lock:
            if self._state == "up":
                self._state = "draining"
            self._start()
            self._wake.set()

    def missed(self, namespace: Namespace, error: LedgerError | None = None) -> None:
        """It could not be seen whether a reflection of this namespace is due: look once the ledger is back."""
        self._touched.add(namespace)
        if error is not None:
            self.lost(error)
        elif self._state == "up":
            self.check()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Try now to write what waits, and wait for that attempt; False if things still wait because of the ledger."""
        if self._state == "up" and self._nothing():
            return True
        with self._lock:
            attempt = self._round
            self.check()
        if self._stopped:
            return False
        try:
            return attempt.result(timeout)
        except FutureTimeoutError:
            return False

    def waiting(self) -> Waiting:
        """How much waits in the spool."""
        return self.spool.waiting()

    def close(self) -> None:
        """Stop trying; what waits stays in the file."""
        self._stopped = True
        self._wake.set()
        self.lane.stop()
        if not self._nothing():
            where, left = self.spool.table.file, self.waiting().count
            logger.warning("reflect: %d entries wait in %s; the next start here writes them", left, where)
        if self._spool is not None:
            self._spool.close()

    # On the lane.

    def _start(self) -> None:
        if not self._recovering and not self._stopped:
            self._recovering = True
            self._drain = Drain(self.core, self._written)
            try:
                self.lane.submit(self._recover)
            except RuntimeError:  # the interpreter is ending, and no thread begins any more
                self._recovering, self._stopped = False, True

    def _recover(self) -> None:
        """Try until it succeeds."""
        while not self._stopped:
            if self._state == "down":
                self._wake.wait(self._pause)
                self._pause = min(self._pause * 2, PAUSES[1])
            self._wake.clear()
            with self._lock:
                attempt, self._round = self._round, Future()
            good = self._attempted(attempt)
            attempt.set_result(good)
            if good and self._ended():
                return
        self._round.set_result(False)

    def _attempted(self, attempt: Future[bool]) -> bool:
        def instead() -> None:
            self.lost(TimeoutError("no answer from the ledger"))
            attempt.set_result(False)
            self._recover()

        try:
            database = self.core.parts.ledger.database
            with self.watchdog.over(self.lane, instead, ATTEMPT_SECONDS):
                database.probe()
                database.renew_connections(HANG_SECONDS)
            self._drain.run(self.spool, lambda: self._entry(instead))
            self._answers()
        except OvertakenError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            self.lost(error)
            return False
        return True

    def _answers(self) -> None:
        """The ledger does what it should: new runs may ask it."""
        with self._lock:
            self.unreachable, self._state = False, "draining"

    def _ended(self) -> bool:
        """The spool is drained: back to normal, unless something has come in between."""
        with self._lock:
            self._state, self._recovering, self._up_since = "up", False, time.monotonic()
            if self._wake.is_set() or not self._drain.done(self.spool):
                self._state, self._recovering = "draining", True
                return False
        self._catch_up()
        return True

    @contextlib.contextmanager
    def _entry(self, instead: Callable[[], Any]) -> Iterator[None]:
        """Around the work on each entry that waits."""
        with self.watchdog.over(self.lane, instead, ATTEMPT_SECONDS):
            yield
        self._answers()

    def _written(self, entry: Entry, episodes: Iterable[Episode]) -> None:
        from reflect_middleware.spool import Run

        for episode in episodes:
            self._touched.add(episode.namespace)
            if entry.kind == "run" and isinstance(run := entry.item, Run):
                self.drained(run, episode)

    def _catch_up(self) -> None:
        """What could not be done meanwhile."""
        self.core.counters.settle(0.0)
        touched, self._touched = self._touched, set()
        keeper, learner = self.core.keeper, self.core.parts.learner
        for namespace in touched if not self._stopped else ():
            keeper.judge.submit(lambda namespace=namespace: learner.rewarded(namespace))  # type: ignore[misc]

    def _look(self) -> None:
        """Once in a process: a former one may have left something."""
        if not self._looked:
            self._looked = True
            if not self._nothing():
                self.check()

    def _nothing(self) -> bool:
        """Whether nothing waits. Without a file that is known at once."""
        unused = self._spool is None and not (self.core.options.path / SPOOL).exists()
        return unused or self.spool.empty()

    def _dropped(self, number: int, where: str) -> None:
        logger.error("reflect: %s is full: its %d oldest entries are lost; the ledger is still away", where, number)
        self.core.failed("spool full", LedgerError(f"{number} of the oldest entries were dropped from {where}"))
