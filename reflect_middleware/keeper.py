"""Keeping what a run did: its record, what its reward callable says, and which result belongs to it."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from reflect_middleware.decisions import PREFIX, asked_in, numbered, rewards_of
from reflect_middleware.due import counts
from reflect_middleware.errors import LedgerError
from reflect_middleware.lanes import Lane
from reflect_middleware.reward import call, rewards_in
from reflect_middleware.session import Plan, Session
from reflect_middleware.telemetry import evaluated, remember
from reflect_middleware.types import Episode, EpisodeStatus, Namespace, Reward, now

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.episodes_table import Record

UNSAVED = 1_000
"""Most records kept in memory while the ledger cannot be written."""
RESULTS = 64
"""Of how many latest runs the result object itself is known."""
ATTEMPTS = 1_000
"""Most failed runs of nodes that are remembered in case a RetryPolicy runs them again."""


class Keeper:
    """The writer's thread and the reward callables' thread."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.writer = Lane("writer")
        self.judge = Lane("rewards")
        self.timeout: float | None = None if core.options.run == "inline" else 2.0
        """Seconds a run waits at most for its commit; None (`run="inline"`): for all that follows from it, too."""
        self.overdue: Future[Any] | None = None
        """A commit that a run has stopped waiting for; until it is done no other run waits."""
        self.renew()

    def renew(self) -> None:
        """Start afresh, in a new process."""
        self._lock = threading.RLock()  # a garbage collection inside the lock may end an abandoned run
        self._unsaved: deque[Record] = deque(maxlen=UNSAVED)
        self._results: OrderedDict[int, tuple[Any, str]] = OrderedDict()
        self._failed: OrderedDict[tuple[str, ...], tuple[str, str]] = OrderedDict()

    def finish(self, session: Session, status: EpisodeStatus, error: BaseException | None) -> Future[Any] | None:
        """Queue a run's record; what depends on it follows on other threads. None if there is nothing to wait for."""
        if not session.plan.learn:
            return None
        self._remember(session)
        remember(session.episode_id, session.span_context)
        if status == "failed" and session.plan.execution:
            self._note_attempt(session)
        ended = now()
        done = self.writer.submit(lambda: self._write(session, status, error, ended))
        if self.core.options.run == "inline":
            settled = self.judge.submit(lambda: self._settle(done, session, ended.timestamp()))
            return done if self.judge.within else settled  # a run inside a reflector, which the judge waits for
        return None if self.core.options.durability == "queue" else done

    def result(self, given: Any) -> str | None:
        """The episode whose run gave exactly this object."""
        with self._lock:
            held = self._results.get(id(given))
        return held[1] if held is not None and held[0] is given else None

    def failed_attempt(self, plan: Plan) -> str:
        """The failed episode of which this run is another attempt; empty for none."""
        key = (*plan.execution, plan.task)
        if not plan.execution or key not in self._failed:
            return ""
        with self._lock:
            attempt, episode_id = self._failed.get(key, (plan.attempt, ""))
            if attempt == plan.attempt:
                return ""
            self._failed.pop(key, None)  # one run goes on with it
            return episode_id

    def cleaned(self, reward: Reward) -> Reward:
        """A reward with its words redacted."""
        if (clean := self.core.options.redact) is None:
            return reward
        return reward.model_copy(update={"comment": clean(reward.comment), "correction": clean(reward.correction)})

    def _write(self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime) -> str:
        try:
            record = self._record(session, status, error, ended)
            self._unsaved.append(record)
            self._save()
        except Exception as failure:  # noqa: BLE001 - nobody waits for a record at `durability="queue"`
            self.core.failed("record", failure)
            return ""
        for reward in record.rewards:
            evaluated(record.episode.id, reward)
        if self.core.options.run != "inline":
            self._follow_up(session, record.episode, ended.timestamp())
        return record.episode.id

    def _record(self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime) -> Record:
        from reflect_middleware.recording import record_of

        plan, episodes = session.plan, self.core.parts.ledger.episodes
        if plan.resume is not None and not session.resumed_id and plan.thread_id:
            # Retrieval, which looks for it too, may have been late or resting.
            standing = episodes.interrupted(plan.spec.agent, plan.thread_id, plan.checkpoint_ns)
            session.resumed_id = standing.id if standing else ""
        earlier = self._earlier(session)
        options, asked = self.core.options, self._reward_of(session) is not None
        wait = options.reward_timeout if asked else options.reward_wait
        record = record_of(
            session, status, error, ended, earlier=earlier, wait=wait, asked=asked, redact=options.redact
        )
        given = () if earlier is None else self._decided(earlier, plan.resume)
        sampled = counts(status, record.episode.id, rewarded=bool(given), sample=options.sample)
        return replace(record, rewards=given, sampled=sampled)

    def _decided(self, earlier: Episode, resume: tuple[Any, ...] | None) -> tuple[Reward, ...]:
        """The reviewer's decisions with which an interrupted run went on."""
        if not resume or resume[0] is None:
            return ()
        asked, custom = asked_in(earlier), self.core.options.decision
        try:
            if custom is None:
                found = rewards_of(asked, resume[0])
            else:
                answer = custom([value for _, value in asked], resume[0])
                found = rewards_in(answer, source="user", key=f"{PREFIX}custom")
            return numbered([self.cleaned(reward) for reward in found], earlier.rewards)
        except Exception as error:  # noqa: BLE001 - the user's callables
            self.core.failed("decision", error)
            return ()

    def _earlier(self, session: Session) -> Episode | None:
        """The episode that a run goes on with; it is a new one if that was purged, or has been reflected on."""
        found = self.core.parts.ledger.episodes.many([session.resumed_id]) if session.resumed_id else ()
        earlier = next((e for e in found if e.status == "interrupted" or not (e.reflection_id or e.dead_letter)), None)
        session.resumed_id = earlier.id if earlier else ""
        return earlier

    def _save(self) -> None:
        """Write all records that wait; what a full or locked ledger refuses is tried again with the next one."""
        while self._unsaved:
            try:
                self.core.parts.ledger.episodes.put(self._unsaved[0])
            except LedgerError:
                raise
            except Exception:
                self._unsaved.popleft()
                raise
            self._unsaved.popleft()

    def _reward_of(self, session: Session) -> Callable[..., Any] | None:
        return session.plan.spec.reward or self.core.options.reward

    def _follow_up(self, session: Session, episode: Episode, ended: float) -> None:
        if episode.status == "interrupted":
            return
        if (fn := self._reward_of(session)) is not None:
            self.judge.submit(lambda: self._ask(episode.id, episode.namespace, fn, ended))
        else:
            self.core.parts.learner.poke(episode.namespace)

    def _ask(self, episode_id: str, namespace: Namespace, fn: Callable[..., Any], ended: float) -> None:
        """Ask the user's reward callable; then the episode counts, with or without its answer."""
        episodes = self.core.parts.ledger.episodes
        try:
            for reward in call(fn, episodes.get(episode_id)):
                episodes.reward(episode_id, cleaned := self.cleaned(reward))
                evaluated(episode_id, cleaned)
        except Exception as error:  # noqa: BLE001 - the user's callable
            self.core.failed("reward", error)
        episodes.open_for_reflection(episode_id, ended + self.core.options.reward_wait)
        self.core.parts.learner.poke(namespace)

    def _settle(self, done: Future[str], session: Session, ended: float) -> None:
        """Run inline: the record, its reward callable and a due reflection, one after the other."""
        episode_id, fn, namespace = done.result(), self._reward_of(session), session.plan.namespace
        if episode_id and session.resumed_id:
            namespace = self.core.parts.ledger.episodes.get(episode_id).namespace
        if episode_id and fn is not None and not session.recorder.interrupted:
            self._ask(episode_id, namespace, fn, ended)
        self.core.parts.learner.run_due_and_wait(namespace)

    def _note_attempt(self, session: Session) -> None:
        plan = session.plan
        with self._lock:
            self._failed[*plan.execution, plan.task] = (plan.attempt, session.episode_id)
            while len(self._failed) > ATTEMPTS:
                self._failed.popitem(last=False)

    def _remember(self, session: Session) -> None:
        result = _result_of(session.last)
        session.last = None
        if result is None or isinstance(result, (str, int, float, bool)):
            return
        with self._lock:
            self._results[id(result)] = (result, session.episode_id)
            while len(self._results) > RESULTS:
                self._results.popitem(last=False)


def _result_of(chunk: Any) -> Any:
    """The state in a `values` chunk of any stream form: plain, (mode, state), (namespace, mode, state), or a part."""
    if isinstance(chunk, tuple) and chunk:
        return chunk[-1]
    if isinstance(chunk, Mapping) and set(chunk) >= {"type", "ns", "data"}:
        return chunk["data"]
    return chunk
