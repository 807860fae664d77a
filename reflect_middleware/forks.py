"""A fork waits until no statement and no import of ours is under way.

What SQLite, or Python for a module's import, has locked in another thread at a fork stays locked in the child.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

WAIT_SECONDS = 2.0
"""How long a fork, or a statement during a fork, waits at most."""


class Gate:
    """Open for statements, except while the process forks."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start afresh in a forked child."""
        self._inside = threading.local()
        self._changed = threading.Condition()
        self._busy = 0
        self._forking = False

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Around each use of a connection, and imports on threads of ours. Inside another one it waits for nothing."""
        inside = getattr(self._inside, "depth", 0)
        if not inside:
            self._enter()
        self._inside.depth = inside + 1
        try:
            yield
        finally:
            self._inside.depth = inside
            if not inside:
                self._leave()

    def _enter(self) -> None:
        with self._changed:
            if self._forking:
                self._changed.wait_for(lambda: not self._forking, WAIT_SECONDS)
            self._busy += 1

    def _leave(self) -> None:
        with self._changed:
            self._busy -= 1
            if self._forking:
                self._changed.notify_all()

    def close(self) -> None:
        """Before a fork."""
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: not self._busy, WAIT_SECONDS)

    def open(self) -> None:
        """After a fork, in the parent."""
        with self._changed:
            self._forking = False
            self._changed.notify_all()


gate = Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=gate.close, after_in_parent=gate.open, after_in_child=gate.renew)
