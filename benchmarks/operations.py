"""What is done with a ledger all day, through the code that does it in production."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.ledgers import AGENT, K, Size, embeddings, filled, known_lessons, prose, record
from reflect_middleware import Reflection
from reflect_middleware.cadence import EveryEpisodes
from reflect_middleware.reflecting import Reflecting
from reflect_middleware.reflections_table import Claim
from reflect_middleware.schema import aliases, episodes, reflections, running
from reflect_middleware.types import Edit, Namespace, ReflectionRecord, Reward, new_id

SAMPLE = 500
"""Of so many old episodes the names are known."""
Timed = Callable[[], Any]


class Subject:
    """One ledger, and what is needed to work on it as a process of an agent would.

    Args:
        size: What it holds; it is filled first, unless it is.
        url: Where.
        folder: For the store.
        store: Which.
        stack: Closes it.
    """

    def __init__(self, size: Size, url: str, folder: Path, stack: ExitStack, store: str = "exact") -> None:
        filled(size, url)
        self.size, self.chance = size, random.Random(1)
        self.url = url
        self.reflection = stack.enter_context(
            Reflection(
                path=str(folder),
                ledger=url,
                namespace=size.namespace(0),
                store=store,
                embeddings=embeddings(),
                every=K,
                run="external",
                max_lessons=1_000_000,
                reflector=self._edits,
            )
        )
        self.core = self.reflection._core  # noqa: SLF001 - the parts are what is measured
        self.ledger = self.core.parts.ledger
        self.known = known_lessons(self.ledger, size)
        self.old = self._sample()
        with self.ledger.database.write() as connection:  # what a benchmark that was cut off has left
            connection.execute(reflections.update().where(running).values(lease_until=0.0))
        self.turn = 0
        self.newest = ""
        self.claim: Claim | None = None
        self._tasks = [prose(20, self.chance) for _ in range(20)]

    @property
    def namespace(self) -> Namespace:
        """Another one each turn."""
        return self.size.namespace(self.turn % min(self.size.namespaces, 16))

    def settle(self) -> None:
        """Wait for what was left to our own threads."""
        self.reflection.flush()
        if self.core.parts.opened("index"):
            self.core.parts.index.lane.wait_idle(None)

    def put(self) -> Timed:
        """One run ends."""
        number = self.turn % min(self.size.namespaces, 16)
        new = record(self.size, number, self.known[self.namespace], self.chance)
        self.newest = new.episode.id
        return lambda: self.ledger.episodes.put(new)

    def reward(self) -> Timed:
        """The run that has just ended is judged."""
        given = Reward(value=0.5, source="user", comment=prose(10, self.chance))
        return lambda: self.ledger.episodes.reward(self.newest, given)

    def late_reward(self) -> Timed:
        """A run of long ago is judged."""
        given = Reward(value=0.5, source="judge", comment=new_id())  # the same again would change nothing
        episode = self.chance.choice(self.old).id
        return lambda: self.ledger.episodes.reward(episode, given)

    def resolve(self) -> Timed:
        """Whose message was that?"""
        name = self.chance.choice(self.old).alias
        return lambda: self.ledger.episodes.resolve(name)

    def resolve_unknown(self) -> Timed:
        """A name that nobody has."""
        name = new_id()
        return lambda: self.ledger.episodes.resolve(name)

    def early_reward(self) -> Timed:
        """A reward comes before its run's record; nothing is kept in the end."""
        given, name = Reward(value=0.5, source="user"), f"early-{self.turn % 50}"
        return lambda: self.ledger.episodes.reward_later(name, given)

    def state(self) -> Timed:
        """What every run asks: has anything changed?"""
        self.ledger.lessons._states.clear()  # noqa: SLF001 - not what is remembered for some seconds
        return lambda: self.ledger.lessons.state(self.namespace)

    def retrieve(self) -> Timed:
        """A run's lessons."""
        config: Any = {"configurable": {"thread_id": self.chance.choice(self.old).thread}}
        given = {"messages": self._tasks[self.turn % len(self._tasks)]}
        return lambda: self.reflection.preview(given, config)

    def first_retrieval(self) -> Timed:
        """As in a process that has just started; the embedder is warm."""
        self.core.parts.index._exact.refresh()  # noqa: SLF001 - what the process would not have yet
        self.core.parts.index._exact_marks.clear()  # noqa: SLF001
        return self.retrieve()

    def retrieval_after_a_change(self) -> Timed:
        """Somebody has changed a lesson."""
        self.change()()
        return self.retrieve()

    def change(self) -> Timed:
        """A person changes a lesson."""
        lesson, words = self.chance.choice(self.known[self.namespace]), prose(20, self.chance)
        return lambda: self.reflection.lessons.edit(lesson, do=words)

    def interrupted(self) -> Timed:
        """Does a resumed run go on with an episode?"""
        thread = self.chance.choice(self.old).thread
        return lambda: self.ledger.episodes.interrupted(AGENT, thread, "")

    def latest(self) -> Timed:
        """The latest run of a thread, which a reward names by its thread."""
        thread = self.chance.choice(self.old).thread
        return lambda: self.ledger.episodes.latest(thread)

    def abandon(self) -> Timed:
        """Interrupted runs that nobody resumed are over."""
        before = time.time() - 86_400.0
        return lambda: self.ledger.episodes.abandon(before)

    def ready(self) -> Timed:
        """Is a reflection due, and if not, when?"""
        return lambda: self.ledger.work.standing(self.namespace, CADENCE)

    def waiting(self) -> Timed:
        """A worker's look: where do all namespaces stand? Its cost grows with their number."""
        return lambda: self.ledger.work.standings(CADENCE)

    def take(self) -> Timed:
        """Claim a batch."""
        self._prepare_batch()

        def claim() -> None:
            self.claim = self._claimed()

        return claim

    def renew(self) -> Timed:
        """Hold the claim."""
        claim = self.claim = self._in_hand()
        return lambda: self.ledger.reflections.renew(claim, 60.0)

    def release(self) -> Timed:
        """Give the batch back."""
        claim, self.claim = self._in_hand(), None
        return lambda: self.ledger.reflections.release(claim)

    def fail(self) -> Timed:
        """The model failed."""
        claim, self.claim = self._in_hand(), None
        failed = ReflectionRecord(id=claim.id, namespace=claim.namespace, status="failed", episodes=claim.episodes)
        return lambda: self.ledger.reflections.fail(claim, failed, "the model failed")

    def reflect(self) -> Timed:
        """A whole reflection, but for the model: read the batch, curate one edit, commit."""
        claim, self.claim = self._in_hand(), None

        def run() -> None:
            report = Reflecting(self.core).run(claim)
            if report.error or not report.accepted:
                raise RuntimeError(f"The benchmark measures nothing: {report.error or report.rejected}")

        return run

    def episodes_list(self) -> Timed:
        """The newest episodes."""
        return lambda: self.ledger.episodes.find(limit=20)

    def episodes_of_namespace(self) -> Timed:
        """The newest of a namespace."""
        return lambda: self.ledger.episodes.find(namespace=self.namespace, limit=20)

    def reflections_list(self) -> Timed:
        """The newest reflections of a namespace."""
        return lambda: self.ledger.reflections.find(self.namespace, limit=5)

    def statistics(self) -> Timed:
        """How often lessons were shown, and with what reward: grows with how often they were."""
        some = self.known[self.namespace][:10]
        return lambda: self.ledger.episodes.lesson_statistics(some)

    def _prepare_batch(self) -> None:
        """No claim, and enough to claim."""
        claim, self.claim = self.claim, None
        if claim is not None:
            self.ledger.reflections.release(claim)
        while self.ledger.work.standing(self.namespace, CADENCE).backlog.ready < K:
            self.put()()

    def _claimed(self) -> Claim:
        claim = self.ledger.reflections.claim(self.namespace, "bench", at_least=1, at_most=K, lease=600.0)
        if claim is None:
            raise RuntimeError("The benchmark measures nothing: there is nothing to claim.")
        return claim

    def _in_hand(self) -> Claim:
        """A claim on this turn's namespace."""
        if self.claim is None or self.claim.namespace != self.namespace:
            self._prepare_batch()
            return self._claimed()
        return self.claim

    def _edits(self, batch: Any) -> list[Edit]:
        words = batch.episodes[0].trajectory[0].input[:60]
        handle = next((h for h, lesson in batch.lesson_handles.items() if lesson.status == "active"), "")
        if not handle:
            return [
                Edit(op="add", episodes=("E1",), because=words, when=prose(8, self.chance), do=prose(20, self.chance))
            ]
        return [Edit(op="edit", lessons=(handle,), episodes=("E1",), because=words, do=prose(20, self.chance))]

    def _sample(self) -> list[Old]:
        """Some episodes from all of the ledger's time."""
        query = sa.select(episodes.c.started_at).order_by(episodes.c.started_at)
        with self.ledger.database.read() as connection:
            first = connection.execute(query.limit(1)).scalar_one()
            found = []
            for _ in range(min(SAMPLE, self.size.episodes)):
                at = first + self.chance.random() * (time.time() - 120 - first)
                later = sa.select(episodes).where(episodes.c.started_at <= at).order_by(episodes.c.started_at.desc())
                row = connection.execute(later.limit(1)).one()
                names = sa.select(aliases.c.alias).where(aliases.c.alias == row.id)
                found.append(Old(id=row.id, thread=row.thread_id, alias=connection.execute(names).scalar_one()))
        return found


