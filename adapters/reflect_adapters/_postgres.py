"""A process's connections to a PostgreSQL server: few, shared by its threads, replaced when they break."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from reflect_middleware.errors import ConfigurationError, MissingExtraError, ReflectError, StoreError
from reflect_middleware.libpq import LIBPQ, TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from reflect_middleware.store import Vector

T = TypeVar("T")
_inherited: list[Any] = []
"""What came with a fork: kept, so that no garbage collection closes the parent's connections."""


class Connections:
    """Opens a connection when all are in use, up to a limit; then threads wait.

    Args:
        url: `postgresql://…`.
        most: The limit, at least 1.

    Raises:
        ConfigurationError: `most` is below 1, or libpq cannot read the URL.
        MissingExtraError: psycopg is not installed.
    """

    def __init__(self, url: str, *, most: int) -> None:
        if most < 1:
            raise ConfigurationError("connections", most, "1 or more")
        try:
            import psycopg
            from psycopg.adapt import Dumper
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as exc:
            raise MissingExtraError("The store 'pgvector'", "pgvector") from exc

        try:
            given = conninfo_to_dict(url)
        except psycopg.Error as exc:
            told = str(exc).replace(url, "(the URL)")  # it may have a password, so neither it nor its error is shown
            raise ConfigurationError("The pgvector store's URL", "(not shown)", "what libpq reads", told) from None

        class PackedDumper(Dumper):
            format = psycopg.pq.Format.BINARY

            def dump(self, obj: Packed) -> bytes:
                return obj.content

        self._dumper = PackedDumper
        self._driver = psycopg
        self._arguments: Any = {**LIBPQ, **given, "options": f"{TIMEOUTS} {given.get('options') or ''}".strip()}
        self._most = most
        self._closed = False
        self._begin()

    def run(self, doing: str, work: Callable[[Connection[Any]], T]) -> T:
        """Do `work` in one transaction. It is done again if the connection had been kept and turns out to be broken.

        Raises:
            StoreError: What the driver raised, once.
        """
        if self._pid != os.getpid():
            _inherited.append(self._idle)
            self._begin()
        with self._places:
            try:
                return self._once(work)
            except ReflectError:
                raise
            except Exception as exc:
                told = " ".join(str(exc).split())
                raise StoreError(
                    f"PostgreSQL failed while {doing} ({type(exc).__name__}: {told}). The ledger still has every "
                    "lesson. Check that the server runs, can be reached and lets this user in."
                ) from exc

    def close(self) -> None:
        """Close what is not in use; the rest is closed when it is given back."""
        self._closed = True
        if self._pid == os.getpid():
            self._drain()

    def _begin(self) -> None:
        """A process's own state: after a fork the parent's connections are not ours to use or to close."""
        self._idle: list[Connection[Any]] = []
        self._places = threading.BoundedSemaphore(self._most)
        self._pid = os.getpid()

    def _once(self, work: Callable[[Connection[Any]], T]) -> T:
        if self._closed:
            raise StoreError("The pgvector store is closed. Open a new one.")
        connection = self._kept()
        if connection is not None:
            try:
                return self._used(connection, work)
            except self._driver.OperationalError:
                if not connection.broken:
                    raise
                self._drain()  # the server went away, so the others are broken, too
        return self._used(self._opened(), work)

    def _used(self, connection: Connection[Any], work: Callable[[Connection[Any]], T]) -> T:
        """Commits at the end of `work`. Whatever fails, its connection is not used again."""
        broken = True
        try:
            with connection.transaction():
                done = work(connection)
            broken = False
        finally:
            if broken:
                _close(connection)
            else:
                self._idle.append(connection)
                if self._closed:
                    self._drain()
        return done

    def _kept(self) -> Connection[Any] | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _opened(self) -> Connection[Any]:
        # autocommit: transactions are `work`'s. No prepared statements: they break behind some connection poolers.
        connection = self._driver.connect(**self._arguments, autocommit=True, prepare_threshold=None)
        connection.adapters.register_dumper(Packed, self._dumper)
        return connection

    def _drain(self) -> None:
        while (connection := self._kept()) is not None:
            connection.close()


class Packed:
    """A statement's argument: a vector as `vector_recv` reads it: size, a reserved field, big-endian floats."""

    __slots__ = ("content",)

    def __init__(self, vector: Vector) -> None:
        self.content = len(vector).to_bytes(2, "big") + b"\0\0" + vector.astype(">f4").tobytes()


def _close(connection: Connection[Any]) -> None:
    """`broken` says whether the server had gone: a plain close would hide that."""
    if not connection.broken:
        connection.close()
