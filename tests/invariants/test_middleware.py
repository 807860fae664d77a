"""The middleware alone: lessons and episodes of a `create_agent` agent, also among others at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelRetryMiddleware, hook_config
from langchain_core.callbacks import CallbackManager
from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import get_episode_id, get_lessons, no_lessons, testing
from reflect_middleware.boundary import active
from reflect_middleware.testing import ScriptedChatModel
from reflect_middleware.watch import _latest, watch
from tests.invariants.graphs import asked, calling, once, said, same, weigh
from tests.invariants.test_injection import fences

if TYPE_CHECKING:
    from reflect_middleware import Reflection


def test_once_and_into_the_form_that_stands(reflection: Reflection) -> None:
    for prompt in ("You weigh.", None, SystemMessage([{"type": "text", "text": "You weigh."}])):
        model = once()
        create_agent(model, [weigh], middleware=[reflection.middleware()], system_prompt=prompt).invoke(asked())
        assert fences(model) == [1, 1]


def test_the_agent_keeps_its_diagram_state_and_chunks(shared: Reflection) -> None:
    class Idle(AgentMiddleware):  # any middleware adds an edge to langchain's diagram
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request)

    bare, learning = (create_agent(once(), [weigh], middleware=[m]) for m in (Idle(), shared.middleware()))
    assert learning.get_graph().draw_mermaid() == bare.get_graph().draw_mermaid()
    modes: Any = ["values", "updates", "messages", "custom", "tasks"]
    assert same(list(learning.stream(asked(), stream_mode=modes))) == same(
        list(bare.stream(asked(), stream_mode=modes))
    )
    assert active.get() is None


class Failing(AgentMiddleware):
    """Fails or ends the run before any model is called."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: Any, runtime: Any) -> Any:
        if self.error is not None:
            raise self.error
        return {"jump_to": "end"}


@pytest.mark.parametrize("also_wrapped", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no scale"), "failed"), (KeyboardInterrupt(), "cancelled"), (None, "completed")],
)
def test_a_run_that_ends_before_its_first_model_call(
    reflection: Reflection, error: BaseException | None, status: str, *, also_wrapped: bool
) -> None:
    agent: Any = create_agent(once(), [weigh], middleware=[reflection.middleware(), Failing(error)])
    agent = reflection.wrap(agent, name="agent") if also_wrapped else agent
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        agent.invoke(asked())
    reflection.flush()
    (episode,) = reflection.episodes.list()
    assert (episode.status, episode.agent, episode.task) == (status, "agent", "how heavy is an apple")
    assert ("no scale" in episode.error) == (status == "failed")
    assert (watch()._sessions, watch()._parents, watch()._started) == ({}, {}, {})


async def test_a_run_that_is_cancelled_before_its_first_model_call(reflection: Reflection) -> None:
    here = asyncio.Event()

    class Waiting(AgentMiddleware):
        async def abefore_agent(self, state: Any, runtime: Any) -> None:
            here.set()
            await asyncio.Event().wait()

    agent = create_agent(once(), [weigh], middleware=[Waiting(), reflection.middleware()])
    task = asyncio.create_task(agent.ainvoke(asked()))
    await here.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await reflection.aflush()
    assert [episode.status for episode in reflection.episodes.list()] == ["cancelled"]


def test_its_channel_is_in_no_state_schema_or_checkpoint(reflection: Reflection) -> None:
    class Idle(AgentMiddleware):
        pass

    thread: Any = {"configurable": {"thread_id": "1"}}
    saver = InMemorySaver()
    bare = create_agent(once(), [weigh], middleware=[Idle()])
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()], checkpointer=saver)
    assert agent.get_input_jsonschema() == bare.get_input_jsonschema()
    assert agent.get_output_jsonschema() == bare.get_output_jsonschema()
    assert set(agent.invoke(asked(), thread)) == {"messages"}
    assert all(set(snapshot.values) <= {"messages"} for snapshot in agent.get_state_history(thread))
    for kept in saver.list(thread):
        assert not any(
            "reflect" in part for part in (kept.checkpoint["channel_values"], kept.checkpoint["channel_versions"])
        )
    before = len(reflection.episodes.list())
    agent.get_state(thread)
    agent.update_state(thread, {"messages": [("user", "and a pear?")]})
    reflection.flush()
    assert len(reflection.episodes.list()) == before == 1


