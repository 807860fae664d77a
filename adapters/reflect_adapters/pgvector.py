"""Vectors in PostgreSQL by its extension `vector`: one table, beside the ledger or not, for any number of processes.

A search compares with every vector of its namespace. From `hnsw_above` entries on a namespace gets an index of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflect_adapters._names import hashed
from reflect_adapters._postgres import Connections, Packed
from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, StoreContext, one_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection, Cursor

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace

OPTIONS = ("url", "connections", "hnsw_above")
SETUP_LOCK = 0x7265666C
"""Of PostgreSQL's advisory locks: two processes that make the same table at once fail otherwise."""
MAX_INDEXED = 2_000
"""Longer vectors get no index: pgvector has none for them."""
EF_SEARCH = 400
"""Of the ten nearest of 10,000 random vectors of size 384 it finds 99.8 %; 200 finds 97.8 %, pgvector's own 40 60 %."""

PRESENT = "SELECT to_regclass('reflect_vectors') IS NOT NULL"
EXTENSION = "CREATE EXTENSION IF NOT EXISTS vector"
TABLE = """CREATE TABLE IF NOT EXISTS reflect_vectors (
    space text NOT NULL, id text NOT NULL, vector vector NOT NULL, PRIMARY KEY (space, id))"""
SIZE = "SELECT vector_dims(vector) FROM reflect_vectors WHERE space = %s LIMIT 1"
UPSERT = """INSERT INTO reflect_vectors (space, id, vector) VALUES (%s, %s, %s::vector)
    ON CONFLICT (space, id) DO UPDATE SET vector = EXCLUDED.vector"""
DELETE = "DELETE FROM reflect_vectors WHERE space = %s AND id = ANY(%s)"
IDS = "SELECT id FROM reflect_vectors WHERE space = %s"
DROP = "DELETE FROM reflect_vectors WHERE space = %s"
COUNT = "SELECT count(*) FROM reflect_vectors WHERE space = %s"
SEARCH = """SELECT id, -(vector <#> %(query)s::vector) FROM reflect_vectors WHERE space = %(space)s
    ORDER BY vector <#> %(query)s::vector LIMIT %(k)s"""
SEARCH_INDEX = """SELECT id, -(vector::vector({size}) <#> %(query)s::vector({size})) FROM reflect_vectors
    WHERE space = {space} ORDER BY vector::vector({size}) <#> %(query)s::vector({size}) LIMIT %(k)s"""
INDEX = """CREATE INDEX IF NOT EXISTS {name} ON reflect_vectors
    USING hnsw ((vector::vector({size})) vector_ip_ops) WITH (m = 32, ef_construction = 200) WHERE space = {space}"""
DROP_INDEX = "DROP INDEX IF EXISTS {name}"
INDEXED = "SELECT to_regclass(%s) IS NOT NULL"
"""All vectors are of unit length, so the inner product is the cosine."""


def open_store(context: StoreContext) -> PgvectorStore:
    """Entry point `pgvector`.

    It connects to `pgvector://…` or the option `url`, else to the ledger's database where that is PostgreSQL.
    Other options: `connections` (default 5), how many a process has at most; `hnsw_above` (default 0: never), from how
    many entries on a namespace is indexed.

    Raises:
        ConfigurationError: an unknown option, or no URL.
        MissingExtraError: psycopg is not installed.
        StoreError: the server cannot be reached, or has no extension `vector` and this user may not make it.
    """
    if unknown := sorted(set(context.options) - set(OPTIONS)):
        raise ConfigurationError("store_options", unknown, ", ".join(OPTIONS))
    named = context.url if "://" in context.url and not context.url.endswith("://") else ""
    return PgvectorStore(
        named or context.options.get("url") or context.ledger_url,
        connections=int(context.options.get("connections", 5)),
        hnsw_above=int(context.options.get("hnsw_above", 0)),
    )


