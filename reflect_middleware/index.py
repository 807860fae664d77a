"""The index over the lessons: a swappable store where one is ready, exact search over the ledger's vectors where not.

The store is a projection. A watermark says up to which revision of a namespace it has been told; whatever is newer is
compared exactly, so every process sees a change at its next search, and a store may be slow, locked, stale or deleted.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from reflect_middleware.errors import EmbedderError, StoreLockedError
from reflect_middleware.exact import ExactStore
from reflect_middleware.filling import Difference, compare, entries, fill, folder_of, mend, renewed
from reflect_middleware.forks import gate
from reflect_middleware.lanes import Lane
from reflect_middleware.lessons_table import Indexed, LessonTable
from reflect_middleware.options import DEFAULT_STORE
from reflect_middleware.registry import open_store
from reflect_middleware.store import Entry, Hit, LessonStore, StoreContext
from reflect_middleware.types import Namespace

if TYPE_CHECKING:
    from reflect_middleware.embed import Embedder
    from reflect_middleware.options import Options
    from reflect_middleware.store import Vector

logger = logging.getLogger(__name__)
RETRY_SECONDS = 30.0
"""How long a store that failed is left alone."""

FEW = 10
"""A store that gives fewer lessons, though it has more, has lost some; of many an approximate one may miss a few."""

EMBEDDED_AT_ONCE = 100
"""So many lessons are embedded by one call and kept by one transaction: a killed process loses no more."""


class Index:
    """Finds lessons by vector.

    Args:
        lessons: The ledger's lessons.
        embedder: Made the vectors; lessons with another one's are embedded again in the background.
        options: Name the store and its folder.
        failed: Told what went wrong, as (where, error).
    """

    def __init__(
        self,
        lessons: LessonTable,
        embedder: Embedder,
        options: Options,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.lessons = lessons
        self.embedder = embedder
        self.lane = Lane("index")
        weakref.finalize(self, self.lane.stop).atexit = False  # of a Reflection that nobody has closed
        self._options = options
        self._followed = lessons.store
        self._failed = failed
        self._exact = ExactStore(self.vectors)
        self._exact_marks: dict[Namespace, int] = {}
        self._store: LessonStore | None = None
        self._marks: dict[Namespace, int] = {}
        self._not_before = 0.0
        self._searches = 0
        self._queued: set[Namespace] = set()
        self._counts: dict[Namespace, int] = {}
        """How many lessons the store had of a namespace when it was brought up to date."""
        self._refilled: dict[Namespace, float] = {}
        """When a namespace whose store had lost lessons was last filled again."""
        self._incomplete: set[Namespace] = set()
        """Namespaces with active lessons that have no vector yet."""
        self._generation = lessons.generation
        self._store_generation: str | None = None
        """The generation for which the open store was emptied, or found to be filled; None if that is not known."""
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        """While the store is opened or emptied: not only the lane does that."""

    @property
    def spec(self) -> Any:
        """Which store: as the code says, else as the ledger was moved when it was last read, else the default."""
        return self.lessons.store or DEFAULT_STORE if self._options.store is None else self._options.store

    @property
    def exact(self) -> bool:
        """Whether searches go over the ledger's vectors by choice."""
        return isinstance(self.spec, str) and self.spec == "exact"

    def search(self, namespace: Namespace, revision: int, vector: Vector, k: int) -> list[Hit]:
        """The k active lessons nearest to `vector` as of `revision`, best first."""
        if self._generation != self.lessons.generation:
            self._begin_anew(namespace)
        if self._followed != self.lessons.store:
            self._follow()
        store, mark = self._store, self._marks.get(namespace)
        if store is None or mark is None:
            self._searches += 1
            if not self.exact and self._searches > 1 and time.monotonic() >= self._not_before:
                # Not for the first search: a script of one run need not wait for a store to open and close.
                self.sync_later(namespace)
            return self._search_exactly(namespace, revision, vector, k)
        try:
            hits = store.search(self._space(namespace), vector, k)
        except Exception as error:  # noqa: BLE001 - any driver; the ledger's vectors serve meanwhile
            if store is self._store:  # else it was closed meanwhile, because there is another one now
                self._give_up(error)
            return self._search_exactly(namespace, revision, vector, k)
        if len(hits) < min(k, FEW, self._counts.get(namespace, 0)):
            self._refill(namespace, len(hits))
            return self._search_exactly(namespace, revision, vector, k)
        if mark >= revision:
            return hits
        self.sync_later(namespace)
        changed = self.lessons.indexed(namespace, mark, self.embedder.id)
        return _merge(hits, changed, vector, k)

    def vectors(self, namespace: Namespace) -> Sequence[Entry]:
        """The active lessons' vectors, read from the ledger."""
        return entries(self.lessons.indexed(namespace, 0, self.embedder.id))

    def sync_later(self, namespace: Namespace) -> None:
        """Bring vectors and store up to date in the background."""
        with self._lock:
            if namespace in self._queued:
                return
            self._queued.add(namespace)
        self.lane.submit(lambda: self._sync_quietly(namespace))

    def sync(self, namespace: Namespace) -> None:
        """Bring vectors and store up to date.

        Raises:
            ReflectError: If the embedder, the ledger or the store fails.
        """
        self.embed(namespace)
        self._incomplete.discard(namespace)
        if (store := self.opened()) is None:
            return
        mark = self._marks.get(namespace)
        revision, _ = self.lessons.state(namespace)
        rows = self.lessons.indexed(namespace, mark or 0, self.embedder.id)
        if mark:
            store.upsert(self._space(namespace), entries(rows))
            store.delete(self._space(namespace), [row.id for row in rows if not row.active])
        else:
            fill(store, self._space(namespace), entries(rows))
        count = self.lessons.standing(namespace).get("active", 0)
        with self._lock:
            if store is self._store:  # else it was given up, or there is another one now
                self._marks[namespace] = max([mark or 0, revision, *(row.revision for row in rows)])
                self._counts[namespace] = count

    def embed(self, namespace: Namespace, tell: Callable[[int], None] = lambda _: None) -> int:
        """Embed the active lessons that this embedder has not seen; gives how many that were.

        Args:
            namespace: Whose lessons.
            tell: Told of each portion, by how many it is, once it is kept.

        Raises:
            ReflectError: If the embedder or the ledger fails. What was kept until then stays.
        """
        missing = self.lessons.without_vectors(namespace, self.embedder.id)
        for start in range(0, len(missing), EMBEDDED_AT_ONCE):
            lessons = self.lessons.many(missing[start : start + EMBEDDED_AT_ONCE])
            vectors = self.embedder.embed_documents([lesson.searched for lesson in lessons])
            self.lessons.set_vectors(namespace, list(zip(lessons, vectors, strict=True)), self.embedder.id)
            tell(len(lessons))
        return len(missing)

    def rebuild(self, namespaces: Sequence[Namespace]) -> str:
        """Empty the store, after a purge; it is filled again as it is searched. Gives the reason where it cannot be.

        Args:
            namespaces: In which lessons were erased. A store that cannot empty itself drops these.
        """
        return self.lane.submit(lambda: self._rebuild(namespaces)).result()

    def close(self, *, store: bool = True) -> None:
        """End, and release the store; one that goes on elsewhere (`store=False`) stays open."""
        self.lane.wait_idle(5.0)
        self.lane.stop()
        with self._lock:
            held, self._store = self._store, None
            self._marks.clear()
        if held is not None and store:
            held.close()

    def open(self) -> str:
        """Open the store, if one is to be used; gives the reason where another process has it, else nothing.

        Raises:
            StoreError: If it cannot be opened.
        """
        try:
            self.opened()
        except StoreLockedError as error:
            return str(error)
        return ""

    @property
    def is_open(self) -> bool:
        """Whether searches may go over the store here."""
        return self._store is not None

    def compare(self, namespace: Namespace) -> Difference:
        """What the open store has of a namespace, compared with the ledger, for `reflect doctor`.

        A store that does not outlive the process is compared once this process has filled it.
        """
        store = self._store
        if store is None or not (store.capabilities.persistent or namespace in self._marks):
            return Difference()
        return compare(store, self._space(namespace), self.vectors(namespace))

    def mend(self, namespace: Namespace) -> Difference:
        """Make the open store what the ledger says; gives what was wrong."""

        def job() -> Difference:
            self.embed(namespace)
            store = self._store
            return Difference() if store is None else mend(store, self._space(namespace), self.vectors(namespace))

        return self.lane.submit(job).result()

    def describe(self) -> str:
        """Which way searches go now, for `reflect doctor`."""
        if self.exact:
            return "exact search over the ledger's vectors"
        return "the store" if self._store is not None else "the ledger's vectors (the store is not open here)"

    def _search_exactly(self, namespace: Namespace, revision: int, vector: Vector, k: int) -> list[Hit]:
        with self._lock:
            mark = self._exact_marks.get(namespace, -1)
            if mark < revision:
                self._refresh_exact(namespace, mark)
                self._exact_marks[namespace] = revision
            if namespace in self._incomplete:
                # The query has just been embedded, so the embedder works now.
                self.sync_later(namespace)
        return self._exact.search(namespace, vector, k)

    def _refresh_exact(self, namespace: Namespace, mark: int) -> None:
        if mark < 0:
            self._exact.refresh(namespace)
        else:
            rows = self.lessons.indexed(namespace, mark, self.embedder.id)
            self._exact.upsert(namespace, entries(rows))
            self._exact.delete(namespace, [row.id for row in rows if not row.active])
        if self.lessons.without_vectors(namespace, self.embedder.id):
            self._incomplete.add(namespace)

    def _sync_quietly(self, namespace: Namespace) -> None:
        with self._lock:
            self._queued.discard(namespace)
        try:
            self.sync(namespace)
        except StoreLockedError:
            self._not_before = time.monotonic() + RETRY_SECONDS
        except EmbedderError as error:
            self._failed("embed", error)
        except Exception as error:  # noqa: BLE001 - reported; searches go on over the ledger's vectors
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed("store", error)
        with self._lock:
            store, self._store = self._store, None
            self._marks.clear()
            self._not_before = time.monotonic() + RETRY_SECONDS
        if store is not None:
            self.lane.submit(store.close)

    def _refill(self, namespace: Namespace, found: int) -> None:
        """A store that gives fewer lessons than it was told of has lost some: its owner may have emptied it."""
        if time.monotonic() < self._refilled.get(namespace, 0.0) + RETRY_SECONDS:
            return  # that has not helped, and a namespace is not filled at each search
        name, count = "/".join(namespace), self._counts.get(namespace, 0)
        logger.warning("reflect: the store of %s found %d of %d lessons: it is filled again", name, found, count)
        with self._lock:
            self._refilled[namespace] = time.monotonic()
            self._marks.pop(namespace, None)
        self.sync_later(namespace)

    def _follow(self) -> None:
        """The ledger was moved to another store: let go of the former one, if the code names none."""
        with self._lock:
            self._followed = self.lessons.store
            if self._options.store is not None:
                return
            store, self._store = self._store, None
            self._marks.clear()
            self._not_before = 0.0
        if store is not None:
            self.lane.submit(store.close)

    def _space(self, namespace: Namespace) -> Namespace:
        """The store's name for a namespace: vectors of different embedders never meet."""
        return (*namespace, self.embedder.id)

    def opened(self) -> LessonStore | None:
        """The store, empty of what is older than the ledger's generation, even if a search gives it up meanwhile.

        None where searches go over the ledger's vectors by choice.

        Raises:
            StoreError: If it cannot be opened; `StoreLockedError` if another process has it.
            LedgerError: If the ledger cannot be read.
        """
        if self.exact and self._options.store is not None:
            return None
        with self._opening:
            generation = self.lessons.read_generation()
            if self._followed != self.lessons.store:
                self._follow()
            if self.exact:
                return None
            context = self._context()
            if (store := self._store) is None:
                with gate.passing():
                    self._store = store = open_store(self.spec, context)
                self._store_generation = None
            if generation != self._store_generation:
                self._marks.clear()  # a search may not have noticed yet, and what is filled now is filled anew
                renewed(store, context.path, generation)
                self._store_generation = generation
            return store

    def _context(self) -> StoreContext:
        spec, options = self.spec, self._options
        return StoreContext(
            path=options.path / folder_of(spec),
            vectors=self.vectors,
            ledger_url=options.ledger_url,
            options=options.store_options,
        )

    def _rebuild(self, namespaces: Sequence[Namespace]) -> str:
        self._forget_marks()
        try:
            if (store := self.opened()) is None:
                return ""
            for namespace in () if hasattr(store, "clear") else namespaces:
                for embedder in {self.embedder.id, *self.lessons.embedders()}:
                    store.drop((*namespace, embedder))
        except Exception as error:  # noqa: BLE001 - any driver; the purge of the ledger stands, and says this
            if not isinstance(error, StoreLockedError):
                self._give_up(error)
            return f"{type(error).__name__}: {error}"
        return ""

    def _begin_anew(self, namespace: Namespace) -> None:
        """Lessons were erased or restored: nothing that was read before counts."""
        with self._lock:
            self._generation = self.lessons.generation
            self._forget_marks()
        if self._store is not None:
            self.sync_later(namespace)

    def _forget_marks(self) -> None:
        with self._lock:
            self._marks.clear()
            self._exact_marks.clear()
            self._incomplete.clear()
            self._exact.refresh()


def _merge(hits: Sequence[Hit], changed: Sequence[Indexed], vector: Vector, k: int) -> list[Hit]:
    """The store's hits, with what changed since then compared exactly."""
    newer = {row.id for row in changed}
    fresh = [(entry.id, float(entry.vector @ vector)) for entry in entries(changed)]
    kept = [hit for hit in hits if hit[0] not in newer]
    return sorted([*kept, *fresh], key=lambda hit: -hit[1])[:k]
