"""With a seed the same runs are read in the same prompts and give the same lessons, whatever ids they get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reflect_middleware import testing
from reflect_middleware.due import counts

from .conftest import agent


def learning(messages: list[Any]) -> str:
    """Two lessons about what it reads; ids of its own are in none of them."""
    number = str(messages[-1].content).count("<episode")
    edits = [
        {"op": "add", "episodes": ["E1"], "because": "Refund the order", "when": f"case {word} of {number}", "do": word}
        for word in ("one", "two", "three")
    ]
    edits.append({"op": "add", "episodes": ["E1"], "because": "Refund the order", "when": "w" * 300, "do": "x"})
    return json.dumps({"edits": edits})


def told(make: Any, seed: int | None) -> tuple[list[str], list[str]]:
    """The prompts of two reflections over the same runs, and the tasks that counted."""
    model = testing.ScriptedChatModel(learning)
    reflection = make(model, every=100, sample=0.5, seed=seed)
    graph = reflection.wrap(agent())
    for half in (range(8), range(8, 16)):
        for number in half:
            graph.invoke({"messages": f"Refund the order of day {number}"})
        reflection.reflect()
    return model.prompts, [episode.task for episode in reflection.episodes.list() if episode.reflection_id]


def test_the_same_seed_gives_the_same_prompts(make: Any) -> None:
    first, second, other = told(make, 7), told(make, 7), told(make, 8)
    assert len(first[0]) == 2
    assert first == second
    assert first[1] != other[1]
    assert "case two of" in first[0][1]
    assert "at most 200 are allowed" in first[0][1]


def test_without_a_seed_each_run_draws_by_its_id() -> None:
    assert {counts("completed", f"id {n}", rewarded=False, sample=0.5) for n in range(20)} == {True, False}


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_reflection_can_be_read_back_whole(make: Any, status: str) -> None:
    reflection = make(testing.ScriptedChatModel(lambda m: learning(m) if status == "done" else "no idea"), every=1)
    reflection.wrap(agent()).invoke({"messages": "Refund the order of day 1"})
    (listed,) = reflection.reflections.list()
    record = reflection.reflections.get(listed.id)
    assert record.status == status
    assert "<episode" in record.prompt
    assert record.answer.startswith('{"edits"' if status == "done" else "no idea")
    assert (record.way, record.input_tokens > 0, record.output_tokens > 0) == ("text", True, True) or status == "failed"
    assert [outcome.accepted for outcome in record.outcomes] == ([True] * 3 + [False] if status == "done" else [])
