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
from reflect_middleware.pack import approximate_tokens, render, shorten
from reflect_middleware.prompts import NO_REWARD
from reflect_middleware.types import Edit, EditOutcome, Episode, Lesson, Reward, Step

AT = datetime(2026, 1, 1, tzinfo=UTC)
NS = ("n",)

long_text = st.builds(lambda text, times: text * times, st.text(max_size=30), st.integers(0, 60))
rewards = st.builds(
    Reward,
    value=st.floats(0, 1),
    source=st.sampled_from(["user", "outcome", "judge"]),
    comment=long_text,
    correction=long_text,
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
    task=long_text,
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
    for handle in batch.episode_handles:
        assert f'id="{handle}"' in text or f"\n{handle} reward: " in f"\n{text}"
    values = Counter(f"{reward.value:.3g}" for episode in batch.episodes for reward in episode.rewards)
    assert values <= Counter(NAMED_REWARD.findall(text))
    assert text.count(NO_REWARD) >= sum(not episode.rewards for episode in batch.episodes)
    for handle in batch.lesson_handles:
        assert f"\n{handle}: " in f"\n{text}"


@settings(max_examples=40, deadline=None)
@given(batches)
def test_with_room_for_all_nothing_is_cut(batch):
    text = render(batch, 10**9, len)
    assert text == render(batch, len(text), len)
    for episode in batch.episodes:
        for step in episode.trajectory:
            assert step.error.strip().replace("<", "\u2039") in text.replace("<", "\u2039")


@settings(max_examples=40, deadline=None)
@given(batches, st.integers(100, 4_000))
def test_rendering_is_deterministic(batch, budget):
    assert render(batch, budget, len) == render(batch, budget, len)


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
