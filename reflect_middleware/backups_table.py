"""Copies of a SQLite ledger, by SQLite's own backup: whole pages at one moment, while others read and write."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from reflect_middleware.errors import LedgerError, LedgerUnavailableError
from reflect_middleware.schema import SCHEMA_VERSION

WAIT = 30.0
"""Seconds to wait for a lock that another process holds."""
IN_USE = 128
"""The byte of the `-shm` file on which every process that has the ledger open holds a lock (SQLite's "DMS")."""


def copy(source: Path, target: Path) -> None:
    """Copy a ledger as it is at one moment into a new file that only its owner may read. All of it, or no file.

    Raises:
        LedgerError: If either cannot be used, or the copy is not sound.
    """
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _opened(source) as there, _opened(unfinished) as here:
            there.backup(here)
            here.execute("PRAGMA journal_mode=DELETE")  # one file, which can be moved and read anywhere
        if wrong := unsound(unfinished):
            raise LedgerError(f"The copy of {str(source)!r} is not sound ({wrong}). `reflect doctor` tells more.")
        unfinished.rename(target)
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{str(source)!r} cannot be copied to {str(target)!r}: {error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def pour(source: Path, live: Path, former: Path) -> None:
    """Replace all that a ledger holds, in place: processes that have it open see the other content at their next read.

    Args:
        source: What it is to hold.
        live: The ledger.
        former: Where a copy of it as it was goes, with all that was committed until nobody else could write any more.

    Raises:
        LedgerError: If it is not a database any more, or locked for long.
    """
    steps = 0

    def stepped(status: int, _left: int, _all: int) -> None:
        nonlocal steps
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):  # the driver would try for ever
            raise LedgerUnavailableError(
                f"{str(live)!r} cannot be replaced: another process has been writing to it for {WAIT:.0f} s. If that"
                " one hangs, end it. Nothing was changed."
            )
        if not steps:  # the first step has locked the ledger
            copy(live, former)
        steps += 1

    try:
        with _opened(source) as there, _opened(live) as here:
            here.execute("PRAGMA journal_mode=WAL")
            pages = int(there.execute("PRAGMA page_count").fetchone()[0])
            there.backup(here, pages=max(1, pages // 20), progress=stepped)
    except sqlite3.Error as error:
        raise LedgerError(f"{str(live)!r} cannot be replaced in place: {error}.") from error


def unsound(file: Path) -> str:
    """What is wrong with a ledger's file; empty if nothing is."""
    try:
        with _opened(file, immutable=True) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                return str(found)
            version = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    except sqlite3.Error as error:
        return str(error)
    if version is None or not str(version[0]).isdigit():
        return "it is no ledger"
    if int(version[0]) > SCHEMA_VERSION:
        return f"its schema is version {version[0]}, this release knows {SCHEMA_VERSION}: upgrade reflect-middleware"
    return ""


def episodes_in(file: Path) -> set[str]:
    """Ids of all episodes in a sound ledger."""
    with _opened(file, immutable=True) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM episodes")}


def last_revision(file: Path) -> int:
    """The highest revision of any namespace; 0 without one."""
    with _opened(file, immutable=True) as connection:
        return int(connection.execute("SELECT coalesce(max(revision), 0) FROM namespaces").fetchone()[0])


def in_use(live: Path) -> bool:
    """Whether another process has the ledger open, where the system tells."""
    shm = live.with_name(f"{live.name}-shm")
    if not shm.is_file():
        return False
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open cannot be moved anyway
        return False
    with shm.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, IN_USE)
        except OSError:
            return True
    return False


@contextlib.contextmanager
def _opened(file: Path, *, immutable: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that is closed afterwards; an immutable file is read as it is, without log or locks."""
    place = f"{file.absolute().as_uri()}{'?immutable=1' if immutable else ''}"
    with contextlib.closing(sqlite3.connect(place, uri=True, timeout=WAIT, isolation_level=None)) as connection:
        yield connection
