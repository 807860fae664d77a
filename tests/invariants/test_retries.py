"""A node that a RetryPolicy runs again is one episode, the last attempt's, and the failed attempts are steps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import CachePolicy, RetryPolicy, Send

from reflect_middleware import get_episode_id, testing
from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import Sums, asked, looping, nested, once, said, same, weigh
from tests.invariants.test_injection import fences

if TYPE_CHECKING:
    from reflect_middleware import Reflection

AT_ONCE = RetryPolicy(initial_interval=0.0, max_interval=0.0, jitter=False, max_attempts=3)
BUSY = ConnectionError("busy")


def inside(form: str, reflection: Reflection, model: Any) -> Any:
    """A learning agent as a node: added as it is, called from a node's function, or with the middleware."""
    if form == "middleware":
        return create_agent(model, [], middleware=[reflection.middleware(name="inner")])
    inner = reflection.wrap(looping(model), name="inner")
    if form == "node":
        return inner

    def call(state: Any) -> Any:
        return inner.invoke(state)

    async def acall(state: Any) -> Any:
        return await inner.ainvoke(state)

    return RunnableLambda(call, acall)


def retried(inner: Any, **options: Any) -> Any:
    builder = StateGraph(MessagesState).add_node("agent", inner, retry_policy=AT_ONCE)
    return builder.add_edge(START, "agent").compile(**options)


async def drive(graph: Any, how: str, config: Any = None) -> Any:
    return graph.invoke(asked(), config) if how == "sync" else await graph.ainvoke(asked(), config)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("saved", [False, True], ids=["bare", "saved"])
@pytest.mark.parametrize("form", ["node", "function", "middleware"])
async def test_one_episode_for_all_attempts(reflection: Reflection, form: str, how: str, *, saved: bool) -> None:
    model = ScriptedChatModel([BUSY, BUSY, said()])
    graph = retried(inside(form, reflection, model), checkpointer=InMemorySaver() if saved else None)
    result = await drive(graph, how, {"configurable": {"thread_id": "1"}})
    assert result["messages"][-1].text == "done"
    reflection.reward(result["messages"][-1], 0.5)
    (episode,) = reflection.episodes.list()
    assert (episode.agent, episode.status, episode.error, len(episode.run_ids)) == ("inner", "completed", "", 3)
    assert [(step.kind, step.error) for step in episode.trajectory] == [
        ("model", "ConnectionError: busy"),
        ("retry", ""),
        ("model", "ConnectionError: busy"),
        ("retry", ""),
        ("model", ""),
    ]
    assert [reward.value for reward in episode.rewards] == [0.5]
    assert [exposure.shown for exposure in episode.exposures] == [True]
    assert fences(model) == [1, 1, 1]


def test_when_all_attempts_fail_it_is_one_failed_episode(reflection: Reflection) -> None:
    def fail(state: MessagesState) -> Any:
        raise ConnectionError("no line")

    inner = StateGraph(MessagesState).add_node("fail", fail).add_edge(START, "fail").compile()
    with pytest.raises(ConnectionError):
        reflection.wrap(retried(reflection.wrap(inner, name="inner")), name="outer").invoke(asked())
    episodes = {episode.agent: episode for episode in reflection.episodes.list()}
    assert len(reflection.episodes.list()) == 2
    assert [(episode.status, episode.error) for episode in episodes.values()] == [
        ("failed", "ConnectionError: no line")
    ] * 2
    assert [(step.kind, step.error) for step in episodes["inner"].trajectory] == [
        ("retry", "ConnectionError: no line"),
        ("retry", ""),
    ]
    assert episodes["inner"].parent_id == episodes["outer"].id


def test_the_id_is_the_first_attempts(reflection: Reflection) -> None:
    seen: list[Any] = []

    def look(state: MessagesState) -> Any:
        seen.append(get_episode_id())
        if len(seen) == 1:
            raise BUSY

    inner = StateGraph(MessagesState).add_node("look", look).add_edge(START, "look").compile()
    retried(reflection.wrap(inner)).invoke(asked())
    assert seen == [reflection.episodes.list()[0].id] * 2


