from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_middleware.answer import parse_answer
from reflect_middleware.batch import Batch
from reflect_middleware.fit import Rollout
from reflect_middleware.groups import nothing_new
from reflect_middleware.pack import approximate_tokens, pack, render, shorten
from reflect_middleware.prompts import NO_REWARD
from reflect_middleware.segments import Note, condensed, segments
from reflect_middleware.types import Edit, EditOutcome, Episode, Lesson, Reward, Step

AT = datetime(2026, 1, 1, tzinfo=UTC)
NS = ("n",)

long_text = st.builds(lambda text, times: text * times, st.text(max_size=30), st.integers(0, 60))
rewards = st.builds(
    Reward,
    value=st.one_of(st.just(1.0), st.floats(0, 1)),
    source=st.sampled_from(["user", "outcome", "judge"]),
    comment=st.one_of(st.just(""), long_text),
    correction=st.one_of(st.just(""), long_text),
    at=st.just(AT),
)
steps = st.builds(
    Step,
    kind=st.sampled_from(["model", "tool"]),
    input=long_text,
    output=long_text,
    error=st.one_of(st.just(""), long_text),
    started_at=st.just(AT),
)
episodes = st.builds(
    Episode,
    id=st.uuids().map(str),
    namespace=st.just(NS),
    task=st.one_of(long_text, st.sampled_from(["refund it", "Refund it!"])),
    task_key=st.sampled_from(["", "", "k"]),
    status=st.sampled_from(["completed", "failed"]),
    started_at=st.just(AT),
    output=long_text,
    rewards=st.lists(rewards, max_size=3).map(tuple),
    trajectory=st.lists(steps, max_size=12).map(tuple),
)
lessons = st.builds(
    Lesson, namespace=st.just(NS), when=long_text, do=long_text, because=long_text, created_at=st.just(AT)
)
refusals = st.builds(EditOutcome, edit=st.builds(Edit, op=st.just("add"), do=long_text), accepted=st.just(value=False))
batches = st.builds(
    Batch,
    namespace=st.just(NS),
    episodes=st.lists(episodes, min_size=1, max_size=5).map(tuple),
    lessons=st.lists(lessons, max_size=3).map(tuple),
    rejected=st.lists(refusals, max_size=3).map(tuple),
)
counters = st.sampled_from([approximate_tokens, len, lambda text: len(text.split())])
NAMED_REWARD = re.compile(r"(?m)(?:^reward[^:\n]*: |(?<=[:,] ))([0-9.e-]+)(?= by |$| \()")
FLOOR = 80
"""Characters with which one episode of three rewards, or one lesson, can always be named."""


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(0, 6_000), counters)
def test_rendering_stays_within_its_budget_and_names_every_episode_and_reward(batch, budget, count):
    text = render(batch, budget, count)
    floor = FLOOR * (len(batch.episodes) + len(batch.lessons))
    assert count(text) <= max(budget, floor)
    left_out = {episode for skip in nothing_new(batch) for episode in skip.episodes}
    read = [episode for episode in batch.episodes if episode.id not in left_out]
    for handle, episode in batch.episode_handles.items():
        if episode.id in left_out:
            assert any(
                line.startswith("Not shown: ") and re.search(rf"\b{handle}\b", line) for line in text.split("\n")
            )
        else:
            assert f'id="{handle}"' in text or f"\n{handle} reward: " in f"\n{text}"
    values = Counter(f"{reward.value:.3g}" for episode in read for reward in episode.rewards)
    assert values <= Counter(NAMED_REWARD.findall(text))
    assert text.count(NO_REWARD) >= sum(not episode.rewards for episode in read)
    for handle in batch.lesson_handles:
        assert f"\n{handle}: " in f"\n{text}"


@settings(max_examples=40, deadline=None)
@given(batches)
def test_with_room_for_all_nothing_is_cut(batch):
    text = render(batch, 10**9, len)
    assert text == render(batch, len(text), len)
    left_out = {episode for skip in nothing_new(batch) for episode in skip.episodes}
    assert not pack(batch, 10**9, len).cut
    for episode in (episode for episode in batch.episodes if episode.id not in left_out):
        for step in episode.trajectory:
            assert step.error.strip().replace("<", "\u2039") in text.replace("<", "\u2039")


@settings(max_examples=40, deadline=None)
@given(batches, st.integers(100, 4_000))
def test_rendering_is_deterministic(batch, budget):
    assert render(batch, budget, len) == render(batch, budget, len)


