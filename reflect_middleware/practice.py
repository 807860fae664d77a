"""A practice under way: rollouts, their rewards, a reflection after each round, and what is known of them so far.

All of its state is in the ledger: the name of each rollout's place is an alias of its episode. Whoever starts the same
practice again finds what is done, and goes on.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from reflect_middleware.core import tracks
from reflect_middleware.errors import LedgerUnavailableError, QuotaError, ReflectError
from reflect_middleware.practice_plan import Budget, Place, Plan, Round, Used
from reflect_middleware.practice_report import (
    Outcome,
    PracticeProgress,
    PracticeReport,
    Stopped,
    measured,
    outcome_of,
    point,
    points,
    used_of,
)
from reflect_middleware.reward import call
from reflect_middleware.slot import Slot, here

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.reflections_table import Claim
    from reflect_middleware.session import Session
    from reflect_middleware.types import Episode, Namespace, ReflectionRecord

logger = logging.getLogger(__name__)
FAILURES = 3
"""After so many failed reflections in a row a practice stops."""
BUSY_SECONDS = 0.2
"""How long it waits before it looks again whether another reflection of the namespace is over."""
PORTION = 50
"""Episodes that are read at once: of each, only its outcome is kept."""
UNASKED = ("implicit", "self")
"""Sources of rewards that no callable gives."""


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
        self.outcomes: dict[str, Outcome] = {}
        self.reflections: dict[str, ReflectionRecord] = {}
        self.stopped: Stopped | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._running = self._resumed = self._failures = self._wasted = 0
        self._errors: list[str] = []
        self._notes: dict[str, None] = {}
        self._left: list[str] = []
        self._began = self.job.clock()
        self._kept = 0.0
        self._rounds = tuple(job.plan.rounds())
        self._total = sum(len(found.places) for found in self._rounds)
        self._tokens = 0

    def rounds(self) -> Iterator[Round]:
        """The rounds with the places that are still to be done; none after a stop, but for the last measurement."""
        self._load()
        for found in self._rounds:
            if found.phase == "after":
                self._once_more()
            if self.stopped in ("interrupted", "failed", "daily_tokens"):
                return
            if self.stopped and (found.phase != "after" or not self._complete("before")):
                continue
            self._tell(found.phase, found.epoch)
            began = self.job.clock()
            yield replace(found, places=tuple(place for place in found.places if place.name not in self.outcomes))
            if found.phase == "before":
                self._kept = self.job.clock() - began
        self._once_more()

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
            whole = next(r.places for r in self._rounds if r.number == found.number)
            done = [self.outcomes[place.name].episode_id for place in whole if place.name in self.outcomes]
            self._reflect([*self._left, *done])
        self._tell(found.phase, found.epoch)

    def stop(self, why: Stopped) -> None:
        """Begin nothing more; what is under way is finished."""
        with self._lock:
            self.stopped = why
        self._stopping.set()

    def report(self) -> PracticeReport:
        """What is known now."""
        plan, done = self.job.plan, list(self.outcomes.values())
        curves = points(self._rounds, self.outcomes)
        lessons = self._lessons()
        shown = {lesson for outcome in done for lesson in outcome.shown}
        return PracticeReport(
            name=plan.name,
            agent=plan.agent,
            stopped=self.stopped or "done",
            tasks=len(plan.train),
            held_out=len(plan.held_out),
            rollouts=plan.rollouts,
            runs=len(done),
            resumed=self._resumed,
            runs_failed=sum(outcome.failed for outcome in done),
            runs_interrupted=sum(outcome.interrupted for outcome in done),
            runs_unjudged=sum(outcome.value is None for outcome in done),
            epochs=curves["epochs"],
            rounds=curves["rounds"],
            before=next(iter(curves["before"]), None),
            after=next(iter(curves["after"]), None),
            measured=measured(self._rounds, self.outcomes),
            reflections=tuple(r.id for r in self.reflections.values() if r.status == "done"),
            errors=tuple(self._errors),
            lessons=lessons,
            useful=tuple(lesson.id for lesson in lessons if lesson.status == "active" and lesson.id in shown),
            agent_tokens=used_of(done).tokens,
            reflector_tokens=self._reflector_tokens,
            seconds=self.job.clock() - self._began,
            notes=(*self._notes, *_waiting(lessons)),
        )

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
        kept = Used()
        if place.phase == "train" and self._rounds[0].phase == "before":
            places = self._rounds[0].places
            kept = used_of((self.outcomes[p.name] for p in places if p.name in self.outcomes), seconds=self._kept)
        seconds = self.job.clock() - self._began
        tokens = self._tokens + self._reflector_tokens
        used = Used(episodes=len(self.outcomes) + self._running, tokens=tokens, seconds=seconds)
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
        try:
            session = next((s for s in begun if s.plan.slot is not None and s.plan.slot.alias == place.name), None)
            if session is None:
                self._note("runs were not recorded: the graph refused its input or config before it began")
            else:
                self._keep(place, self._judged(place, self._read(session.episode_id)))
        finally:
            with self._lock:
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
            self._note(f"the reward callable failed: {type(error).__name__}: {error}")
            return episode
        if not rewards:
            return episode
        self.core.parts.ledger.practice.judge(episode.id, rewards)
        return self.core.parts.ledger.episodes.get(episode.id)

    def _keep(self, place: Place, episode: Episode) -> None:
        with self._lock:
            self.outcomes[place.name] = kept = outcome_of(place, episode, asked=self.job.reward is not None)
            self._tokens += kept.tokens

    # The reflection after a round.

    def _reflect(self, ids: list[str]) -> None:
        """Reflect on those of these episodes that nobody has read, and on no others that wait."""
        table, spaces = self.core.parts.ledger.practice, {o.episode_id: o.namespace for o in self.outcomes.values()}
        waiting = table.unread(dict.fromkeys(ids))
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
        while self._left and self.stopped not in ("interrupted", "failed", "daily_tokens"):
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
        self._know(report.reflections)
        if not report.error:
            self._failures = 0
            return
        self._errors.append(report.error)
        self._left += claim.episodes  # read with those of the next round
        self._failures += 1
        if self._failures >= FAILURES:
            self.stop("failed")

    # What is known.

    def _load(self) -> None:
        """Take up what earlier calls did. Who was killed before it had asked for a reward asks now."""
        ledger, places = self.core.parts.ledger, {place.name: place for found in self._rounds for place in found.places}
        ids = ledger.practice.places(places)
        by_id = {episode_id: places[name] for name, episode_id in ids.items()}
        wanted, read = list(by_id), set[str]()
        for first in range(0, len(wanted), PORTION):
            for episode in ledger.episodes.many(wanted[first : first + PORTION]):
                asked = any(reward.source not in UNASKED for reward in episode.rewards)
                place = by_id[episode.id]
                self._keep(place, episode if asked else self._judged(place, episode))
                if place.phase == "train" and episode.reflection_id:
                    read.add(episode.reflection_id)
        self._resumed = len(self.outcomes)
        self._know(read)

    def _know(self, ids: Iterable[str]) -> None:
        for reflection_id in ids:
            with contextlib.suppress(ReflectError):  # purged meanwhile
                self.reflections[reflection_id] = self.core.parts.ledger.reflections.get(reflection_id)

    def _complete(self, phase: str) -> bool:
        return all(p.name in self.outcomes for found in self._rounds if found.phase == phase for p in found.places)

    @property
    def _reflector_tokens(self) -> int:
        return sum(record.input_tokens + record.output_tokens for record in self.reflections.values())

    def _lesson_ids(self) -> tuple[str, ...]:
        outcomes = [o for record in self.reflections.values() for o in record.outcomes if o.accepted and o.lesson_id]
        return tuple(dict.fromkeys(outcome.lesson_id for outcome in outcomes))

    def _lessons(self) -> tuple[Any, ...]:
        from reflect_middleware.nearby import with_statistics

        parts = self.core.parts
        return tuple(with_statistics(parts, parts.ledger.lessons.many(self._lesson_ids())))

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes[text] = None

    def _tell(self, phase: Any, epoch: int) -> None:
        if self.job.tell is None:
            return
        with self._lock:
            done = list(self.outcomes.values())
            of_phase = [o for o in done if o.place.phase == phase and o.place.epoch == epoch]
            progress = PracticeProgress(
                name=self.job.plan.name,
                phase=phase,
                epoch=epoch,
                done=len(done),
                total=self._total,
                success=point(phase, epoch, of_phase).success,
                reflections=sum(record.status == "done" for record in self.reflections.values()),
                lessons=len(self._lesson_ids()),
                tokens=used_of(done).tokens + self._reflector_tokens,
            )
        self.core.safely("progress", lambda: self.job.tell and self.job.tell(progress))


def _waiting(lessons: Iterable[Any]) -> tuple[str, ...]:
    """What a reader should know where lessons wait for approval."""
    count = sum(lesson.status == "candidate" for lesson in lessons)
    return (f"{count} lessons wait for approval: no run has seen them",) if count else ()
