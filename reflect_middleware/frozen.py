"""Serving a reviewed file of lessons: the same retrieval over a shelf in memory, with no ledger, model or writes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NoReturn, cast

from reflect_middleware.core import Core
from reflect_middleware.errors import (
    FrozenError,
    LessonNotFoundError,
)
from reflect_middleware.finder import WARM_UP_SECONDS, Finder
from reflect_middleware.finding import Finding
from reflect_middleware.freezing import Shelf
from reflect_middleware.keeper import Keeper
from reflect_middleware.lesson_file import in_order
from reflect_middleware.lessons_table import Indexed
from reflect_middleware.parts import Parts
from reflect_middleware.retrieve import Choice
from reflect_middleware.session import Plan, Session
from reflect_middleware.types import Episode, EpisodeStatus, Lesson, Namespace

if TYPE_CHECKING:
    from reflect_middleware.learn import Learner
    from reflect_middleware.ledger import Ledger
    from reflect_middleware.options import Options
    from reflect_middleware.store import Vector

THREADS = 10_000
"""Of how many conversations it is remembered which lessons they were shown."""


def findings(core: FrozenCore) -> tuple[Finding, ...]:
    """What `doctor` says of it."""
    spaces, embedder = core.shelf.spaces, core.parts.embedder
    count = sum(map(len, spaces.values()))
    said = f"{count:,} lessons of {len(spaces):,} namespaces from {core.frozen}, frozen"
    found = [Finding(check="lessons", message=said, facts={"active": count, "namespaces": len(spaces)})]
    try:
        facts = {"id": embedder.id, "dimensions": embedder.dim}
        said = f"{embedder.id}, {embedder.dim} dimensions"
        found.append(Finding(check="embedder", message=said, facts=facts))
    except Exception as error:  # noqa: BLE001 - whatever is wrong is the finding
        said = f"{type(error).__name__}: {error}"
        found.append(Finding(check="embedder", level="problem", message=said))
    return tuple(found)


class _Frozen:
    """Stands for something that a frozen Reflection does not have: whatever else is asked of it is refused."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise FrozenError(self._file)


class FrozenLessons(_Frozen):
    """A shelf in the form of the ledger's lessons. It never changes, so its vectors are made once."""

    generation = store = ""

    def __init__(self, shelf: Shelf, embed: Callable[[Sequence[str]], Sequence[Vector]]) -> None:
        super().__init__(shelf.file)
        self._spaces = shelf.spaces
        self._embed = embed
        self._by_id = {lesson.id: lesson for lessons in shelf.spaces.values() for lesson in lessons}
        self._rows: dict[Namespace, list[Indexed]] = {}
        self._lock = threading.Lock()

    def get(self, lesson_id: str) -> Lesson:
        """One lesson."""
        if lesson_id not in self._by_id:
            raise LessonNotFoundError(lesson_id)
        return self._by_id[lesson_id]

    def many(self, ids: Sequence[str]) -> tuple[Lesson, ...]:
        """The lessons of these ids, in this order."""
        return tuple(self._by_id[i] for i in ids if i in self._by_id)

    def find(self, namespace: Namespace, status: str | None = None, *, standing: bool = False) -> tuple[Lesson, ...]:
        """The lessons of a namespace, in the file's order."""
        return self._spaces.get(namespace, ()) if status in (None, "active") else ()

    def history(self, lesson_id: str) -> tuple[Lesson, ...]:
        """The only version that there is."""
        return (self.get(lesson_id),)

    def state(self, namespace: Namespace) -> tuple[int, bool]:
        """The revision (0: it has no lesson), and that nothing is paused."""
        return int(namespace in self._spaces), False

    known_state = state

    def revisions(self, spaces: Sequence[Namespace]) -> list[int]:
        """The revisions of namespaces."""
        return [self.state(space)[0] for space in spaces]

    def always(self, namespace: Namespace) -> tuple[Lesson, ...]:
        """The lessons of a namespace that apply everywhere, the oldest first."""
        return tuple(in_order(lesson for lesson in self.find(namespace) if lesson.always))

    def waits(self, namespace: Namespace) -> bool:
        """Whether its vectors are still to be made."""
        return namespace in self._spaces and namespace not in self._rows

    def indexed(self, namespace: Namespace, after: int = 0, embedder: str = "") -> list[Indexed]:
        """The vectors of a namespace; they are made when they are first asked for."""
        with self._lock:
            if self.waits(namespace):
                lessons = sorted(self._spaces[namespace], key=lambda lesson: lesson.id)  # as a ledger: ties are alike
                vectors = self._embed([lesson.searched for lesson in lessons])
                self._rows[namespace] = [
                    Indexed(id=lesson.id, active=True, revision=1, vector=vector.tobytes())
                    for lesson, vector in zip(lessons, vectors, strict=True)
                ]
        return self._rows.get(namespace, [])

    def without_vectors(self, namespace: Namespace, embedder: str) -> list[str]:
        """None lacks one."""
        return []


