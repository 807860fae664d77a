"""I2: every way to drive a graph, checkpoints included: wrapped and with the middleware, with and without a lesson."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.store.memory import InMemoryStore

from tests.invariants.graphs import asked, looping, nested, once, same, weigh

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reflect_middleware import Reflection

    Way = Callable[[Any], Awaitable[Any]]

SINGLE = ("values", "updates", "messages", "custom", "tasks", "debug", "checkpoints")
SEVERAL = list(SINGLE)
SYNC: Any = {"configurable": {"thread_id": "sync"}}
ASYNC: Any = {"configurable": {"thread_id": "async"}}


class Idle(AgentMiddleware):
    """Any middleware with this hook adds an edge to langchain's diagram; the agents compared have one each."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request)


def agent(*middleware: Any) -> Any:
    return create_agent(
        once(),
        [weigh],
        middleware=middleware,
        system_prompt="You weigh.",
        checkpointer=InMemorySaver(),
        store=InMemoryStore(),
    )


def kept(build: Callable[..., Any]) -> Any:
    return build(checkpointer=InMemorySaver(), store=InMemoryStore())


FORMS: dict[str, tuple[Callable[[], Any], Callable[[Reflection], Any]]] = {
    "nested": (lambda: kept(nested), lambda reflection: reflection.wrap(kept(nested))),
    "node": (
        lambda: kept(nested),
        lambda reflection: kept(lambda **options: nested(reflection.wrap(looping()), **options)),
    ),
    "middleware": (lambda: agent(Idle()), lambda reflection: agent(reflection.middleware())),
    "both": (lambda: agent(Idle()), lambda reflection: reflection.wrap(agent(reflection.middleware()))),
}


def streamed(**options: Any) -> Way:
    async def way(graph: Any) -> Any:
        return (
            list(graph.stream(asked(), SYNC, **options)),
            [chunk async for chunk in graph.astream(asked(), ASYNC, **options)],
        )

    return way


def invoked(**options: Any) -> Way:
    async def way(graph: Any) -> Any:
        return graph.invoke(asked(), SYNC, **options), await graph.ainvoke(asked(), ASYNC, **options)

    return way


def raised(error: type[Exception], **config: Any) -> Way:
    async def way(graph: Any) -> Any:
        with pytest.raises(error) as first:
            graph.invoke(asked(), SYNC | config)
        with pytest.raises(error) as second:
            await graph.ainvoke(asked(), ASYNC | config)
        return [(type(caught.value), caught.value.args) for caught in (first, second)]

    return way


async def batched(graph: Any) -> Any:
    configs = [SYNC, ASYNC]
    more: Any = [{"configurable": {"thread_id": name}} for name in "cd"]
    return (
        graph.batch([asked(), asked("and a pear")], configs),
        await graph.abatch([asked(), asked("a fig")], more, return_exceptions=True),
        sorted(graph.batch_as_completed([asked(), asked()], configs), key=lambda part: part[0]),
        sorted([part async for part in graph.abatch_as_completed([asked(), asked()], more)], key=lambda part: part[0]),
    )


async def transformed(graph: Any) -> Any:
    async def given() -> Any:
        yield asked()

    return (
        list(graph.transform(iter([asked()]), SYNC, stream_mode="values")),
        [chunk async for chunk in graph.atransform(given(), ASYNC, stream_mode="values")],
    )


async def continued(graph: Any) -> Any:
    seen: list[Any] = []
    for given in (asked(), None, asked("and a pear"), None):
        seen.append(list(graph.stream(given, SYNC, interrupt_after="*", stream_mode="updates")))
        seen.append([c async for c in graph.astream(given, ASYNC, interrupt_before="*", stream_mode="values")])
    return seen


def unnamed(history: Any) -> str:
    """Checkpoints are written while the reducer gives messages their ids in place: some have them, some do not."""
    return same(history).replace(", id='<uuid>'", "")


WAYS: dict[str, Way] = {
    **{f"stream {mode}": streamed(stream_mode=mode) for mode in SINGLE},
    "stream several": streamed(stream_mode=SEVERAL),
    "stream several subgraphs": streamed(stream_mode=SEVERAL, subgraphs=True),
    "stream several subgraphs v2": streamed(stream_mode=SEVERAL, subgraphs=True, version="v2"),
    "stream default": streamed(),
    "stream output_keys": streamed(stream_mode="values", output_keys="messages"),
    "invoke": invoked(),
    "invoke v2": invoked(version="v2"),
    "invoke updates": invoked(stream_mode="updates"),
    "invoke output_keys": invoked(output_keys=["messages"]),
    **{f"durability {kind}": invoked(durability=kind) for kind in ("sync", "async", "exit")},
    "batch": batched,
    "transform": transformed,
    "interrupted everywhere": continued,
    "recursion limit": raised(GraphRecursionError, recursion_limit=1),
    "a refused config": raised(ValueError, recursion_limit=0),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("form", list(FORMS))
async def test_the_same_chunks_results_errors_and_checkpoints(shared: Reflection, form: str, way: str) -> None:
    await compare(shared, form, way)


@pytest.mark.parametrize("way", list(WAYS))
async def test_the_same_without_a_lesson(empty: Reflection, way: str) -> None:
    await compare(empty, "both" if "stream" in way else "node", way)


async def compare(reflection: Reflection, form: str, way: str) -> None:
    told = []
    for graph in (FORMS[form][0](), FORMS[form][1](reflection)):
        seen = await WAYS[way](graph)
        history = [list(graph.get_state_history(config)) for config in (SYNC, ASYNC)]
        told.append([same(seen), unnamed(history), unnamed(await graph.aget_state(ASYNC, subgraphs=True))])
    assert told[0] == told[1]
    assert told[0][0] != "([], [])" or way == "stream custom"
