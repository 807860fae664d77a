"""The one way to reach the ledger: SQLAlchemy Core on SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from reflect_middleware.changes import Changes
from reflect_middleware.errors import LedgerError, MissingExtraError
from reflect_middleware.forks import gate
from reflect_middleware.schema import SCHEMA_VERSION, meta, metadata

TICKET = "reflect_ticket"
PORTION = 1_000
"""Most values in one list of a statement: databases allow 32,766 (older SQLite) or 65,535 (PostgreSQL)."""


def portions(values: Iterable[str]) -> Iterator[list[str]]:
    """The values in lists that a statement can take."""
    left = iter(values)
    while some := list(islice(left, PORTION)):
        yield some


class Database:
    """An engine per process, opened on first use.

    Args:
        url: A SQLAlchemy URL: `sqlite:///…` or `postgresql+psycopg://…`.
        fsync: Whether a SQLite commit waits for the disk (survives power loss, not only a killed process).
        erases: Whether SQLite overwrites what is deleted.
    """

    def __init__(self, url: str, *, fsync: bool = False, erases: bool = False) -> None:
        self.url = url
        self.fsync = fsync
        self.erases = erases
        self._pid = 0
        self._closed = False
        self._engine: sa.Engine | None = None
        self._lock = threading.Lock()
        self._changes = Changes(None)
        self._texts: dict[Any, str] = {}

    @property
    def is_sqlite(self) -> bool:
        """Whether the ledger is a file of ours."""
        return self.url.startswith("sqlite")

    @property
    def url_shown(self) -> str:
        """The URL without its password."""
        return sa.make_url(self.url).render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading; sees what is committed."""
        with gate.passing(), self._guarded(), self._open().connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction: all of it is committed at the end of the block, or nothing."""
        ticket = 0
        try:
            with gate.passing(), self._guarded(), self._open().begin() as connection:
                if self.is_sqlite:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                finally:
                    ticket = connection.info.pop(TICKET, 0) if self.is_sqlite else 0
        finally:
            if ticket:
                self._changes.end(ticket)

    def changing(self, connection: sa.Connection) -> None:
        """Say, inside a write transaction, that it changes lessons or the pause switch."""
        if self.is_sqlite and TICKET not in connection.info:
            connection.info[TICKET] = self._changes.begin()

    def mark(self) -> int | None:
        """A number that stays the same while no lesson and no switch changes; None if that is not known."""
        return self._changes.mark()

    def insert(self, connection: sa.Connection, statement: Any, *rows: Mapping[str, Any]) -> None:
        """Run an INSERT that every run needs: it is built and compiled once, which costs ten times what it does.

        Args:
            connection: Of a write transaction.
            statement: One that is kept. Its columns are the first row's, and their values need no conversion.
            rows: All of the same columns; none is no work.
        """
        if not rows:
            return
        if (text := self._texts.get(statement)) is None:
            compiled = statement.compile(dialect=connection.dialect, column_keys=list(rows[0]))
            text = self._texts[statement] = str(compiled)
        connection.exec_driver_sql(text, list(rows))

    def insert_new(self, table: sa.Table) -> Any:
        """An INSERT that leaves a row alone that is already there."""
        maker = sqlite.insert if self.is_sqlite else postgresql.insert
        return maker(table).on_conflict_do_nothing()

    def upsert(self, table: sa.Table, **values: Any) -> Any:
        """An INSERT that replaces the other columns of a row with the same primary key."""
        return self.replacing(table, values).values(**values)

    def replacing(self, table: sa.Table, columns: Iterable[str]) -> Any:
        """As `upsert`, for these columns, whose values come later."""
        maker = sqlite.insert if self.is_sqlite else postgresql.insert
        keys = [column.name for column in table.primary_key]
        statement = maker(table)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={k: statement.excluded[k] for k in columns if k not in keys}
        )

    def release(self) -> None:
        """Close this process's connections; the next use opens them again."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None and self._pid == os.getpid():
            engine.dispose()

    def close(self) -> None:
        """Close this process's connections for good."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._closed = True
            self._changes.close()
        if engine is not None and self._pid == os.getpid():
            engine.dispose()

    def _open(self) -> sa.Engine:
        if self._engine is not None and self._pid == os.getpid():
            return self._engine
        with self._lock:
            if self._closed:
                raise LedgerError("The ledger is closed: this Reflection was closed. Build a new one.")
            if self._engine is None or self._pid != os.getpid():
                if self._engine is not None:
                    # Inherited by fork: its connections belong to the parent.
                    self._engine.dispose(close=False)
                engine = self._make()
                metadata.create_all(engine)
                self._changes = Changes(self.beside("-lessons"))
                self._engine, self._pid = engine, os.getpid()
        with self.write() as connection:
            connection.execute(self.insert_new(meta).values(key="schema", value=str(SCHEMA_VERSION)))
            if self.mark() is None:  # a process has died in the middle of a change, or this is the first one
                self.changing(connection)
        return self._engine

    def beside(self, ending: str) -> Path | None:
        """A file of ours next to SQLite's; None for a ledger without a file."""
        file = sa.make_url(self.url).database if self.is_sqlite else None
        return Path(file + ending) if file and file != ":memory:" else None

    def _make(self) -> sa.Engine:
        if not self.is_sqlite:
            try:
                return sa.create_engine(self.url, pool_pre_ping=True)
            except ImportError as error:
                raise MissingExtraError(f"The ledger {self.url.split('@')[-1]!r}", "postgres") from error
        file = sa.make_url(self.url).database
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        options = {"timeout": 30.0, "check_same_thread": False}
        engine = sa.create_engine(self.url, connect_args=options, paramstyle="named")
        sa.event.listen(engine, "connect", self._on_connect)
        return engine

    def _on_connect(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves; a read takes no lock
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if self.fsync else 'NORMAL'}")
        if self.erases:
            cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, OSError) as error:
            what = getattr(error, "orig", None) or error
            raise LedgerError(
                f"The ledger at {self.url_shown} cannot be used: {what}. Check that it exists, is writable and is not"
                " full; `reflect doctor` tells more."
            ) from error