def marked(number: int, kind: str) -> Step:
    """A step of a fixed size that can be told from all others."""
    text = f"mark{number:03d} ".ljust(40, "x")
    failed = {"error": text} if kind == "error" else {"output": text}
    return Step(kind="resume", input=text) if kind == "person" else Step(kind="tool", name="do", input="{}", **failed)


kinds = st.lists(st.sampled_from(["plain"] * 6 + ["error", "person"]), min_size=3, max_size=40)


@settings(max_examples=60, deadline=None)
@given(kinds, st.data())
def test_what_matters_outlives_the_rest_and_the_cut_is_counted(kinds, data):
    steps = [marked(number, kind) for number, kind in enumerate(kinds)]
    split, limit = data.draw(st.integers(0, len(kinds) - 1)), data.draw(st.integers(200, 3_000))
    episode = Episode(id="e", namespace=NS, task="t", status="completed", started_at=AT, trajectory=tuple(steps))
    fitted = Rollout.of("E1", episode).parting(split, "E2").fit(limit)
    shown = {number for number in range(len(kinds)) if f"mark{number:03d}" in fitted.text}
    assert len(fitted.text) <= limit
    assert fitted.steps == len(kinds) - len(shown)
    vital = {0, len(kinds) - 1, split, *(n for n, kind in enumerate(kinds) if kind != "plain")}
    if len(shown - vital) > 1:
        assert vital <= shown
        assert f"(from here on unlike E2)\n{'resume' if kinds[split] == 'person' else 'call'}" in fitted.text


@settings(max_examples=40, deadline=None)
@given(episodes, st.integers(200, 2_000), st.data())
def test_segments_cover_every_step_once_and_notes_on_some_leave_none_unsaid(episode, room, data):
    rollout = Rollout.of("E1", episode)
    found = segments(rollout, room, approximate_tokens)
    assert [n for part in found for n in range(part.first, part.last + 1)] == list(range(1, len(rollout.beats) + 1))
    fixed = approximate_tokens(rollout.task[:2_000] + rollout.earlier[:1_000]) + 150
    assert all(approximate_tokens(part.text) <= max(room, fixed) for part in found)
    some = [Note(first=part.first, last=part.last, text="noted") for part in found if data.draw(st.booleans())]
    assert sum(beat.steps for beat in condensed(rollout, some).beats) == len(rollout.beats)


@given(st.text(max_size=400), st.integers(0, 400))
def test_shorten_never_exceeds_its_limit(text, limit):
    short = shorten(text, limit)
    assert len(short) <= limit
    assert short == text or len(text) > limit


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["edits", "op", "when", "do", "because", "episodes", "lesson", "add", ""]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
shapes = st.sampled_from(["{}", "```json\n{}\n```", "Well: {} .", "<think>{}</think>{}", "{"])


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet="{}[]\",:'`edits\\ \n", max_size=60)))
def test_reading_never_raises_on_any_text(text):
    edits, problems = parse_answer(text)
    assert all(isinstance(edit, Edit) for edit in edits)
    assert all(isinstance(problem, str) for problem in problems)


@settings(max_examples=200, deadline=None)
@given(values, shapes, st.booleans(), st.integers(0, 400))
def test_reading_never_raises_on_any_json_whole_or_cut(value, shape, under_edits, end):
    said = json.dumps({"edits": value} if under_edits else value)
    edits, problems = parse_answer(shape.replace("{}", said)[:end] if end < 300 else shape.replace("{}", said))
    assert isinstance(edits, list)
    assert isinstance(problems, list)


entries = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["add", "edit", "merge"]),
        "episodes": st.lists(st.integers(1, 99).map("E{}".format), unique=True, max_size=4),
        "lessons": st.lists(st.integers(1, 99).map("L{}".format), unique=True, max_size=4),
        "because": st.text(max_size=30).map(str.strip),
        "when": st.text(max_size=30).map(str.strip),
        "do": st.text(max_size=30).map(str.strip),
    }
)


@given(st.lists(entries, max_size=5), st.booleans())
def test_a_strict_answer_is_read_as_it_is_in_any_order_of_keys(proposed, backwards):
    said = [dict(reversed(entry.items())) if backwards else entry for entry in proposed]
    edits, problems = parse_answer(json.dumps({"edits": said}))
    assert problems == []
    assert edits == [Edit(**entry) for entry in proposed]