class FrozenEpisodes(_Frozen):
    """What a process remembers of its conversations, so that a prompt goes on as it began."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._shown: OrderedDict[tuple[Namespace, str], list[str]] = OrderedDict()
        self._open: OrderedDict[tuple[str, str, str], Episode] = OrderedDict()
        self._lock = threading.RLock()  # a garbage collection inside the lock may end an abandoned run

    def note(self, session: Session, status: EpisodeStatus) -> None:
        """A run has ended."""
        plan = session.plan
        if not plan.thread_id:
            return
        run = (plan.spec.agent, plan.thread_id, plan.checkpoint_ns)
        with self._lock:
            before = self._open.pop(run, None) if plan.resume is not None else None
            space, read, task = (
                (before.namespace, before.read, before.task) if before else (plan.namespace, plan.read, plan.task)
            )
            if status == "interrupted":
                self._open[run] = Episode(
                    id=session.episode_id,
                    namespace=space,
                    read=read,
                    task=task,
                    status=status,
                    started_at=session.started,
                )
            self._shown[space, plan.thread_id] = [x.lesson_id for x in session.choice.exposures if x.shown]
            for memory in (self._open, self._shown):
                while len(memory) > THREADS:
                    cast("OrderedDict[Any, Any]", memory).popitem(last=False)

    def interrupted(self, agent: str, thread_id: str, checkpoint_ns: str) -> Episode | None:
        """The run that a resume of this thread goes on with."""
        return self._open.get((agent, thread_id, checkpoint_ns))

    def shown_in_thread(self, namespace: Namespace, thread_id: str) -> list[str]:
        """Ids of the lessons that the thread's latest run was shown, in their order."""
        return self._shown.get((namespace, thread_id), [])

    def lesson_statistics(
        self, lesson_ids: Sequence[str], most: int | None = None
    ) -> dict[str, tuple[int, float | None]]:
        """Nothing is counted."""
        return {}


class FrozenLedger(_Frozen):
    """The two tables that serving asks."""

    def __init__(self, shelf: Shelf, embed: Callable[[Sequence[str]], Sequence[Vector]]) -> None:
        super().__init__(shelf.file)
        self.lessons = FrozenLessons(shelf, embed)
        self.episodes = FrozenEpisodes(shelf.file)

    def close(self) -> None:
        """Nothing is open."""


class FrozenLearner(_Frozen):
    """Nothing is ever due."""

    def poke(self, namespace: Namespace) -> None:
        """As the node does."""


class FrozenParts(Parts):
    """The parts over a shelf."""

    core: FrozenCore

    def _identify(self, name: str, probe: Vector) -> str:
        """All vectors are made here, by one embedder."""
        return name

    def _embedded(self, texts: Sequence[str]) -> Sequence[Vector]:
        return self.embedder.embed_documents(texts)

    @property
    def ledger(self) -> Ledger:
        """The shelf."""
        made = self._part("ledger", lambda: FrozenLedger(self.core.shelf, self._embedded))
        return cast("Ledger", made)

    @property
    def learner(self) -> Learner:
        """Learns nothing."""
        return cast("Learner", FrozenLearner(self.core.frozen))


class FrozenFinder(Finder):
    """Retrieval that first waits for the vectors, which nobody has kept."""

    def fetches(
        self, plan: Plan, inside: Callable[[Callable[[], Any]], Callable[[], Any]]
    ) -> Iterator[tuple[Callable[[], Future[Any]], float]]:
        """As in any Reflection, with the vectors before."""
        if plan.use_lessons and self._waits(plan) and not self._resting():
            yield lambda: self.lane.submit(inside(lambda: self._load(plan))), WARM_UP_SECONDS
        yield from super().fetches(plan, inside)

    def at_once(self, plan: Plan) -> tuple[Choice, str] | None:
        """As in any Reflection, once there are vectors."""
        return None if self._waits(plan) else super().at_once(plan)

    @property
    def _lessons(self) -> FrozenLessons:
        return cast("FrozenLessons", self.core.parts.ledger.lessons)

    def _waits(self, plan: Plan) -> bool:
        return any(map(self._lessons.waits, (plan.namespace, *plan.read)))

    def _load(self, plan: Plan) -> None:
        for namespace in (plan.namespace, *plan.read):
            self._lessons.indexed(namespace)


class FrozenKeeper(Keeper):
    """Keeps nothing but what a conversation needs to go on."""

    def finish(self, session: Session, status: EpisodeStatus, error: BaseException | None) -> None:
        """Remember what the thread was shown."""
        cast("FrozenEpisodes", self.core.parts.ledger.episodes).note(session, status)


class FrozenCore(Core):
    """The inner side of a frozen Reflection."""

    parts_class, finder_class, keeper_class = FrozenParts, FrozenFinder, FrozenKeeper

    def __init__(self, options: Options, shelf: Shelf) -> None:
        self.shelf = shelf
        super().__init__(options)
        self.frozen = shelf.file

    def _write_counts(self, counts: Mapping[str, Any]) -> None:
        """They are logged, and told to OpenTelemetry; there is no place to keep them."""
