"""Connections to the ledger's database: how they are made and pooled, and what their errors mean."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reflect_middleware.errors import (
    LedgerDamagedError,
    LedgerError,
    LedgerPlaceError,
    LedgerUnavailableError,
    LedgerValueError,
    MissingExtraError,
)
from reflect_middleware.libpq import LIBPQ, TIMEOUTS
from reflect_middleware.places import newest_backup

CHECKPOINT_PAGES = 4_000
"""So much of SQLite's write-ahead log, 16 MB, is written back at once. With a million episodes a record takes a fifth
less on average than with its own 1,000 pages, and 2 ms instead of 11 at the 99th percentile."""
BUSY_SECONDS = 30.0
"""How long a SQLite statement waits for another process's transaction."""
POOL: dict[str, Any] = {
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": 10.0,
    "pool_recycle": 1_800.0,
    "pool_use_lifo": True,
}
"""Connections to a server: five are kept, ten more at most; a thread waits 10 s for one; none lives over 30 min."""
PING_AFTER = 5.0
"""Seconds of rest after which a connection is tried before it is used."""
SQLITE_KINDS: dict[str, type[LedgerError]] = {
    **dict.fromkeys(("CORRUPT", "NOTADB"), LedgerDamagedError),
    **dict.fromkeys(("CONSTRAINT", "TOOBIG", "MISMATCH", "RANGE"), LedgerValueError),
    **dict.fromkeys(
        ("BUSY", "LOCKED", "FULL", "IOERR", "READONLY", "CANTOPEN", "PERM", "PROTOCOL", "NOMEM", "INTERRUPT"),
        LedgerUnavailableError,
    ),
}
"""By the first word of SQLite's error names."""
STATES: dict[str, type[LedgerError]] = {
    **dict.fromkeys(("08", "25006", "40", "53", "55P03", "57"), LedgerUnavailableError),
    **dict.fromkeys(("22", "23"), LedgerValueError),
}
"""By the beginning of PostgreSQL's error codes."""


def engine_for(url: str, *, fsync: bool = False, erases: bool = False) -> sa.Engine:
    """An engine that has connected to nothing yet; with `erases` SQLite overwrites what is deleted.

    Raises:
        MissingExtraError: If the database's driver is not installed.
    """
    if not url.startswith("sqlite"):
        return _of_a_server(sa.make_url(url), **POOL)
    options = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    made = sa.create_engine(url, connect_args=options, paramstyle="named", hide_parameters=True)
    sa.event.listen(made, "connect", lambda connection, _: _prepare(connection, fsync=fsync, erases=erases))
    return made


def probe(url: str) -> None:
    """Connect to a server anew and ask it something; any error says that it is away."""
    made = _of_a_server(sa.make_url(url).update_query_dict({"connect_timeout": "3"}), poolclass=sa.NullPool)
    with made.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


def dispose(engine: sa.Engine) -> None:
    """Close an engine's connections: idle ones now, those in use as soon as they are given back.

    SQLAlchemy would put these into a pool that nobody uses any more, and leave them to some garbage collection.
    """
    sa.event.listen(engine, "checkin", lambda _, record: record.invalidate())
    engine.dispose()


def explained(error: Exception, url: str) -> LedgerError:
    """A driver's error as ours: what happened, whether it passes by itself, and what to do."""
    shown, kind = sa.make_url(url).render_as_string(hide_password=True), kind_of(error)
    return kind(f"The ledger at {shown} cannot be used: {said(error)}. {_todo(kind, url)}")


def said(error: Exception) -> str:
    """A driver's words in one line, without the statement that it points into."""
    words = str(getattr(error, "orig", None) or error).partition("\nLINE ")[0]
    return " ".join(words.split()).rstrip(".")


