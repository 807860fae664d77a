"""I2: states and outputs of every kind, contexts, stores, fan-out and the functional API are as with a bare graph."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import RetryPolicy, Send
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, said, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

THREAD: Any = {"configurable": {"thread_id": "1"}}


class Typed(TypedDict):
    text: str
    seen: Annotated[list[str], operator.add]


class Modelled(BaseModel):
    text: str
    seen: Annotated[list[str], operator.add] = []


@dataclasses.dataclass
class Classed:
    text: str
    seen: Annotated[list[str], operator.add] = dataclasses.field(default_factory=list)


class ModelledOut(BaseModel):
    seen: list[str]


@dataclasses.dataclass
class ClassedOut:
    seen: list[str]


class Who(BaseModel):
    user: str


def read(state: Any, name: str) -> Any:
    return state[name] if isinstance(state, dict) else getattr(state, name)


def stated(state: Any, output: Any = None, **options: Any) -> Any:
    """Two nodes, the first with a model call; the store and the context are used on the way."""
    model = ScriptedChatModel(lambda messages: said(f"saw {messages[-1].text}"))

    def look(given: Any, runtime: Runtime[Who]) -> Any:
        answer = str(model.invoke(read(given, "text")).text)
        if runtime.store is not None:
            runtime.store.put(("notes",), answer, {"by": "look"})
        return {"seen": [answer, type(given).__name__, getattr(runtime.context, "user", "nobody")]}

    def close(given: Any, *, store: BaseStore | None = None) -> Any:
        return {"seen": [str(len(read(given, "seen"))), str(len(store.search(("notes",))) if store else 0)]}

    builder: Any = StateGraph(state, context_schema=Who, output_schema=output or state)
    builder.add_node("look", look).add_node("close", close).add_edge(START, "look").add_edge("look", "close")
    return builder.compile(**options)


@pytest.mark.parametrize("learning", ["shared", "empty"])
@pytest.mark.parametrize("output", [None, ModelledOut, ClassedOut], ids=str)
@pytest.mark.parametrize("state", [Typed, Modelled, Classed])
async def test_states_and_outputs(request: pytest.FixtureRequest, learning: str, state: Any, output: Any) -> None:
    reflection = request.getfixturevalue(learning)
    told = []
    for wrapper in (lambda graph: graph, reflection.wrap):
        graph = wrapper(stated(state, output, checkpointer=InMemorySaver(), store=InMemoryStore()))
        options: Any = {"context": Who(user="u1"), "stream_mode": ["values", "updates", "debug"], "subgraphs": True}
        given = {"text": "a pear", "seen": []}
        results = [graph.invoke(given, THREAD), await graph.ainvoke(given, THREAD, context={"user": "u2"})]
        results += [
            list(graph.stream(given, THREAD, **options)),
            [c async for c in graph.astream(given, THREAD, **options)],
        ]
        told.append(
            [
                type(graph.invoke(given, THREAD, version="v2").value),
                same(results),
                same(graph.get_state(THREAD)),
                same(graph.store.search(())),
            ]
        )
        schemas = (graph.get_input_jsonschema(), graph.get_output_jsonschema(), graph.get_context_jsonschema())
        told[-1] += [schemas, graph.get_graph(xray=True).to_json(), (await graph.aget_graph()).draw_mermaid()]
    assert told[0] == told[1]
    assert told[1][0] is (output or (dict if state is Typed else state))


@pytest.mark.parametrize("state", [Modelled, Classed])
def test_states_that_do_not_validate_and_the_users_own_objects(shared: Reflection, state: Any) -> None:
    error = ValidationError if state is Modelled else TypeError
    for graph in (stated(state), shared.wrap(stated(state))):
        with pytest.raises(error):
            graph.invoke({"nothing": 1} if state is Classed else {"text": 3})

    class Held(TypedDict):
        held: Any

    held = object()
    seen: list[Any] = []
    builder = StateGraph(Held).add_node("look", lambda given: seen.append(given["held"])).add_edge(START, "look")
    assert shared.wrap(builder.compile()).invoke({"held": held})["held"] is held
    assert seen[0] is held


def branching(inner: Any) -> Any:
    """Parallel branches, then a fan-out by Send over a graph, then one that gathers."""

    def split(state: Typed) -> list[Send]:
        return [Send("inner", {"text": f"{state['text']} {number}", "seen": []}) for number in range(3)]

    builder = StateGraph(Typed)
    for name in ("left", "right"):
        builder.add_node(name, lambda _, name=name: {"seen": [name]}).add_edge(START, name)  # type: ignore[misc]
        builder.add_edge(name, "join")
    builder.add_node("join", lambda _: {}).add_conditional_edges("join", split, ["inner"])
    builder.add_node("inner", inner).add_node("end", lambda state: {"seen": [str(len(state["seen"]))]})
    return builder.add_edge("inner", "end").compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("place", ["root", "inner", "both"])
async def test_parallel_branches_and_fan_out(shared: Reflection, place: str) -> None:
    class Inner(TypedDict):
        text: str

    model = ScriptedChatModel(lambda messages: said(f"saw {messages[-1].text}"))

    class Out(TypedDict):
        seen: list[str]

    def build(wrapper: Callable[[Any], Any]) -> Any:
        def look(state: Inner) -> Any:
            return {"seen": [str(model.invoke(state["text"]).text)]}

        inner: Any = StateGraph(Inner, output_schema=Out).add_node("look", look).add_edge(START, "look").compile()
        graph = branching(inner if place == "root" else wrapper(inner))
        return graph if place == "inner" else wrapper(graph)

    told = []
    for wrapper in (lambda graph: graph, shared.wrap):
        graph = build(wrapper)
        options: Any = {"stream_mode": ["values", "updates", "messages", "tasks"], "subgraphs": True}
        streams = [list(graph.stream({"text": "n", "seen": []}, THREAD, **options))]
        streams.append([c async for c in graph.astream({"text": "n", "seen": []}, THREAD, **options)])
        told.append([sorted(map(same, chunks)) for chunks in streams])  # threads take turns as they like
        told[-1].append(same([(s.values, s.next) for s in graph.get_state_history(THREAD)]))
    assert told[0] == told[1]


async def called(graph: Any, how: str, given: Any) -> Any:
    options: Any = {"stream_mode": ["values", "updates", "messages", "tasks"], "version": "v2"}
    match how:
        case "invoke":
            return graph.invoke(given, THREAD)
        case "ainvoke":
            return await graph.ainvoke(given, THREAD)
        case "stream":
            return list(graph.stream(given, THREAD, **options))
        case _:
            return [chunk async for chunk in graph.astream(given, THREAD, **options)]


@pytest.mark.parametrize("how", ["invoke", "stream", "astream", "ainvoke"])
async def test_the_functional_api(reflection: Reflection, how: str) -> None:
    def build() -> tuple[Any, ScriptedChatModel]:
        model = ScriptedChatModel([ConnectionError("busy"), *[said(f"n{number}") for number in range(9)]])

        @task(retry_policy=RetryPolicy(initial_interval=0.0, jitter=False))
        async def look(text: str) -> str:
            return str((await model.ainvoke(text)).text)

        @task(retry_policy=RetryPolicy(initial_interval=0.0, jitter=False))
        def slook(text: str) -> str:
            return str(model.invoke(text).text)

        def flow(text: str, previous: Any) -> Any:
            return entrypoint.final(value=(slook(text).result(), previous), save=f"{previous} then {text}")

        async def aflow(text: str, previous: Any) -> Any:
            return entrypoint.final(value=(await look(text), previous), save=f"{previous} then {text}")

        chosen: Any = aflow if how.startswith("a") else flow
        made: Pregel[Any, Any, Any, Any] = entrypoint(checkpointer=InMemorySaver(), store=InMemoryStore())(chosen)
        return made, model

    told = []
    for wrapper in (lambda graph: graph, reflection.wrap):
        made, model = build()
        graph = wrapper(made)
        seen = [await called(graph, how, text) for text in ("one", "two")]
        told.append(same([type(graph), *seen, graph.get_state(THREAD), graph.get_input_jsonschema()]))
    assert told[0] == told[1]
    assert ["every weight" in prompt for prompt in model.prompts] == [True] * 3
    assert [(e.status, e.task) for e in reflection.episodes.list()] == [("completed", "two"), ("completed", "one")]


async def test_context_variables_reach_nodes_in_tasks_and_threads(shared: Reflection) -> None:
    from contextvars import ContextVar

    var: ContextVar[str] = ContextVar("mine", default="unset")
    told = []
    for wrapper in (lambda graph: graph, shared.wrap):
        seen: list[str] = []
        look = RunnableLambda(lambda _, seen=seen: seen.append(var.get()) or {})
        builder = StateGraph(MessagesState).add_node("one", look).add_node("two", look)
        graph = wrapper(builder.add_edge(START, "one").add_edge(START, "two").compile())
        var.set("caller")
        graph.invoke(asked())
        await graph.ainvoke(asked())
        graph.batch([asked()] * 2)
        await graph.abatch([asked()] * 2)
        told.append((seen, var.get()))
    assert told[0] == told[1]
    assert set(told[0][0]) == {"caller"}
