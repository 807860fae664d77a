"""A worker: takes what is due in all namespaces of a ledger, beside any number of others, and waits for more."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from reflect_middleware.due import Quota, is_due
from reflect_middleware.errors import ClosedError, ConfigurationError, QuotaError
from reflect_middleware.lanes import Lane
from reflect_middleware.learn import no_model
from reflect_middleware.types import Namespace, ReflectionReport

if TYPE_CHECKING:
    from reflect_middleware.core import Core

logger = logging.getLogger(__name__)
POLL_SECONDS = 2.0
"""How often a worker looks for something to do."""
LONGEST_POLL = 60.0
"""How long it waits at most while the ledger cannot be read."""
LOOK_SHARE = 10
"""It waits at least so many times as long as a look took, whatever was asked for."""
NEVER = float("inf")
STOP: Namespace = ()
"""In the queue of what was done: somebody asks the worker to stop."""
Outcome = ReflectionReport | Exception | None


def worker(
    core: Core,
    namespace: Namespace | None,
    *,
    parallel: int,
    at_once: int | None,
    per_minute: int | None,
    poll: float = POLL_SECONDS,
    tell: Callable[[ReflectionReport], object] | None = None,
) -> Worker:
    """A worker with these limits beside the Reflection's own; `namespace` may have parts "*" that fit any.

    Raises:
        ConfigurationError: If one of them is not allowed, or there is no model.
    """
    for name, value in (("parallel", parallel), ("at_once", at_once), ("per_minute", per_minute)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigurationError(name, value, "a whole number from 1 on")
    quota = replace(core.options.quota, at_once=at_once, per_minute=per_minute)
    fits = None if namespace is None else functools.partial(_fits, namespace)
    return Worker(core, fits=fits, parallel=parallel, quota=quota, poll=poll, tell=tell)


def _fits(wanted: Namespace, namespace: Namespace) -> bool:
    return len(wanted) == len(namespace) and all(w in ("*", n) for w, n in zip(wanted, namespace, strict=True))


class Worker:
    """Does due reflections: one of a namespace at a time, of several namespaces at once.

    Args:
        core: Of the Reflection whose model, cadence and limits it works with.
        fits: Whether it works for a namespace; None for all.
        parallel: Most reflections that it does at once.
        quota: What all processes on the ledger may use together.
        poll: Seconds between two looks at the ledger.
        tell: Called with the report of each reflection, on the thread that runs the worker.
    """

    def __init__(
        self,
        core: Core,
        *,
        fits: Callable[[Namespace], bool] | None = None,
        parallel: int = 1,
        quota: Quota | None = None,
        poll: float = POLL_SECONDS,
        tell: Callable[[ReflectionReport], object] | None = None,
    ) -> None:
        if not core.parts.learner.able:
            raise no_model()
        self.core = core
        self.fits = fits
        self.parallel = parallel
        self.quota = quota or core.options.quota
        self.poll = poll
        self.tell = tell
        self._done: SimpleQueue[tuple[Namespace, Outcome]] = SimpleQueue()
        self._in_hand: set[Namespace] = set()
        self._passed: set[Namespace] = set()
        self._reports: list[ReflectionReport] = []
        self._errors = 0
        self._goes_on_at = self._forget_at = 0.0
        self._end: float | None = None
        self._lane = Lane("worker", threads=parallel)

    def stop(self) -> None:
        """End soon: when what is in hand is done or `exit_timeout` is over; called twice: at once. Signals may call."""
        self._done.put((STOP, None))  # reentrant, as a lock would not be

    def run(self, *, once: bool) -> tuple[ReflectionReport, ...]:
        """Work until `stop` is called, or `once` until nothing is due any more.

        Returns:
            The reports, if `once`; a worker that runs for ever keeps none.

        Raises:
            LedgerError: If `once`, and the ledger cannot be used.
        """
        self.core.keeper.outage.check()  # what waits in this folder's spool may be what is due
        try:
            while self._round(once=once):
                pass
            self._end = time.monotonic() + self.core.options.exit_timeout
            self._finish()
        finally:
            self.core.parts.learner.release(self._in_hand)
            self._lane.stop()
        return tuple(self._reports)

    def close(self) -> None:
        """Close the Reflection, too, in what is left of `exit_timeout` since `stop`."""
        self.core.close(self._left())

    def _left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _round(self, *, once: bool) -> bool:
        """Start what is due, then wait for what happens next; False if this is the end."""
        if self.core.closed:
            raise ClosedError("The worker's Reflection was closed under it.")
        wait = self._start(once=once)
        if once and wait is None and not self._in_hand:
            return False
        try:
            namespace, outcome = self._done.get(timeout=self.poll if wait is None else wait)
        except Empty:
            return True
        if namespace == STOP:
            return False
        self._take(namespace, outcome, once=once)
        return True

    def _start(self, *, once: bool) -> float | None:
        """Give free threads something to do; gives the seconds until the next look, None if nothing was found."""
        if len(self._in_hand) >= self.parallel:
            return LONGEST_POLL
        began = time.monotonic()
        if began < self._goes_on_at:
            return None if once and self._goes_on_at == NEVER else min(self._goes_on_at - began, LONGEST_POLL)
        if not once and began >= self._forget_at:
            self._forget_at = began + self.poll
            self._passed.clear()
        try:
            due = self._due()
            self._errors = 0
        except Exception as error:
            if once:
                raise
            self._errors += 1
            self.core.failed("worker", error)
            return min(self.poll * 2.0 ** min(self._errors, 10), LONGEST_POLL)
        for namespace in due[: self.parallel - len(self._in_hand)]:
            self._in_hand.add(namespace)
            self._lane.submit(functools.partial(self._step, namespace))
        return max(self.poll, LOOK_SHARE * (time.monotonic() - began)) if due or not once else None

    def _due(self) -> list[Namespace]:
        """The namespaces in which a reflection may begin, those that wait longest first."""
        learner, ledger, cadence = self.core.parts.learner, self.core.parts.ledger, self.core.options.cadence
        learner.tidy()
        if stuck := ledger.reflections.release_expired():
            logger.info("reflect: reflections of %d namespaces, whose processes have died, are taken up", len(stuck))
        if ledger.lessons.paused():
            return []
        found = [s for s in ledger.work.standings(cadence) if self._mine(s.namespace) and is_due(s, cadence)]
        return [s.namespace for s in sorted(found, key=lambda s: -s.backlog.oldest)]

    def _mine(self, namespace: Namespace) -> bool:
        busy = namespace in self._in_hand or namespace in self._passed
        return not busy and (self.fits is None or self.fits(namespace))

    def _step(self, namespace: Namespace) -> None:
        """On a thread of the lane: one reflection."""
        try:
            outcome: Outcome = self.core.parts.learner.step(namespace, quota=self.quota)
        except Exception as error:  # noqa: BLE001 - handed to the thread that runs the worker
            outcome = error
        self._done.put((namespace, outcome))

    def _take(self, namespace: Namespace, outcome: Outcome, *, once: bool) -> None:
        """Note what became of a namespace."""
        self._in_hand.discard(namespace)
        if isinstance(outcome, QuotaError):
            self._goes_on_at = time.monotonic() + outcome.seconds
            if outcome.lasting:
                self.core.parts.learner.tell(outcome)
                self._goes_on_at = NEVER if once else time.monotonic() + LONGEST_POLL
            return
        if not isinstance(outcome, ReflectionReport) or outcome.error:
            self._passed.add(namespace)  # somebody else does it, or it rests
        if isinstance(outcome, ReflectionReport):
            if once:
                self._reports.append(outcome)
            if self.tell is not None:
                self.tell(outcome)
        elif outcome is not None:
            if once:
                raise outcome
            self.core.failed("worker", outcome)

    def _finish(self) -> None:
        """Let what is in hand end, until the time is over or `stop` is called again."""
        while self._in_hand:
            try:
                namespace, outcome = self._done.get(timeout=self._left())
            except Empty:
                return
            if namespace == STOP:
                self._end = time.monotonic()
                return
            self._take(namespace, outcome, once=False)