CADENCE = EveryEpisodes(K)


@dataclass(frozen=True, slots=True, kw_only=True)
class Old:
    """An episode of long ago."""

    id: str
    thread: str
    alias: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing to measure."""

    title: str
    prepare: Callable[[Subject], Timed]
    flat: bool = True
    """Whether it must take the same time in a large ledger."""


RUNS: Sequence[Operation] = (
    Operation(title="record a run", prepare=Subject.put),
    Operation(title="reward it", prepare=Subject.reward),
    Operation(title="reward an old run", prepare=Subject.late_reward),
    Operation(title="reward before the record", prepare=Subject.early_reward),
    Operation(title="find a run by a message", prepare=Subject.resolve),
    Operation(title="find no run", prepare=Subject.resolve_unknown),
    Operation(title="state of a namespace", prepare=Subject.state),
    Operation(title="retrieve", prepare=Subject.retrieve),
    Operation(title="resume: the open episode", prepare=Subject.interrupted),
    Operation(title="latest run of a thread", prepare=Subject.latest),
)
REFLECTIONS: Sequence[Operation] = (
    Operation(title="is one due", prepare=Subject.ready),
    Operation(title="which namespaces wait", prepare=Subject.waiting),
    Operation(title="abandon", prepare=Subject.abandon),
    Operation(title=f"claim {K}", prepare=Subject.take),
    Operation(title="renew the lease", prepare=Subject.renew),
    Operation(title="release", prepare=Subject.release),
    Operation(title="fail", prepare=Subject.fail),
    Operation(title="reflect, without the model", prepare=Subject.reflect),
)
VIEWS: Sequence[Operation] = (
    Operation(title="20 newest episodes", prepare=Subject.episodes_list),
    Operation(title="20 newest of a namespace", prepare=Subject.episodes_of_namespace),
    Operation(title="5 newest reflections", prepare=Subject.reflections_list),
    Operation(title="statistics of 10 lessons", prepare=Subject.statistics, flat=False),
)
LESSONS: Sequence[Operation] = (
    Operation(title="state of a namespace", prepare=Subject.state),
    Operation(title="retrieve", prepare=Subject.retrieve, flat=False),
    Operation(title="retrieve after a change", prepare=Subject.retrieval_after_a_change, flat=False),
    Operation(title="first retrieval", prepare=Subject.first_retrieval, flat=False),
    Operation(title="change a lesson", prepare=Subject.change, flat=False),
    Operation(title=f"claim {K}", prepare=Subject.take),
    Operation(title="reflect, without the model", prepare=Subject.reflect, flat=False),
)
"""What depends on how many lessons the namespace has."""
EVERY: Sequence[Operation] = (*RUNS, *REFLECTIONS, *VIEWS)
