"""I2: a wrapped graph inside LangChain's runnables, as a tool, in a served module: as the bare one, and recorded."""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command
from typing_extensions import TypedDict

from reflect_middleware.errors import WrapError
from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, chat, looping, once, said, same
from tests.invariants.test_injection import fences

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reflect_middleware import Reflection

ASK = RunnableLambda(lambda text: {"messages": [("user", text)]})
ANSWER = RunnableLambda(sorted)  # whole states and updates alike
FAIL = RunnableLambda(lambda _: 1 / 0)

USES: dict[str, tuple[Callable[[Any], Any], Any, int]] = {
    # what is made of the graph, what it is called with, and how many runs of the graph that is
    "pipe": (lambda graph: ASK.pipe(graph, ANSWER), "how heavy?", 1),
    "|": (lambda graph: ASK | graph | ANSWER, "how heavy?", 1),
    "in a lambda": (lambda graph: RunnableLambda(lambda _: graph), asked(), 1),
    "called in a lambda": (lambda graph: RunnableLambda(graph.invoke, graph.ainvoke), asked(), 1),
    "assign": (lambda graph: graph.assign(count=len), asked(), 1),
    "pick": (lambda graph: graph.pick("messages"), asked(), 1),
    "assigned": (lambda graph: RunnablePassthrough.assign(answer=graph), asked(), 1),
    "parallel": (lambda graph: RunnablePassthrough() | {"one": graph, "two": graph}, asked(), 2),
    "map": (lambda graph: graph.map(), [asked(), asked()], 2),
    "bind": (lambda graph: graph.bind(stream_mode="updates"), asked(), 1),
    "with_config": (lambda graph: graph.with_config(tags=["t"], metadata={"m": 1}, run_name="desk"), asked(), 1),
    "with_retry": (lambda graph: graph.with_retry(stop_after_attempt=2), asked(), 1),
    "with_fallbacks": (lambda graph: graph.with_fallbacks([FAIL]), asked(), 1),
    "as a fallback": (lambda graph: FAIL.with_fallbacks([graph]), asked(), 1),
    "with_types": (lambda graph: graph.with_types(input_type=dict), asked(), 1),
    "with_listeners": (lambda graph: graph.with_listeners(on_end=lambda run: None), asked(), 1),
    "copy": (copy.copy, asked(), 1),
    "name": (lambda graph: graph.copy({"name": "scale"}), asked(), 1),
}


@pytest.mark.parametrize("use", list(USES))
async def test_composed(reflection: Reflection, use: str) -> None:
    make, given, runs = USES[use]
    bare, model = make(looping()), once()
    wrapped = make(reflection.wrap(looping(model)))
    told = []
    for graph in (bare, wrapped):
        seen = [graph.invoke(given), await graph.ainvoke(given), graph.batch([given] * 2)]
        streams = [list(graph.stream(given)), [chunk async for chunk in graph.astream(given)]]
        told.append([same(seen), *(sorted(map(same, chunks)) for chunks in streams)])  # parallel steps take turns
    assert told[0] == told[1]
    episodes = reflection.episodes.list(limit=1000)
    assert [episode.status for episode in episodes] == ["completed"] * 6 * runs
    assert fences(model) == [1, 1] * 6 * runs


def test_called_through_functions(reflection: Reflection) -> None:
    bare, wrapped = looping(), reflection.wrap(looping())
    uses: list[Callable[[Any], Any]] = [
        lambda graph: functools.partial(graph.invoke, stream_mode="values")(asked()),
        lambda graph: list(functools.partial(graph.stream, stream_mode="values")(asked())),
        lambda graph: list(map(graph.invoke, [asked()])),
        lambda graph: type(graph).invoke(graph, asked()),
        lambda graph: list(Pregel.stream(graph, asked())),  # past the wrapper, by name: not recorded
    ]
    for use in uses:
        assert same(use(bare)) == same(use(wrapped))
    assert len(reflection.episodes.list()) == 4


class Question(TypedDict):
    text: str


