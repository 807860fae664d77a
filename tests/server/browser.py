"""A real browser, driven over its DevTools protocol: no driver package, no download."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Browser:
    """One page in a headless Chromium."""

    def __init__(self, program: str, url: str, profile: Path) -> None:
        self._log = profile.with_suffix(".log")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [program, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", url],
                stdout=log,
                stderr=log,
            )
        self._open = ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        from websockets.sync.client import connect

        try:
            for _ in range(300):
                said = self._log.read_text()
                if "DevTools listening on " in said:
                    break
                time.sleep(0.1)  # nothing else tells that it listens
            port = said.split("DevTools listening on ws://")[1].split("/")[0].rpartition(":")[2]
            targets = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=30).json()
            (page,) = [target for target in targets if target["type"] == "page"]
            self._socket = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None))
            self.wait("location.protocol == 'http:' && document.readyState == 'complete'")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def run(self, script: str) -> Any:
        """Evaluate an expression on the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        for _ in range(300):
            if self.run(condition):
                return
            time.sleep(0.1)  # the page is another process
        pytest.fail(f"The page never came to: {condition}")

    def screenshot(self, file: Path) -> None:
        """What a person would see."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._number:
                return answer["result"]
