"""What a person decides when a run pauses becomes a reward of source "user", with the correction."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from reflect_middleware import testing
from reflect_middleware.decisions import numbered, rewards_of
from reflect_middleware.testing import ScriptedChatModel
from reflect_middleware.types import Reward
from tests.invariants.graphs import asked, asking, calling, once, said, weigh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect_middleware import Reflection

THREAD: Any = {"configurable": {"thread_id": "1"}}
APPLE = 'weigh({"item": "apple"})'
PEAR = 'weigh({"item": "pear"})'
EDITED = {"type": "edit", "edited_action": {"name": "weigh", "args": {"item": "pear"}}}
REJECTED = {"type": "reject", "message": "it is mine"}
EMPTY = '{"edits": []}'
PER_CALL = "interrupt_mode" in inspect.signature(HumanInTheLoopMiddleware).parameters
CASES = [
    ({"type": "approve"}, (1.0, f"The reviewer approved {APPLE}", "")),
    (EDITED, (0.5, f"The reviewer edited {APPLE}", PEAR)),
    (REJECTED, (0.0, f"The reviewer rejected {APPLE}: it is mine", "")),
]


def agent(reflection: Reflection, form: str, model: Any = None, **hitl: Any) -> Any:
    """An agent whose one tool a person has to approve."""
    hooks: list[Any] = [HumanInTheLoopMiddleware(interrupt_on={"weigh": True}, **hitl)]
    hooks += [reflection.middleware()] if form == "middleware" else []
    made = create_agent(model or once(), [weigh], middleware=hooks, checkpointer=InMemorySaver())
    return reflection.wrap(made) if form == "wrap" else made


def judged(reflection: Reflection) -> Sequence[Reward]:
    reflection.flush()
    (episode,) = reflection.episodes.list()
    return episode.rewards


@pytest.mark.parametrize("form", ["wrap", "middleware"])
@pytest.mark.parametrize(("decision", "expected"), CASES, ids=["approve", "edit", "reject"])
async def test_decisions_are_rewards(reflection: Reflection, form: str, decision: Any, expected: Any) -> None:
    graph = agent(reflection, form)
    graph.invoke(asked(), THREAD)
    assert judged(reflection) == ()
    await graph.ainvoke(Command(resume={"decisions": [decision]}), THREAD)
    (reward,) = judged(reflection)
    assert (reward.value, reward.comment, reward.correction) == expected
    assert (reward.source, reward.key) == ("user", "decision:weigh")


@pytest.mark.skipif(not PER_CALL, reason="this langchain asks about all calls at once only")
@pytest.mark.parametrize("form", ["wrap", "middleware"])
def test_calls_that_are_decided_one_by_one(reflection: Reflection, form: str) -> None:
    calls = [calling(call_id=f"call-{item}", item=item).tool_calls[0] for item in ("apple", "plum")]
    model = ScriptedChatModel(
        lambda seen: said() if isinstance(seen[-1], ToolMessage) else AIMessage("", tool_calls=calls)
    )
    graph = agent(reflection, form, model, interrupt_mode="per_call")
    pauses = graph.invoke(asked(), THREAD)["__interrupt__"]
    answers = {"apple": EDITED, "plum": REJECTED}
    resume = {pause.id: answers[pause.value["args"]["item"]] for pause in pauses}
    graph.invoke(Command(resume=resume), THREAD)
    found = {reward.comment: (reward.value, reward.correction) for reward in judged(reflection)}
    plum = 'The reviewer rejected weigh({"item": "plum"}): it is mine'
    assert found == {f"The reviewer edited {APPLE}": (0.5, PEAR), plum: (0.0, "")}


def test_a_tool_that_is_decided_on_twice_is_judged_twice(reflection: Reflection) -> None:
    answers = [calling(), calling(call_id="call-2", item="pear"), said()]
    graph = agent(reflection, "wrap", ScriptedChatModel(answers))
    graph.invoke(asked(), THREAD)
    graph.invoke(Command(resume={"decisions": [REJECTED]}), THREAD)
    graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    rewards = judged(reflection)
    assert [(reward.key, reward.value) for reward in rewards] == [("decision:weigh", 0.0), ("decision:weigh:2", 1.0)]
    assert rewards[1].comment == f"The reviewer approved {PEAR}"


def test_the_reflector_reads_the_correction(tmp_path: Path) -> None:
    reflector = ScriptedChatModel(lambda _: EMPTY)
    with testing.reflection(reflector, path=tmp_path, run="external") as first:
        graph = agent(first, "wrap")
        graph.invoke(asked(), THREAD)
    with testing.reflection(reflector, path=tmp_path, every=1) as later:  # another process takes the thread up again
        later.wrap(graph).invoke(Command(resume={"decisions": [EDITED]}), THREAD)
    (call,) = reflector.calls
    prompt = "\n".join(message.text for message in call)
    assert f"The reviewer edited {APPLE}" in prompt
    assert f"correction: {PEAR}" in prompt


def test_a_decision_does_not_end_the_wait_for_the_reward() -> None:
    with testing.reflection(ScriptedChatModel(lambda _: EMPTY), every=1, reward_wait=600) as reflection:
        graph = agent(reflection, "wrap")
        graph.invoke(asked(), THREAD)
        graph.invoke(Command(resume={"decisions": [EDITED]}), THREAD)
        assert len(judged(reflection)) == 1
        assert reflection.reflections.list() == ()
        reflection.reward(thread_id="1", value=1.0)
        reflection.flush()
        assert len(reflection.reflections.list()) == 1


def test_a_mapping_of_ones_own() -> None:
    asked_for: list[Any] = []

    def decision(questions: list[Any], answer: Any) -> Any:
        asked_for.append((questions, answer))
        return {"score": 0.25, "comment": "so so"}

    with testing.reflection(decision=decision) as reflection:
        graph = reflection.wrap(asking(checkpointer=InMemorySaver()))
        graph.invoke({"question": "sure?"}, THREAD)
        graph.invoke(Command(resume="maybe"), THREAD)
        (reward,) = judged(reflection)
        assert (reward.value, reward.source, reward.comment) == (0.25, "user", "so so")
        assert asked_for == [([{"please": "sure?"}], "maybe")]


def test_i8_a_mapping_that_fails_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def decision(questions: list[Any], answer: Any) -> Any:
        raise KeyError("oops")

    with testing.reflection(decision=decision) as reflection:
        graph = reflection.wrap(asking(checkpointer=InMemorySaver()))
        graph.invoke({"question": "sure?"}, THREAD)
        assert graph.invoke(Command(resume="yes"), THREAD)["answer"] == "yes"
        (episode,) = reflection.episodes.list()
        assert (episode.status, episode.rewards) == ("completed", ())
    assert "decision failed" in caplog.text


def test_redacted_like_everything_else() -> None:
    with testing.reflection(redact=lambda text: text.replace("pear", "fruit")) as reflection:
        graph = agent(reflection, "wrap")
        graph.invoke(asked(), THREAD)
        graph.invoke(Command(resume={"decisions": [EDITED]}), THREAD)
        assert judged(reflection)[0].correction == 'weigh({"item": "fruit"})'


INBOX = [("a", [{"action_request": {"action": "mail", "args": {"to": "Bo"}}, "config": {}, "description": ""}])]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([{"type": "accept", "args": None}], [(1.0, 'The reviewer approved mail({"to": "Bo"})', "")]),
        ([{"type": "ignore", "args": None}], [(0.0, 'The reviewer rejected mail({"to": "Bo"})', "")]),
        (
            [{"type": "edit", "args": {"action": "mail", "args": {"to": "Al"}}}],
            [(0.5, 'The reviewer edited mail({"to": "Bo"})', 'mail({"to": "Al"})')],
        ),
        ([{"type": "response", "args": "who is Bo?"}], []),
        ({"decisions": [{"type": "respond", "message": "42"}]}, []),
        ({"decisions": "all of them"}, []),
        ({"decisions": [{"type": ["approve"]}, None, 3]}, []),
        ({"type": "approve"}, [(1.0, 'The reviewer approved mail({"to": "Bo"})', "")]),
        ("yes", []),
        (None, []),
        ({}, []),
    ],
)
def test_answers_of_all_kinds(answer: Any, expected: Any) -> None:
    assert [(r.value, r.comment, r.correction) for r in rewards_of(INBOX, answer)] == expected


def test_without_knowing_what_was_asked() -> None:
    (reward,) = rewards_of([("a", "clipped tex")], {"decisions": [{"type": "approve"}]})
    assert (reward.value, reward.comment) == (1.0, "The reviewer approved it")
    (reward,) = rewards_of([], [{"type": "edit", "args": {"action": "mail", "args": {}}}])
    assert (reward.key, reward.correction) == ("decision:call", "mail({})")


def test_keys_are_numbered_among_what_stands() -> None:
    one = Reward(value=1.0, key="decision:weigh")
    assert [r.key for r in numbered([one, one], [one])] == ["decision:weigh:2", "decision:weigh:3"]
