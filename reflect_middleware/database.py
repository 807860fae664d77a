"""The one way to reach the ledger: SQLAlchemy Core on SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reflect_middleware.changes import Changes
from reflect_middleware.connecting import dispose, explained, probe
from reflect_middleware.dialect import Dialect
from reflect_middleware.errors import LedgerError, LedgerUnavailableError
from reflect_middleware.forks import gate
from reflect_middleware.hung import Connections
from reflect_middleware.opening import file_of, migrated, opened
from reflect_middleware.places import identity
from reflect_middleware.schema import meta
from reflect_middleware.spare import Spare
from reflect_middleware.watchdog import fence

logger = logging.getLogger(__name__)
TICKET = "reflect_ticket"
LOG_LENGTH = 64
"""After so many appended transactions the write-ahead log is long: 1,000 pages, with runs of a dozen steps."""
_inherited: list[Any] = []
"""What came with a fork: kept, so that no garbage collection closes it."""
PORTION = 1_000
"""Most values in one list of a statement: databases allow 32,766 (older SQLite) or 65,535 (PostgreSQL)."""


def portions(values: Iterable[str]) -> Iterator[list[str]]:
    """The values in lists that a statement can take."""
    left = iter(values)
    while some := list(islice(left, PORTION)):
        yield some


class Database(Dialect):
    """An engine per process, opened on first use.

    Args:
        url: A SQLAlchemy URL: `sqlite:///…` or `postgresql+psycopg://…`.
        fsync: Whether a SQLite commit waits for the disk (survives power loss, not only a killed process).
        erases: Whether SQLite overwrites what is deleted.
    """

    def __init__(self, url: str, *, fsync: bool = False, erases: bool = False) -> None:
        super().__init__(url)
        self.fsync = fsync
        self.erases = erases
        self._pid = 0
        self._closed = False
        self._engine: sa.Engine | None = None
        self._lock = threading.Lock()
        self._connections: Connections | None = None
        self._changes = Changes(None)
        self._texts: dict[Any, str] = {}
        self._spare = Spare()
        self._appended = 0
        self._known: tuple[int, int] | None = None
        self.file = file_of(url)
        """SQLite's file; None for a ledger without one."""
        self.on_replaced: Callable[[LedgerError], None] = lambda error: logger.warning("reflect: %s", error)
        """Told that the file was deleted or replaced and another one opened: what was read before may be wrong."""

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
            with gate.passing(), self._guarded():
                with self._open().begin() as connection:
                    if self.is_sqlite:
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                    try:
                        yield connection
                        if (check := fence.get()) is not None:
                            check()
                    finally:
                        ticket = connection.info.pop(TICKET, 0) if self.is_sqlite else 0
                self._still_in_place()
        finally:
            if ticket:
                self._changes.end(ticket)

    def changing(self, connection: sa.Connection) -> None:
        """Say, inside a write transaction, that it changes lessons or the pause switch."""
        if self.is_sqlite and TICKET not in connection.info:
            connection.info[TICKET] = self._changes.begin()

    def append(self, *inserts: tuple[Any, Sequence[Mapping[str, Any]]], unless: Any, given: Mapping[str, Any]) -> bool:
        """Commit rows as one transaction by SQLite's own driver. Every run waits for it; `write` takes twice as long.

        Args:
            inserts: Statements as for `insert`, each with its rows.
            unless: A query that is asked inside the transaction. If it finds anything, nothing is written.
            given: The query's parameters.

        Returns:
            Whether it is done. If not, `write` has to do it: there is more to do than this, or it is no SQLite.
        """
        if not self.is_sqlite:
            return False
        with gate.passing(), self._guarded():
            engine = self._open()
            pooled = self._spare.take(engine)
            driver: Any = pooled.driver_connection
            try:
                driver.execute("BEGIN IMMEDIATE")
                found = driver.execute(self._text(unless), given).fetchone()
                for statement, rows in inserts if found is None else ():
                    if rows:
                        driver.executemany(self._text(statement, rows[0]), rows)
                if (check := fence.get()) is not None:
                    check()
                driver.execute("COMMIT" if found is None else "ROLLBACK")
            except BaseException:
                pooled.invalidate()
                raise
            self._spare.put(engine, pooled)
            if engine is not self._engine:  # another thread has opened the ledger anew
                self._spare.close()
            self._still_in_place()
        self._appended += 1
        return found is None

    @property
    def log_is_long(self) -> bool:
        """Whether `checkpoint` should be called, by whoever appends, once no run waits for that."""
        return self._appended >= LOG_LENGTH

    def checkpoint(self) -> None:
        """Move what was committed from SQLite's write-ahead log into the ledger's file, which waits for the disk."""
        self._appended = 0
        with self.read() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        with self.write() as connection:  # the next commit begins the log anew, and waits for the disk once more
            connection.execute(self.upsert(meta, key="checkpoint", value=str(time.time())))

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
        if rows:
            connection.exec_driver_sql(self._text(statement, rows[0]), list(rows))

    def probe(self) -> None:
        """Ask the database something, a server on a connection of its own.

        Raises:
            LedgerError: If it does not answer within seconds.
        """
        with self._guarded():
            if not self.is_sqlite:
                probe(self.url)
                return
        with self.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    def migrate(self) -> tuple[int | None, int]:
        """Bring the ledger's schema to the present. Gives its version before (None: it was new) and now.

        Raises:
            LedgerError: If that is not possible; nothing is changed then.
        """
        with gate.passing(), self._guarded():
            return migrated(self.url, self.url_shown)

    def release(self) -> None:
        """Close this process's connections; the next use opens them again."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None and self._pid == os.getpid():
            self._spare.close()
            dispose(engine)

    def close(self) -> None:
        """Close this process's connections for good."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._closed = True
            self._changes.close()
        if engine is not None and self._pid == os.getpid():
            self._spare.close()
            dispose(engine)

    def renew_connections(self, seconds: float) -> None:
        """After a server was away: open new connections, and end old ones that have been in use for so long."""
        if self._connections is not None and (number := self._connections.renew(seconds)):
            logger.info("reflect: %d connections to the ledger were ended, nothing came on them any more", number)

    def _text(self, statement: Any, row: Mapping[str, Any] | None = None) -> str:
        if (text := self._texts.get(statement)) is None:
            keys = None if row is None else list(row)
            text = self._texts[statement] = str(statement.compile(dialect=self._open().dialect, column_keys=keys))
        return text

    def _open(self) -> sa.Engine:
        engine = self._engine
        if engine is not None and self._pid == os.getpid() and self._in_place():
            return engine
        self._refuse_if_closed()
        # Without the lock, for it may take seconds.
        made, known = opened(self.url, self.url_shown, fsync=self.fsync, erases=self.erases)
        with self._lock:
            self._refuse_if_closed(made)
            if self._engine is not engine and self._engine is not None and self._pid == os.getpid():
                made.dispose()  # another thread was faster
                return self._engine
            replaced = engine is not None and self._pid == os.getpid()
            self._let_go()
            self._changes = Changes(self.beside("-lessons"))
            self._engine, self._pid, self._known = made, os.getpid(), known
            self._connections = None if self.is_sqlite else Connections(made)
        if replaced:
            self.on_replaced(
                LedgerUnavailableError(
                    f"{self._gone()}, which goes on with the one that is there now."
                    " `reflect restore` brings back the newest backup."
                )
            )
        if self.is_sqlite and (replaced or self.mark() is None):
            with self.write() as connection:  # whatever others have read before, it has changed
                self.changing(connection)
        return made

    def _refuse_if_closed(self, made: sa.Engine | None = None) -> None:
        if self._closed:
            if made is not None:
                made.dispose()
            raise LedgerError("The ledger is closed: this Reflection was closed. Build a new one.")

    def _let_go(self) -> None:
        """Leave the former engine: a parent's connections are not ours to close, those to a file that is gone are."""
        if self._engine is not None and self._pid != os.getpid():
            self._engine.dispose(close=False)
            _inherited.append(self._spare)
            self._spare = Spare()
        elif self._engine is not None:
            self._spare.close()
            dispose(self._engine)

    def _in_place(self) -> bool:
        """Whether the file that was opened is still the one of that name."""
        return self.file is None or identity(self.file) == (self._known or "unknown")

    def _still_in_place(self) -> None:
        """After a commit: what went into a file that is gone is not kept, and must not be acknowledged."""
        if not self._in_place():
            raise LedgerUnavailableError(f"{self._gone()} while something was written to it. Repeat that.")

    def _gone(self) -> str:
        return f"The ledger's file {str(self.file)!r} was deleted or replaced under this process"

    def beside(self, ending: str) -> Path | None:
        """A file of ours next to SQLite's; None for a ledger without a file."""
        return None if self.file is None else Path(f"{self.file}{ending}")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            if isinstance(error, LedgerError):
                raise
            raise explained(error, self.url) from error