@pytest.mark.parametrize("form", ["node", "middleware"])
def test_the_same_task_again_on_the_thread_is_another_episode(reflection: Reflection, form: str) -> None:
    model = ScriptedChatModel([BUSY, BUSY, BUSY, said()])
    graph = retried(inside(form, reflection, model), checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(ConnectionError):
        graph.invoke(asked(), thread)
    graph.invoke(None, thread)  # the same checkpoint and task, in another run
    assert [episode.status for episode in reflection.episodes.list()] == ["completed", "failed"]


@pytest.mark.parametrize("form", ["wrap", "middleware"])
def test_several_runs_within_one_attempt_are_several_episodes(reflection: Reflection, form: str) -> None:
    model = ScriptedChatModel([BUSY, said(), said()])
    inner = inside("node" if form == "wrap" else form, reflection, model)

    def call(state: MessagesState) -> Any:
        inner.batch([asked()] * 3, {"max_concurrency": 1}, return_exceptions=True)

    StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").compile().invoke(asked())
    assert [episode.status for episode in reflection.episodes.list()] == ["completed", "completed", "failed"]


def test_fan_out_with_retries_is_one_episode_a_branch(reflection: Reflection) -> None:
    failed: set[str] = set()

    def answer(messages: Any) -> Any:
        text = str(messages[-1].content)
        if text not in failed:
            failed.add(text)
            raise BUSY
        return said(text)

    builder = StateGraph(Sums).add_node("gather", lambda _: {})
    inner = reflection.wrap(looping(ScriptedChatModel(answer)), name="inner")
    builder.add_node("agent", RunnableLambda(lambda given: inner.invoke(given) and {}), retry_policy=AT_ONCE)
    builder.add_conditional_edges(START, lambda s: [Send("agent", asked(f"n{n}")) for n in s["numbers"]], ["agent"])
    builder.add_edge("agent", "gather").compile().invoke({"numbers": [1, 2, 3], "seen": []})
    episodes = reflection.episodes.list()
    assert sorted(episode.task for episode in episodes) == ["n1", "n2", "n3"]
    assert {(episode.status, len(episode.run_ids)) for episode in episodes} == {("completed", 2)}


def test_an_attempt_that_was_reflected_on_stays_and_the_next_is_an_episode_of_its_own() -> None:
    reflector = ScriptedChatModel(lambda _: '{"edits": []}')
    with testing.reflection(reflector, every=1) as eager:  # inline: reflects between the attempts
        retried(eager.wrap(looping(ScriptedChatModel([BUSY, said()])))).invoke(asked())
        second, first = eager.episodes.list()
        assert [(e.status, bool(e.reflection_id), len(e.run_ids)) for e in (first, second)] == [
            ("failed", True, 1),
            ("completed", True, 1),
        ]


async def test_retried_streams_and_cached_nodes_are_as_with_the_bare_graph(reflection: Reflection) -> None:
    def build(wrapper: Any) -> Any:
        builder = StateGraph(MessagesState)
        inner = wrapper(looping(ScriptedChatModel([BUSY, said(), BUSY, said()])))
        builder.add_node("agent", inner, retry_policy=AT_ONCE, cache_policy=CachePolicy())
        return builder.add_edge(START, "agent").compile(cache=InMemoryCache())

    def given(number: int) -> Any:
        return {"messages": [{"role": "user", "content": f"n{number}", "id": str(number)}]}

    told = []
    for wrapper in (lambda graph: graph, reflection.wrap):
        graph = build(wrapper)
        options: Any = {"stream_mode": ["values", "updates", "messages", "tasks"], "subgraphs": True}
        told.append([list(graph.stream(given(1), **options)) for _ in range(2)])
        told[-1] += [[chunk async for chunk in graph.astream(given(2), **options)] for _ in range(2)]
    assert same(told[0]) == same(told[1])
    assert "__metadata__" in same(told[1])
    assert len(reflection.episodes.list()) == 2


def test_nodes_inside_a_wrapped_graph_retry_within_its_episode(reflection: Reflection) -> None:
    model = ScriptedChatModel([BUSY, said()])
    reflection.wrap(retried(looping(model))).invoke(asked())
    (episode,) = reflection.episodes.list()
    assert [step.kind for step in episode.trajectory] == ["model", "model"]
    assert (episode.status, fences(model)) == ("completed", [1, 1])


def test_a_bare_root_id_names_the_middlewares_episode(reflection: Reflection) -> None:
    from uuid import uuid4

    root = uuid4()
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()])
    nested(agent).invoke(asked(), {"run_id": root})
    reflection.reward(str(root), 0.25)
    (episode,) = reflection.episodes.list()
    assert (episode.root_run_id, episode.reward) == (str(root), 0.25)
