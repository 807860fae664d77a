"""The stores that `make stores` measures, each opened as its users open it. A new one is one more line in `KINDS`."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reflect_middleware.registry import open_store
from reflect_middleware.store import LessonStore, StoreContext

LIMITED = 20_000
"""Up to so many lessons in a namespace a limit holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a store may live while it is measured."""

    folder: Path
    """Empty."""
    dim: int
    """Size of the vectors."""
    postgres: str
    """SQLAlchemy URL of an empty database, for the stores that need one, else empty."""
    stack: ExitStack
    """Closes what a user would have opened."""
    folders: list[Path]
    """Where files of the store lie."""

    def bytes(self) -> int:
        """What lies in the folder or in the database."""
        if not self.postgres:
            files = (file for folder in self.folders for file in folder.rglob("*"))
            return sum(file.stat().st_size for file in files if file.is_file())
        import psycopg

        with psycopg.connect(libpq(self.postgres)) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One store to measure."""

    title: str
    """The store's name, and after a comma what is special about this one."""
    spec: Callable[[Place], object]
    """What a user gives as `store=`: a name, a URL or an object."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What a user gives as `store_options=`."""
    packages: tuple[str, ...] = ()
    """Whose versions matter."""
    milliseconds: float | None = None
    """The limit: most milliseconds of a search in a namespace of up to `LIMITED` lessons, at the median."""
    on_postgres: bool = False


@contextmanager
def opened(kind: Kind, folder: Path, dim: int, postgres: str) -> Iterator[tuple[LessonStore, Place]]:
    """The store, closed in the end together with what a user would have opened for it."""
    with ExitStack() as stack:
        place = Place(
            folder=folder, dim=dim, postgres=postgres if kind.on_postgres else "", stack=stack, folders=[folder]
        )
        context = StoreContext(path=folder / "store", ledger_url=place.postgres, options=kind.options)
        store = open_store(kind.spec(place), context)
        stack.callback(store.close)
        yield store, place


def libpq(url: str) -> str:
    """An SQLAlchemy URL as PostgreSQL's own library reads it."""
    return url.replace("+psycopg", "", 1)


def _chroma_server(place: Place) -> object:
    server = importlib.import_module("tests.chroma").Server()
    place.stack.callback(server.close)
    place.folders.append(server.folder)
    return server.url


def _in_memory(_: Place) -> object:
    from langgraph.store.memory import InMemoryStore

    return InMemoryStore()


def _sqlite_store(place: Place) -> object:
    from langgraph.store.sqlite import SqliteStore

    connection = sqlite3.connect(place.folder / "store.db", check_same_thread=False, isolation_level=None)
    place.stack.callback(connection.close)
    store = SqliteStore(connection)
    store.setup()
    return store


def _postgres_store(place: Place) -> object:
    from langgraph.store.postgres import PostgresStore

    store = place.stack.enter_context(PostgresStore.from_conn_string(libpq(place.postgres)))
    store.setup()
    return store


def _in_memory_vectors(_: Place) -> object:
    from langchain_core.vectorstores import InMemoryVectorStore

    from reflect_adapters.langchain import LessonVectors

    return InMemoryVectorStore(LessonVectors())


def _langchain_chroma(place: Place) -> object:
    import chromadb
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    from reflect_adapters.langchain import LessonVectors

    folder = str(place.folder / "chroma")
    client = chromadb.PersistentClient(path=folder, settings=Settings(anonymized_telemetry=False))
    hnsw: Any = {
        "space": "cosine",
        "ef_construction": 200,
        "max_neighbors": 32,
        "ef_search": 200,
    }  # as docs/stores.md says
    return Chroma("lessons", LessonVectors(), client=client, collection_configuration={"hnsw": hnsw})


def _langchain_qdrant(place: Place) -> object:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    from reflect_adapters.langchain import LessonVectors

    client = QdrantClient(path=str(place.folder / "qdrant"))
    place.stack.callback(client.close)
    client.create_collection("lessons", VectorParams(size=place.dim, distance=Distance.COSINE))
    return QdrantVectorStore(client, "lessons", LessonVectors(place.dim), validate_collection_config=False)


def _only(where: str) -> object:
    """Qdrant's filter for a namespace."""
    from qdrant_client.models import FieldCondition, Filter, MatchValue

    from reflect_adapters.langchain import NAMESPACE

    return Filter(must=[FieldCondition(key=f"metadata.{NAMESPACE}", match=MatchValue(value=where))])


def _metadata(where: str) -> object:
    return {"reflect_namespace": where}


def _document(where: str) -> object:
    return lambda document: document.metadata["reflect_namespace"] == where


KINDS = (
    Kind(title="exact", spec=lambda _: "exact", packages=("numpy",), milliseconds=2.0),
    Kind(title="chroma", spec=lambda _: "chroma", packages=("chromadb",), milliseconds=4.0),
    Kind(title="chroma, server", spec=_chroma_server, packages=("chromadb",)),
    Kind(title="qdrant, local", spec=lambda _: "qdrant", packages=("qdrant-client",)),
    Kind(title="pgvector", spec=lambda _: "pgvector", packages=("psycopg",), on_postgres=True),
    Kind(title="pgvector, hnsw", spec=lambda _: "pgvector", options={"hnsw_above": 1}, on_postgres=True),
    Kind(title="langgraph, InMemoryStore", spec=_in_memory, packages=("langgraph",)),
    Kind(title="langgraph, SqliteStore", spec=_sqlite_store, packages=("langgraph-checkpoint-sqlite",)),
    Kind(
        title="langgraph, PostgresStore",
        spec=_postgres_store,
        packages=("langgraph-checkpoint-postgres",),
        on_postgres=True,
    ),
    Kind(
        title="langchain, InMemoryVectorStore",
        spec=_in_memory_vectors,
        options={"filter": _document},
        packages=("langchain-core",),
    ),
    Kind(
        title="langchain, Chroma",
        spec=_langchain_chroma,
        options={"filter": _metadata},
        packages=("langchain-chroma",),
    ),
    Kind(
        title="langchain, Qdrant local",
        spec=_langchain_qdrant,
        options={"filter": _only},
        packages=("langchain-qdrant",),
    ),
)
