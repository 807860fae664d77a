"""How processes end: in time, with nothing lost, and the next start does what was cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from reflect_middleware import Reflection
from tests.server.processes import free_port, wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

SETUP = """
import logging, os, signal, sys, threading, time
from pathlib import Path
from langgraph.graph import START, MessagesState, StateGraph
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal: a job in the background ignores it
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
home = Path(os.environ["REFLECT_HOME"])

def reflector(batch):
    (home / "reflecting").touch()
    while (home / "slow").exists():
        threading.Event().wait(0.05)
    return []

reflection = Reflection(path=home / "ledger", reflector=reflector, store="exact", embeddings=HashingEmbeddings(),
                        **{"every": 1, "exit_timeout": 1.0, "lease": 2.0, **SETTINGS})
model = ScriptedChatModel(lambda _: "refunded")
builder = StateGraph(MessagesState)
builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
builder.add_edge(START, "answer")
graph = reflection.wrap(builder.compile())

def run():
    graph.invoke({"messages": "Refund order 1"})

def until_reflecting():
    while not (home / "reflecting").exists():
        time.sleep(0.02)
"""


class Home:
    """A folder in which processes run that share a ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slow = folder / "slow"
        self.reflecting = folder / "reflecting"
        self.environment = os.environ | {"REFLECT_HOME": str(folder), "PYTHONUNBUFFERED": "1"}
        self.started: list[subprocess.Popen[str]] = []

    def write(self, name: str, body: str, **settings: Any) -> Path:
        """A module that begins with the set-up."""
        file = self.folder / name
        file.write_text(f"SETTINGS = {settings!r}\n{SETUP}\n{textwrap.dedent(body)}")
        return file

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A Python process in this folder."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.started.append(
            subprocess.Popen([sys.executable, *command], cwd=self.folder, env=self.environment, **pipes)
        )
        return self.started[-1]

    def script(self, body: str, **settings: Any) -> subprocess.Popen[str]:
        """A script that begins with the set-up."""
        return self.start(str(self.write(f"script_{len(self.started)}.py", body, **settings)))

    def until_reflecting(self) -> None:
        """Wait until a reflection has begun."""
        for _ in range(3_000):
            if self.reflecting.exists():
                return
            time.sleep(0.02)  # nothing else tells of it
        pytest.fail("no reflection began")

    def statuses(self) -> list[str]:
        """Of all reflections, the oldest first."""
        with Reflection(path=self.folder / "ledger", store="exact") as reader:
            return [record.status for record in reversed(reader.reflections.list())]

    def until_done(self) -> None:
        """Wait until a reflection is committed."""
        for _ in range(300):
            if self.statuses()[-1] == "done":
                return
            time.sleep(0.2)  # nothing else tells of another process's reflection
        pytest.fail(f"no reflection was committed: {self.statuses()}")

    def unread(self) -> int:
        """How many episodes wait; that the reader sees them means that none is lost."""
        with Reflection(path=self.folder / "ledger", store="exact") as reader:
            assert not reader.episodes.list(dead=True)
            return len(reader.episodes.list(waiting=True))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ends(process: subprocess.Popen[str], *, within: float, code: int | None = 0) -> str:
    """Its stderr, once it has ended in time."""
    at = time.monotonic()
    _, errors = process.communicate(timeout=within + 30)
    took = time.monotonic() - at
    assert code is None or process.returncode == code, errors
    assert took < within, f"{took:.1f} s: {errors}"
    return errors


def next_start(home: Home) -> str:
    """What a new process says whose own cadence is far from due."""
    home.slow.unlink(missing_ok=True)
    home.reflecting.unlink(missing_ok=True)
    process = home.script("run()\nuntil_reflecting()\nreflection.flush()", every=99, exit_timeout=20.0)
    return ends(process, within=60)


RELEASED = "is not done in time and is released; the next start"
MARGIN = 6.0
"""Seconds that Python and a busy machine may take beyond `exit_timeout`."""


