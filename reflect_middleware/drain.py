"""Writing to the ledger what has waited for it, now that it is back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from reflect_middleware.errors import LedgerError, LedgerValueError, TargetError
from reflect_middleware.overhear import decided, seen
from reflect_middleware.types import Episode

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.spool import Entry, Spool

logger = logging.getLogger(__name__)


class Drain:
    """What waits goes to the ledger, the oldest first. What that refuses by its content stays for the next `Drain`.

    Args:
        core: The Reflection's inner side.
        written: Told of each entry that is in the ledger now, and of the episodes that it is about.
    """

    def __init__(self, core: Core, written: Callable[[Entry, Iterable[Episode]], None]) -> None:
        self.core = core
        self._written = written
        self._refused: set[int] = set()

    def run(self, spool: Spool, guard: Callable[[], AbstractContextManager[None]]) -> None:
        """Write all that waits.

        Args:
            spool: Where it waits.
            guard: Goes around the work on each entry.

        Raises:
            LedgerError: If the ledger is away again.
        """
        refused: set[str] = set()
        count = 0
        for entry in spool.entries():
            if entry.seq in self._refused or entry.target in refused:
                continue
            try:
                with guard():
                    self._write(spool, entry)
                count += 1
            except Exception as error:
                if isinstance(error, LedgerError) and not isinstance(error, LedgerValueError):
                    raise
                self.core.failed("spool", error)
                self._refused.add(entry.seq)
                refused.add(entry.target)
        if count:
            logger.warning("reflect: the ledger is back: %d entries of the spool were written", count)

    def done(self, spool: Spool) -> bool:
        """Whether nothing waits but what was refused."""
        return all(entry.seq in self._refused for entry in spool.entries())

    def _write(self, spool: Spool, entry: Entry) -> None:
        from reflect_middleware.replay import write

        episodes: tuple[Episode, ...] = ()
        try:
            episodes = write(self.core.parts.ledger, entry, partial(decided, self.core), partial(seen, self.core))
        except TargetError as error:  # no later attempt knows better
            self.core.failed("reward", error)
        spool.done(entry)
        self._written(entry, episodes)
