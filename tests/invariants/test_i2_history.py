"""I2: time travel, forks, updates, subgraphs that pause and agents that hand over are as with the bare graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, StateUpdate, interrupt

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, looping, nested, said, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

THREAD: Any = {"configurable": {"thread_id": "1"}}


def bare(graph: Any) -> Any:
    return graph


async def test_time_travel_forks_and_updates_async(shared: Reflection) -> None:
    def given(text: str) -> Any:
        return {"messages": [{"role": "user", "content": text, "id": text}]}

    async def story(graph: Any) -> list[str]:
        seen = [await graph.ainvoke(given("an apple"), THREAD), await graph.ainvoke(given("a pear"), THREAD)]
        await graph.aupdate_state(THREAD, given("by the way"), as_node="agent")
        await graph.abulk_update_state(THREAD, [[StateUpdate(given("more"), "agent")]])
        history = [state async for state in graph.aget_state_history(THREAD)]
        seen += [(state.next, state.values) for state in history]
        past = next(state.config for state in history if state.next == ("agent",))
        fork = await graph.aupdate_state(past, given("another"))
        seen += [await graph.ainvoke(None, fork), [c async for c in graph.astream(None, past, stream_mode="updates")]]
        seen += [await graph.ainvoke(Command(update=given("jump"), goto="agent"), THREAD)]
        seen += [await graph.aget_state(THREAD, subgraphs=True), [s async for s in graph.aget_state_history(THREAD)]]
        return [same(part).replace(", id='<uuid>'", "") for part in seen]

    expected = await story(nested(checkpointer=InMemorySaver()))
    assert await story(shared.wrap(nested(checkpointer=InMemorySaver()))) == expected
    assert await story(nested(shared.wrap(looping()), checkpointer=InMemorySaver())) == expected


def test_the_state_of_an_interrupted_subgraph(shared: Reflection) -> None:
    def build(wrapper: Callable[[Any], Any], outer: Callable[[Any], Any]) -> Any:
        def ask(state: MessagesState) -> Any:
            return {"messages": [("ai", interrupt("sure?"))]}

        inner = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=True)
        return outer(nested(wrapper(inner), checkpointer=InMemorySaver()))

    def story(graph: Any) -> list[str]:
        seen = [graph.invoke(asked(), THREAD), graph.get_state(THREAD, subgraphs=True)]
        seen += [[name for name, _ in graph.get_subgraphs(recurse=True)]]
        seen += [list(graph.stream(Command(resume="yes"), THREAD, subgraphs=True)), graph.invoke(asked("2"), THREAD)]
        seen += [graph.invoke(Command(resume="no"), THREAD), list(graph.get_state_history(THREAD))]
        return [same(part).replace(", id='<uuid>'", "") for part in seen]

    told = [story(build(inner, outer)) for inner in (bare, shared.wrap) for outer in (bare, shared.wrap)]
    assert told[1:] == told[:1] * 3


def test_hand_offs(shared: Reflection) -> None:
    """A swarm of two: each may send the run to the other, through their parent."""

    def desk(name: str, other: str) -> Any:
        model = ScriptedChatModel(lambda messages: said(f"{name} of {sum(m.type != 'system' for m in messages)}"))

        def work(state: MessagesState) -> Any:
            answer = model.invoke(state["messages"])
            if len(state["messages"]) > 3:
                return {"messages": [answer]}
            return Command(goto=other, graph=Command.PARENT, update={"messages": [*state["messages"], answer]})

        return StateGraph(MessagesState).add_node("work", work).add_edge(START, "work").compile(name=name)

    def swarm(inner: Callable[[Any], Any], outer: Callable[[Any], Any]) -> Any:
        builder = StateGraph(MessagesState).add_node("a", inner(desk("a", "b")), destinations=("b",))
        builder.add_node("b", inner(desk("b", "a")), destinations=("a",)).add_edge(START, "a")
        return outer(builder.compile(checkpointer=InMemorySaver()))

    told = []
    for inner in (bare, shared.wrap):
        for outer in (bare, shared.wrap):
            graph = swarm(inner, outer)
            options: Any = {"stream_mode": ["values", "updates", "messages", "tasks"], "subgraphs": True}
            chunks = list(graph.stream(asked(), THREAD, **options))
            told.append(same([chunks, graph.get_graph().draw_mermaid()]).replace(", id='<uuid>'", ""))
    assert told[1:] == told[:1] * 3
    assert "b of 2" in told[0]
