"""Keeping what a run did: its record, and what its reward callable says."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from reflect_middleware.due import counts, lot
from reflect_middleware.lanes import Lane
from reflect_middleware.lately import Lately
from reflect_middleware.outage import Outage
from reflect_middleware.overhear import decided, heard, seen
from reflect_middleware.reward import call
from reflect_middleware.session import Session
from reflect_middleware.telemetry import evaluated, remember
from reflect_middleware.types import Episode, EpisodeStatus, Namespace, Reward, now
from reflect_middleware.watchdog import OvertakenError

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.episodes_table import Record
    from reflect_middleware.spool import Item, Run

T = TypeVar("T")
UNASKED = 1_000
"""Of how many runs that wait in the spool the reward callable is remembered."""


class Keeper:
    """The writer's thread and the reward callables' thread."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.writer = Lane("writer")
        self.judge = Lane("rewards")
        self.outage = Outage(core, self.writer)
        self.outage.drained = self._drained
        self.timeout: float | None = None if core.options.run == "inline" else 2.0
        """Seconds a run waits at most for its commit; None (`run="inline"`): for all that follows from it, too."""
        self._start()

    def renew(self) -> None:
        """Start afresh, in a new process."""
        self.outage.renew()
        self._start()

    def _start(self) -> None:
        self.overdue: Future[Any] | None = None
        """A commit that a run has stopped waiting for; until it is done no other run waits."""
        self.lately = Lately()
        self._lock = threading.RLock()  # a garbage collection inside the lock may end an abandoned run
        self._unasked: OrderedDict[str, tuple[Callable[..., Any], float]] = OrderedDict()
        """Of runs that wait in the spool as the rest of an episode: their reward callable, and when they ended."""

    def finish(self, session: Session, status: EpisodeStatus, error: BaseException | None) -> Future[Any] | None:
        """Queue a run's record; what depends on it follows on other threads. None if there is nothing to wait for."""
        if not session.plan.learn:
            return None
        self.lately.note(session, status)
        remember(session.episode_id, session.span_context)
        ended = now()
        done = self.writer.submit(lambda: self._write(session, status, error, ended))
        if self.core.options.run == "inline":
            settled = self.judge.submit(lambda: self._settle(done, session, ended.timestamp()))
            return done if self.awaited else settled
        return None if self.core.options.durability == "queue" else done

    @property
    def awaited(self) -> bool:
        """Whether this is inside of a reflection or a reward callable, which others wait for: it waits for none."""
        parts = self.core.parts
        return self.judge.within or (parts.opened("learner") and parts.learner.lane.within)

    def cleaned(self, reward: Reward) -> Reward:
        """A reward with its words redacted."""
        if (clean := self.core.options.redact) is None:
            return reward
        return reward.model_copy(update={"comment": clean(reward.comment), "correction": clean(reward.correction)})

    def do(self, direct: Callable[[], T], aside: Callable[[], Item], instead: T) -> T:
        """Work with the ledger behind all that is queued, and wait for it; while it is away something waits instead.

        Args:
            direct: Does the work.
            aside: What waits in the spool if the ledger cannot be used.
            instead: The result then.

        Raises:
            LedgerError: If the ledger cannot be used, and waiting would not help.
        """

        def later() -> T:
            self.outage.add(aside())
            return instead

        if self.writer.here:  # from a user's callable
            return self.outage.run(direct, later)
        return self.writer.submit(lambda: self.outage.run(direct, later)).result()

    def _write(
        self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime
    ) -> Episode | None:
        fresh = session.plan.resume is None and not session.resumed_id
        try:
            return self.outage.run(
                lambda: self._save(session, status, error, ended),
                lambda: self._put_aside(session, status, error, ended),
                fresh=fresh,
                always=True,
            )
        except OvertakenError:
            raise
        except Exception as failure:  # noqa: BLE001 - nobody waits for a record at `durability="queue"`
            self.core.failed("record", failure)
            return None

    def _save(self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime) -> Episode:
        record = self._record(session, status, error, ended)
        if not self.outage.up:  # the run before may still wait, and another one would be taken for it
            record = replace(record, heard=())
        before = self.core.parts.ledger.episodes.put(record)
        if (database := self.core.parts.ledger.database).log_is_long:
            self.writer.submit(lambda: self.core.safely("checkpoint", database.checkpoint))
        for episode_id, reward in [(record.episode.id, r) for r in record.rewards] + [
            (before, r) for r in record.heard
        ]:
            if episode_id:
                evaluated(episode_id, reward)
        if self.core.options.run != "inline":
            self._follow_up(session, record.episode, ended.timestamp())
        return record.episode

    def _put_aside(
        self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime
    ) -> Episode:
        """Let a run wait in the spool; if it goes on with an earlier one, it is put together with that later."""
        from reflect_middleware import spool
        from reflect_middleware.recording import cleaned, cleaner
        from reflect_middleware.render import plain

        plan, earlier, session.resumed_id = session.plan, session.resumed_id, ""
        given = plan.resume if plan.resume and plan.resume[0] is not None else ()
        run = spool.Run(
            record=self._rendered(session, status, error, ended, None),
            earlier=earlier,
            resumed=plan.resume is not None and bool(plan.thread_id),
            answered=bool(given),
            answer=cleaned(plain(given[0]), cleaner(self.core.options.redact)) if given else None,
        )
        self.outage.add(run)
        episode, fn = run.record.episode, self._reward_of(session)
        if not run.part and self.core.options.run != "inline":
            self._follow_up(session, episode, ended.timestamp())
        elif run.part and fn is not None and status != "interrupted":
            with self._lock:
                self._unasked[episode.id] = fn, ended.timestamp()
                while len(self._unasked) > UNASKED:
                    self._unasked.popitem(last=False)
        return episode

    def _drained(self, run: Run, episode: Episode) -> None:
        """A run that has waited is in the ledger: what could not be asked before is asked now."""
        with self._lock:
            asked = self._unasked.pop(run.record.episode.id, None)
        if asked is not None:
            self.judge.submit(lambda: self._ask(episode, *asked))

    def _record(self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime) -> Record:
        plan, episodes = session.plan, self.core.parts.ledger.episodes
        if plan.resume is not None and not session.resumed_id and plan.thread_id:
            # Retrieval, which looks for it too, may have been late or resting.
            standing = episodes.interrupted(plan.spec.agent, plan.thread_id, plan.checkpoint_ns)
            session.resumed_id = standing.id if standing else ""
        earlier = self._earlier(session)
        record = self._rendered(session, status, error, ended, earlier)
        if earlier is None:
            return record
        return replace(record, rewards=(*record.rewards, *decided(self.core, earlier, plan.resume)))

    def _rendered(
        self,
        session: Session,
        status: EpisodeStatus,
        error: BaseException | None,
        ended: datetime,
        earlier: Episode | None,
    ) -> Record:
        from reflect_middleware.recording import record_of

        options, asked, slot = self.core.options, self._reward_of(session) is not None, session.plan.slot
        wait = options.reward_timeout if asked else options.reward_wait
        held = slot is not None and bool(slot.alias)  # the practice asks for the reward itself, and reflects itself
        if slot is not None and held:
            wait, asked = slot.hold, True
        record = record_of(
            session, status, error, ended, earlier=earlier, wait=wait, asked=asked, redact=options.redact
        )
        drawn = lot(record.episode, options.seed)
        return replace(
            record,
            sampled=held or counts(status, drawn, rewarded=False, sample=options.sample),
            rewards=seen(self.core, record.episode),
            measured=slot is not None and slot.measured,
            heard=() if earlier else heard(self.core, session.plan),
        )

    def _earlier(self, session: Session) -> Episode | None:
        from reflect_middleware.replay import usable

        found = self.core.parts.ledger.episodes.many([session.resumed_id]) if session.resumed_id else ()
        earlier = usable(found)
        session.resumed_id = earlier.id if earlier else ""
        return earlier

    def _reward_of(self, session: Session) -> Callable[..., Any] | None:
        slot = session.plan.slot
        return None if slot is not None and slot.alias else session.plan.spec.reward or self.core.options.reward

    def _follow_up(self, session: Session, episode: Episode, ended: float) -> None:
        """What a stored run sets off, behind the commit: who waits for that goes on first, and two threads at once."""
        if episode.status != "interrupted":
            self.writer.submit(lambda: self.core.safely("follow-up", lambda: self._set_off(session, episode, ended)))

    def _set_off(self, session: Session, episode: Episode, ended: float) -> None:
        if (fn := self._reward_of(session)) is not None:
            self.judge.submit(lambda: self._ask(episode, fn, ended))
        else:
            self._poke(episode.namespace)

    def _ask(self, episode: Episode, fn: Callable[..., Any], ended: float) -> None:
        """Ask the user's reward callable; then the episode counts, with or without its answer."""
        from reflect_middleware.spool import Opened

        try:
            for reward in call(fn, self._read(episode)):
                self._judged(episode.id, cleaned := self.cleaned(reward))
                evaluated(episode.id, cleaned)
        except Exception as error:  # noqa: BLE001 - the user's callable
            self.core.failed("reward", error)
        ready_at = ended + self.core.options.reward_wait
        self.do(
            lambda: self.core.parts.ledger.episodes.open_for_reflection(episode.id, ready_at),
            lambda: Opened(episode_id=episode.id, ready_at=ready_at),
            None,
        )
        self._poke(episode.namespace)

    def _judged(self, episode_id: str, reward: Reward) -> None:
        from reflect_middleware.spool import Given

        self.do(
            lambda: self.core.parts.ledger.episodes.reward(episode_id, reward),
            lambda: Given(reward=reward, names=(episode_id,), unknown=True),
            None,
        )

    def _poke(self, namespace: Namespace) -> None:
        if self.outage.up:
            self.core.parts.learner.poke(namespace)
        else:
            self.outage.missed(namespace)

    def _read(self, episode: Episode) -> Episode:
        """The episode as the ledger has it, with its rewards; as it is given while the ledger is away."""
        episodes = self.core.parts.ledger.episodes

        def read() -> Episode:
            return next(iter(episodes.many([episode.id])), episode)

        return self.writer.submit(lambda: self.outage.run(read, lambda: episode)).result()

    def _settle(self, done: Future[Episode | None], session: Session, ended: float) -> None:
        """Run inline: the record, its reward callable and a due reflection, one after the other."""
        episode, fn = done.result(), self._reward_of(session)
        waits = episode is not None and episode.id in self._unasked
        if episode is not None and fn is not None and not session.recorder.interrupted and not waits:
            self._ask(episode, fn, ended)
        namespace = session.plan.namespace if episode is None else episode.namespace
        if self.outage.up:
            self.core.parts.learner.run_due_and_wait(namespace)
        else:
            self.outage.missed(namespace)
