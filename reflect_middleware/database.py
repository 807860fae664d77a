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
from sqlalchemy.dialects import postgresql, sqlite

from reflect_middleware.changes import Changes
from reflect_middleware.connecting import dispose, explained, probe
from reflect_middleware.errors import LedgerError, LedgerUnavailableError
from reflect_middleware.forks import gate
from reflect_middleware.hung import Connections
from reflect_middleware.opening import file_of, migrated, opened
from reflect_middleware.places import identity
from reflect_middleware.schema import meta
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
        self.clock = time.time
        """This process's clock (epoch seconds)."""
        self._pid = 0
        self._closed = False
        self._engine: sa.Engine | None = None
        self._lock = threading.Lock()
        self._connections: Connections | None = None
        self._changes = Changes(None)
        self._texts: dict[Any, str] = {}
        self._appending: list[tuple[sa.Engine, sa.PoolProxiedConnection]] = []
        self._appended = 0
        self._known: tuple[int, int] | None = None
        self.file = file_of(url)
        """SQLite's file; None for a ledger without one."""
        self.on_replaced: Callable[[LedgerError], None] = lambda error: logger.warning("reflect: %s", error)
        """Told that the file was deleted or replaced and another one opened: what was read before may be wrong."""

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
            pooled = self._kept(engine)
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
            self._keep(engine, pooled)
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

    def take_turn(self, connection: sa.Connection, what: str, *, shared: bool = False) -> None:
        """Wait, inside a write transaction, until no other one that takes the same turn is under way.

        Waiting takes milliseconds; to pass on instead could leave what has just been written to nobody. SQLite lets one
        writer in at a time anyway.

        Args:
            connection: Of a write transaction. The turn ends with it.
            what: The turn's name, within the ledger.
            shared: Whether it goes together with others that share it.
        """
        if self.is_sqlite:
            return
        lock = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
        name = sa.func.concat("reflect ", sa.func.current_schema(), " ", what)
        connection.execute(sa.select(lock(sa.func.hashtextextended(name, 0))))

    def now(self) -> sa.ColumnElement[float]:
        """The present time for statements (epoch seconds): PostgreSQL's own, whatever the clocks of its clients say."""
        if self.is_sqlite:
            return sa.literal(self.clock(), sa.Float)
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)

    def at(self, moment: float) -> sa.ColumnElement[float]:
        """A time of this process's clock (epoch seconds) as the ledger's clock tells it."""
        if self.is_sqlite:
            return sa.literal(moment, sa.Float)
        return self.now() + sa.literal(moment - self.clock(), sa.Float)

    def insert(self, connection: sa.Connection, statement: Any, *rows: Mapping[str, Any]) -> None:
        """Run an INSERT that every run needs: it is built and compiled once, which costs ten times what it does.

        Args:
            connection: Of a write transaction.
            statement: One that is kept. Its columns are the first row's, and their values need no conversion.
            rows: All of the same columns; none is no work.
        """
        if rows:
            connection.exec_driver_sql(self._text(statement, rows[0]), list(rows))

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
            self._release()
            dispose(engine)

    def close(self) -> None:
        """Close this process's connections for good."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._closed = True
            self._changes.close()
        if engine is not None and self._pid == os.getpid():
            self._release()
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

    def _kept(self, engine: sa.Engine) -> sa.PoolProxiedConnection:
        """A connection for `append`: the last one, since the pool costs a tenth of what is done with it.

        SQLite would write its log back to the file inside of some commits, each of which waits for the disk then.
        """
        with contextlib.suppress(IndexError):
            owner, pooled = self._appending.pop()  # taken, so that no other thread has it
            if owner is engine:
                return pooled
            pooled.invalidate()
        pooled = engine.raw_connection()
        pooled.cursor().execute("PRAGMA wal_autocheckpoint=0")
        return pooled

    def _keep(self, engine: sa.Engine, pooled: sa.PoolProxiedConnection) -> None:
        self._appending.append((engine, pooled))
        if engine is not self._engine or len(self._appending) > 1:
            self._release()

    def _release(self) -> None:
        """Close what `append` has kept."""
        while self._appending:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._appending.pop()[1].invalidate()

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
            _inherited.append(self._appending)
            self._appending = []
        elif self._engine is not None:
            self._release()
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
