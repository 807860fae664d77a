"""`reward="self"`: the model judges what nobody has, before it reflects, once, and whatever goes wrong with that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reflect_middleware import Reward, testing

from .conftest import adding, agent

NONE = '{"edits": []}'


def assessing(*values: float) -> str:
    entries = [{"episode": f"E{n}", "because": "refunded", "value": v} for n, v in enumerate(values, 1)]
    return json.dumps({"assessments": entries})


def go(reflection: Any, *tasks: str) -> list[Any]:
    graph = reflection.wrap(agent())
    return [graph.invoke({"messages": [("user", task)]}) for task in tasks]


def given(reflection: Any) -> list[dict[tuple[str, str], float]]:
    """What the episodes have, the oldest first."""
    return [{(r.source, r.key): r.value for r in e.rewards} for e in reversed(reflection.episodes.list())]


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("how", ["sync", "async"])
async def test_it_judges_then_it_reflects(make: Any, how: str, *, structured: bool) -> None:
    model = testing.ScriptedChatModel([assessing(0.0, 1.0), adding("refunded")], structured_output=structured)
    reflection = make(model, every=99, reward="self")
    go(reflection, "Refund 1", "Refund 2")
    report = await reflection.areflect() if how == "async" else reflection.reflect()
    assert (len(model.calls), len(report.accepted), report.error) == (2, 1, "")
    assert given(reflection) == [{("self", "self"): 0.0}, {("self", "self"): 1.0}]
    assert "reward by self for self: 0 (refunded)" in model.prompts[1]
    (record,) = reflection.reflections.list()
    words = [len(prompt.split()) for prompt in model.prompts]
    assert record.input_tokens == sum(words) == report.input_tokens
    assert record.answer.startswith(assessing(0.0, 1.0))
    assert record.answer.endswith(adding("refunded"))
    assert reflection._core.parts.ledger.health.spent(record.started_at.date().isoformat()) == (
        report.input_tokens + report.output_tokens
    )


def test_what_others_have_judged_is_left_alone(make: Any) -> None:
    model = testing.ScriptedChatModel([assessing(0.5), NONE, NONE])
    reflection = make(model, every=99, reward="self")
    results = go(reflection, "Refund 1", "Refund 2")
    reflection.reward(results[0], 1.0, source="user")
    reflection.reflect()
    assert "Refund 1" not in model.prompts[0]
    assert given(reflection) == [{("user", "reward"): 1.0}, {("self", "self"): 0.5}]
    (result,) = go(reflection, "Refund 3")
    reflection.reward(result, 1.0)
    reflection.reflect()
    assert len(model.calls) == 3  # nothing was left to judge


def test_a_reflection_that_is_tried_again_does_not_ask_again(make: Any) -> None:
    model = testing.ScriptedChatModel([assessing(0.25), ConnectionError("away"), NONE])
    reflection = make(model, every=99, reward="self")
    go(reflection, "Refund 1")
    failed = reflection.reflect()
    assert "ConnectionError" in failed.error
    assert failed.input_tokens == len(model.prompts[0].split())  # of what was asked in vain
    assert reflection.reflect().error == ""
    assert len(model.calls) == 3
    assert given(reflection) == [{("self", "self"): 0.25}]


@pytest.mark.parametrize("garbage", [["fine", "all fine"], [ConnectionError("away")], ["", ""]])
def test_garbage_fails_no_reflection(make: Any, garbage: list[Any]) -> None:
    model = testing.ScriptedChatModel([*garbage, adding("refunded")])
    reflection = make(model, every=99, reward="self")
    go(reflection, "Refund 1")
    report = reflection.reflect()
    assert (len(report.accepted), report.error, given(reflection)) == (1, "", [{}])
    (record,) = reflection.reflections.list()
    if not isinstance(garbage[0], Exception):
        assert record.note.startswith("the runs were not assessed: ")


def test_beside_a_reflector_of_ones_own(make: Any) -> None:
    seen: list[Any] = []

    def reflector(batch: Any) -> list[Any]:
        seen.extend(episode.reward for episode in batch.episodes)
        return []

    reflection = make(testing.ScriptedChatModel([assessing(0.75)]), every=1, reward="self", reflector=reflector)
    go(reflection, "Refund 1")
    assert seen == [0.75]
    assert reflection.reflections.list()[0].answer == assessing(0.75)


def test_a_later_reward_outranks_it_and_its_words_are_redacted(make: Any) -> None:
    model = testing.ScriptedChatModel([assessing(1.0), NONE])
    reflection = make(model, every=1, reward="self", redact=lambda text: text.replace("refunded", "###"))
    (result,) = go(reflection, "Refund 1")
    (episode,) = reflection.episodes.list()
    assert episode.rewards[0].comment.endswith("###")
    reflection.reward(result, Reward(value=0.0, source="user"))
    (episode,) = reflection.episodes.list()
    assert (episode.reward, len(episode.rewards)) == (0.0, 2)


def test_a_claim_that_was_lost_writes_nothing(make: Any) -> None:
    reflection = make(every=99)
    go(reflection, "Refund 1")
    (episode,) = reflection.episodes.list()
    own = {episode.id: (Reward(value=1.0, source="self", key="self"),)}
    reflection._core.parts.ledger.episodes.note("another reflection", own)
    assert given(reflection) == [{}]