def test_a_script_that_ends_waits_no_longer_than_allowed(home: Home) -> None:
    home.slow.touch()
    process = home.script("run()\nuntil_reflecting()\nprint('over', flush=True)")
    assert process.stdout is not None
    assert process.stdout.readline() == "over\n"
    said = ends(process, within=1.0 + MARGIN)
    assert said.count(RELEASED) == 1
    assert home.statuses() == ["released"]
    assert home.unread() == 1
    assert next_start(home).count("taken up") == 1
    assert home.statuses() == ["released", "done"]
    assert home.unread() == 0


def test_a_script_that_ends_lets_a_quick_reflection_finish(home: Home) -> None:
    said = ends(home.script("run()"), within=30)
    assert RELEASED not in said
    assert home.statuses() == ["done"]


def test_scripts_with_one_run_each_count_together(home: Home) -> None:
    for _ in range(3):
        ends(home.script("run()", every=3), within=30)
    assert home.statuses() == ["done"]
    assert home.unread() == 0


WAITING = "run()\nuntil_reflecting()\nprint('ready', flush=True)\ntime.sleep(600)"


def test_ctrl_c_waits_no_longer_than_allowed(home: Home) -> None:
    home.slow.touch()
    process = home.script(WAITING)
    home.until_reflecting()
    process.send_signal(signal.SIGINT)
    assert RELEASED in ends(process, within=1.0 + MARGIN, code=None)
    assert home.statuses() == ["released"]
    next_start(home)
    assert home.unread() == 0


def test_a_second_ctrl_c_ends_the_wait(home: Home) -> None:
    home.slow.touch()
    process = home.script(WAITING, exit_timeout=60.0)
    home.until_reflecting()
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)  # nothing tells that it has begun to wait
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert RELEASED in ends(process, within=MARGIN, code=None)
    assert home.statuses() == ["released"]
    assert home.unread() == 1


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGTERM)", "os._exit(1)", "os.abort()"])
def test_what_gives_no_time_is_finished_when_its_lease_is_over(home: Home, ending: str) -> None:
    home.slow.touch()
    process = home.script(f"run()\nuntil_reflecting()\n{ending}")
    ends(process, within=60, code=None)
    assert process.returncode != 0
    assert home.statuses() == ["running"]
    assert next_start(home).count("taken up") == 1
    assert home.statuses() == ["released", "done"]
    assert home.unread() == 0


def test_an_interrupted_cell_of_a_notebook_stops_nothing(home: Home) -> None:
    home.slow.touch()
    process = home.script(
        """
        run()
        until_reflecting()
        try:
            signal.raise_signal(signal.SIGINT)  # what a kernel does on "interrupt"
        except KeyboardInterrupt:
            (home / "slow").unlink()
        run()
        reflection.flush()
        """
    )
    assert RELEASED not in ends(process, within=60)
    assert home.statuses() == ["done", "done"]


def test_reflections_left_open_by_tests_warn_of_nothing(home: Home) -> None:
    home.write(
        "test_left_open.py",
        """
        import gc, multiprocessing

        def test_a_global_one():
            run()

        def test_one_that_nobody_holds():
            left = Reflection(path=home / "other", store="exact", embeddings=HashingEmbeddings(), every=99)
            left.wrap(builder.compile()).invoke({"messages": "Refund order 1"})
            del left
            gc.collect()

        def test_one_in_a_forked_worker():
            child = multiprocessing.get_context("fork").Process(target=run)
            child.start()
            child.join(30)
            assert child.exitcode == 0
        """,
    )
    process = home.start(
        "-W", "error", "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", "test_left_open.py"
    )
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, out + errors
    assert "3 passed" in out
    assert "Traceback" not in errors
    assert home.unread() <= 1, "the forked one ends without an exit of Python's"


SERVER = """
from contextlib import asynccontextmanager
from fastapi import FastAPI

@asynccontextmanager
async def lifespan(app):
    yield
    {at_the_end}

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def root():
    return os.getpid()

@app.get("/run")
async def run_it():
    await graph.ainvoke({{"messages": [("user", "Refund order 1")]}})
"""


