"""Exact search with numpy over the ledger's vectors: no files, no lock, no server.

It is the fastest store up to some 20,000 lessons in a namespace, and the fallback of a process that cannot hold an
embedded store because another process does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect_middleware.errors import StoreError
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, no_vectors, one_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace

FEW = 32
"""So many are found faster by looking for the largest again and again than by sorting."""


@dataclass(frozen=True, slots=True)
class _Table:
    """One namespace at one moment. Never changed: a write makes a new one, so that readers need no lock."""

    ids: tuple[str, ...] = ()
    matrix: Vector | None = None
    """Shape (len(ids), dim), contiguous; None while there are no ids."""


class ExactStore(BaseLessonStore):
    """A store in memory. Each namespace is read from the ledger when it is first asked for.

    Args:
        vectors: gives a namespace's entries, from the ledger. Without it nothing is loaded and nothing is evicted.
        max_namespaces: how many namespaces stay in memory, at least 1; the least recently used one goes first.

    What a loaded namespace does not hear of are writes by other processes: call `refresh` to have it read again.
    Errors of `vectors` pass through unchanged.
    """

    capabilities = Capabilities(exact=True)

    def __init__(
        self, vectors: Callable[[Namespace], Sequence[Entry]] = no_vectors, *, max_namespaces: int = 256
    ) -> None:
        self._vectors = vectors
        self._limit = max_namespaces if vectors is not no_vectors else 0
        self._tables: OrderedDict[Namespace, _Table] = OrderedDict()
        # _writing is held while the ledger is read; _lock only for moments, so that loaded namespaces never wait.
        self._writing = threading.Lock()
        self._lock = threading.Lock()

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id. Copies the namespace's matrix once per call."""
        if entries:
            with self._writing:
                self._keep(namespace, _with(self._load(namespace), entries))

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        gone = set(ids)
        with self._writing:
            self._keep(namespace, _without(self._load(namespace), gone))

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first."""
        table = self._table(namespace)
        return _nearest(table, vector, k) if k > 0 and table.ids else []

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace."""
        return set(self._table(namespace).ids)

    def drop(self, namespace: Namespace) -> None:
        """Empty the namespace. It stays empty until `refresh`, an eviction or an upsert."""
        with self._writing:
            self._keep(namespace, _Table())

    def refresh(self, namespace: Namespace | None = None) -> None:
        """Forget what is in memory of one namespace, or of all: the next call reads the ledger again."""
        with self._writing, self._lock:
            if namespace is None:
                self._tables.clear()
            else:
                self._tables.pop(namespace, None)

    def close(self) -> None:
        """Free the memory. The store can still be used: it loads again."""
        self.refresh()

    def _table(self, namespace: Namespace) -> _Table:
        table = self._cached(namespace)
        if table is None:
            with self._writing:
                table = self._load(namespace)
                self._keep(namespace, table)
        return table

    def _cached(self, namespace: Namespace) -> _Table | None:
        with self._lock:
            table = self._tables.get(namespace)
            if table is not None:
                self._tables.move_to_end(namespace)
            return table

    def _load(self, namespace: Namespace) -> _Table:
        """The namespace as it is in memory, else as the ledger has it. The caller holds `_writing`."""
        return self._cached(namespace) or _with(_Table(), self._vectors(namespace))

    def _keep(self, namespace: Namespace, table: _Table) -> None:
        with self._lock:
            self._tables[namespace] = table
            self._tables.move_to_end(namespace)
            if self._limit and len(self._tables) > self._limit:
                self._tables.popitem(last=False)


def _with(table: _Table, entries: Sequence[Entry]) -> _Table:
    """The table with these entries inserted or replaced."""
    import numpy as np

    if not entries:
        return table
    new = {entry.id: entry.vector for entry in entries}
    kept = _without(table, set(new))
    one_size(new.values(), 0 if kept.matrix is None else kept.matrix.shape[1])
    rows = np.ascontiguousarray(list(new.values()), dtype=np.float32)
    return _Table((*kept.ids, *new), rows if kept.matrix is None else np.concatenate([kept.matrix, rows]))


def _without(table: _Table, gone: set[str]) -> _Table:
    """The table without these ids."""
    import numpy as np

    if table.matrix is None or gone.isdisjoint(table.ids):
        return table
    kept = np.fromiter((i not in gone for i in table.ids), dtype=bool, count=len(table.ids))
    ids = tuple(i for i in table.ids if i not in gone)
    return _Table(ids, np.ascontiguousarray(table.matrix[kept]) if ids else None)


def _nearest(table: _Table, vector: Vector, k: int) -> list[Hit]:
    """Top k by dot product, which is the cosine for unit vectors."""
    matrix = table.matrix
    if matrix is None or vector.shape != matrix.shape[1:]:
        size = None if matrix is None else matrix.shape[1]
        raise StoreError(
            f"The query vector has shape {vector.shape!r}; this namespace holds vectors of shape ({size},). "
            "After a change of the embedding model, drop the namespace and add all its lessons again."
        )
    # One dot product per row: a matrix product is shared out to BLAS threads, which costs tenfold where cores are busy.
    cosines = (matrix[:, None, :] @ vector[:, None])[:, 0, 0]
    return [(table.ids[row], min(1.0, max(-1.0, cosine))) for row, cosine in _largest(cosines, k)]


def _largest(values: Vector, k: int) -> list[tuple[int, float]]:
    """The k largest with their places, best first, the first of equals first; may change `values`."""
    import numpy as np

    if k > FEW:
        order = np.argsort(-values, kind="stable")[:k]
        return list(zip(order.tolist(), values[order].tolist(), strict=True))
    found: list[tuple[int, float]] = []
    for _ in range(min(k, len(values))):
        place = int(values.argmax())
        found.append((place, float(values[place])))
        values[place] = -np.inf
    return found
