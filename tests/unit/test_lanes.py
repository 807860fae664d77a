"""Threads of our own: ordered, safe in cancellation, usable after a fork."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from typing import Any

import pytest

from reflect_middleware.lanes import Lane, awaited


def test_jobs_run_in_order_and_give_back_results() -> None:
    lane, seen = Lane("test"), []
    futures = [lane.submit(lambda n=n: seen.append(n) or n * 2) for n in range(50)]  # type: ignore[func-returns-value]
    assert lane.wait_idle(10)
    assert seen == list(range(50))
    assert [future.result() for future in futures] == [n * 2 for n in range(50)]
    lane.stop()


def test_an_exception_reaches_who_waits_and_the_lane_goes_on() -> None:
    lane = Lane("test")
    failed = lane.submit(lambda: 1 / 0)
    assert lane.submit(lambda: "still here").result(10) == "still here"
    with pytest.raises(ZeroDivisionError):
        failed.result()
    lane.stop()


def test_wait_idle_gives_up_after_its_timeout() -> None:
    lane, go = Lane("test"), threading.Event()
    lane.submit(lambda: go.wait(30))
    assert not lane.wait_idle(0.01)
    go.set()
    assert lane.wait_idle(10)
    lane.stop()


def test_jobs_do_not_see_the_callers_context() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")
    lane = Lane("test")
    var.set("inside")
    assert lane.submit(var.get).result(10) == "outside"
    lane.stop()


async def test_a_cancelled_waiter_leaves_the_job_running() -> None:
    lane, go, seen = Lane("test"), threading.Event(), []

    def job() -> None:
        go.wait(30)
        seen.append("done")

    waiter = asyncio.ensure_future(awaited(lane.submit(job)))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    go.set()
    assert await awaited(lane.submit(lambda: len(seen))) == 1
    lane.stop()


async def test_a_waiter_gives_up_after_its_time_and_the_job_goes_on() -> None:
    lane, go = Lane("test"), threading.Event()
    job = lane.submit(lambda: go.wait(30))
    with pytest.raises(TimeoutError):
        await awaited(job, 0.01)
    go.set()
    assert await awaited(job, 10)
    lane.stop()


def test_stopped_lanes_end_their_threads_and_start_again() -> None:
    lane = Lane("stopping", threads=2)
    lane.submit(lambda: None).result(10)
    mine = [t for t in threading.enumerate() if t.name.startswith("reflect-stopping")]
    assert len(mine) == 2
    lane.stop()
    for thread in mine:
        thread.join(10)
    assert not any(thread.is_alive() for thread in mine)
    assert lane.submit(lambda: "again").result(10) == "again"
    lane.stop()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # what this test is about
def test_usable_after_a_fork_while_busy() -> None:
    lane, go = Lane("forked"), threading.Event()
    lane.submit(lambda: go.wait(30))
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        answer: Any = b"?"
        try:
            answer = lane.submit(lambda: b"child").result(10)
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"child"
    go.set()
    assert lane.wait_idle(10)
    lane.stop()
    os.close(reader)
    os.close(writer)
