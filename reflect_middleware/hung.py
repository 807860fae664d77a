"""Connections to a server on which nothing comes any more: who waits for one of them would wait for ever.

A proxy, a firewall or a failed-over host can swallow what was sent; then no answer comes and no error either, also when
new connections work again. Ending the socket lets the waiting thread fail and go on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import weakref
from typing import Any

import sqlalchemy as sa


class Connections:
    """The connections of one engine that are open, and since when each is in use.

    Args:
        engine: Whose driver's connections tell their socket by `fileno()`; those of other drivers are left alone.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._since: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        for name in ("connect", "checkout", "checkin"):
            sa.event.listen(engine, name, self._note)

    def drop_idle(self) -> None:
        """Close those that nobody uses: asking each whether it still works could take for ever."""
        self._engine.dispose()

    def cut(self, before: float) -> int:
        """End those that have been in use since before a time (monotonic seconds); gives how many."""
        self.drop_idle()
        stuck = [each for each, since in list(self._since.items()) if since < before and not each.closed]
        return sum(map(_ended, stuck))

    def _note(self, connection: Any, *_: Any) -> None:
        if hasattr(connection, "fileno") and hasattr(connection, "closed"):
            self._since[connection] = time.monotonic()


def _ended(connection: Any) -> bool:
    """End a connection's socket under whoever waits for it."""
    with contextlib.suppress(Exception):  # closed in between, say
        with socket.socket(fileno=os.dup(connection.fileno())) as other:
            other.shutdown(socket.SHUT_RDWR)
        return True
    return False
