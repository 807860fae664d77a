"""What we lean on that nobody promises: that it is there, and what happens where it is not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from reflect_middleware import hooks, planning, private, record, session, testing
from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import Asking, asked, asking, nested, once, said

THREAD: Any = {"configurable": {"thread_id": "1"}}


class Seen(BaseCallbackHandler):
    """Notes tags and metadata of every run."""

    def __init__(self) -> None:
        self.runs: list[tuple[list[str], dict[str, Any]]] = []

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        self.runs.append((kwargs.get("tags") or [], kwargs.get("metadata") or {}))

    on_chat_model_start = on_chain_start


def nested_asking(ask: Any, **options: Any) -> Any:
    """A graph whose one node is a graph that asks a person."""
    inner = StateGraph(Asking).add_node("ask", ask).add_edge(START, "ask").compile()
    return StateGraph(Asking).add_node("agent", inner).add_edge(START, "agent").compile(**options)


async def test_every_way_to_call_a_model_converts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = getattr(BaseChatModel, private.CONVERT)

    def convert(self: Any, given: Any) -> Any:
        seen.append(given)
        return original(self, given)

    monkeypatch.setattr(BaseChatModel, private.CONVERT, convert)
    model = ScriptedChatModel(lambda _: said())
    model.invoke("invoke")
    await model.ainvoke("ainvoke")
    list(model.stream("stream"))
    _ = [chunk async for chunk in model.astream("astream")]
    model.batch(["batch"])
    model.bind(stop=["x"]).invoke("bind")
    assert set(seen) >= {"invoke", "ainvoke", "stream", "astream", "batch", "bind"}


def test_providers_build_requests_inside_these() -> None:
    assert all(callable(getattr(BaseChatModel, name)) for name in private.INSIDE)


def test_what_runs_tell() -> None:
    seen = Seen()
    nested_asking(lambda _: {"answer": "yes"}).invoke({"question": "?"}, {"callbacks": [seen]})
    nodes = {metadata[private.NODE]: metadata for tags, metadata in seen.runs if private.is_node(tags)}
    assert {name: metadata[private.CHECKPOINT_NS].count("|") for name, metadata in nodes.items()} == {
        "agent": 0,
        "ask": 1,
    }
    assert not private.is_node(seen.runs[0][0])


def test_what_a_node_is_told() -> None:
    found: list[dict[str, Any]] = []

    def ask(state: Asking, config: RunnableConfig) -> Asking:
        found.append(config["configurable"])
        return {"answer": interrupt("?")}

    graph = nested_asking(ask, checkpointer=InMemorySaver())
    graph.invoke({"question": "?"}, THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    assert [bool(configurable.get(private.RESUMING)) for configurable in found] == [False, True]
    info = private.execution_info(found[0])
    assert {"run_id", "node_attempt", "node_first_attempt_time"} <= set(dir(info))
    assert hasattr(found[0][private.RUNTIME], "context")


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_that_starts_is_told_from_a_look_at_the_state(monkeypatch: pytest.MonkeyPatch, *, gone: bool) -> None:
    class Failing(AgentMiddleware):
        def before_agent(self, state: Any, runtime: Any) -> Any:
            raise ValueError("no scale")

    if gone:
        monkeypatch.setattr(hooks, "ENTERING", frozenset())
    with testing.reflection() as reflection:
        agent = create_agent(once(), [], middleware=[reflection.middleware(), Failing()], checkpointer=InMemorySaver())
        agent.get_state(THREAD)
        with pytest.raises(ValueError, match="no scale"):
            agent.invoke(asked(), THREAD)
        reflection.flush()
        assert [episode.status for episode in reflection.episodes.list()] == ([] if gone else ["failed"])


def test_langchains_middleware_names_itself() -> None:
    seen, model = Seen(), ScriptedChatModel(lambda _: said("short"))
    summary: Any = SummarizationMiddleware(model=model, trigger=("messages", 2), keep=("messages", 1))
    agent = create_agent(model, [], middleware=[summary])
    agent.invoke({"messages": [("user", "one"), ("ai", "two"), ("user", "three")]}, {"callbacks": [seen]})
    assert [metadata[private.SOURCE] for _, metadata in seen.runs if private.SOURCE in metadata]


def test_callbacks_are_told_apart_without_running_a_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "_merges", None)
    assert hooks.merges_callbacks() == hooks._seen_to_merge()
    assert caplog.text == ""


def test_without_ensure_config_a_graph_is_run_to_see(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = hooks.merges_callbacks()
    monkeypatch.setattr(hooks, "_merges", None)
    monkeypatch.setitem(sys.modules, "langgraph._internal._config", None)
    monkeypatch.setattr(hooks, "_seen_to_merge", lambda: known)  # itself needs langgraph, whose module is hidden here
    assert hooks.merges_callbacks() == known
    assert caplog.text.count("no ensure_config") == 1


@pytest.mark.parametrize("gone", ["RESUMING", "NODE", "CHECKPOINT_NS", "SOURCE"])
def test_a_name_that_is_gone_breaks_nothing(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    for module in (planning, record, session):
        if hasattr(module, gone):
            monkeypatch.setattr(module, gone, "gone")
    with testing.reflection() as reflection:
        reflection.lessons.add(when="weighing", do="name the unit")
        inner = reflection.wrap(asking(), name="asker")
        builder = StateGraph(Asking).add_node("agent", inner).add_edge(START, "agent")
        graph = reflection.wrap(builder.compile(checkpointer=InMemorySaver()), name="outer")
        graph.invoke({"question": "sure?"}, THREAD)
        assert graph.invoke(Command(resume="yes"), THREAD)["answer"] == "yes"
        assert {episode.agent for episode in reflection.episodes.list()} == {"asker", "outer"}
        model = once()
        reflection.wrap(nested(create_agent(model, []))).invoke(asked())
        assert str(model.calls[0][0].content).count("<lessons>") == 1


def test_without_the_conversion_the_public_methods_are_hooked() -> None:
    """In a process of its own: a hook stays for good."""
    code = """
        import asyncio, logging
        from langgraph.graph import START, MessagesState, StateGraph
        from reflect_middleware import hooks, testing
        from reflect_middleware.testing import ScriptedChatModel

        logging.basicConfig(level="WARNING")
        hooks.CONVERT = "_gone"
        model = ScriptedChatModel(lambda _: "done")
        count = lambda: [sum(str(m.content).count("<lessons>") for m in call) for call in model.calls]

        async def anode(state):
            await model.ainvoke(state["messages"])
            async for _ in model.astream(state["messages"]):
                pass
            return {}

        def node(state):
            model.invoke("a text")
            model.invoke(state["messages"], config={"tags": ["x"]})
            list(model.stream(state["messages"]))
            model.batch([state["messages"]])
            model.bind(stop=["x"]).invoke(state["messages"])
            return {}

        def graph(node):
            return StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile()

        with testing.reflection() as reflection:
            reflection.lessons.add(when="always", do="be kind")
            reflection.wrap(graph(node)).invoke({"messages": "hello"})
            asyncio.run(reflection.wrap(graph(anode)).ainvoke({"messages": "hello"}))
            model.invoke("outside")
            assert count() == [1, 1, 1, 1, 1, 1, 1, 0], count()
            assert [m.type for m in model.calls[0]] == ["system", "human"]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("hooking its public methods") == 1
