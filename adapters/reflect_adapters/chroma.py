"""Vectors in Chroma, the default store: embedded in a folder, a server, Chroma Cloud, or the user's own client.

One collection per namespace; vectors are always ours (`embedding_function=None`). The async twins run in threads: all
calls of this package come from threads of its own, and a native async client is bound to one event loop.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reflect_adapters._chroma_client import SHARED, Client
from reflect_adapters._chroma_server import CLOUD_URL, Given, Remote, cloud, server, the_users
from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, StoreContext, one_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from reflect_adapters._chroma_collections import Collections
    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace


def open_store(context: StoreContext) -> BaseLessonStore:
    """Entry point `chroma`: a folder in the context's place, a server, Chroma Cloud, or a client of the user's.

    By URL: `chroma://host:8000` or `chroma+https://host`, with the options `ssl`, `headers`, `tenant`, `database`,
    `settings` (chromadb's), `timeout` (s, default 30); `chroma://cloud` with `api_key`, `tenant`, `database`,
    `timeout`. An `api_key` alone means the cloud too. The option `client` is a Chroma client of yours, sync or async,
    which is never closed, as is one given as `store=`.

    Raises:
        ConfigurationError: The URL or an option is not one of these.
        StoreLockedError: Another process holds the folder, or this one was forked after Chroma had been opened.
        StoreError: The folder, the server or chromadb cannot be used.
    """
    options = dict(context.options)
    client: Any = context.given if context.given is not None else options.pop("client", None)
    if context.url.rstrip("/") == CLOUD_URL or (not context.url and client is None and "api_key" in options):
        return ChromaClientStore(cloud(options))
    if context.url and client is None:
        return ChromaClientStore(server(context.url, options))
    if options:
        allowed = "client; api_key, tenant, database for Chroma Cloud; for a server more, with its URL as store="
        raise ConfigurationError("store_options", sorted(options), allowed)
    return ChromaStore(context.path) if client is None else ChromaClientStore(the_users(client))


class _Store(BaseLessonStore):
    """The six methods over whatever gives collections."""

    def _using(self, doing: str, namespace: Namespace | None = None) -> AbstractContextManager[Collections]:
        """The client's collections; what Chroma raises inside is wrapped."""
        raise NotImplementedError

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id, in batches of what Chroma allows."""
        import numpy as np

        vectors = {entry.id: entry.vector for entry in entries}
        if not vectors:
            return
        one_size(vectors.values())
        ids = list(vectors)
        matrix = np.asarray(list(vectors.values()), dtype=np.float32)
        with self._using(f"writing to the namespace {namespace!r}", namespace) as collections:
            collection, batch = collections.made(namespace), collections.batch
            for start in range(0, len(ids), batch):
                collection.upsert(ids=ids[start : start + batch], embeddings=matrix[start : start + batch])

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        gone = list(dict.fromkeys(ids))
        if not gone:
            return
        with self._using(f"deleting from the namespace {namespace!r}", namespace) as collections:
            if (collection := collections.found(namespace)) is not None:
                for start in range(0, len(gone), collections.batch):
                    collection.delete(ids=gone[start : start + collections.batch])

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first."""
        if k < 1:
            return []
        with self._using(f"searching the namespace {namespace!r}", namespace) as collections:
            if (collection := collections.found(namespace)) is None:
                return []
            most = min(k, collections.most or k)
            found = collection.query(query_embeddings=vector[None], n_results=most, include=["distances"])
        return _hits(found["ids"], found["distances"] or [[]])

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace."""
        with self._using(f"listing the namespace {namespace!r}", namespace) as collections:
            return collections.ids(namespace)

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's collection, if there is one."""
        with self._using(f"dropping the namespace {namespace!r}") as collections:
            collections.drop(namespace)


class ChromaStore(_Store):
    """Lessons' vectors in an embedded Chroma under `path`. Several of one process on one folder share one client.

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

    def clear(self) -> None:
        """Delete every namespace and every trace on disk. Other stores of this process on the folder see it empty."""
        with SHARED.lock:
            client = self._client()
            with client.call("emptying it"):
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
    def _using(self, doing: str, namespace: Namespace | None = None) -> Iterator[Collections]:
        with self._client().call(doing, namespace) as collections:
            yield collections


class ChromaClientStore(_Store):
    """Lessons' vectors in a Chroma that is not a folder of ours.

    Args:
        source: From `server`, `cloud` or `the_users`.
    """

    def __init__(self, source: Remote | Given) -> None:
        self._source = source
        served = source.shared
        self.capabilities = Capabilities(persistent=source.persistent, multi_process=served, reconnects=served)

    def close(self) -> None:
        """Release the client, if it is ours."""
        self._source.close()

    def _using(self, doing: str, namespace: Namespace | None = None) -> AbstractContextManager[Collections]:
        return self._source.call(doing, namespace)


def _hits(ids: Sequence[Sequence[str]], distances: Sequence[Sequence[float]]) -> list[Hit]:
    """Chroma's cosine distance is 1 - cosine, give or take rounding."""
    pairs = zip(ids[0], distances[0], strict=True)
    return [(found, min(1.0, max(-1.0, 1.0 - distance))) for found, distance in pairs]
