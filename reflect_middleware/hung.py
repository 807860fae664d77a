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
    """The connections of one engine.

    Args:
        engine: Whose driver's connections tell their socket by `fileno()`; those of other drivers are left alone.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._entries: weakref.WeakSet[Any] = weakref.WeakSet()
        self._since: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        sa.event.listen(engine, "connect", self._note)
        sa.event.listen(engine, "checkout", self._note)
        sa.event.listen(engine, "checkin", self._note)

    def renew(self, seconds: float) -> int:
        """After the server was away: use none of them again, and end those in use for so long; gives how many.

        Idle ones are replaced when they are needed: asking each whether it still works could take for ever.
        """
        for entry in list(self._entries):
            entry.invalidate(soft=True)
        before = time.monotonic() - seconds
        stuck = [each for each, since in list(self._since.items()) if since < before]
        return sum(map(_ended, stuck))

    def _note(self, connection: Any, entry: Any, *fairy: Any) -> None:
        self._entries.add(entry)
        if connection is not None and hasattr(connection, "fileno"):
            self._since[connection] = time.monotonic()


def _ended(connection: Any) -> bool:
    """End a connection's socket under whoever waits for it."""
    with contextlib.suppress(Exception):  # closed in between, say
        with socket.socket(fileno=os.dup(connection.fileno())) as other:
            other.shutdown(socket.SHUT_RDWR)
        return True
    return False
