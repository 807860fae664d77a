"""One embedded Chroma client per folder and process: its lock, its end, and what a fork may not do."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import shutil
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reflect_adapters._chroma_collections import Collections, driver, wrapped
from reflect_adapters._lock import ProcessLock
from reflect_middleware.errors import StoreError, StoreLockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chromadb.api import ClientAPI

    from reflect_middleware.types import Namespace

logger = logging.getLogger(__name__)
LOCK_FILE = "reflect.lock"
DAMAGED = ("file is not a database", "malformed")
"""SQLite's words for a file that is none of its own any more."""
INDEX_FOLDERS = "????????-????-????-????-????????????"
HEADER_BYTES = 100
"""Of an index of version 1, the only one so far."""
_HEADER = struct.Struct("=iQQQQ")
"""An index's version, an offset, how many entries there is room for, how many there are, and the bytes of one."""
TODO = "once this folder is deleted, the next start fills it again."


class Client:
    """One Chroma client of one process, shared by every store on its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        self.users = 0
        self._guard = ProcessLock(path / LOCK_FILE)
        self._running = True
        try:
            with wrapped(f"opening Chroma in {str(path)!r}", TODO):
                self._api = _open(path)
                self.collections = Collections(self._api)
        except BaseException:
            self._guard.release()
            raise

    @contextmanager
    def call(self, doing: str, namespace: Namespace | None = None) -> Iterator[Collections]:
        """Check the lock and the folder, then wrap what Chroma raises."""
        self._guard.confirm()
        with self.collections.use(doing, TODO, namespace) as collections:
            yield collections

    def clear(self) -> None:
        """Delete everything, and every trace of it on disk: what Chroma deletes stays in its files."""
        with wrapped(f"emptying Chroma in {str(self.path)!r}", TODO):
            _stop(self._api, self.path)
            for child in self.path.iterdir():
                if child.is_dir():
                    shutil.rmtree(child)
                elif child.name != LOCK_FILE:
                    child.unlink()
            self._api = _open(self.path)
            self.collections = Collections(self._api)

    def usable(self) -> bool:
        """False once the folder or the lock is lost."""
        try:
            self._guard.confirm()
        except StoreError:
            return False
        return True

    def keep_for_ever(self) -> None:
        """Never free it: freeing joins threads that a forked child does not have, and its exit would hang."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._api))

    def shut(self) -> None:
        """Stop Chroma, then give the lock back. Only the first call does anything."""
        if not self._running:
            return
        self._running = False
        try:
            with wrapped(f"closing Chroma in {str(self.path)!r}", TODO):
                _stop(self._api, self.path)
        finally:
            self._guard.release()


class Shared:
    """The clients of this process by folder. Hold `lock` to call its methods."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._clients: dict[Path, Client] = {}
        self._opened = False
        self._forked = False

    def acquire(self, path: Path) -> Client:
        """The folder's client, opened if there is none that still works."""
        if self._forked:
            raise StoreLockedError(
                f"Chroma was opened in process {os.getppid()} before this one was forked from it, and hangs in such "
                "children. This process searches the ledger's vectors instead; to use Chroma here, fork (or preload) "
                "before the first run, or start processes by 'spawn'."
            )
        client = self._clients.get(path)
        if client is not None and not client.usable():
            del self._clients[path]
            client.shut()
            client = None
        if client is None:
            self._opened = True
            client = self._clients[path] = Client(path)
        client.users += 1
        return client

    def release(self, client: Client) -> None:
        """One user less; the last one stops it."""
        client.users -= 1
        if client.users == 0:
            if self._clients.get(client.path) is client:
                del self._clients[client.path]
            client.shut()

    def after_fork(self) -> None:
        """In the child: the parent's clients are not ours to use or to stop, and its lock may be held for ever."""
        for client in self._clients.values():
            client.keep_for_ever()
        self._clients.clear()
        self._forked = self._opened
        self.lock = threading.RLock()


SHARED = Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHARED.after_fork)


def _open(path: Path) -> ClientAPI:
    client = driver().PersistentClient
    from chromadb.config import Settings

    made: ClientAPI
    settings = Settings(anonymized_telemetry=False)
    if cut := _cut_index(path):
        _empty(path, f"{cut} is cut short")
    try:
        made = client(path=str(path), settings=settings)
    except BaseException as exc:
        _forget(path)  # Chroma keeps one that it could not start, and gives it out again
        if not any(sign in str(exc) for sign in DAMAGED):
            raise
        _empty(path, exc)
        made = client(path=str(path), settings=settings)
    return made


def _cut_index(path: Path) -> Path | None:
    """An index file that lacks its end, as after a full disk: Chroma would read on, and take the process with it."""
    for header in path.glob(f"{INDEX_FOLDERS}/header.bin"):
        told, data = header.read_bytes(), header.with_name("data_level0.bin")
        if len(told) < HEADER_BYTES:
            return header
        version, _, _, count, size = _HEADER.unpack_from(told)
        if version == 1 and (not data.exists() or data.stat().st_size < count * size):
            return data
    return None


def _empty(path: Path, why: object) -> None:
    """Remove what Chroma has written, and nothing else."""
    logger.warning("reflect: Chroma in %s is damaged (%s): it is emptied and filled from the ledger", path, why)
    for file in path.glob("chroma.sqlite3*"):
        file.unlink()
    for folder in path.glob(INDEX_FOLDERS):
        shutil.rmtree(folder)


def _forget(path: Path) -> Any:
    """Take a folder's system out of Chroma's own cache."""
    cache: Any = importlib.import_module("chromadb.api.client").SharedSystemClient
    return cache._identifier_to_system.pop(str(path), None)  # noqa: SLF001 - no other way to reach one folder's


def _stop(api: ClientAPI, path: Path) -> None:
    """Close a client; the first releases of Chroma 1.x have no `close`."""
    close = getattr(api, "close", None)
    if close is not None:
        close()
        return
    if (system := _forget(path)) is not None:
        system.stop()
