"""A reward lands on the right episode, by whatever name it is given, early or late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from reflect_middleware import Reward, testing
from reflect_middleware.errors import RewardError, TargetError

from .conftest import adding, agent

if TYPE_CHECKING:
    from reflect_middleware import Episode, Reflection


class Sum(TypedDict):
    """A state without messages."""

    a: int
    total: int


def adder() -> Any:
    """A graph whose result holds nothing that names its run."""
    builder = StateGraph(Sum)
    builder.add_node("add", lambda state: {"total": state["a"] + 1})
    builder.add_edge(START, "add")
    return builder.compile()


def rewards(reflection: Reflection, task: str) -> list[float]:
    """The values given to the episode with this task."""
    (episode,) = [e for e in reflection.episodes.list() if e.task == task]
    return [reward.value for reward in episode.rewards]


def test_by_result_message_message_id_and_episode_id(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(agent())
    results = [graph.invoke({"messages": f"Refund {n}"}) for n in range(4)]
    episodes = {e.task: e.id for e in reflection.episodes.list()}
    reflection.reward(results[0], 0.1)
    reflection.reward(results[1]["messages"][-1], 0.2)
    reflection.reward(results[2]["messages"][-1].id, 0.3)
    reflection.reward(episodes["Refund 3"], 0.4)
    assert [rewards(reflection, f"Refund {n}") for n in range(4)] == [[0.1], [0.2], [0.3], [0.4]]


def test_by_run_id_before_the_run(make: Any) -> None:
    reflection = make(every=99)
    run_id = uuid4()
    reflection.reward(run_id, 0.75)
    reflection.wrap(agent()).invoke({"messages": "Refund 1"}, {"run_id": run_id})
    (episode,) = reflection.episodes.list()
    assert episode.id == str(run_id)
    assert episode.reward == 0.75


def test_by_thread(make: Any) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    reflection = make(every=99)
    graph = reflection.wrap(agent(checkpointer=InMemorySaver()))
    for text in ("Refund 1", "Refund 2"):
        graph.invoke({"messages": text}, {"configurable": {"thread_id": "t"}})
    reflection.reward(thread_id="t", value=1.0)
    assert rewards(reflection, "Refund 2") == [1.0]
    assert rewards(reflection, "Refund 1") == []
    with pytest.raises(TargetError, match="'nowhere' has no episode"):
        reflection.reward(thread_id="nowhere", value=1.0)


def test_equal_results_without_messages_are_told_apart_by_identity(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(adder())
    one, two = graph.invoke({"a": 1}), graph.invoke({"a": 1})
    reflection.reward(two, 1.0)
    reflection.reward(one, 0.0)
    newest, oldest = reflection.episodes.list()
    assert (oldest.reward, newest.reward) == (0.0, 1.0)
    with pytest.raises(TargetError, match=r"2 runs gave this same result.*track"):
        reflection.reward(dict(one), 1.0)
    with pytest.raises(TargetError, match="No recorded run gave this dict"):
        reflection.reward({"a": 7}, 1.0)


def test_track_names_the_episodes_of_a_block(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(adder())
    with reflection.track() as track:
        graph.invoke({"a": 1})
    graph.invoke({"a": 1})
    assert len(track.episode_ids) == 1
    reflection.reward(track.episode_ids[0], 0.5)
    assert reflection.episodes.get(track.episode_ids[0]).reward == 0.5


def test_same_source_and_key_replaces_and_trust_decides(make: Any) -> None:
    reflection = make(every=99)
    result = reflection.wrap(agent()).invoke({"messages": "Refund 1"})
    reflection.reward(result, 0.0, source="self")
    reflection.reward(result, 0.2, source="user", key="tone")
    reflection.reward(result, 0.4, source="user", key="tone")
    reflection.reward(result, 0.8, source="user", key="facts")
    (episode,) = reflection.episodes.list()
    assert sorted(reward.value for reward in episode.rewards) == [0.0, 0.4, 0.8]
    assert episode.reward == pytest.approx(0.6)
    reflection.reward(result, value=True)
    assert reflection.episodes.get(episode.id).reward == 1.0


@pytest.mark.parametrize("value", [1.7, -0.1, float("nan"), "good", None])
def test_a_wrong_value_is_refused_with_a_hint(make: Any, value: Any) -> None:
    reflection = make(every=99)
    with pytest.raises(RewardError, match=r"allowed: True, False or a number from 0.*feedback"):
        reflection.reward("run", value)


def test_feedback_takes_langsmiths_shape(make: Any) -> None:
    reflection = make(every=99)
    result = reflection.wrap(agent()).invoke({"messages": "Refund 1"})
    reflection.feedback(result, key="thumb", score=-1, comment="no", correction={"amount": 3})
    reflection.feedback(result, key="style", score=True)
    (episode,) = reflection.episodes.list()
    given = {r.key: (r.value, r.source, r.comment, r.correction) for r in episode.rewards}
    assert given == {"thumb": (0.0, "user", "no", "{'amount': 3}"), "style": (1.0, "user", "", "")}
    with pytest.raises(RewardError, match="-1 to 1"):
        reflection.feedback(result, key="thumb", score=3)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (True, [1.0]),
        (0.5, [0.5]),
        (None, []),
        (Reward(value=0.25, source="judge"), [0.25]),
        ({"score": 0.75, "key": "correct", "comment": "ok"}, [0.75]),
        ([{"score": 1, "key": "a"}, {"score": 0, "key": "b"}], [1.0, 0.0]),
    ],
)
def test_reward_callables_sync_and_async(make: Any, answer: Any, expected: list[float]) -> None:
    async def later(_: Episode) -> Any:
        return answer

    for fn in (lambda _: answer, later):
        reflection = make(every=99, reward=fn)
        reflection.wrap(agent()).invoke({"messages": "Refund 1"})
        assert rewards(reflection, "Refund 1") == expected


def test_evaluator_signature(make: Any) -> None:
    seen: list[Any] = []

    def correct(inputs: Any, outputs: Any, reference_outputs: Any) -> dict[str, Any]:
        seen.append((inputs, outputs["total"], reference_outputs))
        return {"key": "correct", "score": outputs["total"] == reference_outputs}

    reflection = make(every=99)
    graph = reflection.wrap(adder(), reward=correct)
    graph.invoke({"a": 1}, {"configurable": {"reflect": {"reference": 2}}})
    assert seen == [({"a": 1}, 2, 2)]
    assert reflection.episodes.list()[0].reward == 1.0


def test_reward_after_the_reflection_marks_the_lesson_for_review(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: adding("Refund"))
    reflection = make(reflector, every=1)
    result = reflection.wrap(agent()).invoke({"messages": "Refund 1"})
    (lesson,) = reflection.lessons.list()
    assert not lesson.needs_review
    reflection.reward(result, 0.0, source="user")
    assert reflection.lessons.get(lesson.id).needs_review
    assert len(reflector.calls) == 1
    reflection.wrap(agent()).invoke({"messages": "Paint the fence"})
    assert len(reflector.calls) == 2
    assert not reflection.lessons.get(lesson.id).needs_review


def test_a_reward_in_late_changes_no_other_run(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(agent())
    graph.invoke({"messages": "Refund 1"})
    reflection.reward("no-such-run", 1.0)
    assert rewards(reflection, "Refund 1") == []
