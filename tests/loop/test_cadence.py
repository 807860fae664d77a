"""K ready episodes make one reflection, over all of them, and its lesson reaches the next run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import EveryEpisodes, ReflectionReport, testing

from .conftest import RULE, adding, agent

if TYPE_CHECKING:
    from reflect_middleware import Episode

Make = "Callable[..., Reflection]"


async def test_kth_episode_triggers_one_reflection_over_all(make: Any, run: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: adding())
    judged = {"Refund order 0": 0.0, "Refund order 1": 0.25, "Refund order 2": 1.0}

    def judge(episode: Episode) -> dict[str, Any]:
        return {"key": "outcome", "score": judged[episode.task], "comment": f"{RULE}, case {episode.task[-1]}"}

    reflection = make(reflector, every=3, reward=judge)
    graph = reflection.wrap(agent())
    for number in range(2):
        await run(graph, f"Refund order {number}")
    assert reflector.calls == []
    await run(graph, "Refund order 2")

    assert len(reflector.calls) == 1
    prompt = "\n".join(str(message.content) for message in reflector.calls[0])
    for number, reward in enumerate(("0", "0.25", "1")):
        assert f"Refund order {number}" in prompt
        assert f"reward for outcome: {reward} ({RULE}, case {number})" in prompt
    (record,) = reflection.reflections.list()
    assert len(record.episodes) == 3
    assert record.status == "done"
    assert record.prompt
    assert record.answer == adding()
    assert [outcome.accepted for outcome in record.outcomes] == [True]


async def test_lesson_reaches_the_one_system_message_of_the_next_run(make: Any, run: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1)
    graph = reflection.wrap(agent(model))
    await run(graph, "Refund order 1182")
    await run(graph, "Refund order 1183")
    first, second = model.calls
    assert [message.type for message in first] == ["human"]
    assert [message.type for message in second] == ["system", "human"]
    assert "ask a manager above 200 EUR" in second[0].content
    assert "not orders" in second[0].content


async def test_every_batch_is_consumed_once(make: Any, run: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(reflector, every=2)
    graph = reflection.wrap(agent())
    for number in range(7):
        await run(graph, f"Refund order {number}")
    records = reflection.reflections.list()
    read = [episode for record in records for episode in record.episodes]
    assert [len(record.episodes) for record in records] == [2, 2, 2]
    assert len(set(read)) == 6
    assert len(reflection.episodes.list(waiting=True)) == 1


def test_unrewarded_episodes_count_and_the_prompt_says_so(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(reflector, every=1)
    reflection.wrap(agent()).invoke({"messages": "Refund order 7"})
    assert "no reward given" in str(reflector.calls[0][-1].content)


def test_reward_wait_holds_an_episode_until_its_reward(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(reflector, every=2, reward_wait=3_600)
    graph = reflection.wrap(agent())
    results = [graph.invoke({"messages": f"Refund order {n}"}) for n in range(2)]
    reflection.reward(results[1], 0.5)
    assert reflector.calls == []
    reflection.reward(results[0], 0.0, comment=RULE)
    assert len(reflector.calls) == 1
    assert RULE in str(reflector.calls[0][-1].content)


def test_reflect_ignores_cadence_and_wait(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: adding("Refund order"))
    reflection = make(reflector, every=2, reward_wait=3_600)
    graph = reflection.wrap(agent())
    for number in range(3):
        graph.invoke({"messages": f"Refund order {number}"})
    report = reflection.reflect()
    assert len(report.reflections) == 2
    assert len(report.episodes) == 3
    assert reflection.reflect() == ReflectionReport(namespace=("default",))


async def test_reflect_async_twin(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=9)
    await reflection.wrap(agent()).ainvoke({"messages": "Refund order 1"})
    report = await reflection.areflect()
    assert len(report.lessons) == 1


def test_namespaces_count_apart(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: adding("Refund order"))
    reflection = make(reflector, every=2, namespace=("shop", "{user_id}"))
    model = testing.ScriptedChatModel(lambda _: "refunded")
    graph = reflection.wrap(agent(model))
    for user in ("ann", "bob", "ann"):
        graph.invoke({"messages": "Refund order 1"}, {"configurable": {"user_id": user}})
    assert [record.namespace for record in reflection.reflections.list()] == [("shop", "ann")]
    graph.invoke({"messages": "Refund order 2"}, {"configurable": {"user_id": "bob"}})
    assert [message.type for message in model.calls[-1]] == ["human"]
    assert len(reflection.lessons.list(namespace=("shop", "ann"))) == 1


def test_background_reflection_tells_about_itself(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    reports: list[ReflectionReport] = []
    reflector = testing.ScriptedChatModel(lambda _: adding())
    reflection = make(reflector, every=EveryEpisodes(1), run="background", on_reflection=reports.append)
    with caplog.at_level(logging.INFO, logger="reflect_middleware"):
        result = reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
        reflection.reward(result, 0.0, comment=RULE)
        assert reflection.flush(timeout=30)
    assert len(reports) == 1
    assert [lesson.do for lesson in reports[0].lessons] == ["ask a manager above 200 EUR"]
    lines = [record for record in caplog.records if "episodes read" in record.getMessage()]
    assert [line.levelname for line in lines] == ["INFO"]


def test_external_leaves_reflections_to_others(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: adding())
    reflection = make(reflector, every=1, run="external")
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    assert reflection.flush(timeout=30)
    assert reflector.calls == []
    assert len(reflection.episodes.list(waiting=True)) == 1


def test_node_starts_what_is_due(make: Any) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    reflector = testing.ScriptedChatModel(lambda _: adding("Refund order"))
    reflection = make(reflector, every=1, run="inline")
    off = make(reflector, every=1, run="external", path=str(reflection._options.path))
    off.wrap(agent()).invoke({"messages": "Refund order 1"})
    builder = StateGraph(MessagesState)
    builder.add_node("reflect", reflection.node())
    builder.add_edge(START, "reflect")
    graph = builder.compile()
    before = graph.invoke({"messages": [("user", "hello")]})
    assert [message.content for message in before["messages"]] == ["hello"]
    assert len(reflector.calls) == 1
