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
from pathlib import Path
from typing import TYPE_CHECKING

from reflect_middleware.database import portions
from reflect_middleware.errors import EmbedderError, StoreError, StoreLockedError
from reflect_middleware.exact import ExactStore
from reflect_middleware.forks import gate
from reflect_middleware.lanes import Lane
from reflect_middleware.lessons_table import Indexed, LessonTable, vector_bytes
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

GENERATION = "reflect.generation"
"""In a store's folder: of which generation of the ledger its entries are."""


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
        self._open_store = None if options.store == "exact" else lambda context: open_store(options.store, context)
        self._failed = failed
        self._context = StoreContext(
            path=options.path / folder_of(options.store),
            vectors=self.vectors,
            ledger_url=options.ledger_url,
            options=options.store_options,
        )
        self._exact = ExactStore(self.vectors)
        self._exact_marks: dict[Namespace, int] = {}
        self._store: LessonStore | None = None
        self._marks: dict[Namespace, int] = {}
        self._not_before = 0.0
        self._searches = 0
        self._queued: set[Namespace] = set()
        self._incomplete: set[Namespace] = set()
        """Namespaces with active lessons that have no vector yet."""
        self._generation = lessons.generation
        self._store_generation: str | None = None
        """The generation for which the open store was emptied, or found to be filled; None if that is not known."""
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        """While the store is opened or emptied: not only the lane does that."""

    def search(self, namespace: Namespace, revision: int, vector: Vector, k: int) -> list[Hit]:
        """The k active lessons nearest to `vector` as of `revision`, best first."""
        if self._generation != self.lessons.generation:
            self._begin_anew(namespace)
        store, mark = self._store, self._marks.get(namespace)
        if store is None or mark is None:
            self._searches += 1
            if self._open_store is not None and self._searches > 1 and time.monotonic() >= self._not_before:
                # Not for the first search: a script of one run need not wait for a store to open and close.
                self.sync_later(namespace)
            return self._search_exactly(namespace, revision, vector, k)
        try:
            hits = store.search(self._space(namespace), vector, k)
        except Exception as error:  # noqa: BLE001 - any driver; the ledger's vectors serve meanwhile
            self._give_up(error)
            return self._search_exactly(namespace, revision, vector, k)
        if mark >= revision:
            return hits
        self.sync_later(namespace)
        changed = self.lessons.indexed(namespace, mark, self.embedder.id)
        return _merge(hits, changed, vector, k)

    def vectors(self, namespace: Namespace) -> Sequence[Entry]:
        """The active lessons' vectors, read from the ledger."""
        return _entries(self.lessons.indexed(namespace, 0, self.embedder.id))

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
        self._embed_missing(namespace)
        self._incomplete.discard(namespace)
        if self._open_store is None:
            return
        store = self._opened(self._open_store)
        mark = self._marks.get(namespace)
        revision, _ = self.lessons.state(namespace)
        rows = self.lessons.indexed(namespace, mark or 0, self.embedder.id)
        if mark:
            store.upsert(self._space(namespace), _entries(rows))
            store.delete(self._space(namespace), [row.id for row in rows if not row.active])
        else:
            _fill(store, self._space(namespace), _entries(rows))
        self._marks[namespace] = max([mark or 0, revision, *(row.revision for row in rows)])

    def rebuild(self, namespaces: Sequence[Namespace]) -> str:
        """Empty the store, after a purge; it is filled again as it is searched. Gives the reason where it cannot be.

        Args:
            namespaces: In which lessons were erased. A store that cannot empty itself drops these.
        """
        return self.lane.submit(lambda: self._rebuild(namespaces)).result()

    def close(self) -> None:
        """Release the store."""
        self.lane.wait_idle(5.0)
        self.lane.stop()
        with self._lock:
            store, self._store = self._store, None
            self._marks.clear()
        if store is not None:
            store.close()

    def open(self) -> str:
        """Open the store, if one is to be used; gives the reason where another process has it, else nothing.

        Raises:
            StoreError: If it cannot be opened.
        """
        try:
            if self._open_store is not None:
                self._opened(self._open_store)
        except StoreLockedError as error:
            return str(error)
        return ""

    @property
    def is_open(self) -> bool:
        """Whether searches may go over the store here."""
        return self._store is not None

    def gap(self, namespace: Namespace) -> int:
        """How many active lessons the open store lacks, or has too many, for `reflect doctor`."""
        if (store := self._store) is None:
            return 0
        rows = self.lessons.indexed(namespace, 0, self.embedder.id)
        wanted = {row.id for row in rows if row.active and row.vector is not None}
        return len(store.ids(self._space(namespace)) ^ wanted)

    def describe(self) -> str:
        """Which way searches go now, for `reflect doctor`."""
        if self._open_store is None:
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
            self._exact.upsert(namespace, _entries(rows))
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

    def _space(self, namespace: Namespace) -> Namespace:
        """The store's name for a namespace: vectors of different embedders never meet."""
        return (*namespace, self.embedder.id)

    def _opened(self, opener: Callable[[StoreContext], LessonStore]) -> LessonStore:
        """The store, empty of what is older than the ledger's generation, even if a search gives it up meanwhile."""
        with self._opening:
            if (store := self._store) is None:
                with gate.passing():
                    self._store = store = opener(self._context)
                self._store_generation = None
            if (generation := self.lessons.read_generation()) != self._store_generation:
                self._marks.clear()  # a search may not have noticed yet, and what is filled now is filled anew
                renewed(store, self._context.path, generation)
                self._store_generation = generation
            return store

    def _rebuild(self, namespaces: Sequence[Namespace]) -> str:
        self._forget_marks()
        if self._open_store is None:
            return ""
        try:
            store = self._opened(self._open_store)
            for namespace in () if hasattr(store, "clear") else namespaces:
                store.drop(self._space(namespace))
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

    def _embed_missing(self, namespace: Namespace) -> None:
        for some in portions(self.lessons.without_vectors(namespace, self.embedder.id)):
            lessons = self.lessons.many(some)
            vectors = self.embedder.embed_documents([lesson.text for lesson in lessons])
            pairs = zip((lesson.id for lesson in lessons), vectors, strict=True)
            self.lessons.set_vectors(namespace, vector_bytes(pairs), self.embedder.id)


