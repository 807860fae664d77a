"""The local model's server: llama.cpp in a process of its own, on 127.0.0.1 only, that ends with the demo."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 120.0
"""How long loading the model may take."""
CONTEXT = 8_192
"""Tokens of one conversation, prompt and answer."""
CACHE_MIB = 512
"""Memory for prompts that may come again."""


@contextlib.contextmanager
def serving(model: Path, at_once: int = 1) -> Iterator[str]:
    """Serve a GGUF file; gives the base URL of its OpenAI protocol.

    Args:
        model: The file.
        at_once: So many conversations go on side by side, which is faster in all. What one of them is answered then
            depends a little on the others: sums are made in another order.

    Raises:
        NoRuntimeError: xllamacpp is not installed.
        ServerError: The server did not come up in START_SECONDS.
    """
    _check_runtime()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, __file__, str(model), str(at_once)]
        child = subprocess.Popen(  # noqa: S603 - this file
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            base = _address(child)
            if base is None or not _healthy(child, base):
                raise _failure(child, log.fileno())
            yield f"{base}/v1"
        finally:
            _stop(child)


def _check_runtime() -> None:
    from expense_desk.errors import ELSE, NoRuntimeError

    if importlib.util.find_spec("xllamacpp") is None:
        raise NoRuntimeError(
            "The local model runs on xllamacpp, which is not installed. Install it:"
            f" `{sys.executable} -m pip install xllamacpp`. It has wheels for Linux (x86-64, arm64), macOS and Windows;"
            f" elsewhere there is no local model. {ELSE}"
        )


def _address(child: subprocess.Popen[str]) -> str | None:
    """The line in which the child says where it listens; None if it ends or is late."""
    said: list[str] = []

    def read() -> None:
        if child.stdout is not None:
            for line in child.stdout:
                if line.startswith("{"):
                    said.append(json.loads(line)["url"])
                    return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(START_SECONDS)
    return said[0] if said else None


def _healthy(child: subprocess.Popen[str], base: str) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/health", timeout=5) as reply:  # noqa: S310
            if reply.status == 200:  # noqa: PLR2004 - HTTP's OK
                return True
        time.sleep(0.2)
    return False


def _failure(child: subprocess.Popen[str], log: int) -> Exception:
    from expense_desk.errors import ELSE, ServerError

    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(1)
    status = child.poll()
    end = "did not answer in time" if status is None else f"ended with exit status {status}"
    os.lseek(log, 0, os.SEEK_SET)
    tail = os.read(log, 1 << 20).decode(errors="replace").strip().splitlines()[-3:]
    return ServerError(f"The local model's server {end}. It said: {' '.join(tail) or '(nothing)'}. {ELSE}")


def _stop(child: subprocess.Popen[str]) -> None:
    """Closing its stdin ends the child; it is killed if it does not listen."""
    with contextlib.suppress(OSError):
        if child.stdin is not None:
            child.stdin.close()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def cores() -> int:
    """Cores that this process may use, at most 8: more do not help a model of this size."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, 8))


def serve(model: str, at_once: int) -> None:
    """In the child: serve until stdin closes, which it also does when the parent dies."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT * at_once
    params.n_parallel = at_once
    params.cache_ram_mib = CACHE_MIB
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores()
    params.verbosity = 1
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
