"""Reading a file that may be anything, and putting one in place as a whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from uuid import uuid4

from reflect_middleware.errors import LessonFileError, Problem
from reflect_middleware.lesson_file import MOST_BYTES, decoded, within_bounds


def read(path: Path) -> str:
    """The text of a file of lessons.

    Raises:
        LessonFileError: If there is none, or it is too long or not UTF-8.
    """
    if not path.is_file():
        allowed = "an existing file; a text is given as str, see `lessons.import_`"
        raise LessonFileError(str(path), [Problem(line=0, field="the path", value=str(path), allowed=allowed)])
    try:
        within_bounds(path.stat().st_size, str(path))
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _failed(path, error, "a file that can be read") from error
    return decoded(data, str(path))


def page(path: Path) -> str:
    """A user's page as it is, whatever its encoding; empty where there is none."""
    try:
        return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
    except OSError as error:
        raise _failed(path, error, "a file that can be read") from error


def write(path: Path, text: str) -> None:
    """Put a file in place, as a whole or not at all; a link and the former file's mode stay.

    Raises:
        LessonFileError: If it cannot be written.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(text.encode(errors="surrogateescape"))
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except OSError as error:
        raise _failed(path, error, "a file that can be written, in a folder that exists") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _failed(path: Path, error: OSError, allowed: str) -> LessonFileError:
    reason = error.strerror or type(error).__name__
    return LessonFileError(str(path), [Problem(line=0, field="the path", value=reason, allowed=allowed)])
