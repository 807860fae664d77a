"""I2 with deep agents: planning, files and sub-agents of the `deepagents` package, wrapped and with the middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, calling, said, same, weigh
from tests.invariants.test_i2_every_mode import Idle
from tests.invariants.test_injection import fences

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

deepagents = pytest.importorskip("deepagents", reason="deepagents is not installed; it is in the `dev` extra")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::langchain_core._api.LangChainBetaWarning"
)
THREAD: Any = {"configurable": {"thread_id": "1"}}
MODES: Any = ["values", "updates", "messages", "custom", "tasks"]


def boss(messages: list[BaseMessage]) -> Any:
    """Plans, writes a file, has a sub-agent weigh, and answers."""
    steps = [
        calling("write_todos", call_id="c1", todos=[{"content": "weigh it", "status": "in_progress"}]),
        calling("write_file", call_id="c2", file_path="/notes.md", content="an apple"),
        calling("task", call_id="c3", description="weigh an apple", subagent_type="scale"),
        said("done"),
    ]
    return steps[min(sum(isinstance(message, ToolMessage) for message in messages), len(steps) - 1)]


def worker(messages: list[BaseMessage]) -> Any:
    return said("3 kg") if isinstance(messages[-1], ToolMessage) else calling()


def deep(*ours: Any, inner: Callable[[Any], Any] | None = None) -> tuple[Any, ScriptedChatModel, ScriptedChatModel]:
    outer, helper = ScriptedChatModel(boss), ScriptedChatModel(worker)
    scale: dict[str, Any] = {"name": "scale", "description": "Weighs."}
    if inner is None:
        scale |= {"system_prompt": "You weigh.", "tools": [weigh], "model": helper}
    else:
        scale |= {"runnable": inner(create_agent(helper, [weigh], name="scale"))}
    agent = deepagents.create_deep_agent(
        model=outer, tools=[weigh], subagents=[scale], middleware=[*ours, Idle()], checkpointer=InMemorySaver()
    )
    return agent, outer, helper


async def told(agent: Any) -> list[str]:
    seen: list[Any] = list(agent.stream(asked(), THREAD, stream_mode=MODES, subgraphs=True))
    seen += [c async for c in agent.astream(asked("again"), THREAD, stream_mode=MODES, subgraphs=True)]
    seen += [agent.get_graph(xray=True).draw_mermaid(), agent.get_state(THREAD).values]
    return [same(part).replace(", id='<uuid>'", "") for part in seen]


def bare(graph: Any) -> Any:
    return graph


@pytest.mark.parametrize("inner", [None, bare], ids=["described", "compiled"])
async def test_the_same_chunks_and_files(shared: Reflection, inner: Any) -> None:
    expected = await told(deep(inner=inner)[0])
    assert "3 kg" in expected[-1]
    assert "/notes.md" in expected[-1]
    agent, outer, helper = deep(inner=inner)
    assert await told(shared.wrap(agent)) == expected
    assert set(fences(outer)) == set(fences(helper)) == {1}
    if inner is not None:
        assert await told(deep(inner=shared.wrap)[0]) == expected
        assert await told(shared.wrap(deep(inner=shared.wrap)[0])) == expected


async def test_with_the_middleware(reflection: Reflection) -> None:
    agent, outer, _ = deep(reflection.middleware(name="boss"), inner=reflection.wrap)
    result = await agent.ainvoke(asked(), THREAD)
    assert result["files"]
    reflection.flush()
    episodes = {episode.agent: episode for episode in reflection.episodes.list()}
    assert {name: episode.status for name, episode in episodes.items()} == {"boss": "completed", "scale": "completed"}
    assert episodes["scale"].parent_id == episodes["boss"].id
    assert episodes["scale"].task == "weigh an apple"
    tools = [step.name for step in episodes["boss"].trajectory if step.kind == "tool"]
    assert tools == ["write_todos", "write_file", "task", "weigh"]
    assert set(fences(outer)) == {1}
