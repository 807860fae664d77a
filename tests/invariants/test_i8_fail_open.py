"""I8: whatever of ours fails, raises or hangs, the user's run gives what it would have given without us."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent

from reflect_middleware import testing
from reflect_middleware.store import LessonStore
from reflect_middleware.testing import HashingEmbeddings
from tests.invariants.graphs import asked, looping, once, same, weigh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def boom(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("boom")


def nothing(config: Any, context: Any) -> None:
    """No namespace."""


class Raising(HashingEmbeddings):
    def embed_query(self, text: str) -> Any:
        boom()


class Hanging(HashingEmbeddings):
    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def embed_documents(self, texts: list[str]) -> Any:
        return HashingEmbeddings().embed_documents(texts)

    def embed_query(self, text: str) -> Any:
        self.release.wait(30)
        return super().embed_query(text)


class RaisingStore(LessonStore):
    upsert = delete = search = ids = drop = boom  # type: ignore[assignment]

    def close(self) -> None:
        boom()


@pytest.fixture(params=["wrap", "middleware"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Runs an agent of this Reflection, sync and async, and compares with a bare one."""

    async def both(reflection: Any, config: Any = None) -> None:
        bare = create_agent(once(), [weigh])
        if request.param == "wrap":
            agent: Any = reflection.wrap(bare)
        else:
            agent = create_agent(once(), [weigh], middleware=[reflection.middleware()])
        assert same(agent.invoke(asked(), config)) == same(bare.invoke(asked()))
        assert same(await agent.ainvoke(asked(), config)) == same(await bare.ainvoke(asked()))
        assert same(list(agent.stream(asked(), config))) == same(list(bare.stream(asked())))
        reflection.flush(20)

    return both  # type: ignore[return-value]


@pytest.mark.parametrize(
    "settings",
    [
        {"embeddings": Raising()},
        {"store": RaisingStore()},
        {"store": "exact", "count_tokens": boom},
        {"redact": boom},
        {"task": boom},
        {"reward": boom},
        {"namespace": boom},
        {"namespace": nothing},
        {"inject": boom},
        {"on_reflection": boom},
        {"reflector": boom, "every": 1},
        {"every": 1},
        {"run": "background", "every": 1, "reflector": boom, "on_reflection": boom, "reward": boom},
    ],
    ids="+".join,
)
async def test_a_part_that_raises(run: Any, settings: Any) -> None:
    with testing.reflection(**settings) as reflection:
        where = {} if not callable(settings.get("namespace")) else {"namespace": ("default",)}
        if "redact" not in settings:
            reflection.lessons.add(when="weighing", do="name the unit", **where)
        await run(reflection)


async def test_an_embedder_that_hangs(run: Any, tmp_path: Path) -> None:
    embedder, began = Hanging(), time.monotonic()
    embedder.release.set()
    with testing.reflection(path=str(tmp_path), embeddings=embedder) as before:
        before.lessons.add(when="weighing", do="name the unit")
    embedder.release.clear()
    settings: dict[str, Any] = {"retrieve_timeout": 0.05, "exit_timeout": 0.1}
    try:
        with testing.reflection(path=str(tmp_path), embeddings=embedder, **settings) as reflection:
            await run(reflection)
            await run(reflection)
            await run(reflection)  # the breaker is open by now
            assert {episode.status for episode in reflection.episodes.list()} == {"completed"}
            await reflection.areward(reflection.episodes.list()[0].id, 1.0)
            assert time.monotonic() - began < 10.0  # far less than it hangs
    finally:
        embedder.release.set()


@pytest.mark.parametrize("fault", ["no folder", "folder deleted", "not a database", "read-only"])
async def test_a_ledger_that_is_gone(run: Any, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "home"
    with testing.reflection(path=str(path), exit_timeout=0.2) as reflection:
        match fault:
            case "no folder":
                path.write_text("a file where the folder should be")
            case "not a database":
                path.mkdir()
                (path / "ledger.db").write_bytes(b"no database at all, " * 1000)
            case "folder deleted":
                reflection.lessons.add(when="weighing", do="name the unit")
                shutil.rmtree(path)
            case _:
                reflection.lessons.add(when="weighing", do="name the unit")
                with sqlite3.connect(path / "ledger.db") as other:
                    other.execute("CREATE TRIGGER no BEFORE INSERT ON episodes BEGIN SELECT RAISE(ABORT, 'no'); END")
                other.close()
        await run(reflection)


async def test_a_ledger_that_is_locked_delays_one_run_and_not_the_next(tmp_path: Path) -> None:
    with testing.reflection(path=str(tmp_path), run="background") as reflection:
        agent = reflection.wrap(looping())
        agent.invoke(asked())
        reflection._core.keeper.timeout = 0.2
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waited: list[Any] = []
        real = reflection._core.failed
        reflection._core.failed = lambda where, error: (waited.append(where), real(where, error))[1]  # type: ignore[method-assign]
        for _ in range(5):
            agent.invoke(asked())
        await agent.ainvoke(asked())
        assert waited.count("waiting for the record") == 1
        other.execute("ROLLBACK")
        other.close()
        reflection.flush()
        assert len(reflection.episodes.list()) == 7


async def test_our_own_code_failing_anywhere(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from reflect_middleware import core, finder, keeper, session

    for owner, name in (
        (core, "planned"),
        (finder.Finder, "find"),
        (finder.Finder, "fetches"),
        (finder.Finder, "at_once"),
        (keeper.Keeper, "finish"),
        (keeper.Keeper, "_record"),
        (session.Session, "wants_lessons"),
    ):
        with monkeypatch.context() as patch, testing.reflection() as reflection:
            reflection.lessons.add(when="weighing", do="name the unit")
            patch.setattr(owner, name, boom)
            await run(reflection)


def test_the_node_never_fails_a_graph() -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    for settings in ({"namespace": boom}, {"reflector": boom, "every": 1}):
        with testing.reflection(**settings) as reflection:
            graph = (
                StateGraph(MessagesState).add_node("reflect", reflection.node()).add_edge(START, "reflect").compile()
            )
            assert graph.invoke(asked())["messages"][0].text == "how heavy is an apple"
