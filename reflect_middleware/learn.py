"""When a reflection runs: as soon as the cadence is due, on a thread of its own, one after the other."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reflect_middleware.errors import LedgerError
from reflect_middleware.lanes import Lane
from reflect_middleware.reflecting import Reflecting
from reflect_middleware.reflections_table import Claim
from reflect_middleware.signals import carried
from reflect_middleware.types import Namespace, ReflectionReport, new_id

if TYPE_CHECKING:
    from reflect_middleware.core import Core

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 0.25
"""How long a due reflection holds back in the background, so that a reward given right after a run is read with it."""
ABANDON_SECONDS = 60.0
"""How often it is checked whether an interrupted episode counts as abandoned."""
BACK_OFF = (5.0, 600.0)
"""Seconds after a failed reflection before the namespace is tried again: doubled each time, from and to."""


class Learner:
    """Runs reflections on a thread of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.options = core.options
        self.lane = Lane("reflect")
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
        self._queued: set[Namespace] = set()
        self._timers: dict[Namespace, threading.Timer] = {}
        self._failures: dict[Namespace, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self.reflecting = Reflecting(core)
        self._closing = threading.Event()
        self._abandon_at = 0.0

    def poke(self, namespace: Namespace) -> None:
        """An episode may have become ready: look, in the background, whether a reflection is due."""
        if self.options.run != "background" or not self._able:
            return
        with self._lock:
            if namespace in self._queued:
                return
            self._queued.add(namespace)
        self.lane.submit(lambda: self._poked(namespace))

    def rewarded(self, namespace: Namespace) -> None:
        """A reward came, which may have made an episode ready."""
        if self.options.run == "inline" and self.lane.here:  # from a reflector or from `on_reflection`
            self.lane.submit(lambda: self._run_due(namespace))
        elif self.options.run == "inline":
            self.run_due_and_wait(namespace)
        else:
            self.poke(namespace)

    def run_due_and_wait(self, namespace: Namespace) -> None:
        """Run what is due now and wait for it."""
        self.lane.submit(lambda: self._run_due(namespace)).result()

    def reflect(self, namespace: Namespace) -> ReflectionReport:
        """Reflect on everything that has ended, in batches of the cadence's size, and wait for it."""
        return self.lane.submit(carried(lambda: self._reflect_on_all(namespace))).result()

    def close(self) -> None:
        """Give back an unfinished batch; it counts as no try."""
        self._closing.set()
        with self._lock:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            claim = self.reflecting.claim
        if claim is not None:
            logger.info("reflect: an unfinished reflection on %d episodes is released", len(claim.episodes))
            self.core.parts.ledger.reflections.release(claim)
        self.lane.stop()

    # On the lane.

    def _poked(self, namespace: Namespace) -> None:
        with self._lock:
            self._queued.discard(namespace)
        try:
            if self.options.cadence.due(self.core.parts.ledger.reflections.ready(namespace)):
                self._closing.wait(SETTLE_SECONDS)
            self._run_due(namespace)
            self._wake_up_later(namespace)
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread
            self.core.failed("reflect", error)
            if isinstance(error, LedgerError) and error.temporary:
                self.core.keeper.outage.missed(namespace, error)

    @property
    def _able(self) -> bool:
        """Whether there is anything to reflect with; without it episodes wait."""
        return self.options.learn and (self.options.model is not None or self.options.reflector is not None)

    def _run_due(self, namespace: Namespace) -> None:
        table = self.core.parts.ledger.reflections
        self._abandon()
        while self._able and not self._resting(namespace) and not self.core.parts.ledger.lessons.paused():
            if not self.options.cadence.due(table.ready(namespace)):
                return
            claim = self._claimed(namespace, at_least=1, whatever=False)
            if claim is None or self._reflected(claim).error:
                return

    def _reflected(self, claim: Claim) -> ReflectionReport:
        """Reflect; after a failure the namespace rests, longer each time."""
        report = self.reflecting.run(claim)
        count, _ = self._failures.pop(claim.namespace, (0, 0.0))
        if report.error:
            pause = min(BACK_OFF[0] * 2**count, BACK_OFF[1])
            self._failures[claim.namespace] = (count + 1, time.monotonic() + pause)
        return report

    def _abandon(self) -> None:
        """Now and then: interrupted episodes that nobody resumed are over."""
        if time.monotonic() >= self._abandon_at:
            self._abandon_at = time.monotonic() + ABANDON_SECONDS
            self.core.parts.ledger.episodes.abandon(time.time() - self.options.resume_within)

    def _reflect_on_all(self, namespace: Namespace) -> ReflectionReport:
        reports: list[ReflectionReport] = []
        self._abandon()
        while (claim := self._claimed(namespace, at_least=1, whatever=True)) is not None:
            reports.append(self._reflected(claim))
            if reports[-1].error:
                break
        return _joined(namespace, reports)

    def _claimed(self, namespace: Namespace, *, at_least: int, whatever: bool) -> Claim | None:
        return self.core.parts.ledger.reflections.claim(
            namespace,
            self.owner,
            at_least=at_least,
            at_most=self.options.cadence.batch,
            lease=self.options.lease,
            whatever=whatever,
        )

    def _resting(self, namespace: Namespace) -> bool:
        return time.monotonic() < self._failures.get(namespace, (0, 0.0))[1]

    def _wake_up_later(self, namespace: Namespace) -> None:
        """Look again when the next episode stops waiting for its reward, or a failure's rest is over."""
        at = self.core.parts.ledger.reflections.next_ready_at(namespace)
        wait = None if at is None else max(0.0, at - time.time()) + 0.01
        if self._resting(namespace):
            rest = self._failures[namespace][1] - time.monotonic()
            wait = rest if wait is None else max(wait, rest)
        if wait is None or self.core.closed:
            return
        timer = threading.Timer(wait, self.poke, (namespace,))
        timer.daemon = True
        with self._lock:
            if (old := self._timers.get(namespace)) is not None:
                old.cancel()
            self._timers[namespace] = timer
        timer.start()


def _joined(namespace: Namespace, reports: Sequence[ReflectionReport]) -> ReflectionReport:
    """One report over several reflections."""
    return ReflectionReport(
        namespace=namespace,
        reflections=tuple(i for r in reports for i in r.reflections),
        episodes=tuple(i for r in reports for i in r.episodes),
        accepted=tuple(o for r in reports for o in r.accepted),
        rejected=tuple(o for r in reports for o in r.rejected),
        lessons=tuple({lesson.id: lesson for r in reports for lesson in r.lessons}.values()),
        input_tokens=sum(r.input_tokens for r in reports),
        output_tokens=sum(r.output_tokens for r in reports),
        error=next((r.error for r in reports if r.error), ""),
    )
