"""A lock file that one process holds: released by the system when that process dies, never inherited by a fork."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from reflect_middleware.errors import StoreError, StoreLockedError

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _take(fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _sign(fd: int, pid: int) -> None:
        """A locked byte cannot be read by others, so the pid would tell nobody anything."""

else:
    import fcntl

    def _take(fd: int) -> None:
        # lockf (POSIX record locks), not flock: a forked child does not own the parent's lock.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _sign(fd: int, pid: int) -> None:
        """Write who holds it, for the other process's message."""
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{pid}\n".encode(), 0)


class ProcessLock:
    """Holds `path` for this process. Open it at most once per process and path.

    Raises:
        StoreLockedError: another process holds it.
        StoreError: the file cannot be made, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        self._fd = self._open()
        try:
            _sign(self._fd, self.pid)
        except OSError as exc:
            self.release()
            raise StoreError(f"The lock file {str(path)!r} cannot be written ({exc}). Free some space.") from exc

    def confirm(self) -> None:
        """Check that it is still ours; a few microseconds.

        Any code in this process that opens and closes the file (a backup, a copy of the folder) releases a POSIX lock
        unseen. Taking it again is free when we have it, and fails when another process took it meanwhile.

        Raises:
            StoreLockedError: another process took it.
            StoreError: the file was deleted or replaced.
        """
        try:
            same = os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            same = False
        if not same:
            raise StoreError(
                f"The store's folder {str(self.path.parent)!r} was deleted or replaced while it was open. "
                "It is opened again within half a minute, and filled from the ledger."
            )
        self._take(self._fd)

    def release(self) -> None:
        """Give it back. The file stays: deleting it would let two processes lock two files."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            raise StoreError(
                f"The store's folder {str(self.path.parent)!r} cannot be made or written ({exc}). "
                "Give another `path=`, or make it writable."
            ) from exc
        try:
            self._take(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _take(self, fd: int) -> None:
        try:
            _take(fd)
        except (BlockingIOError, PermissionError) as exc:
            raise StoreLockedError(
                f"Process {_holder(self.path)} holds the store in {str(self.path.parent)!r}, and only one process may. "
                "This one searches the ledger's vectors instead; for a store that many processes share, run a server "
                "and name it by `store=`."
            ) from exc
        except OSError as exc:
            raise StoreError(
                f"{str(self.path)!r} cannot be locked ({exc}). Put `path=` on a local disk, or use store='exact'."
            ) from exc


def _holder(path: Path) -> str:
    """The pid in the file, for messages only."""
    try:
        return path.read_text(encoding="ascii").strip() or "(unknown)"
    except (OSError, ValueError):
        return "(unknown)"
