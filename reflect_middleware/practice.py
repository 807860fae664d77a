"""A practice under way: rollouts, their rewards, a reflection after each round, and what is known of them so far.

All of its state is in the ledger: the name of each rollout's place is an alias of its episode. Whoever starts the same
practice again finds what is done, and goes on.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from reflect_middleware.core import tracks
from reflect_middleware.errors import LedgerUnavailableError, QuotaError
from reflect_middleware.practice_known import Known
from reflect_middleware.practice_plan import Budget, Phase, Place, Plan, Round, Used
from reflect_middleware.practice_report import PracticeProgress, PracticeReport, Stopped, used_of
from reflect_middleware.reward import call
from reflect_middleware.slot import Slot, here

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.reflections_table import Claim
    from reflect_middleware.session import Session
    from reflect_middleware.types import Episode, Namespace

FAILURES = 3
"""After so many failed reflections in a row a practice stops."""
BUSY_SECONDS = 0.2
"""How long it waits before it looks again whether another reflection of the namespace is over."""
FINAL = ("interrupted", "failed", "daily_tokens")
"""After such an end nothing more is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a practice was told."""

    graph: Any
    """Wrapped."""
    plan: Plan
    reward: Callable[..., Any] | None
    budget: Budget
    config: Mapping[str, Any] = field(default_factory=dict)
    context: Any = None
    tell: Callable[[PracticeProgress], Any] | None = None
    clock: Callable[[], float] = time.monotonic


class Course:
    """One call of a practice. `rounds`, `rollout` and `ended` are called by a driver; rollouts on many threads."""

    def __init__(self, core: Core, job: Job) -> None:
        self.core = core
        self.job = job
        self.known = Known(core, job.plan, asked=job.reward is not None)
        self.stopped: Stopped | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._running = self._failures = 0
        self._left: list[str] = []
        self._began = self.job.clock()
        self._kept = 0.0

    def rounds(self) -> Iterator[Round]:
        """The rounds with the places that are still to be done; none after a stop, but for the last measurement."""
        self.known.load(self._judged)
        for found in self.known.teaching:
            if self.stopped:
                break
            self._tell(found.phase, found.epoch)
            began = self.job.clock()
            yield replace(found, places=self.known.missing(found))
            if found.phase == "before":
                self._kept = self.job.clock() - began
        self._once_more()
        before, after = self.known.before, self.known.after
        if self.stopped not in FINAL and before and after and not self.known.missing(before):
            yield replace(after, places=self.known.missing(after))

    def rollout(self, place: Place) -> None:
        """Run the agent once, and ask for its reward. An error of the agent's is the episode's business."""
        if (begun := self._begin(place)) is None:
            return
        with self._ending(place, begun), contextlib.suppress(Exception):
            self.job.graph.invoke(*self._given(place), **self._more())
        self._end(place, begun)

    async def arollout(self, place: Place, away: Callable[[Callable[[], None]], Any]) -> None:
        """As `rollout`, on an event loop; `away` does blocking work elsewhere."""
        if (begun := self._begin(place)) is None:
            return
        with self._ending(place, begun), contextlib.suppress(Exception):
            await self.job.graph.ainvoke(*self._given(place), **self._more())
        await away(lambda: self._end(place, begun))

    def ended(self, found: Round) -> None:
        """A round is over: reflect on what it taught."""
        if found.phase == "train" and self.stopped != "interrupted":
            whole = next(r for r in self.known.teaching if r.number == found.number)
            self._reflect([*self._left, *(outcome.episode_id for outcome in self.known.done(whole))])
        self._tell(found.phase, found.epoch)

    def stop(self, why: Stopped) -> None:
        """Begin nothing more; what is under way is finished."""
        with self._lock:
            self.stopped = why
        self._stopping.set()

    def report(self) -> PracticeReport:
        """What is known now."""
        return self.known.report(self.stopped, self.job.clock() - self._began)

    # One rollout.

    def _begin(self, place: Place) -> list[Session] | None:
        """Take the place up, unless the practice has stopped or a limit is reached; gives what collects its run."""
        with self._lock:
            if place.phase == "after":
                if self.stopped in ("interrupted", "failed"):
                    return None
            elif self.stopped is None and (limit := self._limit(place)):
                self.stopped = limit
            if self.stopped and place.phase != "after":
                return None
            self._running += 1
        return []

    def _limit(self, place: Place) -> Any:
        """The limit that is reached; what the last measurement will need is kept for it."""
        known, kept = self.known, Used()
        if place.phase == "train":
            kept = used_of(known.done(known.before), seconds=self._kept)
        seconds = self.job.clock() - self._began
        tokens = known.tokens + known.reflector_tokens
        used = Used(episodes=len(known.outcomes) + self._running, tokens=tokens, seconds=seconds)
        return self.job.budget.ended(used, kept)

    @contextlib.contextmanager
    def _ending(self, place: Place, begun: list[Session]) -> Iterator[None]:
        """Tell the run its place, and find it again."""
        slot = Slot(
            alias=place.name,
            measured=place.phase != "train",
            hold=self.core.options.resume_within,
            task_key=place.key,
            reference=place.task.reference,
        )
        told, tracked = here.set(slot), tracks.set((*tracks.get(), begun))
        try:
            yield
        except BaseException:  # cancelled: recorded as that, and done again by the next call
            with self._lock:
                self._running -= 1
            raise
        finally:
            tracks.reset(tracked)
            here.reset(told)

    def _given(self, place: Place) -> tuple[Any, dict[str, Any]]:
        """Input and config, which no two rollouts share."""
        config = dict(self.job.config)
        configurable = dict(config.get("configurable") or {})
        if getattr(self.job.graph, "checkpointer", None):
            configurable["thread_id"] = str(uuid4())
        where = {
            "practice": self.job.plan.name,
            "practice_phase": place.phase,
            "practice_epoch": place.epoch,
            "practice_task": place.key,
            "practice_rollout": place.rollout,
        }
        config |= {"configurable": configurable, "metadata": {**(config.get("metadata") or {}), **where}}
        return copy.deepcopy(place.task.input), config

    def _more(self) -> dict[str, Any]:
        return {} if self.job.context is None else {"context": self.job.context}

    def _end(self, place: Place, begun: list[Session]) -> None:
        episode: Episode | None = None
        try:
            session = next((s for s in begun if s.plan.slot is not None and s.plan.slot.alias == place.name), None)
            if session is None:
                self.known.note("runs were not recorded: REFLECT is off, or the graph refused their input or config")
            else:
                episode = self._judged(place, self._read(session.episode_id))
        finally:
            with self._lock:  # together, so that no limit sees the run twice
                if episode is not None:
                    self.known.keep(place, episode)
                self._running -= 1
        self._tell(place.phase, place.epoch)

    def _read(self, episode_id: str) -> Episode:
        """The episode, behind the writer's queue."""
        table = self.core.parts.ledger.episodes
        found = self.core.keeper.writer.submit(lambda: table.many([episode_id])).result()
        if not found:
            raise LedgerUnavailableError(
                f"The rollout {episode_id!r} could not be written; it waits in a file beside the ledger."
                f" Start the same practice again, with name={self.job.plan.name!r}, when the ledger is back."
            )
        return found[0]

    def _judged(self, place: Place, episode: Episode) -> Episode:
        """The episode with its rewards."""
        if self.job.reward is None or episode.status == "interrupted":
            return episode
        try:
            rewards = [self.core.keeper.cleaned(reward) for reward in call(self.job.reward, episode)]
        except Exception as error:  # noqa: BLE001 - the user's callable
            self.core.failed("reward", error)
            self.known.note(f"the reward callable failed: {type(error).__name__}: {error}")
            return episode
        if not rewards:
            return episode
        self.core.parts.ledger.practice.judge(episode.id, rewards)
        return self.core.parts.ledger.episodes.get(episode.id)

    # The reflection after a round.

    def _reflect(self, ids: list[str]) -> None:
        """Reflect on those of these episodes that nobody has read, and on no others that wait."""
        spaces = {outcome.episode_id: outcome.namespace for outcome in self.known.outcomes.values()}
        waiting = self.core.parts.ledger.practice.unread(dict.fromkeys(ids))
        self._left = []
        for namespace in dict.fromkeys(spaces[i] for i in waiting):
            mine = [i for i in waiting if spaces[i] == namespace]
            try:
                claim = self._claimed(namespace, mine)
            except QuotaError:
                self.stop("daily_tokens")
                return
            if claim is not None:
                self._run(claim)

    def _once_more(self) -> None:
        """What a failed reflection has left at the end is tried again, until it is read or given up."""
        while self._left and self.stopped not in FINAL:
            self._reflect(self._left)

    def _claimed(self, namespace: Namespace, ids: list[str]) -> Claim | None:
        """These episodes, once no other reflection of the namespace is under way; None if others have read them."""
        learner, ledger = self.core.parts.learner, self.core.parts.ledger
        options = self.core.options
        while not self._stopping.is_set():
            claim = ledger.reflections.claim(
                namespace,
                learner.owner,
                at_least=1,
                at_most=len(ids),
                lease=options.lease,
                whatever=True,
                quota=options.quota,
                only=ids,
            )
            if claim is not None or not ledger.practice.unread(ids):
                return claim
            self._stopping.wait(BUSY_SECONDS)
        return None

    def _run(self, claim: Claim) -> None:
        report = self.core.parts.learner.reflecting.run(claim)
        self.known.know(report.reflections)
        if not report.error:
            self._failures = 0
            return
        self.known.errors.append(report.error)
        self._left += claim.episodes  # read with those of the next round
        self._failures += 1
        if self._failures >= FAILURES:
            self.stop("failed")

    def _tell(self, phase: Phase, epoch: int) -> None:
        if (tell := self.job.tell) is not None:
            self.core.safely("progress", lambda: tell(self.known.progress(phase, epoch)))