@pytest.mark.filterwarnings("ignore:This API is in beta")
async def test_as_a_tool(reflection: Reflection) -> None:
    model = ScriptedChatModel(lambda messages: said(f"saw {messages[-1].text}"))

    def build() -> Any:
        def look(state: Question) -> Question:
            return {"text": str(model.invoke(state["text"]).text)}

        return StateGraph(Question).add_node("look", look).add_edge(START, "look").compile()

    tools = [graph.as_tool(name="look", description="Look.") for graph in (build(), reflection.wrap(build()))]
    assert tools[0].get_input_jsonschema() == tools[1].get_input_jsonschema()
    assert same(tools[0].invoke({"text": "a"})) == same(tools[1].invoke({"text": "a"})) == "{'text': 'saw a'}"
    assert same(await tools[0].ainvoke({"text": "a"})) == same(await tools[1].ainvoke({"text": "a"}))
    asking = once(said("").model_copy(update={"tool_calls": [
        {"name": "look", "args": {"text": "b"}, "id": "call-1", "type": "tool_call"}]}))  # fmt: skip
    reflection.wrap(looping(asking, [tools[1]]), name="outer").invoke(asked())
    episodes = reflection.episodes.list()
    (outer,) = (episode for episode in episodes if episode.agent == "outer")
    assert [episode.agent for episode in episodes if episode.parent_id == outer.id] == ["LangGraph"]
    assert len(episodes) == 4
    assert fences(model)[-1] == 1


def test_retries_and_fallbacks_around_a_whole_run(reflection: Reflection) -> None:
    """Each is a run of its own: the failed one is recorded as failed."""
    retrying = reflection.wrap(chat(ScriptedChatModel([ConnectionError("busy"), said()]))).with_retry(
        retry_if_exception_type=(ConnectionError,), wait_exponential_jitter=False
    )
    failing = reflection.wrap(chat(ScriptedChatModel([ValueError("no")])), name="first")
    falling = failing.with_fallbacks([reflection.wrap(chat(), name="second")])
    assert retrying.invoke(asked())["messages"][-1].text == "done"
    assert falling.invoke(asked())["messages"][-1].text == "done"
    assert sorted((episode.agent, episode.status) for episode in reflection.episodes.list()) == [
        ("LangGraph", "completed"),
        ("LangGraph", "failed"),
        ("first", "failed"),
        ("second", "completed"),
    ]


def test_pickles_and_deep_copies_are_refused_as_the_bare_graphs_are(shared: Reflection) -> None:
    for graph in (chat(), shared.wrap(chat())):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            pickle.dumps(graph)  # langgraph compiles to local functions
    told = []
    for graph in (chat(), shared.wrap(chat())):
        deep = copy.deepcopy(graph)
        with pytest.raises(Exception, match="Expected dict") as caught:  # langgraph's own deep copies do not run
            deep.invoke(asked())
        told.append((type(deep).__name__, type(caught.value)))
    assert told[0] == told[1]


SERVED = """
from langchain_core.runnables import RunnableConfig
from reflect_middleware import testing
from tests.invariants.graphs import chat

reflection = testing.reflection()
reflection.lessons.add(when="weighing", do="name the unit with every weight")
agent = reflection.wrap(chat(), name="desk")

def make(config: RunnableConfig):
    return agent
"""


def test_as_a_served_modules_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LangGraph's server does with `"graphs": {"desk": "./desk.py:agent"}`."""
    (tmp_path / "desk.py").write_text(SERVED)
    spec = importlib.util.spec_from_file_location("desk_served", tmp_path / "desk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "desk_served", module)
    spec.loader.exec_module(module)
    thread: Any = {"configurable": {"thread_id": "1"}, "run_id": "01a20430-db37-7633-8075-44281847f1ea"}
    with module.reflection as reflection:
        for graph in (module.agent, module.make({})):
            assert isinstance(graph, Pregel)
            assert callable(graph) is callable(chat())
            served = graph.copy(update={"checkpointer": InMemorySaver(), "store": InMemoryStore(), "name": "served"})
            served.invoke(asked(), thread)
            assert len(list(served.get_state_history(thread))) == 3
            assert module.agent.checkpointer is None
        (episode,) = reflection.episodes.list()
        assert (episode.id, episode.agent, episode.thread_id) == (thread["run_id"], "desk", "1")


NO_GRAPHS: dict[str, tuple[Any, str]] = {
    "builder": (StateGraph(MessagesState), r"wrap\(builder\.compile\(\)\)"),
    "function": (lambda state: state, "make it a node of a graph"),
    "class": (Pregel, "make it a node of a graph"),
    "model": (once(), "make it a node of a graph"),
    "chain": (ASK | ANSWER, "make it a node of a graph"),
    "a graph in a chain": (ASK | chat(), "make it a node of a graph"),
    "a bound graph": (chat().with_retry(), "make it a node of a graph"),
    "command": (Command(), "make it a node of a graph"),
    "none": (None, "make it a node of a graph"),
}


@pytest.mark.parametrize("kind", list(NO_GRAPHS))
def test_what_is_no_graph_is_a_type_error_that_names_the_fix(shared: Reflection, kind: str) -> None:
    given, fix = NO_GRAPHS[kind]
    with pytest.raises(TypeError, match=fix) as caught:
        shared.wrap(given)
    assert isinstance(caught.value, WrapError)
    assert type(given).__name__ in str(caught.value)
