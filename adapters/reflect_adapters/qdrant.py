"""Vectors in Qdrant: its local mode in a folder, a server, or the user's own client. One collection per namespace."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect_adapters._names import hashed
from reflect_adapters._qdrant_client import Folder, Given, Server, is_local, local_collection, quicken, wrapped
from reflect_middleware.errors import ConfigurationError
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, StoreContext, one_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from qdrant_client import QdrantClient

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace

BATCH = 500
"""Points in one request: 3 MB with vectors of size 384, where a server takes 32."""
LOCAL_BATCH = 50
"""The same in local mode, where a search waits for the end of a batch."""
PAGE = 5_000
"""Ids in one answer."""
SETTINGS = ("https", "api_key", "prefix", "timeout", "prefer_grpc", "grpc_port", "headers")
"""Of QdrantClient's arguments, those that `store_options` may give for a server."""
IDS = uuid.UUID("7a1c3c52-5d0e-4f0a-9d6b-5b8f9a3d2c11")
"""Qdrant's ids are numbers or UUIDs, ours any text: a point has one made from ours, and ours in its payload."""


def open_store(context: StoreContext) -> QdrantStore:
    """Entry point `qdrant`: a folder in the context's place, or a server by `qdrant://host:6333`.

    Options: `client`, a QdrantClient of yours, which we never close, as is one given as `store=`; `exact` (default
    True); for a server `https`, `api_key`, `prefix`, `timeout` (s), `prefer_grpc`, `grpc_port`, `headers`.

    Raises:
        ConfigurationError: an unknown option, or one that does not go with the rest.
        MissingExtraError: qdrant-client is not installed.
        StoreLockedError: another process holds the folder.
        StoreError: the server or the folder cannot be used.
    """
    options = dict(context.options)
    exact, client = bool(options.pop("exact", True)), options.pop("client", context.given)
    allowed = SETTINGS if context.url else ()
    if unknown := sorted(set(options) - set(allowed)):
        raise ConfigurationError("store_options", unknown, ", ".join(("client", "exact", *allowed)))
    if client is not None:
        return QdrantStore(client, exact=exact)
    if context.url:
        return QdrantStore(_http(context.url, options), exact=exact, **options)
    return QdrantFolderStore(context.path)


class QdrantStore(BaseLessonStore):
    """Lessons' vectors in Qdrant.

    Args:
        where: A server's URL (`http://host:6333`), or a `QdrantClient`, which stays yours.
        exact: Whether a search compares with every vector of its namespace, or uses Qdrant's index where there is one.
        settings: Further arguments of the server's `QdrantClient`.
    """

    def __init__(self, where: str | QdrantClient | Path, *, exact: bool = True, **settings: Any) -> None:
        self._source: Server | Folder | Given
        with wrapped("opening it"):
            if isinstance(where, Path):
                self._source = Folder(where)
            else:
                self._source = Server(where, settings) if isinstance(where, str) else Given(where)
        served = isinstance(where, str) or not (isinstance(where, Path) or is_local(where))
        self._batch = BATCH if served else LOCAL_BATCH
        self.capabilities = Capabilities(
            exact=exact or not served,
            persistent=served or isinstance(where, Path),
            multi_process=served,
        )

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id, in batches; it returns once they are found."""
        vectors = {entry.id: entry.vector for entry in entries}
        if not vectors:
            return
        name = _name(namespace)
        with wrapped(f"writing to the namespace {namespace!r}"):
            with self._source.use() as client:
                _prepare(client, name, one_size(vectors.values()))
                one_size(vectors.values(), _size(client, name))
                if isinstance(self._source, Folder):
                    quicken(client, name)
            for some in self._batches(vectors):
                with self._source.use() as client:
                    client.upsert(name, points=[_point(one, vectors[one]) for one in some], wait=True)

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        name = _name(namespace)
        with wrapped(f"deleting from the namespace {namespace!r}"):
            for some in self._batches(set(ids)):
                with self._source.use() as client:
                    if client.collection_exists(name):
                        client.delete(name, points_selector=[_uuid(one) for one in some], wait=True)

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first."""
        if k < 1:
            return []
        from qdrant_client.models import SearchParams

        name, served = _name(namespace), self.capabilities.multi_process
        how = SearchParams(exact=self.capabilities.exact) if served else None  # local mode warns: it is always exact
        with wrapped(f"searching the namespace {namespace!r}"), self._source.use() as client:
            try:
                found = client.query_points(name, query=vector.tolist(), limit=k, search_params=how).points
            except Exception:
                if client.collection_exists(name):
                    raise
                return []
        return [(_ours(point), min(1.0, max(-1.0, float(point.score)))) for point in found]

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace."""
        name, found, offset = _name(namespace), set[str](), None
        with wrapped(f"listing the namespace {namespace!r}"), self._source.use() as client:
            if client.collection_exists(name):
                while True:
                    points, offset = client.scroll(name, limit=PAGE, offset=offset, with_vectors=False)
                    found.update(_ours(point) for point in points)
                    if offset is None:
                        break
        return found

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's collection, if there is one."""
        with wrapped(f"dropping the namespace {namespace!r}"), self._source.use() as client:
            if client.collection_exists(_name(namespace)):
                _delete(client, _name(namespace))

    def close(self) -> None:
        """Release what we opened; a client that was given stays open."""
        with wrapped("closing it"):
            self._source.close()

    def _batches(self, ids: Iterable[str]) -> Iterator[list[str]]:
        every = list(ids)
        return (every[start : start + self._batch] for start in range(0, len(every), self._batch))


class QdrantFolderStore(QdrantStore):
    """Qdrant's local mode in a folder of ours: one process, and, as Qdrant says, up to 20,000 lessons a namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def clear(self) -> None:
        """Delete every namespace and its files."""
        with wrapped("emptying it"), self._source.use() as client:
            for collection in client.get_collections().collections:
                _delete(client, collection.name)


def _http(url: str, options: dict[str, Any]) -> str:
    """`qdrant://host:6333` as http or https. A key goes over https unless `https=False` says otherwise."""
    scheme, _, rest = url.partition("://")
    secure = options.pop("https", scheme.endswith("+https") or bool(options.get("api_key")))
    if not rest:
        raise ConfigurationError("The qdrant store's URL", url, "qdrant://host:6333, or store='qdrant' for a folder")
    return f"{'https' if secure else 'http'}://{rest}"


def _name(namespace: Namespace) -> str:
    return f"lessons-{hashed(namespace)}"


def _uuid(one: str) -> str:
    return str(uuid.uuid5(IDS, one))


def _ours(point: Any) -> str:
    return str(point.payload["id"])


def _point(one: str, vector: Vector) -> Any:
    from qdrant_client.models import PointStruct

    return PointStruct(id=_uuid(one), vector=vector.tolist(), payload={"id": one})


def _prepare(client: QdrantClient, name: str, size: int) -> None:
    """Make the collection if there is none."""
    from qdrant_client.models import Distance, VectorParams

    if not client.collection_exists(name):
        try:
            client.create_collection(name, vectors_config=VectorParams(size=size, distance=Distance.COSINE))
        except Exception:
            if not client.collection_exists(name):  # else another process was faster
                raise


def _size(client: QdrantClient, name: str) -> int:
    config: Any = client.get_collection(name).config.params.vectors
    return int(config.size)


def _delete(client: QdrantClient, name: str) -> None:
    """Local mode forgets to close a deleted collection's file."""
    collection = local_collection(client, name)
    client.delete_collection(name)
    if collection is not None:
        collection.close()
