"""Whether lessons may have changed, without asking the ledger: two counters in a file that processes share in memory.

`begun` grows inside every transaction that changes lessons or the pause switch, before it commits; `ended` follows once
the transaction is over. SQLite lets one writer in at a time, so while both are equal nothing has been committed since
they were read. While they differ (a change is under way, or a process died in the middle of one) the ledger is asked.
"""

from __future__ import annotations

import logging
import mmap
import struct
from pathlib import Path

logger = logging.getLogger(__name__)
_NUMBER = struct.Struct("=Q")
_BEGUN, _ENDED = 0, _NUMBER.size


class Changes:
    """The counters beside one SQLite file.

    Args:
        path: The file, made if it is missing; None for a ledger without a file. Where it cannot be mapped into memory,
            nothing is ever known to be unchanged.
    """

    def __init__(self, path: Path | None) -> None:
        self._shared: mmap.mmap | None = None
        if path is None:
            return
        try:
            with path.open("a+b") as file:
                file.truncate(2 * _NUMBER.size)
                self._shared = mmap.mmap(file.fileno(), 2 * _NUMBER.size)
        except (OSError, ValueError):
            logger.debug("reflect: every run asks the ledger, since %s cannot be mapped", path, exc_info=True)

    def mark(self) -> int | None:
        """A number that stays the same while nothing changes; None if something may be changing. Only reads memory."""
        begun, ended = self._read(_BEGUN), self._read(_ENDED)
        return begun if begun and begun == ended else None

    def begin(self) -> int:
        """Say that a change is coming; gives its ticket. Only inside a write transaction."""
        ticket = self._read(_BEGUN) + 1
        self._write(_BEGUN, ticket)
        return ticket

    def end(self, ticket: int) -> None:
        """Say that the transaction with this ticket is over, committed or not.

        If of two that end at once the older one writes last, the counters differ until the next change.
        """
        if ticket > self._read(_ENDED):
            self._write(_ENDED, ticket)

    def close(self) -> None:
        """Let go of the file."""
        self._shared = None

    def _read(self, at: int) -> int:
        shared = self._shared
        return 0 if shared is None else int(_NUMBER.unpack_from(shared, at)[0])

    def _write(self, at: int, number: int) -> None:
        if (shared := self._shared) is not None:
            _NUMBER.pack_into(shared, at, number)
