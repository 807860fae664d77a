"""The spool's file: a small SQLite database of its own, shared by processes and safe against a kill."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from reflect_middleware.errors import LedgerPlaceError
from reflect_middleware.forks import gate
from reflect_middleware.places import refuse_network

Row = tuple[int, str, str, float, str]
"""seq, kind, target, when it came (epoch seconds), body."""

BUSY_SECONDS = 5.0
"""How long a statement waits for another process's."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS waiting (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    ledger TEXT NOT NULL,
    kind TEXT NOT NULL,
    target TEXT NOT NULL,
    at REAL NOT NULL,
    size INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS waiting_size ON waiting (seq, ledger, size, at);
CREATE INDEX IF NOT EXISTS waiting_target ON waiting (target);
CREATE TABLE IF NOT EXISTS dropped (number INTEGER NOT NULL);
"""
_TOTALS = "SELECT count(*), coalesce(sum(size), 0), min(at) FROM waiting"
_OLDEST = "SELECT seq, size FROM waiting ORDER BY seq LIMIT 100"


class SpoolTable:
    """Reads and writes the file. Methods raise `sqlite3.Error` or `OSError` where it cannot be used.

    Args:
        file: The database file; made by the first write, never by a read.
        fsync: Whether a commit waits for the disk.
    """

    def __init__(self, file: Path, *, fsync: bool = False) -> None:
        self.file = file
        self.fsync = fsync
        self.renew()

    def renew(self) -> None:
        """Start afresh, in a new process; a connection of the parent's is neither used nor closed."""
        self._lock = threading.Lock()
        if (old := getattr(self, "_connection", None)) is not None:
            _inherited.append(old)
        self._connection: sqlite3.Connection | None = None
        self._node: tuple[int, int] | None = None

    def exists(self) -> bool:
        """Whether there is a file at all."""
        return self.file.exists()

    def append(self, ledger: str, kind: str, target: str, at: float, body: str) -> None:
        """Add a row behind the others; it is committed on return."""
        with self._write() as connection:
            connection.execute(
                "INSERT INTO waiting (ledger, kind, target, at, size, body) VALUES (?, ?, ?, ?, ?, ?)",
                (ledger, kind, target, at, len(body.encode()), body),
            )

    def trim(self, entries: int, size: int) -> int:
        """Drop the oldest rows beyond these bounds; gives how many."""
        dropped = 0
        with self._write() as connection:
            count, total, _ = connection.execute(_TOTALS).fetchone()
            while count > entries or total > size:
                for seq, bytes_ in connection.execute(_OLDEST).fetchall():
                    if count <= entries and total <= size:
                        break
                    connection.execute("DELETE FROM waiting WHERE seq = ?", (seq,))
                    count, total, dropped = count - 1, total - bytes_, dropped + 1
            if dropped:
                connection.execute("INSERT INTO dropped VALUES (?)", (dropped,))
        return dropped

    def after(self, ledger: str, seq: int, limit: int) -> list[Row]:
        """The rows for a ledger behind this one, in order."""
        query = "SELECT seq, kind, target, at, body FROM waiting WHERE ledger = ? AND seq > ? ORDER BY seq LIMIT ?"
        with self._read() as connection:
            return connection.execute(query, (ledger, seq, limit)).fetchall() if connection else []

    def totals(self, ledger: str | None) -> tuple[int, int, float | None]:
        """Number, bytes and time of the oldest row; of all ledgers if None is named."""
        where, given = ("", ()) if ledger is None else (" WHERE ledger = ?", (ledger,))
        with self._read() as connection:
            count, size, oldest = connection.execute(_TOTALS + where, given).fetchone() if connection else (0, 0, None)
        return int(count), int(size), oldest

    def dropped(self) -> int:
        """How many rows were dropped for want of room, ever."""
        with self._read() as connection:
            query = "SELECT coalesce(sum(number), 0) FROM dropped"
            return int(connection.execute(query).fetchone()[0]) if connection else 0

    def delete(self, seqs: Collection[int]) -> None:
        """Remove rows for good: their pages are overwritten, and once none is left the journal is emptied, too."""
        with self._write() as connection:
            connection.executemany("DELETE FROM waiting WHERE seq = ?", [(seq,) for seq in seqs])
            left = connection.execute("SELECT EXISTS (SELECT 1 FROM waiting)").fetchone()[0]
        if not left:
            self.wipe()

    def wipe(self) -> None:
        """Empty the journal, where removed rows can still be read."""
        with self._read() as connection:
            if connection is not None:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, or None where there is no file yet."""
        with gate.passing(), self._lock:
            yield self._open() if self._connection is not None or self.file.exists() else None

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with gate.passing(), self._lock:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._same_file():
            return self._connection
        if self._connection is not None:
            self._connection.close()  # its file was deleted
            self._connection = None
        try:
            refuse_network(self.file)
        except LedgerPlaceError as error:
            raise OSError(f"it lies on a network file system: {error}") from error
        self.file.parent.mkdir(parents=True, exist_ok=True)
        made = sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            made.execute("PRAGMA auto_vacuum=FULL")  # an outage of an hour leaves no large file behind
            made.execute("PRAGMA journal_mode=WAL")
            made.execute(f"PRAGMA synchronous={'FULL' if self.fsync else 'NORMAL'}")
            made.execute("PRAGMA secure_delete=ON")
            made.executescript(_SCHEMA)
        except BaseException:
            made.close()
            raise
        self._connection, self._node = made, self._node_now()
        return made

    def _same_file(self) -> bool:
        """Whether the file that is open still is the one of this name: a folder may be deleted under us."""
        return self._node is not None and self._node == self._node_now()

    def _node_now(self) -> tuple[int, int] | None:
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


_inherited: list[sqlite3.Connection] = []
"""What came with a fork: kept, so that no garbage collection closes it."""
