"""Embedded Chroma: the default store. One folder, one process, one collection per namespace, no server, no download.

Vectors are always ours (`embedding_function=None`). Several stores on one folder in one process share one client.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reflect_adapters._chroma_client import SHARED, Client
from reflect_middleware.errors import StoreError
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, StoreContext

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace


def open_store(context: StoreContext) -> ChromaStore:
    """Entry point `chroma`: the embedded store in the context's folder."""
    return ChromaStore(context.path)


class ChromaStore(BaseLessonStore):
    """Lessons' vectors in an embedded Chroma under `path`.

    Raises:
        StoreLockedError: another process holds the folder, or this one was forked after Chroma had been opened.
        StoreError: the folder or chromadb cannot be used; later, whatever Chroma raised.
    """

    capabilities = Capabilities(persistent=True)

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._closed = False
        self._held: Client | None = None
        self._client()

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id, in batches of what Chroma allows."""
        import numpy as np

        vectors = {entry.id: entry.vector for entry in entries}
        if not vectors:
            return
        ids = list(vectors)
        matrix = np.asarray(list(vectors.values()), dtype=np.float32)
        with self._collection(namespace, create=True) as (collection, batch):
            for start in range(0, len(ids), batch):
                collection.upsert(ids=ids[start : start + batch], embeddings=matrix[start : start + batch])

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        gone = list(dict.fromkeys(ids))
        if not gone:
            return
        with self._collection(namespace) as (collection, batch):
            if collection is not None:
                for start in range(0, len(gone), batch):
                    collection.delete(ids=gone[start : start + batch])

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first."""
        if k < 1:
            return []
        with self._collection(namespace) as (collection, _):
            if collection is None:
                return []
            found = collection.query(query_embeddings=vector[None], n_results=k, include=["distances"])
        return _hits(found["ids"], found["distances"] or [[]])

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace."""
        with self._collection(namespace) as (collection, _):
            return set() if collection is None else set(collection.get(include=[])["ids"])

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's collection, if there is one."""
        with self._client().call(f"dropping the namespace {namespace!r}") as client:
            client.drop(namespace)

    def clear(self) -> None:
        """Delete every namespace and every trace on disk. Other stores of this process on the folder see it empty."""
        with SHARED.lock, self._client().call("emptying it") as client:
            client.clear()

    def close(self) -> None:
        """Release the client and the lock, once no other store of this process uses them."""
        with SHARED.lock:
            held, self._held, self._closed = self._held, None, True
            if held is not None and held.pid == os.getpid():
                SHARED.release(held)

    def _client(self) -> Client:
        """This process's client; after a fork the parent's is left alone."""
        held = self._held
        if held is not None and held.pid == os.getpid():
            return held
        with SHARED.lock:
            if self._closed:
                raise StoreError(f"The store in {str(self._path)!r} is closed. Open a new one.")
            if self._held is None or self._held.pid != os.getpid():
                self._held = None
                self._held = SHARED.acquire(self._path)
            return self._held

    @contextmanager
    def _collection(self, namespace: Namespace, *, create: bool = False) -> Iterator[tuple[Any, int]]:
        """The namespace's collection (None if there is none and `create` is False) and the largest batch."""
        with self._client().call(f"using the namespace {namespace!r}", namespace) as client:
            yield client.collection(namespace, create=create), client.batch


def _hits(ids: Sequence[Sequence[str]], distances: Sequence[Sequence[float]]) -> list[Hit]:
    """Chroma's cosine distance is 1 - cosine, give or take rounding."""
    pairs = zip(ids[0], distances[0], strict=True)
    return [(found, min(1.0, max(-1.0, 1.0 - distance))) for found, distance in pairs]
