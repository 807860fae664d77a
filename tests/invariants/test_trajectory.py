"""What an episode keeps of a run: every model call, tool call and tool error, with times, tokens and depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import RetryPolicy

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, broken, calling, chat, looping, nested, once, said, weigh

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Episode, Reflection


def only(reflection: Reflection) -> Episode:
    reflection.flush()
    (episode,) = reflection.episodes.list()
    return episode


@pytest.fixture(params=["wrap", "middleware"])
def react(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def build(reflection: Reflection, model: Any, tools: Any) -> Any:
        if request.param == "wrap":
            return reflection.wrap(looping(model, tools))
        return create_agent(model, tools, middleware=[reflection.middleware()])

    return build


def test_steps_tokens_and_times(reflection: Reflection, react: Any) -> None:
    react(reflection, once(), [weigh]).invoke(asked())
    episode = only(reflection)
    model, tool, last = episode.trajectory
    assert (model.kind, model.node, model.depth) == ("model", "model", 0)
    assert model.input == "human: how heavy is an apple"
    assert 'weigh({"item": "apple"})' in model.output
    assert (tool.kind, tool.name, tool.node) == ("tool", "weigh", "tools")
    assert "apple" in tool.input
    assert tool.output == "apple weighs 3 kg"
    assert last.input == "tool: apple weighs 3 kg"
    assert (last.output, last.error) == ("ai: done", "")
    assert (episode.input_tokens, episode.output_tokens) == (6, 4)
    assert all(0 <= step.seconds < 5 for step in episode.trajectory)
    assert model.started_at <= tool.started_at <= last.started_at
    assert len({step.run_id for step in episode.trajectory}) == 3


def test_tool_errors_and_unknown_tools(reflection: Reflection) -> None:
    reflection.wrap(looping(once(calling("broken")), [broken])).invoke(asked())
    assert [(s.kind, s.name, s.error) for s in only(reflection).trajectory][1] == (
        "tool", "broken", "ValueError: no scale for apple"
    )  # fmt: skip


def test_an_unknown_tool_is_a_failed_step_once(reflection: Reflection, react: Any) -> None:
    def answer(messages: list[BaseMessage]) -> Any:
        return said() if isinstance(messages[-1], ToolMessage) else calling("wiegh")

    agent = react(reflection, ScriptedChatModel(answer), [weigh])
    result = agent.invoke(asked())
    tools = [step for step in only(reflection).trajectory if step.kind == "tool"]
    assert [(step.name, "not a valid tool" in step.error) for step in tools] == [("wiegh", True)]
    agent.invoke({"messages": [*result["messages"], ("user", "again")]})
    reflection.flush()
    assert [step.name for step in reflection.episodes.list()[0].trajectory if step.kind == "tool"] == ["wiegh"]


def test_old_errors_that_a_node_hands_on_are_not_new_ones(reflection: Reflection) -> None:
    old = ToolMessage("no such tool", tool_call_id="old", status="error")
    graph = (
        StateGraph(MessagesState)
        .add_node("same", lambda state: {"messages": state["messages"]})
        .add_edge(START, "same")
    )
    reflection.wrap(graph.compile()).invoke({"messages": [("user", "hi"), calling("x", "old"), old]})
    assert only(reflection).trajectory == ()


def test_depth_and_nodes_of_subgraphs(reflection: Reflection) -> None:
    reflection.wrap(nested(nested(chat()))).invoke(asked())
    assert [(step.node, step.depth) for step in only(reflection).trajectory] == [("model", 2)]


def test_a_retried_node_is_one_episode(reflection: Reflection) -> None:
    model = ScriptedChatModel([ConnectionError("busy"), said()])
    builder = StateGraph(MessagesState)
    quick = RetryPolicy(initial_interval=0.0, jitter=False, retry_on=ConnectionError)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]}, retry_policy=quick)
    reflection.wrap(builder.add_edge(START, "agent").compile()).invoke(asked())
    episode = only(reflection)
    assert [step.error for step in episode.trajectory] == ["ConnectionError: busy", ""]
    assert episode.status == "completed"


def test_system_text_is_left_out(reflection: Reflection) -> None:
    agent = reflection.wrap(chat())
    agent.invoke({"messages": [SystemMessage("SECRET PROMPT"), HumanMessage("go")]})
    episode = only(reflection)
    assert [step.input for step in episode.trajectory] == ["human: go"]
    assert episode.task == "go"


@dataclass
class Tree:
    name: str
    parent: Any = None
    children: list[Any] = field(default_factory=list)


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("do not look")


def forest() -> Tree:
    root = Tree("root")
    for i in range(12):
        root.children.append(Tree(f"c{i}", root, [Tree(f"g{i}{j}", root) for j in range(12)]))
    return root


@pytest.mark.parametrize(
    "value",
    [forest(), Odd(), "lone \ud83d surrogate \0 nul", {"k": float("nan"), 3: {1, 2}}, b"bytes", "x" * 3_000_000, None],
    ids=["loops", "repr raises", "surrogate", "odd json", "bytes", "huge", "none"],
)
def test_any_value_is_kept_bounded_and_breaks_nothing(reflection: Reflection, value: Any) -> None:
    class Anything(MessagesState):
        value: Any

    def give(state: Anything) -> Any:
        return {"value": value, "messages": [AIMessage(value if isinstance(value, str) else "ok")]}

    agent = reflection.wrap(StateGraph(Anything).add_node("give", give).add_edge(START, "give").compile())
    result = agent.invoke({"messages": [("user", "go")], "value": value}, {"metadata": {"given": value, "n": 1}})
    assert result["value"] is value
    episode = only(reflection)
    assert episode.status == "completed"
    assert len(episode.model_dump_json()) < 60_000
    assert episode.metadata["n"] == 1


def test_redaction_reaches_every_text(reflection: Reflection) -> None:
    from reflect_middleware import testing

    def hide(text: str) -> str:
        return text.replace("hunter2", "***")

    with testing.reflection(redact=hide) as made:
        agent = made.wrap(looping(once(calling("broken", item="hunter2"), text="hunter2 it is"), [broken]))
        padded = "p" * 10_663 + "hunter2" + "q" * 30_000  # where a cut would leave half of it
        config: Any = {"metadata": {"a": "hunter2", "deep": {"hunter2": ["hunter2"]}}}
        agent.invoke({"messages": [("user", padded), ("user", "is it hunter2?")]}, config)
        episode = made.episodes.list()[0]
        assert "hunter" not in episode.model_dump_json()
        assert "***" in episode.trajectory[1].error


def quoting(text: str) -> str:
    """Fails with a message that holds what must be kept out."""
    raise ValueError(f"cannot redact {text}")


@pytest.mark.parametrize("bad", [quoting, lambda text: None, lambda text: 3], ids=["raises", "None", "int"])
def test_redaction_that_fails_keeps_nothing(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    from pathlib import Path

    from reflect_middleware import testing

    with testing.reflection(redact=bad) as made:
        made.wrap(chat()).invoke(asked("hunter2"))
        assert made.episodes.list() == ()
        stored = b"".join(file.read_bytes() for file in Path(made._options.path).iterdir())
        assert b"hunter2" not in stored
    assert "record failed" in caplog.text
