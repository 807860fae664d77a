"""The ledger is away for a while: that costs lessons for that while and nothing else."""

from __future__ import annotations

import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from reflect_middleware import outage, spool, testing
from tests.faults.swallowing import Proxy
from tests.loop.conftest import adding, agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reflect_middleware import Reflection
    from tests.postgres import Server

Ask = "Refund order {}"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Reflection]]:
    """Makes Reflections on one path that are closed after the test."""
    made: list[Reflection] = []

    def build(model: Any = None, **settings: Any) -> Reflection:
        defaults = {"path": str(tmp_path / "home"), "run": "background", "retrieve_timeout": 0.5, "exit_timeout": 5.0}
        made.append(testing.reflection(model, **defaults | settings))
        return made[-1]

    yield build
    for reflection in made:
        reflection.close()


@pytest.fixture
def away(postgres_server: Server) -> Iterator[Server]:
    """The server, for tests that stop it: it runs again afterwards."""
    if postgres_server.given:
        pytest.skip("a server that was started by somebody else is not stopped")
    yield postgres_server
    if postgres_server._process is None:
        postgres_server.start()


def on(server: Server, database: str) -> dict[str, Any]:
    """The settings for a ledger on this server."""
    return {"ledger": server.url(database), "namespace": ("default",)}


def ask(graph: Any, number: int, **config: Any) -> Any:
    return graph.invoke({"messages": Ask.format(number)}, **config)


def tasks(reflection: Reflection) -> list[str]:
    return sorted(episode.task for episode in reflection.episodes.list())


def waiting(reflection: Reflection) -> int:
    return reflection._core.keeper.outage.waiting().count


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    async def runner(graph: Any, number: int) -> Any:
        if request.param == "sync":
            return ask(graph, number)
        return await graph.ainvoke({"messages": Ask.format(number)})

    return runner


async def test_a_server_that_is_away_costs_lessons_and_nothing_else(make: Any, away: Server, run: Any) -> None:
    reflected = threading.Event()
    model = testing.ScriptedChatModel(lambda messages: f"refunded{' with lessons' * (messages[0].type == 'system')}")
    reflection = make(
        testing.ScriptedChatModel(lambda _: adding("Refund order")),
        every=3,
        reward=lambda episode: {"key": "length", "score": episode.task.endswith("2")},
        on_reflection=lambda _: reflected.set(),
        **on(away, away.fresh()),
    )
    graph = reflection.wrap(agent(model))
    reflection.lessons.add(when="refunding", do="ask")
    assert (await run(graph, 1))["messages"][-1].content == "refunded with lessons"
    assert reflection.flush()
    away.stop()
    during = [await run(graph, number) for number in (2, 3)]
    assert [result["messages"][-1].content for result in during] == ["refunded", "refunded"]
    reflection.reward(during[0], 0.25, source="user", comment="too much")
    await reflection.areward(during[1]["messages"][-1], 0.5, source="user")
    reflection.feedback(during[1], key="tone", score=1)
    assert not reflection.flush()
    assert waiting(reflection) == 2 * len(("record", "callable's reward", "mark")) + 3
    away.start()
    assert reflected.wait(20)  # no further run is needed
    assert reflection.flush()
    assert waiting(reflection) == 0
    episodes = {e.task: {(r.source, r.key): r.value for r in e.rewards} for e in reflection.episodes.list()}
    assert episodes == {
        Ask.format(1): {("outcome", "length"): 0.0},
        Ask.format(2): {("outcome", "length"): 1.0, ("user", "reward"): 0.25},
        Ask.format(3): {("outcome", "length"): 0.0, ("user", "reward"): 0.5, ("user", "tone"): 1.0},
    }
    assert len(reflection.reflections.list()[0].episodes) == 3
    assert (await run(graph, 4))["messages"][-1].content == "refunded with lessons"
    assert "failures: ledger" in {finding.check for finding in reflection.doctor()}


async def test_a_server_that_hangs_costs_one_run_its_deadlines(make: Any, away: Server, run: Any) -> None:
    with Proxy(away) as proxy:
        reflection = make(None, ledger=proxy.url(away.fresh()), namespace=("default",))
        graph = reflection.wrap(agent())
        reflection.lessons.add(when="refunding", do="ask")
        await run(graph, 1)
        proxy.swallow()
        began = time.monotonic()
        given = await run(graph, 2)
        assert time.monotonic() - began < 0.5 + 2.0 + 0.5  # retrieve_timeout and the wait for the commit
        began = time.monotonic()
        for number in range(3, 13):
            await run(graph, number)
        await reflection.areward(given, 0.5)
        assert time.monotonic() - began < 1.0
        proxy.mend()
        reflection._core.keeper.outage.check()
        assert reflection.flush(20)
        assert tasks(reflection) == sorted(Ask.format(number) for number in range(1, 13))
        assert [e.reward for e in reflection.episodes.list() if e.rewards] == [0.5]


