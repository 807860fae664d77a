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


@pytest.fixture
def make() -> Iterator[Callable[..., Reflection]]:
    """Makes Reflections that are closed after the test."""
    made: list[Reflection] = []

    def build(model: Any = None, **settings: Any) -> Reflection:
        made.append(testing.reflection(model, **settings))
        return made[-1]

    yield build
    for reflection in made:
        reflection.close()


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an agent on one message, by `invoke` or by `ainvoke`; always awaited."""

    async def runner(graph: Any, text: str, **kwargs: Any) -> Any:
        given = {"messages": [("user", text)]}
        if request.param == "sync":
            return graph.invoke(given, **kwargs)
        return await graph.ainvoke(given, **kwargs)

    return runner
