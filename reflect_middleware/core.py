"""What all wrapped agents of a Reflection share: how a run begins, what is done when ours fails, the end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from reflect_middleware.counters import Count, Counters, words
from reflect_middleware.errors import LedgerUnavailableError
from reflect_middleware.finder import Finder
from reflect_middleware.keeper import Keeper
from reflect_middleware.lanes import Lane, once
from reflect_middleware.options import Options
from reflect_middleware.outage import Outage
from reflect_middleware.parts import Parts
from reflect_middleware.planning import planned
from reflect_middleware.retention import Housekeeper
from reflect_middleware.session import Session, Spec
from reflect_middleware.types import Preview

logger = logging.getLogger(__name__)
GRACE_SECONDS = 2.0
"""How long claims may be given back, and files closed, where work has used `exit_timeout` up."""
tracks: ContextVar[tuple[list[Session], ...]] = ContextVar("reflect_tracks", default=())


class Core:
    """The inner side of a Reflection."""

    parts_class, finder_class, keeper_class = Parts, Finder, Keeper
    frozen = ""
    """The file of lessons that it serves, and nothing else; empty for a Reflection that learns."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.closed = False
        self.rules = {options.rule}
        """How the namespaces of all its agents are found."""
        self.parts = self.parts_class(self)
        self.counters = Counters(self._write_counts)
        self.finder = self.finder_class(self)
        self.keeper = self.keeper_class(self)
        self.housekeeper = Housekeeper(self)
        self.calls = Lane("calls", threads=4)
        """For the async twins: apart from retrieval, whose threads a hanging embedder may hold."""
        self._warned: set[str] = set()
        _alive.add(self)
        keeper = self.keeper
        ours = (self.finder.lane, self.calls, self.counters.lane, self.housekeeper.lane)
        lanes = (*ours, keeper.judge, keeper.outage.lane, keeper.writer)
        weakref.finalize(self, _stop, lanes).atexit = False  # at exit `_close_all` waits for what is queued

    def begin(self, spec: Spec, graph_input: Any, config: Mapping[str, Any], context: Any) -> Session | None:
        """A session for a run that starts now; None if it is none of our business."""
        if self.closed or off():
            return None
        try:
            plan = planned(self, spec, graph_input, config, context)
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self.failed("begin", error)
            return None
        if plan is None:
            return None
        session = Session(core=self, plan=plan, resumed_id=self.keeper.lately.failed_attempt(plan))
        for track in tracks.get():
            track.append(session)
        return session

    def preview(self, spec: Spec, graph_input: Any, config: Mapping[str, Any], context: Any) -> Preview:
        """What a run on this input would get; reads only."""
        plan = planned(self, spec, graph_input, config, context)
        if plan is None:
            return Preview(task="", namespace=(), block="", tokens=0, reason="the run has no namespace, or is off")
        choice, _ = self.finder.find(plan)
        reason = "" if choice.block else "no lesson fits" if choice.considered else "no active lessons, or paused"
        return Preview(
            task=plan.task,
            namespace=plan.namespace,
            read=plan.read,
            block=choice.block,
            tokens=choice.tokens,
            lessons=choice.considered,
            reason=reason,
        )

    def safely(self, where: str, work: Callable[[], Any]) -> None:
        """Run work of ours; a failure is noted, not raised."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self.failed(where, error)

    def failed(self, where: str, error: BaseException) -> None:
        """Note a failure of ours: logged, the first of its kind as a warning, and counted for `reflect doctor`."""
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        times = self.counters.repeats(f"{where}:{type(error).__name__}")
        if times is None:
            logger.debug("reflect: %s failed again: %s", where, text)
        else:
            again = f" ({times} times since this was last said)" if times > 1 else ""
            logger.warning("reflect: %s failed, the run goes on without it: %s%s", where, words(error), again)
            logger.debug("reflect: where %s failed", where, exc_info=error)
        self.counters.add(where, text)

    def warn_once(self, agent: str, text: str) -> None:
        """Warn, once for each agent or matter."""
        if agent not in self._warned:
            self._warned.add(agent)
            logger.warning("reflect: %s", text)

    def drain(self, timeout: float | None) -> bool:
        """Wait for records, rewards and due reflections; False if `timeout` seconds passed first.

        And if one of them has called this, in a user's callable: it cannot be waited for there.
        """
        end = None if timeout is None else time.monotonic() + timeout
        left: Callable[[], float | None] = lambda: None if end is None else max(0.0, end - time.monotonic())  # noqa: E731
        done = all(lane.wait_idle(left()) for lane in self._lanes())
        return done and self.counters.settle(left())  # with a ledger that hangs it would take for ever

    def close(self, timeout: float | None = None) -> None:
        """Write what is queued, give running work `timeout` seconds (`exit_timeout`), release the rest."""
        if self.closed:
            return
        self.closed = True
        end = time.monotonic() + (self.options.exit_timeout if timeout is None else timeout)
        try:
            self.drain(max(0.0, end - time.monotonic()))
            if self.parts.opened("learner"):
                self.parts.learner.last_call()
                self.parts.learner.lane.wait_idle(max(0.0, end - time.monotonic()))
        finally:  # also after a second Ctrl-C
            self.keeper.outage.close()
            self._close_parts(max(GRACE_SECONDS, end - time.monotonic()))
            self.counters.close()
            for lane in (self.keeper.judge, self.finder.lane, self.calls, self.keeper.writer, self.housekeeper.lane):
                lane.stop()

    def _close_parts(self, seconds: float) -> None:
        """Close what is open; a ledger or a store that hangs is waited for no longer than this."""
        try:
            done = once("close", self.parts.close)
        except RuntimeError:  # while the interpreter ends, Python may refuse to begin a thread
            self.parts.close()
        else:
            with contextlib.suppress(TimeoutError):
                done.result(seconds)

    def renew(self) -> None:
        """Start afresh in a forked child."""
        for part in (self.parts, self.finder, self.keeper, self.counters):
            part.renew()

    def _lanes(self) -> Iterator[Lane | Outage]:
        """In the order in which work moves on; the writer again at the end, for what failed on the way.

        And twice at first: it queues behind each record what that sets off. Only after that it is known which of the
        other parts are in use.
        """
        keeper = self.keeper
        yield from (keeper.writer, keeper.writer, keeper.judge, keeper.writer, keeper.outage)
        if self.parts.opened("learner"):
            yield self.parts.learner.lane
        if self.parts.opened("index"):
            yield self.parts.index.lane
        yield keeper.writer

    def _write_counts(self, counts: Mapping[str, Count]) -> None:
        if not self.keeper.outage.up:
            raise LedgerUnavailableError("The ledger is away; what was counted is kept until it is back.")
        self.parts.ledger.health.add({n: replace(x, last=x.last and self._redacted(x.last)) for n, x in counts.items()})

    def _redacted(self, text: str) -> str:
        """An error's text as it may be stored: it can quote what the user wants kept out."""
        if (clean := self.options.redact) is None:
            return text
        try:
            return str(clean(text))
        except Exception:  # noqa: BLE001 - the user's callable, whose own failure this may be
            return text.partition(":")[0]


def off() -> bool:
    """Whether the environment switches everything off."""
    return os.environ.get("REFLECT", "").lower() == "off"


_alive: weakref.WeakSet[Core] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """At exit: records are written, running work gets its time, claims are released."""
    for core in list(_alive):
        core.safely("close", core.close)


def _stop(lanes: tuple[Lane, ...]) -> None:
    for lane in lanes:
        lane.stop()


def _renew_all() -> None:
    for core in list(_alive):
        core.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
