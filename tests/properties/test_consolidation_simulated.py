"""A simulated life of hundreds of reflections: scripted reflector and model, no language model; the ledger is real.

What has to hold for ever: never more lessons than the cap, a prompt that does not grow, no source lost, and after each
consolidation every task finds its lesson that found it before.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from reflect_middleware import testing
from reflect_middleware.desk import Limits
from reflect_middleware.episodes_table import Record
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.types import Edit, Episode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect_middleware.batch import Batch

REFLECTIONS = 200
CAP = 20
TOPICS = (
    "mooring boats along piers",
    "baking loaves from flour",
    "pruning roses behind greenhouse",
    "cataloguing novels beside shelves",
    "saddling horses near paddock",
    "welding pipes inside workshop",
    "picking apples around orchard",
    "tuning pianos before concert",
)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def learning(batch: Batch) -> Sequence[Edit]:
    """A reflector that learns the rule of each episode."""
    return [
        Edit(op="add", episodes=(handle,), because=e.task, when=e.task, do=f"take key K{e.metadata['rule']}")
        for handle, e in batch.episode_handles.items()
    ]


def merging(messages: Any) -> str:
    """A model that merges what it is shown into one lesson that keeps every key; sometimes it loses one, or talks."""
    shown = re.findall(r"(L\d+)\. when: (.*)\n    do: (.*)", messages[-1].text)
    if not shown:
        return "sorry"
    topic = next(topic for topic in TOPICS if topic in shown[0][1])
    keys = list(dict.fromkeys(key for _, _, do in shown for key in re.findall(r"K\d+", do)))
    places = dict.fromkeys(place for _, when, do in shown for place in re.findall(r"P\d+", f"{when} {do}"))
    kept = keys[1:] if len(keys) % 7 == 0 else keys
    do = f"take key {', '.join(kept)} at place {', '.join(places)}"
    return json.dumps({"edits": [{"op": "merge", "lessons": [h for h, _, _ in shown], "when": topic, "do": do}]})


def test_simulated_the_prompt_stays_bounded_and_nothing_is_lost(tmp_path: Path) -> None:
    reflection = testing.reflection(
        testing.ScriptedChatModel(merging),
        path=tmp_path,
        reflector=learning,
        max_lessons=CAP,
        consolidate_every=8,
        embeddings=HashingEmbeddings(dimensions=512),
        run="external",
        every=1,
    )
    ledger = reflection._core.parts.ledger
    tokens: list[int] = []
    for number in range(REFLECTIONS):
        topic = TOPICS[number % len(TOPICS)]
        episode = Episode(id=f"episode-{number}", namespace=("default",), task=f"{topic} P{number}",
                          status="completed", metadata={"rule": number}, started_at=AT + timedelta(minutes=number),
                          ended_at=AT + timedelta(minutes=number))  # fmt: skip
        ledger.episodes.put(Record(episode=episode, ready_at=1.0))
        assert reflection.reflect().error == ""
        active = ledger.lessons.find(("default",), "active")
        assert len(active) <= CAP
        tokens.append(sum(len(lesson.text) for lesson in active))
    done = [r.consolidation for r in reflection.reflections.list(limit=None) if r.consolidation is not None]
    assert len(done) > REFLECTIONS // 8
    assert all(c.after.found >= c.before.found for c in done)
    assert sum(c.before.lessons - c.after.lessons for c in done) > REFLECTIONS // 5
    most = CAP * (Limits().when + Limits().do)
    assert max(tokens) <= most
    everything = {lesson.id: lesson for lesson in reflection.lessons.list()}
    assert {s for lesson in everything.values() for s in lesson.sources} == {f"episode-{n}" for n in range(REFLECTIONS)}
    for lesson in everything.values():
        assert all(set(everything[old].sources) <= set(lesson.sources) for old in lesson.replaces)
        assert all(set(re.findall(r"K\d+", everything[old].do)) <= set(re.findall(r"K\d+", lesson.do))
                   for old in lesson.replaces)  # fmt: skip
    reflection.close()
