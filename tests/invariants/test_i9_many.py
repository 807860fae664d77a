"""I9: hundreds of runs at once, in tasks, threads, event loops, agents within agents: nothing is mixed up."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from tests.invariants.crowd import Crowd
from tests.invariants.graphs import calling, nested

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMS = ["wrap", "middleware", "both"]


@pytest.fixture
def crowds() -> Iterator[Any]:
    made: list[Crowd] = []

    def make(*args: Any, **settings: Any) -> Crowd:
        made.append(Crowd(*args, **settings))
        return made[-1]

    yield make
    for crowd in made:
        crowd.reflection.close()


@pytest.mark.parametrize("form", ["wrap", "middleware"])
async def test_two_hundred_interleaved_tasks(crowds: Any, form: str) -> None:
    crowd: Crowd = crowds(200)
    agent = crowd.agent(form=form)

    async def one(user: str) -> None:
        config = crowd.config(user)
        if crowd.value(user) > 0.5:
            result = await agent.ainvoke(crowd.given(user), config)
        else:
            chunks = [chunk async for chunk in agent.astream(crowd.given(user), config, stream_mode="values")]
            result = chunks[-1]
        await crowd.reflection.areward(result["messages"][-1], crowd.value(user))

    await asyncio.gather(*map(one, crowd.users))
    assert crowd.rewarded(crowd.check(desk=1))


@pytest.mark.parametrize("form", ["wrap", "middleware"])
def test_sixteen_threads_and_four_event_loops(crowds: Any, form: str) -> None:
    crowd: Crowd = crowds(16)
    agent = crowd.agent(form=form, checkpointer=InMemorySaver())

    def config(user: str, thread: str) -> Any:
        return crowd.config(user, thread_id=f"{user} {thread}")

    def in_a_thread(user: str) -> None:
        for number in range(3):
            result = agent.invoke(crowd.given(user), config(user, str(number)))
            crowd.reflection.reward(result["messages"][-1], crowd.value(user))
        for number, result in enumerate(agent.batch([crowd.given(user)] * 2, [config(user, f"b{n}") for n in (0, 1)])):
            crowd.reflection.reward(result["messages"][-1], crowd.value(user), key=f"reward {number}")

    async def in_a_loop(users: list[str]) -> None:
        async def one(user: str) -> None:
            result = await agent.ainvoke(crowd.given(user), config(user, "loop"))
            await crowd.reflection.areward(result["messages"][-1], crowd.value(user))

        await asyncio.gather(*map(one, users))

    with ThreadPoolExecutor(20) as pool:
        work = [pool.submit(in_a_thread, user) for user in crowd.users]
        work += [pool.submit(asyncio.run, in_a_loop(crowd.users[start::4])) for start in range(4)]
        for future in work:
            future.result()
    assert crowd.rewarded(crowd.check(desk=6))


def test_one_loop_after_another(crowds: Any) -> None:
    """Nothing is bound to an event loop: each `asyncio.run` has one of its own."""
    crowd: Crowd = crowds(8)
    agent = crowd.agent()

    async def one(user: str) -> None:
        result = await agent.ainvoke(crowd.given(user), crowd.config(user))
        await crowd.reflection.areward(result, crowd.value(user))

    with ThreadPoolExecutor(1) as pool:
        for user in crowd.users:
            pool.submit(asyncio.run, one(user)).result()
    assert crowd.rewarded(crowd.check(desk=1))


async def test_several_agents_share_one_reflection(crowds: Any) -> None:
    crowd: Crowd = crowds(15, ("refunds", "sales", "support", "legal"))
    forms = dict(zip(crowd.agents, [*FORMS, "wrap"], strict=True))
    agents = {name: crowd.agent(name, form) for name, form in forms.items()}

    async def one(name: str, user: str) -> None:
        with crowd.reflection.track() as track:
            await agents[name].ainvoke(crowd.given(user), crowd.config(user))
        (episode_id,) = track.episode_ids
        await crowd.reflection.areward(episode_id, crowd.value(user))

    await asyncio.gather(*(one(name, user) for name in crowd.agents for user in crowd.users))
    assert crowd.rewarded(crowd.check(refunds=1, sales=1, support=1, legal=1))


@pytest.mark.parametrize("inner_form", FORMS)
@pytest.mark.parametrize("outer_form", FORMS)
async def test_agents_within_agents_are_linked_and_have_their_own_lessons(
    crowds: Any, outer_form: str, inner_form: str
) -> None:
    crowd: Crowd = crowds(12, ("boss", "clerk"))
    clerk = crowd.agent("clerk", inner_form)

    @tool
    async def delegate(item: str) -> str:
        """Has the clerk do it."""
        return str((await clerk.ainvoke(crowd.given(item)))["messages"][-1].text)

    boss = crowd.agent("boss", outer_form, [delegate])
    plain = crowd.models["boss"]._script.every

    def answer(messages: Any) -> Any:  # asks the clerk first, then looks for itself
        results = sum(message.type == "tool" for message in messages)
        user = str(messages[1].content).split()[-1]
        return calling("delegate", call_id="call-0", item=user) if results == 0 else _later(plain, messages, results)

    crowd.models["boss"]._script.every = answer

    async def one(user: str) -> None:
        result = await boss.ainvoke(crowd.given(user), crowd.config(user))
        await crowd.reflection.areward(result["messages"][-1], crowd.value(user))

    await asyncio.gather(*map(one, crowd.users))
    episodes = crowd.check(boss=1, clerk=1)
    bosses = {episode.namespace[1]: episode for episode in episodes if episode.agent == "boss"}
    for episode in episodes:
        boss_ = bosses[episode.namespace[1]]
        assert episode.root_run_id == boss_.id
        assert episode.parent_id == ("" if episode.agent == "boss" else boss_.id)
        assert len(episode.rewards) == (1 if episode.agent == "boss" else 0)  # the boss's message is the boss's


def _later(plain: Any, messages: Any, results: int) -> Any:
    return plain(messages if results > 1 else messages[:-2])


class Task(TypedDict):
    user: str


class Tasks(TypedDict):
    users: list[str]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("form", FORMS)
async def test_fan_out_of_one_node(crowds: Any, form: str, how: str) -> None:
    """Twelve branches of one run at a time, eight such runs at once, each branch with a namespace of its own."""
    crowd: Crowd = crowds(12)
    agent = crowd.agent(form=form)

    def split(state: Tasks) -> list[Send]:
        return [Send("agent", {"user": user}) for user in state["users"]]

    def work(task: Task) -> Any:
        return agent.invoke(crowd.given(task["user"]), crowd.config(task["user"])) and {}

    async def awork(task: Task) -> Any:
        return await agent.ainvoke(crowd.given(task["user"]), crowd.config(task["user"])) and {}

    from langchain_core.runnables import RunnableLambda

    builder = StateGraph(Tasks).add_node("agent", RunnableLambda(work, awork))
    graph = builder.add_conditional_edges(START, split, ["agent"]).compile()
    given: Any = {"users": crowd.users}
    if how == "async":
        await asyncio.gather(*(graph.ainvoke(given) for _ in range(4)))
    else:
        graph.batch([given] * 4)
    crowd.check(desk=4)


async def test_the_same_agent_at_the_root_and_as_a_node(crowds: Any) -> None:
    crowd: Crowd = crowds(10)
    agent = crowd.agent()
    graph = nested(agent)
    await asyncio.gather(
        *(one.ainvoke(crowd.given(user), crowd.config(user)) for user in crowd.users for one in (agent, graph))
    )
    crowd.check(desk=2)
