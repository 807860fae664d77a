"""Where a ledger's file may lie: not on a network, and opened by one process at a time. No SQL."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from reflect_middleware.errors import LedgerPlaceError, LedgerUnavailableError

NETWORK = frozenset(
    {
        "nfs",
        "nfs3",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "smbnetfs",
        "afpfs",
        "afs",
        "auristorfs",
        "coda",
        "ncpfs",
        "webdav",
        "davfs",
        "davfs2",
        "curlftpfs",
        "ceph",
        "ceph-fuse",
        "cephfs",
        "lustre",
        "glusterfs",
        "gpfs",
        "beegfs",
        "gfs2",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "panfs",
        "acfs",
        "sshfs",
        "s3fs",
        "gcsfuse",
        "goofys",
        "mountpoint-s3",
        "rclone",
        "juicefs",
        "mfs",
        "moosefs",
        "lizardfs",
        "blobfuse",
        "blobfuse2",
    }
)
"""File systems whose locks and shared memory SQLite's WAL cannot rely on, also by way of FUSE.

Those of containers (overlay, 9p, virtiofs) are not among them.
"""
Mounts = Sequence[tuple[str, str]]
"""Mount points and the types of their file systems, in the order of mounting."""
LINKS = 40
"""Most symbolic links that are followed."""
WAIT_SECONDS = 30.0
"""How long opening waits for another process that opens."""


def refuse_network(file: Path) -> None:
    """Check that a ledger's file lies on a local disk. Touches no network file system, which may hang.

    Raises:
        LedgerPlaceError: If it does not.
    """
    if kind := network_of(file, _mounts()):
        raise LedgerPlaceError(
            f"The ledger {str(file)!r} lies on a network file system ({kind}), where SQLite cannot keep it safe: it"
            " needs a local disk. Several machines share a ledger on PostgreSQL:"
            ' ledger="postgresql+psycopg://user:password@host/name" instead of path=.'
        )


def network_of(file: Path, mounts: Mounts) -> str:
    """The type of the network file system on which a path or a link on its way lies; empty if it is local."""
    left, here, links = list(reversed(Path(os.path.abspath(file)).parts)), Path(), 0  # noqa: PTH100 - asks no disk
    kind, remote = "", False
    while left:
        here = here / left.pop()
        kind = _kind(str(here), mounts)
        remote = kind.rpartition("fuse.")[2] in NETWORK
        if not remote and links < LINKS and here.is_symlink():
            links += 1
            target = os.path.normpath(here.parent / here.readlink())
            left += reversed(Path(target).parts)
    return kind if remote else ""


def mounts_of_linux(mountinfo: str) -> Mounts:
    """Reads `/proc/self/mountinfo`."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if len(fields) > 4 and kind:  # noqa: PLR2004 - id, parent, device, root, mount point
            found.append((re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]), kind))
    return found


def mounts_of_macos(said: str) -> Mounts:
    """Reads what `mount` prints: `//me@host/share on /Volumes/share (smbfs, nodev)`."""
    return [(found[1], found[2]) for found in re.finditer(r"^.*? on (/.*) \(([\w.]+)[,)]", said, re.MULTILINE)]


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """The only process, and thread, that opens or replaces this ledger's file. The lock is on its folder.

    Raises:
        LedgerUnavailableError: If another one takes longer than half a minute.
    """
    if sys.platform == "win32":  # an open file can neither be deleted nor replaced there
        yield
        return
    import fcntl

    folder = os.open(file.parent, os.O_RDONLY)
    try:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise LedgerUnavailableError(
                        f"The ledger {str(file)!r} is being opened by another process for {WAIT_SECONDS:.0f} s already."
                        " If that one hangs, end it."
                    ) from error
                threading.Event().wait(0.01)
            except OSError:  # a file system without locks of its own; SQLite will say if it cannot work there
                break
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)  # a child that was forked meanwhile has it too, and never closes it
        os.close(folder)


def identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None if there is none. Takes microseconds."""
    try:
        found = os.stat(file)  # noqa: PTH116 - `Path.stat` takes twice as long, and this is asked at every use
    except OSError:
        return None
    return found.st_dev, found.st_ino


def clear_away(file: Path) -> None:
    """Remove what a deleted ledger has left: a new one of that name would take it for its own."""
    if not file.exists():
        for ending in ("-wal", "-shm"):
            Path(f"{file}{ending}").unlink(missing_ok=True)


def newest_backup(file: Path) -> Path | None:
    """The latest copy of a ledger that `reflect backup`, or a migration, has made: their names hold the time."""
    return max((file.parent / "backups").glob("ledger-*.db"), default=None)


def _kind(path: str, mounts: Mounts) -> str:
    inside = [(len(point), number) for number, (point, _) in enumerate(mounts) if _is_in(path, point)]
    return mounts[max(inside)[1]][1] if inside else ""


def _is_in(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _mounts() -> Mounts:
    try:
        if sys.platform == "darwin":
            said = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5, check=True)
            return mounts_of_macos(said.stdout)
        return mounts_of_linux(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, subprocess.SubprocessError):
        return ()