@pytest.mark.parametrize("place", ["node", "tool", "runnable"])
def test_looking_at_an_agents_state_inside_another_run_is_no_run_of_it(reflection: Reflection, place: str) -> None:
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()], checkpointer=InMemorySaver())
    agent.invoke(asked(), thread)

    def look(_: Any) -> dict[str, Any]:
        agent.update_state(thread, {"messages": [("user", "and a pear?")]})
        return {"messages": [("ai", str(len(agent.get_state(thread).values["messages"])))]}

    @tool("weigh")
    def looking(item: str) -> str:
        """Look."""
        return str(look(item))

    if place == "node":
        builder = StateGraph(MessagesState).add_node("look", look).add_edge(START, "look")
        builder.compile().invoke(asked(), thread)
    elif place == "tool":
        create_agent(once(), [looking]).invoke(asked(), thread)
    else:
        RunnableLambda(look).invoke(asked(), thread)
    reflection.flush()
    assert [episode.status for episode in reflection.episodes.list()] == ["completed"]
    assert watch()._started == {}


def test_i8_a_run_starts_whatever_of_ours_fails(reflection: Reflection, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()])
    monkeypatch.setattr(watch(), "arrived", lambda presence: 1 / 0)
    assert agent.invoke(asked())["messages"][-1].text == "done"


def test_nothing_of_a_run_stays_behind(reflection: Reflection) -> None:
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()])
    agent.invoke(asked())
    assert _latest.get()[0] is None
    channel = agent.channels["reflect"]
    assert copy.deepcopy(channel) is channel


def test_retries_inject_once(reflection: Reflection) -> None:
    model = ScriptedChatModel([ConnectionError("busy"), said()])
    retry: Any = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    for order in ([retry, reflection.middleware()],):
        create_agent(model, [], middleware=order).invoke(asked())
    assert fences(model) == [1, 1]


def test_wrap_and_middleware_of_one_reflection_record_once(reflection: Reflection) -> None:
    model = once()
    reflection.wrap(create_agent(model, [weigh], middleware=[reflection.middleware()])).invoke(asked())
    assert fences(model) == [1, 1]
    assert len(reflection.episodes.list()) == 1


def test_lessons_ids_and_sub_agents_in_tools(reflection: Reflection) -> None:
    seen: list[Any] = []
    inner_model, direct, outer_model = once(), ScriptedChatModel(lambda _: "x"), once(calling("ask", question="?"))

    @tool
    def look(item: str) -> str:
        """Look."""
        seen.append(("inner", get_episode_id(), bool(get_lessons())))
        return "3 kg"

    inner_model = once(calling("look"))
    inner = create_agent(inner_model, [look], middleware=[reflection.middleware(name="inner")])

    @tool
    def ask(question: str) -> str:
        """Ask a helper."""
        seen.append(("outer", get_episode_id(), bool(get_lessons())))
        direct.invoke(question)
        return str(inner.invoke(asked(question))["messages"][-1].text)

    create_agent(outer_model, [ask], middleware=[reflection.middleware(name="outer")]).invoke(asked())
    reflection.flush()
    episodes = {episode.agent: episode for episode in reflection.episodes.list()}
    assert [fences(model) for model in (outer_model, inner_model, direct)] == [[1, 1], [1, 1], [0]]
    assert seen == [("outer", episodes["outer"].id, True), ("inner", episodes["inner"].id, True)]
    assert episodes["inner"].parent_id == episodes["outer"].id
    assert episodes["inner"].root_run_id == episodes["outer"].id
    assert [step.name for step in episodes["outer"].trajectory if step.kind == "tool"] == ["ask", "look"]


@pytest.mark.parametrize("outer_is", ["wrap", "middleware"])
def test_nested_either_way_the_inner_one_counts(reflection: Reflection, outer_is: str) -> None:
    seen: list[Any] = []

    @tool
    def look(item: str) -> str:
        """Look."""
        seen.append(get_episode_id())
        return "3 kg"

    model = once(calling("look"))

    @tool
    def ask(item: str) -> str:
        """Ask a helper."""
        inner_hooks = [reflection.middleware(name="inner")] if outer_is == "wrap" else []
        inner: Any = create_agent(model, [look], middleware=inner_hooks)
        if outer_is == "middleware":
            inner = reflection.wrap(inner, name="inner")
        return str(inner.invoke(asked("weighing"))["messages"][-1].text)

    hooks = [] if outer_is == "wrap" else [reflection.middleware(name="outer")]
    outer: Any = create_agent(once(calling("ask")), [ask], middleware=hooks)
    if outer_is == "wrap":
        outer = reflection.wrap(outer, name="outer")
    outer.invoke(asked())
    reflection.flush()
    episodes = {episode.agent: episode for episode in reflection.episodes.list()}
    assert set(episodes) == {"inner", "outer"}
    assert fences(model) == [1, 1]
    assert seen == [episodes["inner"].id]
    assert episodes["inner"].parent_id == episodes["outer"].id


