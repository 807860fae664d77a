"""A fork waits for statements under way, and statements wait for a fork, neither of them for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reflect_middleware import forks
from reflect_middleware.forks import Gate


def test_a_fork_waits_for_statements_and_they_for_it() -> None:
    gate, entered, leave = Gate(), threading.Event(), threading.Event()
    seen: list[str] = []

    def statement() -> None:
        with gate.passing():
            entered.set()
            leave.wait(10)
            seen.append("statement")

    def fork() -> None:
        gate.close()
        seen.append("fork")

    def later() -> None:
        with gate.passing():
            seen.append("later")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(statement)
        assert entered.wait(10)
        forking = pool.submit(fork)
        leave.set()
        forking.result(10)
        first.result(10)
        after = pool.submit(later)
        gate.open()
        after.result(10)
    assert seen == ["statement", "fork", "later"]


def test_neither_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "WAIT_SECONDS", 0.01)
    gate = Gate()
    with gate.passing():
        gate.close()  # a fork from within a statement
    with gate.passing():
        pass
    gate.renew()
    with gate.passing():
        pass


def test_a_statement_within_another_does_not_wait_for_the_fork_that_waits_for_it() -> None:
    gate, entered, forking = Gate(), threading.Event(), threading.Event()
    seen: list[str] = []

    def statement() -> None:
        with gate.passing():
            entered.set()
            assert forking.wait(10)
            with gate._changed:
                pass  # the fork is waiting by now: it let go of the lock
            with gate.passing():
                seen.append("inner")

    def fork() -> None:
        with gate._changed:
            forking.set()
            gate.close()
        seen.append("fork")

    gate._changed = threading.Condition(threading.RLock())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(statement)
        assert entered.wait(10)
        pool.submit(fork).result(10)
        first.result(10)
    assert seen == ["inner", "fork"]
