"""I2: LangChain's agents with its own middleware beside ours, and the prebuilt ReAct agent, are as the bare ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents import middleware as built_in
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import calling, once, said, same, weigh
from tests.invariants.test_i2_every_mode import Idle
from tests.invariants.test_injection import fences

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

THREAD: Any = {"configurable": {"thread_id": "1"}}
MODES: Any = ["values", "updates", "messages", "custom", "tasks"]
GIVEN: Any = {"messages": [("user", "hi"), ("ai", "yes"), ("user", "how heavy is an apple? ask a@example.com")]}
BUSY = ConnectionError("busy")


class Answer(BaseModel):
    kg: float


def weighing(**change: Any) -> ScriptedChatModel:
    return once(**change)


def endless() -> ScriptedChatModel:
    return ScriptedChatModel(lambda messages: calling(call_id=f"call-{len(messages)}"))


def tiresome() -> ScriptedChatModel:
    return ScriptedChatModel([BUSY, calling(), BUSY, said()] * 2)


HOOKS: dict[str, Callable[[], tuple[ScriptedChatModel, list[Any], dict[str, Any]]]] = {
    "none": lambda: (weighing(), [], {}),
    "summaries": lambda: (
        weighing(),
        [
            built_in.SummarizationMiddleware(
                ScriptedChatModel(lambda _: said("sum")), trigger=("messages", 2), keep=("messages", 1)
            )
        ],
        {},
    ),
    "person": lambda: (weighing(), [built_in.HumanInTheLoopMiddleware(interrupt_on={"weigh": True})], {}),
    "model limit": lambda: (endless(), [built_in.ModelCallLimitMiddleware(thread_limit=3, run_limit=2)], {}),
    "tool limit": lambda: (endless(), [built_in.ToolCallLimitMiddleware(run_limit=2, exit_behavior="end")], {}),
    "fallback": lambda: (ScriptedChatModel([BUSY] * 9), [built_in.ModelFallbackMiddleware(weighing())], {}),
    "private data": lambda: (weighing(), [built_in.PIIMiddleware("email", strategy="redact")], {}),
    "to do": lambda: (weighing(), [built_in.TodoListMiddleware()], {}),
    "model retry": lambda: (
        tiresome(),
        [built_in.ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)],
        {},
    ),
    "tool retry": lambda: (weighing(), [built_in.ToolRetryMiddleware(initial_delay=0.0, jitter=False)], {}),
    "emulator": lambda: (
        weighing(),
        [built_in.LLMToolEmulator(model=ScriptedChatModel(lambda _: said("4 kg")))],
        {},
    ),
    "selector": lambda: (
        weighing(),
        [
            built_in.LLMToolSelectorMiddleware(
                model=ScriptedChatModel(lambda _: said('{"tools": ["weigh"]}'), structured_output=True)
            )
        ],
        {},
    ),
    "editing": lambda: (
        weighing(),
        [built_in.ContextEditingMiddleware(edits=[built_in.ClearToolUsesEdit(trigger=1, keep=0)])],
        {},
    ),
    "structured": lambda: (
        ScriptedChatModel(
            lambda messages: calling("Answer", kg=3) if isinstance(messages[-1], ToolMessage) else calling()
        ),
        [],
        {"response_format": ToolStrategy(Answer)},
    ),
}


def made(kind: str, *ours: Any, first: bool = False) -> tuple[Any, ScriptedChatModel]:
    model, hooks, options = HOOKS[kind]()
    placed = [*ours, *hooks] if first else [*hooks, *ours]
    agent: Any = create_agent(
        model, [weigh], middleware=placed, system_prompt="You weigh.", checkpointer=InMemorySaver(), **options
    )
    return agent, model


async def told(agent: Any, kind: str) -> list[str]:
    """Two runs on one thread, the second async; each is resumed where it waits for a person."""
    resume = Command(resume={"decisions": [{"type": "approve"}]})
    seen: list[Any] = list(agent.stream(GIVEN, THREAD, stream_mode=MODES, subgraphs=True))
    if kind == "person":
        seen += agent.stream(resume, THREAD, stream_mode=MODES)
    seen += [c async for c in agent.astream(GIVEN, THREAD, stream_mode=MODES, subgraphs=True)]
    if kind == "person":
        seen += [c async for c in agent.astream(resume, THREAD, stream_mode=MODES)]
    seen += [(s.values, s.next) for s in agent.get_state_history(THREAD)]
    seen += [agent.get_graph(xray=True).draw_mermaid()]
    return [same(part).replace(", id='<uuid>'", "") for part in seen]


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("kind", list(HOOKS))
async def test_beside_langchains_own_middleware(shared: Reflection, kind: str, *, first: bool) -> None:
    expected = await told(made(kind, Idle(), first=first)[0], kind)
    agent, model = made(kind, shared.middleware(), first=first)
    assert await told(agent, kind) == expected
    assert set(fences(model)) == {1}
    if first:
        agent, model = made(kind, Idle(), first=True)
        assert await told(shared.wrap(agent), kind) == expected
        assert set(fences(model)) == {1}


@pytest.mark.parametrize("kind", ["none", "person", "model limit"])
async def test_beside_it_without_a_lesson(empty: Reflection, kind: str) -> None:
    agent, model = made(kind, empty.middleware())
    assert await told(agent, kind) == await told(made(kind, Idle())[0], kind)
    assert set(fences(model)) == {0}


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_prebuilt_react_agent(shared: Reflection, version: Any) -> None:
    from langgraph.prebuilt import create_react_agent

    def build() -> Any:
        return create_react_agent(once(), [weigh], prompt="You weigh.", checkpointer=InMemorySaver(), version=version)

    assert await told(build(), "") == await told(shared.wrap(build()), "")


async def test_events_differ_by_nothing_but_the_models_own_prompt(shared: Reflection, empty: Reflection) -> None:
    async def events(agent: Any) -> list[Any]:
        return [event async for event in agent.astream_events(GIVEN, THREAD, version="v2")]

    bare = await events(made("none", Idle())[0])
    for reflection in (shared, empty):
        for agent in (reflection.wrap(made("none", Idle())[0]), made("none", reflection.middleware())[0]):
            learning = await events(agent)
            assert [(event["event"], event["name"]) for event in bare] == [
                (event["event"], event["name"]) for event in learning
            ]
            differing = {b["event"] for b, w in zip(bare, learning, strict=True) if same(b) != same(w)}
            assert differing == ({"on_chat_model_start", "on_chat_model_end"} if reflection is shared else set())


async def test_an_agent_that_hands_work_to_agents_as_tools(shared: Reflection) -> None:
    """A supervisor: its workers are agents that tools call; each form of learning, alone or nested, is transparent."""
    from langchain_core.tools import tool

    def supervisor(inner: Callable[[Any], Any], outer: Callable[[Any], Any], *ours: Any) -> Any:
        worker = inner(create_agent(once(text="3 kg"), [weigh], middleware=[*ours, Idle()], name="worker"))

        @tool
        async def ask(item: str) -> str:
            """Ask the worker."""
            return str((await worker.ainvoke({"messages": [("user", item)]}))["messages"][-1].text)

        boss = once(calling("ask", item="apple"))
        return outer(create_agent(boss, [ask], middleware=[*ours, Idle()], checkpointer=InMemorySaver(), name="boss"))

    def bare(graph: Any) -> Any:
        return graph

    async def chunks(graph: Any) -> Any:
        return same([c async for c in graph.astream(GIVEN, THREAD, stream_mode=MODES, subgraphs=True)])

    expected = await chunks(supervisor(bare, bare, built_in.ModelRetryMiddleware()))
    assert "3 kg" in expected
    for inner in (bare, shared.wrap):
        for outer in (bare, shared.wrap):
            assert await chunks(supervisor(inner, outer, built_in.ModelRetryMiddleware())) == expected
            assert await chunks(supervisor(inner, outer, shared.middleware())) == expected