def test_no_lessons_off_and_inject(reflection: Reflection, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedChatModel(lambda _: said())
    agent = create_agent(model, [], middleware=[reflection.middleware()])
    with no_lessons():
        agent.invoke(asked())
    agent.invoke(asked(), {"configurable": {"reflect": {"use_lessons": False}}})
    monkeypatch.setenv("REFLECT", "off")
    agent.invoke(asked())
    assert fences(model) == [0, 0, 0]
    assert len(reflection.episodes.list()) == 2
    monkeypatch.delenv("REFLECT")
    with testing.reflection(inject=lambda metadata: metadata["langgraph_node"] != "model") as other:
        other.lessons.add(when="weighing", do="use kg")
        create_agent(model, [], middleware=[other.middleware()]).invoke(asked())
    assert fences(model) == [0, 0, 0, 0]


def test_callbacks_given_as_a_manager(reflection: Reflection) -> None:
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()])
    agent.invoke(asked(), {"callbacks": CallbackManager([])})
    assert [episode.status for episode in reflection.episodes.list()] == ["completed"]


def test_called_outside_of_a_run_it_hands_on_and_tells_once(
    reflection: Reflection, caplog: pytest.LogCaptureFixture
) -> None:
    middleware = reflection.middleware()
    request: Any = ModelRequest(model=once(), messages=[])
    assert [middleware.wrap_model_call(request, lambda given: given) for _ in range(2)] == [request] * 2
    assert caplog.text.count("cannot see the run") == 1


def test_other_middleware_around_it(reflection: Reflection) -> None:
    model = once()

    class Prompting(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(system_message=SystemMessage("You weigh.")))

    create_agent(model, [weigh], middleware=[Prompting(), reflection.middleware()]).invoke(asked())
    assert fences(model) == [1, 1]


def test_i9_one_instance_under_a_hundred_tasks_and_eight_threads() -> None:
    def answer(messages: list[BaseMessage]) -> Any:
        if isinstance(messages[-1], ToolMessage):
            return said(str(messages[0].content))
        return calling("where", call_id="call-1", item="x")

    seen: dict[str, set[str]] = {}
    lock = threading.Lock()

    @tool
    def where(item: str) -> str:
        """Which episode is this, and which lessons?"""
        with lock:
            seen.setdefault(str(get_episode_id()), set()).add(get_lessons())
        return "here"

    model = ScriptedChatModel(answer)
    with testing.reflection(namespace=("{user}",), run="background") as made:
        users = [f"u{number}" for number in range(12)]
        for user in users:
            made.lessons.add(when="anything", do=f"belongs to {user}", namespace=(user,))
        agent = create_agent(model, [where], middleware=[made.middleware()])

        async def many() -> list[Any]:
            runs = (agent.ainvoke(asked(), {"configurable": {"user": users[n % 12]}}) for n in range(100))
            return await asyncio.gather(*runs)

        def thread(number: int) -> list[Any]:
            return [agent.invoke(asked(), {"configurable": {"user": users[(number + n) % 12]}}) for n in range(5)]

        with ThreadPoolExecutor(8) as pool:
            others = pool.map(thread, range(8))
            tasks = ThreadPoolExecutor(1).submit(asyncio.run, many()).result()
            texts = [result["messages"][-1].text for result in [*tasks, *(r for rs in others for r in rs)]]
        made.flush()
        episodes = [episode for user in users for episode in made.episodes.list(namespace=(user,), limit=1000)]
        assert len(episodes) == len(texts) == len(seen) == 140
        for episode in episodes:
            (user,) = episode.namespace
            assert episode.status == "completed"
            assert [step.kind for step in episode.trajectory] == ["model", "tool", "model"]
            assert [text.count(f"belongs to {user}\n") for text in seen[episode.id]] == [1]
            assert [text.count("belongs to") for text in seen[episode.id]] == [1]
        assert sum(text.count("belongs to") for text in texts) == 140
        assert (watch()._sessions, watch()._parents, watch()._started) == ({}, {}, {})
