"""A server that hangs: a proxy before it that can swallow whatever passes, in both directions."""

from __future__ import annotations

import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.postgres import Server


class Proxy:
    """Passes bytes on between clients and a PostgreSQL on a Unix socket, until it is told to swallow them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._swallowing = False
        self._folder = tempfile.TemporaryDirectory(prefix="reflect-proxy-")
        self._open: list[socket.socket] = []

    def url(self, database: str) -> str:
        return self.server.url(database).replace(str(self.server.folder), self._folder.name)

    def swallow(self) -> None:
        """From now on nothing passes, on old connections and new ones."""
        self._swallowing = True

    def mend(self) -> None:
        """From now on new connections work. On those on which something was swallowed nothing comes any more."""
        self._swallowing = False

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._folder.name) / ".s.PGSQL.5432"))
        self._listener.listen()
        self._open.append(self._listener)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by its other side
            finally:
                each.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            behind = socket.socket(socket.AF_UNIX)
            behind.connect(str(self.server.folder / ".s.PGSQL.5432"))
            self._open += [client, behind]
            for source, target in ((client, behind), (behind, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        cut_off = False
        try:
            while data := source.recv(65_536):
                cut_off |= self._swallowing
                if not cut_off:
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the test is over, or the other side is gone
