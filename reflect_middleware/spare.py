"""The connection on which SQLite's commits are appended, kept from one to the next."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa


class Spare:
    """Holds one connection at most: a thread that finds none takes one from the pool.

    The pool costs a tenth of what is done with the connection.
    """

    def __init__(self) -> None:
        self._held: list[tuple[sa.Engine, sa.PoolProxiedConnection]] = []

    def take(self, engine: sa.Engine) -> sa.PoolProxiedConnection:
        """A connection of this engine that nobody else has.

        SQLite would write its log back to the file inside of some commits, each of which waits for the disk then.
        """
        with contextlib.suppress(IndexError):
            owner, pooled = self._held.pop()  # taken, so that no other thread has it
            if owner is engine:
                return pooled
            pooled.invalidate()
        pooled = engine.raw_connection()
        pooled.cursor().execute("PRAGMA wal_autocheckpoint=0")
        return pooled

    def put(self, engine: sa.Engine, pooled: sa.PoolProxiedConnection) -> None:
        """Keep a connection for the next commit."""
        self._held.append((engine, pooled))
        if len(self._held) > 1:
            self.close()

    def close(self) -> None:
        """Close what is held."""
        while self._held:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._held.pop()[1].invalidate()
