"""Whether bytes of what was purged are left in files, whatever their form: free pages of a database, logs, indices."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

PIECE = 4 * 1024 * 1024
"""Bytes read at a time."""
HEAD = 4
"""Bytes of a word by which it is looked for first."""
OVERLAP = 256
"""Bytes that a piece repeats of the one before: longer than anything that is looked for."""
_open_for_ever: dict[tuple[int, int], int] = {}


def found_in(file: Path, ids: Collection[str], words: Collection[str], *, live: bool = False) -> set[str]:
    """Which of the ids (UUIDs) and words a file holds.

    Args:
        file: Any file; a missing one holds nothing.
        ids: Any number.
        words: A few; in UTF-8, or as JSON writes them.
        live: This process has a SQLite connection to it. It is then never closed: closing it would take away the locks
            that SQLite holds on it, as POSIX has it.
    """
    wanted = {name.encode(): name for name in ids}
    spelled = {word.encode(): word for word in words}
    found: set[str] = set()
    for piece in _pieces(file, live=live):
        if wanted:
            found.update(wanted[hit] for hit in _ids(piece) & wanted.keys())
        found.update(spelled[raw] for raw in _words(piece, spelled))
    return found


def _ids(piece: bytes) -> set[bytes]:
    """Everything that is formed like an id: 8-4-4-4-12 characters. Ten times as fast as a regular expression."""
    import numpy as np

    hyphen = np.frombuffer(piece, dtype=np.uint8) == ord("-")
    if len(hyphen) < 36:  # noqa: PLR2004 - the length of an id
        return set()
    ends = len(hyphen) - 35
    first, second = hyphen[8 : 8 + ends] & hyphen[13 : 13 + ends], hyphen[18 : 18 + ends] & hyphen[23 : 23 + ends]
    starts = np.flatnonzero(first & second)
    return {piece[start : start + 36] for start in starts.tolist()}


def _words(piece: bytes, words: Collection[bytes]) -> set[bytes]:
    """Which words are in it. Places where any of them may begin, by its first four bytes, are found all at once."""
    import numpy as np

    short = {word for word in words if len(word) < HEAD and word in piece}
    heads: dict[bytes, list[bytes]] = {}
    for word in words:
        if len(word) >= HEAD:
            heads.setdefault(word[:HEAD], []).append(word)
    if not heads or len(piece) < HEAD:
        return short
    data = np.frombuffer(piece, dtype=np.uint8)
    pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
    begin, go_on = np.zeros(65_536, dtype=bool), np.zeros(65_536, dtype=bool)
    for head in heads:
        begin[head[0] << 8 | head[1]] = go_on[head[2] << 8 | head[3]] = True
    places = np.flatnonzero(begin[pairs[:-2]] & go_on[pairs[2:]]).tolist()
    return short | {
        word for at in places for word in heads.get(piece[at : at + HEAD], ()) if piece.startswith(word, at)
    }


def _pieces(file: Path, *, live: bool) -> Iterator[bytes]:
    try:
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return
    if live:
        fd = _kept(fd)
    try:
        at, tail = 0, b""
        while piece := _read(fd, at):
            yield tail + piece
            at, tail = at + len(piece), piece[-OVERLAP:]
    finally:
        if not live:
            os.close(fd)


def _kept(fd: int) -> int:
    """The first descriptor of this file; a second one of it is never closed either."""
    status = os.fstat(fd)
    return _open_for_ever.setdefault((status.st_dev, status.st_ino), fd)


def _read(fd: int, at: int) -> bytes:
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, PIECE)
