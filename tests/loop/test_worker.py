"""Workers: one reflection of a namespace at a time, several namespaces at once, and a graceful end."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.errors import ClosedError, LedgerError
from reflect_middleware.worker import worker

from .conftest import agent

if TYPE_CHECKING:
    from collections.abc import Callable


def ran(reflection: Any, user: str, times: int = 1) -> None:
    graph = reflection.wrap(agent())
    for number in range(times):
        graph.invoke({"messages": f"Refund order {number}"}, {"configurable": {"user": user}})


@pytest.fixture
def shop(make: Any) -> Callable[..., Any]:
    """Makes Reflections with a reflector on one ledger, whose runs nobody reflects on but a worker."""
    first: list[Any] = []

    def build(reflector: Any, **settings: Any) -> Any:
        path = {"path": str(first[0]._options.path)} if first else {}
        given = {"every": 1, "run": "external", "namespace": ("shop", "{user}"), "exit_timeout": 60.0, **path}
        first.append(make(reflector=reflector, **given | settings))
        return first[-1]

    return build


def working(reflection: Any, **settings: Any) -> tuple[Any, threading.Thread]:
    """A worker that runs on a thread of its own until it is stopped."""
    limits = {"parallel": 1, "at_once": None, "per_minute": None, "poll": 0.05}
    made = worker(reflection._core, None, **limits | settings)
    thread = threading.Thread(target=made.run, kwargs={"once": False}, daemon=True)
    thread.start()
    return made, thread


def ended(thread: threading.Thread) -> bool:
    thread.join(30)
    return not thread.is_alive()


def test_it_waits_for_work_and_does_it(shop: Any) -> None:
    came = threading.Event()
    reflection = shop(lambda _: [], on_reflection=lambda _: came.set())
    made, thread = working(reflection)
    ran(reflection, "ann")
    assert came.wait(30)
    made.stop()
    assert ended(thread)
    assert [r.status for r in reflection.reflections.list()] == ["done"]


def test_namespaces_run_at_the_same_time(shop: Any) -> None:
    both = threading.Barrier(2, timeout=30)
    reflection = shop(lambda _: (both.wait() and []) or [])
    for user in ("ann", "bob"):
        ran(reflection, user)
    assert [r.error for r in reflection.work(parallel=2)] == ["", ""]


def test_one_namespace_is_never_read_twice_at_once(shop: Any) -> None:
    inside = threading.Lock()

    def alone(_: Any) -> list[Any]:
        assert inside.acquire(blocking=False)
        threading.Event().wait(0.01)  # time in which another one could come
        inside.release()
        return []

    reflection, other = shop(alone), shop(alone)
    ran(reflection, "ann", times=12)
    found = [working(reflection, parallel=3), working(other, parallel=3)]
    while reflection.episodes.list(waiting=True):
        threading.Event().wait(0.02)  # nothing else tells when two workers have nothing left to do
    for made, thread in found:
        made.stop()
        assert ended(thread)
    records = reflection.reflections.list()
    assert [r.error for r in records] == [""] * 12
    assert len({i for r in records for i in r.episodes}) == 12


def test_stopped_it_finishes_what_it_does(shop: Any) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(_: Any) -> list[Any]:
        began.set()
        assert go.wait(30)
        return []

    reflection = shop(slow)
    ran(reflection, "ann", times=2)
    made, thread = working(reflection)
    assert began.wait(30)
    made.stop()
    go.set()
    assert ended(thread)
    assert [r.status for r in reflection.reflections.list()] == ["done"]
    assert len(reflection.episodes.list(waiting=True)) == 1, "it has begun no other"


@pytest.mark.parametrize(("exit_timeout", "stops"), [(0.2, 1), (60.0, 2)])
def test_what_takes_too_long_is_released_and_is_no_try(shop: Any, exit_timeout: float, stops: int) -> None:
    began, go = threading.Event(), threading.Event()

    def stuck(_: Any) -> list[Any]:
        began.set()
        go.wait(60)
        return []

    reflection = shop(stuck, exit_timeout=exit_timeout)
    ran(reflection, "ann")
    made, thread = working(reflection)
    assert began.wait(30)
    for _ in range(stops):
        made.stop()
    assert ended(thread)
    assert [r.status for r in reflection.reflections.list()] == ["released"]
    assert reflection._core.parts.ledger.health.resting() == (), "it counts as no failure"
    go.set()
    assert len(shop(lambda _: [], every=9).work()) == 1, "it is owed, whatever the cadence says"


def test_it_takes_up_what_a_dead_process_left(shop: Any) -> None:
    reflection = shop(lambda _: [])
    ran(reflection, "ann")
    table = reflection._core.parts.ledger.reflections
    assert table.claim(("shop", "ann"), "who died", at_least=1, at_most=9, lease=-1.0)
    assert [len(r.episodes) for r in reflection.work()] == [1]


def test_a_ledger_that_is_away_for_a_while_stops_no_worker(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    came, tried = threading.Event(), threading.Event()
    reflection = shop(lambda _: [], on_reflection=lambda _: came.set())
    ran(reflection, "ann")
    table = type(reflection._core.parts.ledger.work)
    real = table.standings

    def away(*_: Any) -> Any:
        tried.set()
        raise LedgerError("the server is away")

    monkeypatch.setattr(table, "standings", away)
    with pytest.raises(LedgerError, match="away"):
        reflection.work()
    made, thread = working(reflection)
    assert tried.wait(30)
    monkeypatch.setattr(table, "standings", real)
    assert came.wait(30)
    made.stop()
    assert ended(thread)


def test_many_batches_are_worked_off_in_order(shop: Any) -> None:
    read: list[str] = []
    reflection = shop(lambda batch: read.extend(e.id for e in batch.episodes) or [], every=2)
    ran(reflection, "ann", times=7)
    reports = reflection.work()
    assert [len(r.episodes) for r in reports] == [2, 2, 2]
    assert read == [e.id for e in reversed(reflection.episodes.list())][:6]


def test_a_limit_per_minute_holds_a_worker_back(shop: Any) -> None:
    reflection = shop(lambda _: [])
    ran(reflection, "ann", times=3)
    made, thread = working(reflection, per_minute=2)
    while len(reflection.reflections.list()) < 2 or not made._goes_on_at:
        threading.Event().wait(0.02)  # nothing else tells when a worker begins to wait
    made.stop()
    assert ended(thread)
    assert len(reflection.episodes.list(waiting=True)) == 1


def test_when_the_tokens_of_the_day_are_spent_work_ends(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: json.dumps({"edits": []}))
    reflection = make(model, every=1, run="external", daily_tokens=1)
    for number in range(3):
        reflection.wrap(agent()).invoke({"messages": f"Refund order {number}"})
    assert len(reflection.work()) == 1
    assert reflection.work() == ()


def test_its_reflection_may_be_closed_under_it(shop: Any) -> None:
    reflection = shop(lambda _: [])
    made = worker(reflection._core, None, parallel=1, at_once=None, per_minute=None)
    reflection.close()
    with pytest.raises(ClosedError):
        made.run(once=True)
