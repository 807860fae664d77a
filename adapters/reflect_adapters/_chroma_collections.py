"""What every kind of Chroma client has in common: one collection of lessons per namespace, and errors wrapped once."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reflect_adapters._names import hashed
from reflect_middleware.errors import ReflectError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chromadb.api import ClientAPI
    from chromadb.api.collection_configuration import CreateHNSWConfiguration
    from chromadb.api.models.Collection import Collection

    from reflect_middleware.types import Namespace

HNSW: CreateHNSWConfiguration = {"space": "cosine", "ef_construction": 200, "max_neighbors": 32, "ef_search": 200}
"""Chroma's own defaults find only 92 % of the ten nearest of 2,000 random vectors; these find all, 0.1 ms later."""
MAX_COLLECTIONS = 1024
"""Collection handles remembered per client; a forgotten one costs 0.4 ms to get again."""
MAX_READABLE = 256
"""Most characters of a namespace in its collection's metadata: Chroma Cloud takes no more."""
FEW = 100
"""Entries in one call to a server that does not say how many it takes."""


class Collections:
    """One client's collections, remembered by namespace.

    Args:
        api: Any Chroma client but an async one.
        most: Most entries that one call may write or read, if there is such a limit; 0 for what the client says of
            writing and no limit on reading.
    """

    def __init__(self, api: ClientAPI, *, most: int = 0) -> None:
        self.api = api
        self.most = most
        allowed = api.get_max_batch_size()
        allowed = allowed if allowed > 0 else FEW
        self.batch = min(allowed, most or allowed)
        self._known: dict[Namespace, Collection] = {}

    @contextmanager
    def use(self, doing: str, todo: str, namespace: Namespace | None = None) -> Iterator[Collections]:
        """These. What Chroma raises is wrapped, and the namespace's collection is then asked for again next time.

        Somebody else may have deleted it: that is one error, so that whoever fills it hears of it.
        """
        try:
            with wrapped(doing, todo):
                yield self
        except StoreError:
            if namespace is not None:
                self._known.pop(namespace, None)
            raise

    def found(self, namespace: Namespace) -> Collection | None:
        """The namespace's collection, if there is one."""
        from chromadb.errors import NotFoundError

        if (known := self._known.get(namespace)) is not None:
            return known
        try:
            return self._keep(namespace, self.api.get_collection(collection_name(namespace), embedding_function=None))
        except NotFoundError:
            return None

    def made(self, namespace: Namespace) -> Collection:
        """The namespace's collection, made if there is none."""
        if (known := self._known.get(namespace)) is not None:
            return known
        readable = {"namespace": json.dumps(namespace, ensure_ascii=True)[:MAX_READABLE]}
        made = self.api.get_or_create_collection(
            collection_name(namespace), configuration={"hnsw": HNSW}, metadata=readable, embedding_function=None
        )
        return self._keep(namespace, made)

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's collection, if there is one."""
        from chromadb.errors import NotFoundError

        self._known.pop(namespace, None)
        try:
            self.api.delete_collection(collection_name(namespace))
        except NotFoundError:
            return

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids of the namespace, in pages where the client has a limit."""
        if (collection := self.found(namespace)) is None:
            return set()
        if not self.most:
            return set(collection.get(include=[])["ids"])
        found, offset = set[str](), 0
        while page := collection.get(include=[], limit=self.most, offset=offset)["ids"]:
            found.update(page)
            offset += len(page)
        return found

    def _keep(self, namespace: Namespace, collection: Collection) -> Collection:
        if len(self._known) >= MAX_COLLECTIONS:
            self._known.clear()
        self._known[namespace] = collection
        return collection


def collection_name(namespace: Namespace) -> str:
    """A name that Chroma allows; the readable namespace is in the collection's metadata."""
    return f"lessons-{hashed(namespace)}"


def driver() -> Any:
    """The module chromadb.

    Raises:
        StoreError: It cannot be imported.
    """
    try:
        import chromadb
    except ImportError as exc:
        raise StoreError(
            "The store 'chroma' needs the package chromadb, which cannot be imported. "
            "Install it (pip install chromadb), or use store='exact'."
        ) from exc
    return chromadb


@contextmanager
def wrapped(doing: str, todo: str) -> Iterator[None]:
    """Raise what Chroma raises as `StoreError`, once."""
    try:
        yield
    except ReflectError:
        raise
    except BaseException as exc:
        # A panic in Chroma's Rust code is no Exception: unwrapped it would pass every boundary and end the user's run.
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        told = " ".join(str(exc).split())
        raise StoreError(
            f"Chroma failed while {doing} ({type(exc).__name__}: {told}). The ledger still has every lesson: {todo}"
        ) from exc
