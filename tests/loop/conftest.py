"""A small agent and a small reflector, scripted but driven through the real graph, ledger and store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import testing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reflect_middleware import Reflection
    from tests.postgres import Server

RULE = "needs a manager above 200 EUR"


def adding(because: str = RULE, when: str = "refunding an order", do: str = "ask a manager above 200 EUR") -> str:
    """A reflector's answer that adds one lesson."""
    edit = {"op": "add", "episodes": ["E1"], "because": because, "when": when, "do": do}
    return json.dumps({"edits": [edit]})


def agent(model: Any = None, **compile_options: Any) -> Any:
    """A compiled graph with one model call, sync and async."""
    model = model or testing.ScriptedChatModel(lambda _: "refunded")

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def aanswer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    from langchain_core.runnables import RunnableLambda

    builder = StateGraph(MessagesState)
    builder.add_node("answer", RunnableLambda(answer, aanswer))
    builder.add_edge(START, "answer")
    return builder.compile(**compile_options)


class Maker:
    """Makes Reflections that are closed after the test; those of one path share a ledger."""

    def __init__(self, server: Server | None) -> None:
        self._server = server
        self._made: list[Reflection] = []
        self._databases: dict[str, str] = {}

    def __call__(self, model: Any = None, **settings: Any) -> Reflection:
        path = settings.get("path") or f"its own, {len(self._made)}"
        reflection = testing.reflection(model, **self.place(path) | settings)
        if self._server is not None:
            self._databases.setdefault(str(reflection._options.path), self._databases[path])
        self._made.append(reflection)
        return reflection

    def place(self, path: object) -> dict[str, Any]:
        """The settings that, beside this path, lead to its ledger."""
        if self._server is None:
            return {}
        if str(path) not in self._databases:
            self._databases[str(path)] = self._server.fresh()
        return {"ledger": self._server.url(self._databases[str(path)]), "namespace": ("default",)}

    def close(self) -> None:
        for reflection in self._made:
            reflection.close()
        for database in set(self._databases.values()):
            assert self._server is not None
            self._server.give_back(database)


@pytest.fixture(params=["sqlite", "postgresql"])
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Makes Reflections, on each of the two databases."""
    maker = Maker(request.getfixturevalue("postgres_server") if request.param == "postgresql" else None)
    yield maker
    maker.close()


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an agent on one message, by `invoke` or by `ainvoke`; always awaited."""

    async def runner(graph: Any, text: str, **kwargs: Any) -> Any:
        given = {"messages": [("user", text)]}
        if request.param == "sync":
            return graph.invoke(given, **kwargs)
        return await graph.ainvoke(given, **kwargs)

    return runner
