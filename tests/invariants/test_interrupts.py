"""An interrupted and resumed run is one episode; whatever else starts on the thread is another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from tests.invariants.graphs import Asking, asked, asking, calling, chat, looping, nested, once, weigh

if TYPE_CHECKING:
    from reflect_middleware import Reflection

THREAD: Any = {"configurable": {"thread_id": "1"}}


def kinds(episode: Any) -> list[str]:
    return [step.kind for step in episode.trajectory]


async def test_dynamic(reflection: Reflection) -> None:
    agent = reflection.wrap(asking(checkpointer=InMemorySaver()))
    assert "__interrupt__" in agent.invoke({"question": "sure?"}, THREAD)
    (open_one,) = reflection.episodes.list()
    assert (open_one.status, open_one.ended_at, kinds(open_one)) == ("interrupted", None, ["interrupt"])
    assert (await agent.ainvoke(Command(resume="yes"), THREAD))["answer"] == "yes"
    (episode,) = reflection.episodes.list()
    assert (episode.id, episode.status, len(episode.run_ids)) == (open_one.id, "completed", 2)
    assert kinds(episode) == ["interrupt", "resume"]
    assert "sure?" in episode.trajectory[0].input
    assert episode.trajectory[1].input == "yes"
    assert "sure?" in episode.task
    assert '"answer": "yes"' in episode.output


def test_a_consumer_that_leaves_at_the_interrupt(reflection: Reflection) -> None:
    agent = reflection.wrap(asking(checkpointer=InMemorySaver()))
    for chunk in agent.stream({"question": "sure?"}, THREAD, stream_mode="updates"):
        if "__interrupt__" in chunk:
            break
    reflection.flush()
    assert [episode.status for episode in reflection.episodes.list()] == ["interrupted"]
    agent.invoke(Command(resume="yes"), THREAD)
    assert [episode.status for episode in reflection.episodes.list()] == ["completed"]


@pytest.mark.parametrize("name", [["model"], ["tools"]])
@pytest.mark.parametrize("where", ["before", "after"])
def test_static_with_the_middleware_alone(reflection: Reflection, where: str, name: list[str]) -> None:
    agent = create_agent(once(), [weigh], middleware=[reflection.middleware()], checkpointer=InMemorySaver())
    options: Any = {f"interrupt_{where}": name}
    agent.invoke(asked(), THREAD, **options)
    reflection.flush()
    assert [episode.status for episode in reflection.episodes.list()] == ["interrupted"]
    agent.invoke(None, THREAD)
    reflection.flush()
    (episode,) = reflection.episodes.list()
    assert episode.status == "completed"
    assert [kind for kind in kinds(episode) if kind != "resume"] == ["model", "tool", "model"]
    assert kinds(episode).count("resume") == 1


@pytest.mark.parametrize("where", ["before", "after"])
def test_static(reflection: Reflection, where: str) -> None:
    name = {"before": "tools", "after": "model"}[where]
    agent = reflection.wrap(looping(checkpointer=InMemorySaver()))
    options: Any = {f"interrupt_{where}": [name]}
    agent.invoke(asked(), THREAD, **options)
    assert [episode.status for episode in reflection.episodes.list()] == ["interrupted"]
    agent.invoke(None, THREAD)
    (episode,) = reflection.episodes.list()
    assert (episode.status, kinds(episode)) == ("completed", ["model", "resume", "tool", "model"])


def test_twice_interrupted_is_still_one(reflection: Reflection) -> None:
    def ask(state: Asking) -> Asking:
        return {"answer": interrupt("first") + interrupt("second")}

    agent = StateGraph(Asking).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=InMemorySaver())
    agent = reflection.wrap(agent)
    agent.invoke({"question": "?"}, THREAD)
    agent.invoke(Command(resume="a"), THREAD)
    agent.invoke(Command(resume="b"), THREAD)
    (episode,) = reflection.episodes.list()
    assert (episode.status, kinds(episode)) == ("completed", ["interrupt", "resume", "interrupt", "resume"])
    assert len(episode.run_ids) == 3


def test_new_input_updates_gotos_and_forks_are_new_episodes(reflection: Reflection) -> None:
    agent = reflection.wrap(chat(checkpointer=InMemorySaver()))
    agent.invoke(asked("one"), THREAD)
    agent.invoke(asked("two"), THREAD)
    agent.invoke(Command(update=asked("three"), goto="model"), THREAD)
    past = list(agent.get_state_history(THREAD))[-1].config
    agent.invoke(None, past)
    episodes = reflection.episodes.list()
    assert len({episode.id for episode in episodes}) == len(episodes) == 4
    assert [episode.task for episode in reversed(episodes)][:3] == ["one", "two", "three"]
    assert {episode.status for episode in episodes} == {"completed"}


def test_as_a_node_one_episode_and_one_interrupt(reflection: Reflection) -> None:
    inner = reflection.wrap(asking(), name="asker")
    builder = StateGraph(Asking).add_node("agent", inner).add_edge(START, "agent")
    graph = reflection.wrap(builder.compile(checkpointer=InMemorySaver()), name="outer")
    graph.invoke({"question": "sure?"}, THREAD)
    assert {e.agent: e.status for e in reflection.episodes.list()} == {"asker": "interrupted", "outer": "interrupted"}
    graph.invoke(Command(resume="yes"), THREAD)
    episodes = {episode.agent: episode for episode in reflection.episodes.list()}
    assert {name: episode.status for name, episode in episodes.items()} == {"asker": "completed", "outer": "completed"}
    assert kinds(episodes["outer"]) == ["interrupt", "resume"]
    assert episodes["asker"].parent_id == episodes["outer"].id
    assert episodes["asker"].root_run_id == episodes["outer"].root_run_id


def test_an_interrupt_in_a_tool_is_no_error(reflection: Reflection) -> None:
    @tool
    def ask_person(question: str) -> str:
        """Ask a person."""
        return f"they say {interrupt(question)}"

    agent = reflection.wrap(
        looping(once(calling("ask_person", question="ok?")), [ask_person], checkpointer=InMemorySaver())
    )
    agent.invoke(asked(), THREAD)
    agent.invoke(Command(resume="fine"), THREAD)
    (episode,) = reflection.episodes.list()
    assert [step.error for step in episode.trajectory if step.error] == []
    assert kinds(episode) == ["model", "tool", "interrupt", "resume", "tool", "model"]
    assert episode.trajectory[4].output == "they say fine"


def test_a_hand_off_to_the_parent_is_no_error(reflection: Reflection) -> None:
    def hand_off(state: MessagesState) -> Command[Any]:
        return Command(goto="other", graph=Command.PARENT, update={"messages": [("ai", "over to you")]})

    inner = StateGraph(MessagesState).add_node("hand", hand_off).add_edge(START, "hand").compile()
    builder = StateGraph(MessagesState).add_node("agent", reflection.wrap(inner, name="inner"))
    builder.add_node("other", lambda _: {"messages": [("ai", "done")]})
    builder.add_edge(START, "agent")
    assert reflection.wrap(builder.compile()).invoke(asked())["messages"][-1].text == "done"
    assert {episode.status for episode in reflection.episodes.list()} == {"completed"}
    inner_one = next(episode for episode in reflection.episodes.list() if episode.agent == "inner")
    assert "over to you" in inner_one.output


@pytest.mark.parametrize("inside", [False, True], ids=["root", "node"])
@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_human_in_the_loop_with_the_middleware_alone(
    reflection: Reflection, decision: str, *, inside: bool
) -> None:
    hooks: list[Any] = [HumanInTheLoopMiddleware(interrupt_on={"weigh": True}), reflection.middleware(name="scale")]
    model = once()
    agent = create_agent(model, [weigh], middleware=hooks, checkpointer=None if inside else InMemorySaver())
    graph = nested(agent, checkpointer=InMemorySaver()) if inside else agent
    graph.invoke(asked(), THREAD)
    reflection.flush()
    assert [episode.status for episode in reflection.episodes.list()] == ["interrupted"]
    await graph.ainvoke(Command(resume={"decisions": [{"type": decision}]}), THREAD)
    reflection.flush()
    (episode,) = reflection.episodes.list()
    assert (episode.status, episode.agent) == ("completed", "scale")
    assert kinds(episode) == ["model", "interrupt", "resume", "tool", "model"]
    assert ("rejected" in episode.trajectory[3].error) == (decision == "reject")
    assert [str(call[0].content).count("<lessons>") for call in model.calls] == [1, 1]


@pytest.mark.parametrize("form", ["wrap", "middleware"])
def test_a_resumed_run_that_ends_without_a_model_call(reflection: Reflection, form: str) -> None:
    @tool(return_direct=True)
    def send(item: str) -> str:
        """Send an item."""
        return f"{item} is on its way"

    hooks: list[Any] = [HumanInTheLoopMiddleware(interrupt_on={"send": True})]
    hooks += [reflection.middleware()] if form == "middleware" else []
    agent = create_agent(once(calling("send")), [send], middleware=hooks, checkpointer=InMemorySaver())
    agent = reflection.wrap(agent) if form == "wrap" else agent
    agent.invoke(asked(), THREAD)
    agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    reflection.flush()
    (episode,) = reflection.episodes.list()
    assert (episode.status, kinds(episode)) == ("completed", ["model", "interrupt", "resume", "tool"])
    assert "apple is on its way" in episode.output
    assert [reward.value for reward in episode.rewards] == [1.0]


def test_an_interrupt_outside_of_a_graph_is_the_users(reflection: Reflection) -> None:
    agent = reflection.wrap(asking())  # no checkpointer
    from tests.invariants.graphs import same

    assert same(agent.invoke({"question": "?"})) == same(asking().invoke({"question": "?"}))
