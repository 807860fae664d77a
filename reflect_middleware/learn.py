"""When a reflection runs: as soon as the cadence is due, on a thread of its own, one after the other."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from reflect_middleware.alarms import Alarms
from reflect_middleware.consolidating import Consolidating
from reflect_middleware.due import Quota, Standing, day_of, is_due, look_again
from reflect_middleware.errors import ConfigurationError, LedgerError, QuotaError
from reflect_middleware.lanes import Lane
from reflect_middleware.reflections_table import Claim
from reflect_middleware.signals import carried
from reflect_middleware.types import Namespace, ReflectionReport, new_id

if TYPE_CHECKING:
    from reflect_middleware.core import Core

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 0.25
"""How long a due reflection holds back in the background, so that a reward given right after a run is read with it."""
BREATH_SECONDS = 0.02
"""How long after a run it is looked whether a reflection is due: the run's own thread goes on first, and one look does
for many runs."""
LOOK_SECONDS = 60.0
"""How often, at most, a process looks for what others have left: abandoned runs, stuck reflections, due namespaces."""
PAUSED_SECONDS = 5.0
"""How often it is checked whether a pause is over, where a reflection is due."""
SEEN = 10_000
"""Of how many namespaces a process remembers that it worked for them."""
EVERYWHERE: Namespace = ()
"""The alarm for a look at all namespaces."""


class Learner:
    """Runs reflections on a thread of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.options = core.options
        self.lane = Lane("reflect")
        weakref.finalize(self, self.lane.stop).atexit = False  # of a Reflection that nobody has closed
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
        self.reflecting = Consolidating(core)
        self._queued: set[Namespace] = set()
        self._seen: dict[Namespace, None] = {}
        self._alarms: Alarms[Namespace] = Alarms(self._rung)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._tidy_at = self._look_at = 0.0
        self._told = ""

    @property
    def able(self) -> bool:
        """Whether there is anything to reflect with; without it episodes wait."""
        return self.options.model is not None or self.options.reflector is not None

    def poke(self, namespace: Namespace) -> None:
        """An episode may have become ready: look, in the background, whether a reflection is due."""
        self._remember(namespace)
        self._queue(namespace, settle=SETTLE_SECONDS, breath=BREATH_SECONDS)

    def rewarded(self, namespace: Namespace) -> None:
        """A reward came, which may have made an episode ready."""
        if self.options.run == "inline":
            self.run_due_and_wait(namespace)
        else:
            self.poke(namespace)

    def run_due_and_wait(self, namespace: Namespace) -> None:
        """Run what is due now and wait for it, unless a reflector or `on_reflection` asks, which it waits for."""
        self._remember(namespace)
        due = self.lane.submit(lambda: self._run_due(namespace))
        if not self.lane.within:
            due.result()

    def reflect(self, namespace: Namespace) -> ReflectionReport:
        """Reflect on everything that has ended, in batches of the cadence's size, and wait for it."""
        if self.lane.within:  # a reflector or `on_reflection` asks, which the lane waits for
            return self._reflect_on_all(namespace)
        return self.lane.submit(carried(lambda: self._reflect_on_all(namespace))).result()

    def consolidate(self, namespace: Namespace) -> ReflectionReport:
        """Consolidate a namespace's lessons, whether or not that is due, and wait for it."""

        def work() -> ReflectionReport:
            return self.reflecting.consolidate(namespace, self.owner, self.options.quota)

        return work() if self.lane.within else self.lane.submit(carried(work)).result()

    def step(
        self, namespace: Namespace, *, quota: Quota | None = None, closing: bool = False
    ) -> ReflectionReport | None:
        """Do one reflection of a namespace on this thread; None if none is due here.

        Raises:
            QuotaError: If one is due, but a limit is reached.
        """
        ledger = self.core.parts.ledger
        if not self.able or ledger.lessons.paused():
            return None
        standing = ledger.work.standing(namespace, self.options.cadence, whatever=closing, closing=closing)
        if not is_due(standing, self.options.cadence):
            return None
        # Fewer than were seen: another process was faster, and what is left may not be due.
        least = min(standing.backlog.ready, self.options.cadence.batch)
        claim = self._claimed(namespace, least, whatever=closing, quota=quota)
        if claim is None:
            return None
        report = self.reflecting.run(claim)
        if not report.error and not closing:
            self._consolidate_if_due(namespace, quota)
        return report

    def tidy(self) -> None:
        """Now and then: interrupted episodes that nobody resumed are over, and what is kept no longer goes."""
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + LOOK_SECONDS
            self.core.parts.ledger.episodes.abandon(time.time() - self.options.resume_within)
            self.core.housekeeper.now_and_then()

    def last_call(self) -> None:
        """The Reflection is being closed: queue what is due because of that."""
        if self.options.cadence.closes and self._here:
            for namespace in tuple(self._seen):
                self.lane.submit(functools.partial(self._run_last, namespace))

    def close(self) -> None:
        """Give back what is unfinished; it counts as no try."""
        self._closing.set()
        self._alarms.clear()
        self.release()
        self.lane.stop()

    def release(self, namespaces: Collection[Namespace] | None = None) -> None:
        """Give back the batches in hand (of these namespaces); what their reflections still do has no effect."""
        for claim in self.reflecting.give_up(namespaces):
            logger.warning(
                "reflect: a reflection on %d episodes is not done in time and is released; the next start or"
                " `reflect worker` does it (exit_timeout is %g s)",
                len(claim.episodes),
                self.options.exit_timeout,
            )
            self.core.parts.ledger.reflections.release(claim)

    def tell(self, full: QuotaError) -> None:
        """Say once a day that the rest waits."""
        if self._told != (today := day_of(time.time())):
            self._told = today
            logger.warning("reflect: %s", full)

    # On the lane.

    @property
    def _here(self) -> bool:
        """Whether due reflections of the namespaces of this process are its own business."""
        return self.options.run != "external" and self.options.learn and self.able

    def _queue(self, namespace: Namespace, settle: float, breath: float = 0.0) -> None:
        if self.options.run != "background" or not self._here:
            return
        with self._lock:
            if namespace in self._queued:
                return
            self._queued.add(namespace)
        look_at = time.monotonic() + breath
        self.lane.submit(lambda: self._poked(namespace, settle, look_at))

    def _rung(self, namespace: Namespace) -> None:
        self._queue(namespace, settle=0.0)

    def _poked(self, namespace: Namespace, settle: float, look_at: float) -> None:
        self._closing.wait(max(0.0, look_at - time.monotonic()))
        with self._lock:
            self._queued.discard(namespace)
        try:
            if namespace == EVERYWHERE or time.monotonic() >= self._look_at:
                self._look_around()
            if namespace != EVERYWHERE:
                if settle and is_due(self._standing(namespace), self.options.cadence):
                    self._closing.wait(settle)
                self._alarms.set(namespace, self._run_due(namespace))
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread
            self.core.failed("reflect", error)
            if isinstance(error, LedgerError) and error.temporary:
                self.core.keeper.outage.missed(namespace, error)

    def _run_due(self, namespace: Namespace) -> float | None:
        """Do what is due; gives the seconds after which to look again, if time alone may make something due."""
        if not self._here:
            return None
        self.tidy()
        try:
            while (report := self.step(namespace)) is not None and not report.error:
                if self.core.closed:
                    return None
        except QuotaError as full:
            self.tell(full)
            return full.seconds
        wait = look_again(self._standing(namespace), self.options.cadence)
        if wait is not None and self.core.parts.ledger.lessons.paused():
            return max(wait, PAUSED_SECONDS)
        return None if wait is None else wait + 0.01 if wait else 1.0  # it is due, and somebody else was faster

    def _run_last(self, namespace: Namespace) -> None:
        def work() -> None:
            while not self._closing.is_set():
                report = self.step(namespace, closing=True)
                if report is None or report.error:
                    return

        self.core.safely("reflect", work)

    def _look_around(self) -> None:
        """Take up what other processes have left in the namespaces that are ours."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        ledger, cadence = self.core.parts.ledger, self.options.cadence
        stuck = [name for name in ledger.reflections.release_expired() if self._ours(name)]
        standings = [s for s in ledger.work.standings(cadence) if self._ours(s.namespace)]
        left = [s for s in standings if s.owed or s.namespace in stuck]
        if left:
            unread = sum(s.backlog.ready for s in left)
            logger.info(
                "reflect: unfinished reflections of %d namespaces, %d episodes, are taken up", len(left), unread
            )
        for standing in standings:
            self._alarms.set(standing.namespace, look_again(standing, cadence))
        leases = [max(0.0, seconds) for name, seconds in ledger.work.under_way().items() if self._ours(name)]
        self._alarms.set(EVERYWHERE, min(leases) + 1.0 if leases else None)

    def _reflect_on_all(self, namespace: Namespace) -> ReflectionReport:
        reports: list[ReflectionReport] = []
        self.tidy()
        if not self.able:
            waits = self.core.parts.ledger.work.standing(namespace, self.options.cadence, whatever=True).backlog.ready
            return ReflectionReport(namespace=namespace, error=str(no_model()) if waits else "")
        try:
            while (claim := self._claimed(namespace, 1, whatever=True)) is not None:
                reports.append(self.reflecting.run(claim))
                if reports[-1].error:
                    break
                self._consolidate_if_due(namespace)
        except QuotaError as full:
            self.tell(full)
            reports.append(ReflectionReport(namespace=namespace, error=str(full)))
        return joined(namespace, reports)

    def _consolidate_if_due(self, namespace: Namespace, quota: Quota | None = None) -> None:
        """A reflection was committed: where lessons have piled up, they are consolidated behind it."""

        def work() -> None:
            if not self.core.closed and self.reflecting.due(namespace):
                self.reflecting.consolidate(namespace, self.owner, quota or self.options.quota)

        self.core.safely("consolidate", work)

    def _standing(self, namespace: Namespace) -> Standing:
        return self.core.parts.ledger.work.standing(namespace, self.options.cadence)

    def _claimed(self, namespace: Namespace, least: int, *, whatever: bool, quota: Quota | None = None) -> Claim | None:
        return self.core.parts.ledger.reflections.claim(
            namespace,
            self.owner,
            at_least=least,
            at_most=self.options.cadence.batch,
            lease=self.options.lease,
            whatever=whatever,
            quota=quota or self.options.quota,
        )

    def _ours(self, namespace: Namespace) -> bool:
        return namespace in self._seen or any(rule.fits(namespace) for rule in tuple(self.core.rules))

    def _remember(self, namespace: Namespace) -> None:
        with self._lock:
            self._seen[namespace] = None
            if len(self._seen) > SEEN:
                self._seen.pop(next(iter(self._seen)))


def no_model() -> ConfigurationError:
    """What is said where a reflection is wanted and there is nothing to reflect with."""
    return ConfigurationError(
        "model", None, "a chat model or a name such as 'openai:gpt-5-mini'", "Reflecting needs one."
    )


def joined(namespace: Namespace, reports: Sequence[ReflectionReport]) -> ReflectionReport:
    """One report over several reflections."""
    return ReflectionReport(
        namespace=namespace,
        reflections=tuple(i for r in reports for i in r.reflections),
        episodes=tuple(i for r in reports for i in r.episodes),
        accepted=tuple(o for r in reports for o in r.accepted),
        rejected=tuple(o for r in reports for o in r.rejected),
        lessons=tuple({lesson.id: lesson for r in reports for lesson in r.lessons}.values()),
        cut=tuple(cut for r in reports for cut in r.cut),
        skipped=tuple(skip for r in reports for skip in r.skipped),
        input_tokens=sum(r.input_tokens for r in reports),
        output_tokens=sum(r.output_tokens for r in reports),
        error=next((r.error for r in reports if r.error), ""),
    )