def test_closing_while_the_server_hangs_keeps_to_exit_timeout(make: Any, away: Server) -> None:
    with Proxy(away) as proxy:
        reflection = make(None, ledger=proxy.url(away.fresh()), namespace=("default",), exit_timeout=0.5)
        graph = reflection.wrap(agent())
        ask(graph, 1)
        proxy.swallow()
        ask(graph, 2)
        began = time.monotonic()
        reflection.close()
        assert time.monotonic() - began < 0.5 + 0.5 + 0.5  # for the records, for what is open, and to spare
    other = make(None)
    assert waiting(other) == 0  # another ledger's
    assert other._core.keeper.outage.spool.table.totals(None)[0] == 1


CHILD = """
import sys, time
from tests.loop.conftest import agent
from reflect_middleware import testing

path, ledger, what = sys.argv[1:]
reflection = testing.reflection(path=path, ledger=ledger, namespace=("default",), run="background")
if what == "run":
    graph = reflection.wrap(agent())
    for number in range(10):
        result = graph.invoke({"messages": f"Refund order {number}"})
        reflection.reward(result, 0.0)
        reflection.reward(result, number / 10)
    print("acknowledged", flush=True)
    time.sleep(600)
print("ready", flush=True)
sys.stdin.readline()
print(reflection.flush(), flush=True)
reflection.close()
"""


def child(path: Path, ledger: str, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), ledger, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.process
def test_killed_during_the_outage_and_drained_by_two_at_once(make: Any, away: Server, tmp_path: Path) -> None:
    database = away.fresh()
    away.stop()
    path, ledger = tmp_path / "home", away.url(database)
    with child(path, ledger, "run") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "acknowledged\n"
        process.send_signal(signal.SIGKILL)
    away.start()
    drainers = [child(path, ledger, "drain") for _ in range(2)]
    for process in drainers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in drainers:
        out, _ = process.communicate("go\n", timeout=60)
        assert (out, process.returncode) == ("True\n", 0)
    reflection = make(None, **on(away, database))
    assert {e.task: e.reward for e in reflection.episodes.list()} == {Ask.format(n): n / 10 for n in range(10)}
    assert waiting(reflection) == 0
    history = away.execute("SELECT count(*), count(*) FILTER (WHERE current) FROM rewards", database)
    assert [tuple(row) for row in history] == [(19, 10)]  # of the first run both rewards said the same