def folder_of(store: object) -> str:
    """The name of a store's own folder. One that is named by a URL is elsewhere: a folder of its kind is not its."""
    return store if isinstance(store, str) and "://" not in store else "store"


def renewed(store: LessonStore, folder: Path, generation: str) -> None:
    """Empty a store in a folder of ours that was filled before the ledger's present generation."""
    if outdated(folder, generation):
        if (clear := getattr(store, "clear", None)) is not None:
            clear()
        (folder / GENERATION).write_text(generation)


def outdated(folder: Path, generation: str) -> bool:
    """Whether a store's folder was filled before the ledger's present generation."""
    note = folder / GENERATION
    return folder.is_dir() and (note.read_text() if note.is_file() else "") != generation


def clear_folder(name: str, folder: Path, generation: str) -> str:
    """Empty the folder of a store that this process does not use; gives the reason where that cannot be."""
    try:
        store = open_store(name, StoreContext(path=folder))
        try:
            renewed(store, folder, generation)
        finally:
            store.close()
    except Exception as error:  # noqa: BLE001 - any driver, and a process that holds the folder
        return f"{type(error).__name__}: {error}"
    return ""


def _entries(rows: Sequence[Indexed]) -> list[Entry]:
    import numpy as np

    return [
        Entry(id=row.id, vector=np.frombuffer(row.vector, dtype=np.float32))
        for row in rows
        if row.active and row.vector is not None
    ]


def _fill(store: LessonStore, space: Namespace, entries: Sequence[Entry]) -> None:
    """Make a namespace of a store that was just opened what the ledger says.

    One that only this process holds may have been damaged on the disk: where it fails it is dropped and made anew.
    """
    try:
        store.delete(space, store.ids(space) - {entry.id for entry in entries})
        store.upsert(space, entries)
    except StoreError as error:
        if store.capabilities.multi_process:
            raise
        logger.warning("reflect: the store of %s is made anew from the ledger: %s", "/".join(space), error)
        store.drop(space)
        store.upsert(space, entries)


def _merge(hits: Sequence[Hit], changed: Sequence[Indexed], vector: Vector, k: int) -> list[Hit]:
    """The store's hits, with what changed since then compared exactly."""
    newer = {row.id for row in changed}
    fresh = [(entry.id, float(entry.vector @ vector)) for entry in _entries(changed)]
    kept = [hit for hit in hits if hit[0] not in newer]
    return sorted([*kept, *fresh], key=lambda hit: -hit[1])[:k]
