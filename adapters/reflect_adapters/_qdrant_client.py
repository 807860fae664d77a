"""Where a Qdrant client comes from: a folder of ours, a server, or the user, who keeps theirs."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from reflect_adapters._lock import ProcessLock
from reflect_middleware.errors import MissingExtraError, ReflectError, StoreError, StoreLockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdrant_client import QdrantClient

LOCK_FILE = "reflect.lock"
_inherited: list[Any] = []
"""What came with a fork: kept, so that no garbage collection closes the parent's files and sockets."""


class Given:
    """A client of the user's, which is never closed. An embedded one serves one thread at a time."""

    _locks: ClassVar[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()

    def __init__(self, client: QdrantClient) -> None:
        self._client = client
        self._lock = self._locks.setdefault(client, threading.RLock()) if is_local(client) else None

    @contextmanager
    def use(self) -> Iterator[QdrantClient]:
        """The client."""
        if self._lock is None:
            yield self._client
            return
        with self._lock:
            yield self._client

    def close(self) -> None:
        """It is not ours."""


class Server:
    """A server's client, opened by each process for itself."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._made = {"url": url, "check_compatibility": False, **settings}
        self._lock = threading.Lock()
        self._closed = False
        self._begin()
        with self.use() as client:
            client.get_collections()

    @contextmanager
    def use(self) -> Iterator[QdrantClient]:
        """The client; it takes calls from any number of threads."""
        if self._pid != os.getpid():
            _inherited.append(self._client)
            self._lock = threading.Lock()
            self._begin()
        if self._closed:
            raise StoreError("The qdrant store is closed. Open a new one.")
        yield self._client

    def close(self) -> None:
        """Close this process's client."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and self._pid == os.getpid():
            self._client.close()

    def _begin(self) -> None:
        self._client = driver().QdrantClient(**self._made)
        self._pid = os.getpid()


class Folder:
    """Qdrant's local mode in a folder: one process at a time, one client for all stores of a process."""

    _open: dict[Path, _Held] = {}  # noqa: RUF012 - on purpose of the whole process
    _lock = threading.RLock()

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._held: _Held | None = None
        with Folder._lock:
            held = Folder._open.get(self._path)
            if held is not None and not held.usable():
                held.stop()
                held = None
            if held is None:
                held = Folder._open[self._path] = _Held(self._path)
            held.users += 1
            self._held = held

    @contextmanager
    def use(self) -> Iterator[QdrantClient]:
        """The client, for one thread at a time."""
        held = self._held
        if held is None:
            raise StoreError(f"The store in {str(self._path)!r} is closed. Open a new one.")
        if held.pid != os.getpid():
            raise StoreLockedError(
                f"The store in {str(self._path)!r} was opened in process {held.pid}, from which this one was forked. "
                "This one searches the ledger's vectors instead; for a store that many processes share, run a server."
            )
        with held.lock:
            held.guard.confirm()
            yield held.client

    def close(self) -> None:
        """Give the folder back, once no other store of this process uses it."""
        with Folder._lock:
            held, self._held = self._held, None
            if held is None or held.pid != os.getpid():
                return
            held.users -= 1
            if held.users == 0:
                if Folder._open.get(self._path) is held:
                    del Folder._open[self._path]
                held.stop()

    @classmethod
    def after_fork(cls) -> None:
        """In the child: the parent's clients are not ours, and its lock may be held for ever."""
        _inherited.extend(cls._open.values())
        cls._open, cls._lock = {}, threading.RLock()


class _Held:
    """One folder's client in this process."""

    def __init__(self, path: Path) -> None:
        module = driver()
        self.pid = os.getpid()
        self.users = 0
        self.lock = threading.RLock()
        self.guard = ProcessLock(path / LOCK_FILE)
        try:
            # One thread at a time uses it, so SQLite need not ask which.
            self.client = module.QdrantClient(path=str(path), force_disable_check_same_thread=True)
        except BaseException as exc:
            self.guard.release()
            if "already accessed" in str(exc):
                raise StoreLockedError(
                    f"Another client of Qdrant, not of ours, holds {str(path)!r}. This process searches the ledger's "
                    "vectors instead; hand that client over (store=QdrantStore(client)), or give another `path=`."
                ) from exc
            raise

    def usable(self) -> bool:
        """False once the folder or the lock is lost."""
        try:
            self.guard.confirm()
        except StoreError:
            return False
        return True

    def stop(self) -> None:
        """Close the client, then give the lock back."""
        with self.lock:
            try:
                self.client.close()
            finally:
                self.guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Folder.after_fork)


def driver() -> Any:
    """The module qdrant_client.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import qdrant_client
    except ImportError as exc:
        raise MissingExtraError("The store 'qdrant'", "qdrant") from exc
    return qdrant_client


def is_local(client: QdrantClient) -> bool:
    """Whether the client is Qdrant's local mode, in memory or in a folder."""
    return type(getattr(client, "_client", None)).__name__ == "QdrantLocal"


def local_collection(client: QdrantClient, name: str) -> Any:
    """Local mode's own object for a collection, or None; there is no public way to it."""
    collections = getattr(getattr(client, "_client", None), "collections", None)
    return collections.get(name) if isinstance(collections, dict) else None


def quicken(client: QdrantClient, name: str) -> None:
    """Local mode waits for the disk after every point; with a log SQLite needs not, and stays whole at a power cut."""
    database = getattr(getattr(local_collection(client, name), "storage", None), "storage", None)
    if database is not None:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def wrapped(doing: str) -> Iterator[None]:
    """Raise what the driver raises as `StoreError`, once."""
    try:
        yield
    except ReflectError:
        raise
    except Exception as exc:
        told = " ".join(str(exc).split())
        raise StoreError(
            f"Qdrant failed while {doing} ({type(exc).__name__}: {told}). The ledger still has every lesson. Check "
            "that the server runs and accepts the key; a folder may be deleted, and is filled again."
        ) from exc