def kind_of(error: Exception) -> type[LedgerError]:
    """Which of our errors a driver's error is."""
    orig = getattr(error, "orig", None) or error
    if name := getattr(orig, "sqlite_errorname", None):
        return SQLITE_KINDS.get(name.split("_")[1], LedgerError)
    if code := getattr(orig, "sqlstate", None):
        return next((kind for begin, kind in STATES.items() if code.startswith(begin)), LedgerError)
    if isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError)):
        return LedgerValueError
    lost = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, sqlite3.OperationalError, OSError)
    if isinstance(error, lost) or getattr(error, "connection_invalidated", False):
        return LedgerUnavailableError
    return LedgerError


def _todo(kind: type[LedgerError], url: str) -> str:
    if kind is LedgerValueError:
        return "It refuses this value; with another one the call may succeed."
    if not url.startswith("sqlite"):
        return "Check that the server runs, can be reached and lets this user in; `reflect doctor` tells more."
    if kind is not LedgerDamagedError:
        return "Check that it exists, is writable and is not full; `reflect doctor` tells more."
    file = Path(sa.make_url(url).database or "").absolute()
    if (backup := newest_backup(file)) is None:
        return (
            f"`reflect doctor` tells more. There is no backup in {str(file.parent / 'backups')!r}: move the file away,"
            " and a new ledger begins."
        )
    where = f"--path {file.parent}" if file.name == "ledger.db" else f"--ledger {url} --namespace NAMESPACE"
    return f"`reflect doctor` tells more. The newest backup is brought back by `reflect restore {backup} {where}`."


def _of_a_server(url: sa.URL, **pool: Any) -> sa.Engine:
    libpq = url.get_backend_name() == "postgresql" and url.get_driver_name() in ("psycopg", "psycopg2")
    try:
        made = sa.create_engine(url, connect_args=_arguments(url) if libpq else {}, hide_parameters=True, **pool)
    except ImportError as error:
        raise MissingExtraError(f"The ledger {url.render_as_string(hide_password=True)!r}", "postgres") from error
    sa.event.listen(made, "checkin", _rests)
    sa.event.listen(made, "checkout", lambda connection, record, _: _tried(made, connection, record))
    return made


def _arguments(url: sa.URL) -> dict[str, Any]:
    own = url.query.get("options", "")
    options = f"{TIMEOUTS} {own if isinstance(own, str) else ' '.join(own)}".strip()
    return {name: value for name, value in LIBPQ.items() if name not in url.query} | {"options": options}


def _rests(_connection: Any, record: Any) -> None:
    record.info["rests_since"] = time.monotonic()


def _tried(engine: sa.Engine, connection: Any, record: Any) -> None:
    """A connection that has rested is tried first: to try it before each use would double the time of small queries."""
    since = record.info.get("rests_since")
    if since is None or time.monotonic() - since < PING_AFTER:
        return
    try:
        alive = engine.dialect.do_ping(connection)
    except Exception as error:  # any driver
        raise sa.exc.InvalidatePoolError from error
    if not alive:
        raise sa.exc.InvalidatePoolError


def _prepare(connection: Any, *, fsync: bool, erases: bool) -> None:
    """Set a new SQLite connection up.

    Raises:
        LedgerPlaceError: If the file's disk cannot do what we need.
    """
    connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves; a read takes no lock
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
    if (mode := _wal(cursor)) not in ("wal", "memory"):
        raise LedgerPlaceError(
            "The ledger's disk cannot hold SQLite's write-ahead log: asked for the journal_mode 'wal', it stays at"
            f" {mode!r}."
            ' Put it on a local disk (path=), or on a server: ledger="postgresql+psycopg://user:password@host/name".'
        )
    cursor.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
    if erases:
        cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    cursor.close()


def _wal(cursor: Any) -> str:
    """Switch to the write-ahead log. SQLite does not wait here for others that do the same, so we do."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if kind_of(error) is not LedgerUnavailableError or "BUSY" not in error.sqlite_errorname:
                raise
            if time.monotonic() > end:
                raise
            threading.Event().wait(0.01)