def serve(home: Home, *options: str, at_the_end: str = "await reflection.aclose()", **settings: Any) -> tuple[Any, str]:
    """A server of uvicorn's, once it is up."""
    port = free_port()
    home.write("server.py", SERVER.format(at_the_end=at_the_end), **settings)
    command = [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port), *options]
    with (home.folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=home.folder, env=home.environment, stdout=log, stderr=log, text=True)
    home.started.append(process)
    wait_until_up(f"http://127.0.0.1:{port}/", process, home.folder / "log")
    return process, f"http://127.0.0.1:{port}"


def test_a_server_that_closes_at_its_end_releases_what_it_does(home: Home) -> None:
    home.slow.touch()
    process, url = serve(home)
    httpx.get(f"{url}/run", timeout=30)
    home.until_reflecting()
    process.send_signal(signal.SIGTERM)
    ends(process, within=1.0 + MARGIN, code=None)
    assert (home.folder / "log").read_text().count(RELEASED) == 1
    assert home.statuses() == ["released"]
    assert "taken up" in next_start(home)
    assert home.unread() == 0


def test_a_server_that_does_not_close_hangs_no_longer_and_loses_nothing(home: Home) -> None:
    home.slow.touch()
    process, url = serve(home, at_the_end="pass")
    httpx.get(f"{url}/run", timeout=30)
    home.until_reflecting()
    process.send_signal(signal.SIGTERM)
    ends(process, within=1.0 + MARGIN, code=None)
    assert set(home.statuses()) <= {"released", "running"}
    assert "taken up" in next_start(home)
    assert home.unread() == 0


def test_a_reload_goes_on_where_the_old_process_was(home: Home) -> None:
    home.slow.touch()
    process, url = serve(home, "--reload", "--reload-include", "server.py")
    old = httpx.get(url, timeout=30).text
    httpx.get(f"{url}/run", timeout=30)
    home.until_reflecting()
    home.reflecting.unlink()
    home.slow.unlink()
    file = home.folder / "server.py"
    file.write_text(file.read_text().replace("'every': 1", "'every': 99") + "\n# changed\n")
    for _ in range(600):
        try:
            if httpx.get(url, timeout=5).text != old:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # nothing else tells that the new process listens
    httpx.get(f"{url}/run", timeout=30)
    home.until_done()
    process.send_signal(signal.SIGINT)
    ends(process, within=2.0 + MARGIN, code=None)
    assert home.unread() == 0


def worker(home: Home, **settings: Any) -> subprocess.Popen[str]:
    """`reflect worker` with the Reflection of the set-up, while a reflection is under way."""
    home.slow.touch()
    home.write("app.py", "", run="external", **settings)
    ends(home.script("run()", run="external"), within=30)
    process = home.start(
        "-c", "from reflect_middleware.cli import main; main()", "worker", "--app", "app:reflection", "--poll", "0.1"
    )
    home.until_reflecting()
    return process


def test_a_worker_told_to_end_finishes_first(home: Home) -> None:
    process = worker(home, exit_timeout=60.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # nothing tells that it has heard
    assert process.poll() is None
    home.slow.unlink()
    ends(process, within=MARGIN)
    assert home.statuses() == ["done"]


@pytest.mark.parametrize(("exit_timeout", "signals"), [(1.0, [signal.SIGTERM]), (60.0, [signal.SIGINT] * 2)])
def test_a_worker_ends_in_time(home: Home, exit_timeout: float, signals: list[signal.Signals]) -> None:
    process = worker(home, exit_timeout=exit_timeout)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)  # two signals at once are one
    assert RELEASED in ends(process, within=1.0 + MARGIN)
    assert home.statuses() == ["released"]
    home.slow.unlink()
    command = ("-c", "from reflect_middleware.cli import main; main()", "worker", "--app", "app:reflection", "--once")
    ends(home.start(*command), within=60)
    assert home.statuses() == ["released", "done"]


def test_a_worker_that_is_killed_is_followed_by_another(home: Home) -> None:
    process = worker(home)
    process.send_signal(signal.SIGKILL)
    ends(process, within=MARGIN, code=None)
    home.slow.unlink()
    other = home.start(
        "-c", "from reflect_middleware.cli import main; main()", "worker", "--app", "app:reflection", "--poll", "0.1"
    )
    home.until_done()
    other.send_signal(signal.SIGTERM)
    ends(other, within=1.0 + MARGIN)
    assert home.statuses() == ["released", "done"]
