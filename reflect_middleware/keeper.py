"""Keeping what a run did: its record, what its reward callable says, and which result belongs to it."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import TYPE_CHECKING, Any

from reflect_middleware.errors import LedgerError
from reflect_middleware.lanes import Lane
from reflect_middleware.reward import call
from reflect_middleware.session import Session
from reflect_middleware.types import Episode, EpisodeStatus, Namespace, Reward, now

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.episodes_table import Record

UNSAVED = 1_000
"""Most records kept in memory while the ledger cannot be written."""
RESULTS = 64
"""Of how many latest runs the result object itself is known."""


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

    def finish(self, session: Session, status: EpisodeStatus, error: BaseException | None) -> Future[Any] | None:
        """Queue a run's record; what depends on it follows on other threads. None if there is nothing to wait for."""
        if not session.plan.learn:
            return None
        self._remember(session)
        ended = now()
        done = self.writer.submit(lambda: self._write(session, status, error, ended))
        if self.core.options.run == "inline":
            return self.judge.submit(lambda: self._settle(done, session, ended.timestamp()))
        return None if self.core.options.durability == "queue" else done

    def result(self, given: Any) -> str | None:
        """The episode whose run gave exactly this object."""
        with self._lock:
            held = self._results.get(id(given))
        return held[1] if held is not None and held[0] is given else None

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
        earlier = episodes.get(session.resumed_id) if session.resumed_id else None
        options, asked = self.core.options, self._reward_of(session) is not None
        wait = options.reward_timeout if asked else options.reward_wait
        return record_of(session, status, error, ended, earlier=earlier, wait=wait, asked=asked, redact=options.redact)

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
                episodes.reward(episode_id, self.cleaned(reward))
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
