"""The model judges what nobody has: what it is asked, what is read of its answers, what garbage does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_middleware.assess import LEAST, VALUES, assess, question, read, schema, unjudged
from reflect_middleware.pack import approximate_tokens
from reflect_middleware.reflect import ModelReflector
from reflect_middleware.testing import ScriptedChatModel
from reflect_middleware.types import Episode, Reward, Step, now


def episode(number: int, *rewards: Reward, said: str = "The sum is 41.") -> Episode:
    step = Step(kind="model", input=f"human: Add them, {number}", output=f"ai: {said}")
    return Episode(
        id=f"id-{number}",
        namespace=("a",),
        task=f"Add them, {number}",
        status="completed",
        trajectory=(step,),
        rewards=rewards,
        started_at=now(),
    )


TWO = (episode(1), episode(2, said="The sum is 42."))
NAMED = {"E1": TWO[0], "E2": TWO[1]}


def told(*entries: Any) -> str:
    return json.dumps(
        {"assessments": [dict(zip(("episode", "because", "value"), entry, strict=True)) for entry in entries]}
    )


GOOD = told(("E1", "The sum is 41.", 0.0), ("E2", "The sum is 42.", 1.0))


def values(raw: str) -> dict[str, float]:
    return {name: reward.value for name, reward in read(raw, NAMED)[0].items()}


@pytest.mark.parametrize(
    "raw",
    [
        GOOD,
        f"<think>The first one is wrong {{</think>{GOOD}",
        f"Here you are:\n```json\n{GOOD}\n```\nDone.",
        GOOD[:-2],
        GOOD.replace('"', "'"),
        json.dumps(json.loads(GOOD)["assessments"]),
        told(("e1", "The sum is 41.", "0"), (2, "The sum is 42.", True)),
        told(("E1", "The sum is 41.", 0.1), ("E2", "", 0.95), ("E1", "again", 1), ("E7", "nobody", 1)),
    ],
)
def test_what_can_be_read(raw: str) -> None:
    assert values(raw) == {"id-1": 0.0, "id-2": 1.0}


def test_a_single_one() -> None:
    assert values('{"episode": "E2", "because": "", "value": 0.5}') == {"id-2": 0.5}
    assert values('{"assessments": {"episode": "E2", "value": 0.5}}') == {"id-2": 0.5}


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("I think they were fine.", "there is no JSON object"),
        ("", "there is no JSON object"),
        ('{"edits": []}', "there is no JSON object"),
        ("[1, 2]", "there is no JSON object"),
        (told(("E9", "", 1)), 'no entry has an "episode" of E1, E2'),
        (told(("E1", "", 7), ("E2", "", None), ("E1", "", float("nan"))), 'and a "value" of 0.0, 0.25'),
    ],
)
def test_what_cannot(raw: str, why: str) -> None:
    found, problem = read(raw, NAMED)
    assert found == {}
    assert why in problem


def test_an_empty_list_is_an_answer() -> None:
    assert read('{"assessments": []}', NAMED) == ({}, "")


@given(
    st.text(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["assessments", "value", "episode", "because"]), inner, max_size=4)
        ),
        max_leaves=9,
    ).map(json.dumps)
)
@settings(max_examples=150, deadline=None)
def test_nothing_breaks_the_reading(raw: str) -> None:
    found, problem = read(raw, NAMED)
    assert set(found) <= {"id-1", "id-2"}
    assert all(reward.value in VALUES for reward in found.values())
    assert not (found and problem)


def test_a_quote_that_is_not_in_the_run_is_marked() -> None:
    found, _ = read(told(("E1", "the sum is 41", 0), ("E2", "It looks quite fine to me.", 1)), NAMED)
    assert found["id-1"].comment == "the sum is 41"
    assert found["id-2"].comment == "(not in the words of the run) It looks quite fine to me."
    assert {(reward.source, reward.key) for reward in found.values()} == {("self", "self")}


def asked(model: ScriptedChatModel) -> Any:
    return assess(TWO, ModelReflector(model).reply, budget_tokens=4_000, count_tokens=approximate_tokens)


@pytest.mark.parametrize("structured", [True, False])
def test_asking(structured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    model = ScriptedChatModel([GOOD], structured_output=structured)
    done = asked(model)
    assert {name: reward.value for name, reward in done.rewards.items()} == {"id-1": 0.0, "id-2": 1.0}
    assert '<episode id="E2">\ntask: Add them, 2' in model.prompts[0]
    assert done.answer.raw == GOOD
    assert done.answer.input_tokens > 100
    assert done.answer.note == ""


def test_asking_again_once() -> None:
    model = ScriptedChatModel(["They are fine.", GOOD])
    done = asked(model)
    assert len(done.rewards) == 2
    assert "could not be used: there is no JSON object" in model.prompts[1]
    assert done.answer.raw.startswith("They are fine.")
    model = ScriptedChatModel(["", "Still fine."])
    done = asked(model)
    assert (done.rewards, len(model.calls)) == ({}, 2)
    assert done.answer.note.startswith("the runs were not assessed: there is no JSON object")


def test_a_model_that_fails_when_it_is_asked_again() -> None:
    done = asked(ScriptedChatModel(["They are fine.", ConnectionError("away")]))
    assert done.rewards == {}
    assert done.answer.input_tokens > 100
    assert done.answer.note.endswith("then ConnectionError: away")
    with pytest.raises(ConnectionError):
        asked(ScriptedChatModel([ConnectionError("away")]))


def test_the_question_keeps_to_its_budget() -> None:
    long = {f"E{n}": episode(n, said="word " * 4_000) for n in range(1, 9)}
    text = question(long, 4_000, approximate_tokens)
    assert approximate_tokens(text) < 4_000
    assert all(f'<episode id="E{n}">' in text for n in range(1, 9))
    least = question(long, 10, approximate_tokens)  # every episode is still named
    assert len(least) <= 8 * (LEAST + 2)


def test_who_is_asked_about() -> None:
    sign, own = Reward(value=0.25, source="implicit", key="error"), Reward(value=1.0, source="self", key="self")
    given = Reward(value=1.0, source="user")
    episodes = [episode(1), episode(2, sign), episode(3, own), episode(4, sign, given), episode(5, given)]
    assert [e.id for e in unjudged(episodes)] == ["id-1", "id-2"]


def test_the_schema_puts_evidence_first() -> None:
    entry = schema(NAMED)["properties"]["assessments"]["items"]["properties"]
    assert list(entry) == ["episode", "because", "value"]
    assert entry["episode"]["enum"] == ["E1", "E2"]
