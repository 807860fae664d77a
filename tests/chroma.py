"""A real Chroma server for tests, from the wheel of chromadb: one a test session, one fresh database a test.

It is what `chroma run` starts, without the import of the whole package before: 0.1 s. It listens on a loopback port,
asks nobody and tells nobody anything.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = "import sys, chromadb_rust_bindings as bindings; bindings.cli(['chroma', 'run', *sys.argv[1:]])"
START_SECONDS = 60.0


class Server:
    """One Chroma server with its data in a temporary folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="reflect-chroma-"))
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"chroma://127.0.0.1:{self.port}"

    def fresh(self) -> str:
        """A new, empty database's name."""
        import httpx

        name = f"test-{next(self._numbers)}"
        where = f"http://127.0.0.1:{self.port}/api/v2/tenants/default_tenant/databases"
        httpx.post(where, json={"name": name}).raise_for_status()
        return name

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers."""
        if self._process is not None:
            return
        place = ["--path", str(self.folder / "data"), "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN, *place],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
                start_new_session=True,  # Ctrl-C in the terminal is for the tests
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Chroma did not start: {(self.folder / 'log').read_text()[-2_000:]}")
            time.sleep(0.01)  # another program's start: there is no event to wait for

    def stop(self) -> None:
        """Kill it; `start` starts it again with its data."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(START_SECONDS)

    def close(self) -> None:
        """Kill it and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True