def test_killed_between_the_commit_and_the_deletion(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reflection = make(None, exit_timeout=0.2)
    graph = reflection.wrap(approving())
    fill(reflection, graph, monkeypatch)
    count = waiting(reflection)
    with monkeypatch.context() as patch:
        patch.setattr(spool.Spool, "done", lambda *_: None)
        patch.setattr(outage.Outage, "_ended", lambda self: True)
        reflection._core.keeper.outage.check()
        reflection._core.keeper.outage.wait_idle(20)
    assert waiting(reflection) == count
    before = dump(tmp_path / "home" / "ledger.db")
    reflection.close()
    other = make(None)
    assert other.flush(20)
    assert waiting(other) == 0
    assert dump(tmp_path / "home" / "ledger.db") == before
    episodes = {e.task: (len(e.run_ids), e.status, {r.key: r.value for r in e.rewards}) for e in other.episodes.list()}
    assert episodes == {
        "pay 10": (2, "completed", {"decision:pay": 1.0, "reward": 0.5}),
        "pay 20": (2, "completed", {"decision:pay": 0.0}),
        "pay 30": (1, "interrupted", {}),
    }


def dump(ledger: Path) -> list[str]:
    """Everything that the ledger says about runs and rewards."""
    with sqlite3.connect(ledger) as connection:
        tables = ("episodes", "rewards", "exposures")
        found = [repr(row) for name in tables for row in connection.execute(f"SELECT * FROM {name}")]
        found += [repr(row) for row in connection.execute("SELECT alias, episode_id FROM aliases")]
    connection.close()
    return sorted(found)


def approving() -> Any:
    """An agent that asks before it pays."""

    def pay(state: MessagesState) -> dict[str, Any]:
        request = {"action_requests": [{"name": "pay", "args": {"for": state["messages"][0].content}}]}
        answer = interrupt(request)
        return {"messages": [("ai", str(answer))]}

    builder = StateGraph(MessagesState)
    builder.add_node("pay", pay)
    builder.add_edge(START, "pay")
    return builder.compile(checkpointer=InMemorySaver())


def decide(graph: Any, thread: str, kind: str) -> Any:
    answer = {"decisions": [{"type": kind}]}
    return graph.invoke(Command(resume=answer), {"configurable": {"thread_id": thread}})


def fill(reflection: Reflection, graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode interrupted before the outage and resumed in it, one wholly in it, one that stays interrupted."""
    threads = {name: {"configurable": {"thread_id": name}} for name in ("one", "two", "three")}
    graph.invoke({"messages": "pay 10"}, threads["one"])
    reflection.flush()
    with broken(reflection, monkeypatch):
        graph.invoke({"messages": "pay 20"}, threads["two"])
        decided = decide(graph, "one", "approve")
        decide(graph, "two", "reject")
        graph.invoke({"messages": "pay 30"}, threads["three"])
        reflection.reward(decided, 0.0)
        reflection.reward(thread_id="one", value=0.5)


def broken(reflection: Reflection, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ledger that cannot be used while this holds, and nobody who tries meanwhile."""
    from contextlib import contextmanager

    from reflect_middleware.errors import LedgerUnavailableError

    def refuse(*_: Any, **__: Any) -> Any:
        raise LedgerUnavailableError("the disk is full")

    @contextmanager
    def hold() -> Iterator[None]:
        database = reflection._core.parts.ledger.database
        with monkeypatch.context() as patch:
            patch.setattr(database, "_open", refuse)
            patch.setattr(outage, "PAUSES", (60.0, 60.0))
            reflection._core.keeper.outage._pause = 60.0
            yield

    return hold()


def test_a_run_that_goes_on_during_the_outage_is_one_episode(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    reflection = make(None, reward=lambda episode: asked.append(f"{episode.task}: {episode.output[-20:]}"))
    fill(reflection, reflection.wrap(approving()), monkeypatch)
    assert asked == []  # nobody is asked about half an episode
    assert reflection.flush(20)
    assert reflection.flush(20)
    assert sorted(text[:6] for text in asked) == ["pay 10", "pay 20"]
    first = next(e for e in reflection.episodes.list() if e.task == "pay 10")
    assert [step.kind for step in first.trajectory] == ["interrupt", "resume"]
    assert reflection.episodes.list(waiting=True, limit=10)


def test_a_reward_given_later_is_not_replaced_by_one_that_waited(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = make(None)
    result = ask(reflection.wrap(agent()), 1)
    (episode,) = reflection.episodes.list()
    with broken(reflection, monkeypatch):
        reflection.reward(result, 0.25)
    reflection._core.parts.ledger.episodes.reward(episode.id, reward_of(1.0))  # another host's
    assert reflection.flush(20)
    assert reflection.episodes.get(episode.id).reward == 1.0


def reward_of(value: float) -> Any:
    from reflect_middleware import Reward

    return Reward(value=value)


def test_a_full_spool_drops_the_oldest_loudly(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reflection = make(None)
    graph = reflection.wrap(agent())
    monkeypatch.setattr(spool, "MAX_ENTRIES", 3)
    with broken(reflection, monkeypatch):
        for number in range(5):
            ask(graph, number)
        assert waiting(reflection) == 3
        assert reflection._core.keeper.outage.waiting().dropped == 2
    assert [r.levelno for r in caplog.records if "are lost" in r.message] == [logging.ERROR] * 2
    assert reflection.flush(20)
    assert tasks(reflection) == [Ask.format(number) for number in (2, 3, 4)]
    reflection.flush()
    assert "failures: spool full" in {finding.check for finding in reflection.doctor()}


def test_a_spool_of_too_many_bytes_drops_the_oldest(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = make(None)
    graph = reflection.wrap(agent())
    with broken(reflection, monkeypatch):
        ask(graph, 1)
        monkeypatch.setattr(spool, "MAX_BYTES", 2 * reflection._core.keeper.outage.waiting().bytes + 100)
        for number in (2, 3):
            ask(graph, number)
        assert waiting(reflection) == 2
    assert reflection.flush(20)
    assert tasks(reflection) == [Ask.format(2), Ask.format(3)]


async def test_a_ledger_that_another_process_locks(make: Any, tmp_path: Path, run: Any) -> None:
    reflection = make(None)
    graph = reflection.wrap(agent())
    await run(graph, 1)
    other = sqlite3.connect(tmp_path / "home" / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    for number in range(2, 6):
        await run(graph, number)
    assert time.monotonic() - began < 2.5
    assert waiting(reflection) == 4  # on the disk, though the ledger is not to be had
    other.execute("ROLLBACK")
    other.close()
    assert reflection.flush(20)
    assert tasks(reflection) == [Ask.format(number) for number in range(1, 6)]


def test_a_folder_that_cannot_be_written(make: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file where the folder should be")
    reflection = make(None)
    result = ask(reflection.wrap(agent()), 1)
    reflection.reward(result, 0.5)
    assert waiting(reflection) == 2  # in memory
    home.unlink()
    assert reflection.flush(20)
    assert [(e.task, e.reward) for e in reflection.episodes.list()] == [(Ask.format(1), 0.5)]


def test_a_damaged_ledger_is_mended_and_has_lost_no_run(make: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "ledger.db").write_bytes(b"this is no database" * 1000)
    reflection = make(None)
    graph = reflection.wrap(agent())
    for number in range(3):
        ask(graph, number)
    assert not reflection.flush(20)
    reflection.close()
    (home / "ledger.db").unlink()
    shutil.rmtree(home / "ledger.db-wal", ignore_errors=True)
    other = make(None)
    assert other.flush(20)
    assert tasks(other) == [Ask.format(number) for number in range(3)]


def test_closing_during_the_outage_says_what_waits(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reflection = make(None)
    with broken(reflection, monkeypatch):
        ask(reflection.wrap(agent()), 1)
        reflection.close()
    assert [r.message for r in caplog.records if "1 entries wait in" in r.message]
    other = make(None)
    ask(other.wrap(agent()), 2)  # the next use finds it, without being asked to
    assert other.flush(20)
    assert tasks(other) == [Ask.format(1), Ask.format(2)]


def test_another_ledgers_entries_are_left_alone(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reflection = make(None)
    with broken(reflection, monkeypatch):
        ask(reflection.wrap(agent()), 1)
        elsewhere = make(None, ledger=f"sqlite:///{tmp_path / 'other.db'}", namespace=("default",))
        ask(elsewhere.wrap(agent()), 2)
        assert elsewhere.flush(20)
        assert tasks(elsewhere) == [Ask.format(2)]
    assert reflection.flush(20)
    assert tasks(reflection) == [Ask.format(1)]


def test_purging_erases_what_waits(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reflection = make(None)
    graph = reflection.wrap(agent())
    with broken(reflection, monkeypatch):
        for number, who in enumerate(("ann", "bob")):
            config = {"configurable": {"reflect": {"principal": who}}}
            reflection.reward(ask(graph, number, config=config), 0.5, comment=f"{who} is pleased")
        waits = reflection._core.keeper.outage.spool
        gone = waits.purge(lambda record: record.episode.principal == "ann")
        assert len(gone) == 1
        assert waits.waiting().count == 2
        assert all(b"ann is pleased" not in file.read_bytes() for file in (tmp_path / "home").glob("spool.db*"))
        assert any(b"bob is pleased" in file.read_bytes() for file in (tmp_path / "home").glob("spool.db*"))
        waits.purge(lambda _: False, names=[e.target for e in waits.entries()])
        assert all(b"bob is pleased" not in file.read_bytes() for file in (tmp_path / "home").glob("spool.db*"))
    assert reflection.flush(20)
    assert tasks(reflection) == []


def test_what_the_ledger_refuses_holds_up_nobody(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = make(None)
    graph = reflection.wrap(agent())
    with broken(reflection, monkeypatch):
        for number in range(3):
            ask(graph, number)
    episodes = reflection._core.parts.ledger.episodes
    real = type(episodes).put

    def put(self: Any, record: Any, **kwargs: Any) -> None:
        if record.episode.task == Ask.format(1):
            raise ValueError("no database takes this")
        real(self, record, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(episodes), "put", put)
        assert reflection.flush(20)
        assert tasks(reflection) == [Ask.format(0), Ask.format(2)]
        assert waiting(reflection) == 1
    ask(graph, 4)
    reflection.close()
    other = make(None)
    assert other.flush(20)
    assert len(tasks(other)) == 4
