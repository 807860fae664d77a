"""The end of a Reflection, of a process, and of a process that may begin no thread any more."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from reflect_middleware import Reflection, testing
from reflect_middleware.batch import Batch
from reflect_middleware.core import GRACE_SECONDS
from tests.loop.conftest import agent

TASK = {"messages": [("user", "refund order 7")]}
SECONDS = 30.0


def ours(before: set[threading.Thread], name: str) -> list[threading.Thread]:
    """Threads of ours of this name that began since and do not end by themselves."""
    found = [t for t in threading.enumerate() if t not in before and t.name.startswith(f"reflect-{name}")]
    end = time.monotonic() + SECONDS
    while any(thread.is_alive() for thread in found) and time.monotonic() < end:
        gc.collect()  # a lane may just have held what its last job was about
        min(found, key=lambda thread: not thread.is_alive()).join(0.1)
    return [thread for thread in found if thread.is_alive()]


def test_closing_on_an_event_loop_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    reflection = testing.reflection(run="background", reflector=lambda _: [])
    reflection.wrap(agent()).invoke(TASK)
    asyncio.run(reflection.aclose())
    assert ours(before, "close") == []


def test_a_reflection_that_is_dropped_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def used() -> None:
        reflection = Reflection(
            path=tmp_path, every=1, reflector=lambda _: [], store="exact", embeddings=testing.HashingEmbeddings()
        )
        reflection.wrap(agent()).invoke(TASK)
        reflection.flush(SECONDS)

    used()
    assert ours(before, "reflect") + ours(before, "index") == []


def test_closing_does_not_wait_for_a_ledger_that_somebody_holds(tmp_path: Path) -> None:
    inside, goes_on = threading.Event(), threading.Event()

    def reflector(_: Batch) -> list[Any]:
        inside.set()
        goes_on.wait(SECONDS)
        return []

    reflection = testing.reflection(
        path=str(tmp_path), every=1, run="background", reflector=reflector, exit_timeout=0.1
    )
    reflection.wrap(agent()).invoke(TASK)
    assert inside.wait(SECONDS)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    reflection.close()
    took = time.monotonic() - began
    other.rollback()
    other.close()
    goes_on.set()
    assert took < 2 * GRACE_SECONDS


@pytest.mark.parametrize("waiting", [False, True], ids=["up", "something waits"])
def test_what_has_ended_is_recorded_and_closed_where_no_thread_begins_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, waiting: bool
) -> None:
    """As at the end of the interpreter in some versions of Python."""
    reflection = testing.reflection(path=str(tmp_path), run="external", durability="queue", reward_wait=0.0)
    wrapped = reflection.wrap(agent())
    core = reflection._core
    core.keeper.writer.submit(lambda: None).result()

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        wrapped.invoke(TASK)
        core.counters.add("something")
        if waiting:
            core.keeper.outage.check()
        core.close()
    database = core.parts.ledger.database
    assert database._engine is None
    with testing.reflection(path=str(tmp_path), run="external") as other:
        assert len(other.episodes.list()) == 1
        assert waiting or "something" in other._core.parts.ledger.health.counts()


def test_a_forked_child_waits_for_its_own_commits_only() -> None:
    with testing.reflection(run="background") as reflection:
        keeper = reflection._core.keeper
        keeper.overdue = Future()
        keeper.renew()
        assert keeper.overdue is None