class PgvectorStore(BaseLessonStore):
    """Lessons' vectors in the table `reflect_vectors`.

    Args:
        url: `postgresql://…`; `pgvector://…` and SQLAlchemy's `postgresql+psycopg://…` mean the same.
        connections: how many this process has at most, at least 1.
        hnsw_above: from how many entries on a namespace is indexed; 0 for never. A search then finds at least 99 of
            100 of the nearest instead of all.
    """

    def __init__(self, url: str, *, connections: int = 5, hnsw_above: int = 0) -> None:
        self.capabilities = Capabilities(exact=hnsw_above <= 0, persistent=True, multi_process=True, reconnects=True)
        self._hnsw_above = hnsw_above
        self._connections = Connections(_libpq(url), most=connections)
        try:
            self._connections.run("opening it", _set_up)
        except StoreError as exc:
            self._connections.close()
            if (told := _refused(exc.__cause__)) is not None:
                raise StoreError(told) from exc.__cause__
            raise

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id, in one transaction."""
        # In the order of their ids: two processes that write the same ones must not wait for each other in a circle.
        vectors = dict(sorted((entry.id, entry.vector) for entry in {entry.id: entry for entry in entries}.values()))
        if not vectors:
            return
        space, size = hashed(namespace), one_size(vectors.values())

        def write(connection: Connection[Any]) -> int:
            found = connection.execute(SIZE, (space,)).fetchone()
            one_size(vectors.values(), found[0] if found else 0)
            rows = [(space, one, Packed(vector)) for one, vector in vectors.items()]
            with connection.cursor() as cursor:
                cursor.executemany(UPSERT, rows)
            return int(connection.execute(COUNT, (space,)).fetchone()[0]) if self._hnsw_above > 0 else 0  # type: ignore[index]

        count = self._connections.run(f"writing to the namespace {namespace!r}", write)
        if 0 < self._hnsw_above <= count and size <= MAX_INDEXED:
            self._connections.run(f"indexing {namespace!r}", lambda connection: _index(connection, space, size))

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        if gone := sorted(set(ids)):
            self._run(f"deleting from the namespace {namespace!r}", DELETE, (hashed(namespace), gone))

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first."""
        if k < 1:
            return []
        space = hashed(namespace)
        given = {"space": space, "query": Packed(vector), "k": k}

        def read(connection: Connection[Any]) -> list[Any]:
            if self._hnsw_above <= 0 or not _is_indexed(connection, space):
                return connection.execute(SEARCH, given).fetchall()
            return _search_index(connection, given, len(vector)).fetchall()

        rows = self._connections.run(f"searching the namespace {namespace!r}", read)
        return [(found, min(1.0, max(-1.0, cosine))) for found, cosine in rows]

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace."""
        return {row[0] for row in self._run(f"listing the namespace {namespace!r}", IDS, (hashed(namespace),))}

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's rows and its index."""
        space = hashed(namespace)

        def erase(connection: Connection[Any]) -> None:
            connection.execute(DROP, (space,))
            if self._hnsw_above > 0:
                connection.execute(_sql(DROP_INDEX, space))

        self._connections.run(f"dropping the namespace {namespace!r}", erase)

    def close(self) -> None:
        """Close this process's connections."""
        self._connections.close()

    def _run(self, doing: str, statement: str, given: Any) -> list[Any]:
        def once(connection: Connection[Any]) -> list[Any]:
            cursor = connection.execute(statement.encode(), given)
            return cursor.fetchall() if cursor.description else []

        return self._connections.run(doing, once)


def _libpq(url: str) -> str:
    """The URL as PostgreSQL's own library reads it."""
    scheme, found, rest = url.partition("://")
    if not found or scheme.partition("+")[0] not in ("postgresql", "postgres", "pgvector"):
        raise ConfigurationError(
            "The pgvector store's URL",
            f"{scheme}://…" if found else url,
            "pgvector://user@host/database, or postgresql://…",
            "Name it as store='pgvector://…', or put the ledger into PostgreSQL too (ledger='postgresql+psycopg://…').",
        )
    return f"postgresql://{rest}"


def _set_up(connection: Connection[Any]) -> None:
    """Make what is missing; a user who may make nothing can use what is there."""
    if connection.execute(PRESENT).fetchone() != (True,):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (SETUP_LOCK,))
        connection.execute(EXTENSION)
        connection.execute(TABLE)


def _refused(cause: BaseException | None) -> str | None:
    """What to do where the extension or the table cannot be made, by PostgreSQL's error codes."""
    todo = {
        "42501": "A superuser (or the role your provider names for it) has to run CREATE EXTENSION vector once in this "
        "database, and this user needs CREATE on the schema, or the table made by one who has it.",
        "0A000": "Install pgvector on the server (Debian: postgresql-NN-pgvector), then CREATE EXTENSION vector.",
        "58P01": "Install pgvector on the server (Debian: postgresql-NN-pgvector), then CREATE EXTENSION vector.",
        "42704": "The extension vector is in a schema off the search_path: add that one to the URL's options.",
    }.get(getattr(cause, "sqlstate", None) or "")
    return todo and f"The pgvector store cannot be set up ({' '.join(str(cause).split())}). {todo}"


def _sql(text: str, space: str, size: int = 0) -> Any:
    """An index belongs to one namespace and one size, and PostgreSQL takes neither as a parameter there."""
    from psycopg import sql

    name = sql.Identifier(_index_name(space))
    return sql.SQL(text).format(name=name, space=sql.Literal(space), size=sql.Literal(size))


def _index_name(space: str) -> str:
    return f"reflect_vectors_{space[:40]}"


def _is_indexed(connection: Connection[Any], space: str) -> bool:
    return connection.execute(INDEXED, (_index_name(space),)).fetchone() == (True,)


def _index(connection: Connection[Any], space: str, size: int) -> None:
    if not _is_indexed(connection, space):
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute(_sql(INDEX, space, size))


def _search_index(connection: Connection[Any], given: dict[str, Any], size: int) -> Cursor[Any]:
    ef = max(EF_SEARCH, min(1_000, 2 * given["k"]))
    connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(ef),))
    connection.execute("SELECT set_config('hnsw.iterative_scan', 'strict_order', true)")
    return connection.execute(_sql(SEARCH_INDEX, given["space"], size), given)
