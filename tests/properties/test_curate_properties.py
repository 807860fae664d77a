from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_middleware.answer import parse_answer
from reflect_middleware.batch import Batch
from reflect_middleware.curate import Limits, Plan, curate, quoted, texts_to_embed
from reflect_middleware.types import Edit, Episode, Lesson, Step

NS = ("n",)
AT = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = ("the amount is in cents", "the date has no dashes", "ask a manager above 200")
EPISODES = tuple(
    Episode(id=f"e{n}", namespace=NS, task=f"task {n}", status="completed", started_at=AT,
            trajectory=(Step(kind="tool", output=words),))
    for n, words in enumerate(WORDS)
)  # fmt: skip
GARBAGE = ("", "nobody ever said anything like it", "E1", "....", "the amount is in euros")
TEXTS = ("", "a", "A!", "b", "c", "d 1", "x" * 30)

texts = st.sampled_from(TEXTS)
sources = st.lists(st.sampled_from(["s1", "s2", "s3", "e0", "e1"]), unique=True, max_size=4).map(tuple)
statuses = st.sampled_from(["active", "active", "candidate", "retired"])


def edits(because: st.SearchStrategy[str]) -> st.SearchStrategy[list[Edit]]:
    one = st.builds(
        Edit,
        op=st.sampled_from(["add", "edit", "merge", "retire"]),
        episodes=st.lists(st.sampled_from(["E1", "E2", "E3", "E9"]), max_size=3).map(tuple),
        lessons=st.lists(st.sampled_from(["L1", "L2", "L3", "L4", "L9"]), max_size=3).map(tuple),
        because=because,
        when=texts,
        do=texts,
    )
    return st.lists(one, max_size=8)


@st.composite
def lessons(draw: st.DrawFn) -> tuple[Lesson, ...]:
    return tuple(
        Lesson(
            id=f"l{n}",
            namespace=NS,
            when=draw(st.sampled_from(["a", "b", f"w{n}"])),
            do=draw(st.sampled_from(["a", "c", f"d{n}"])),
            because=draw(st.sampled_from(WORDS + GARBAGE)),
            status=draw(statuses),
            version=draw(st.integers(1, 3)),
            sources=draw(sources),
            pinned=draw(st.booleans()),
            supported=draw(st.booleans()),
            created_by=draw(st.sampled_from(["human", "r0"])),
            created_at=AT,
            updated_at=AT + timedelta(hours=draw(st.integers(0, 3))),
        )
        for n in range(draw(st.integers(0, 5)))
    )


def vector(text: str) -> Any:
    """A few directions only, so that near duplicates are common."""
    turn = (len(text) % 3) * 0.2
    return np.array([np.cos(turn), np.sin(turn)], dtype=np.float32)


def decide(proposed: list[Edit], known: tuple[Lesson, ...], approval: str = "auto", cap: int = 3) -> Plan:
    batch = Batch(namespace=NS, episodes=EPISODES, lessons=known)
    return curate(
        proposed,
        batch,
        existing=[(lesson, vector(lesson.text)) for lesson in known],
        vectors={text: vector(text) for text in texts_to_embed(proposed, batch)},
        limits=Limits(when=20, do=20, lessons=cap),
        approval=approval,  # type: ignore[arg-type]
        reflection_id="r1",
        clock=lambda: AT + timedelta(days=1),
    )


def after(made: Plan, known: tuple[Lesson, ...]) -> dict[str, Lesson]:
    return {lesson.id: lesson for lesson in (*known, *(change.lesson for change in made.changes))}


def count(all_lessons: Any, status: str) -> int:
    return sum(lesson.status == status for lesson in all_lessons)


mixed = edits(st.sampled_from(WORDS + GARBAGE))
approvals = st.sampled_from(["auto", "human"])
caps = st.integers(1, 6)


@given(mixed, lessons(), approvals, caps)
def test_every_edit_has_exactly_one_outcome_that_tells_the_truth(proposed, known, approval, cap):
    made = decide(proposed, known, approval, cap)
    assert [outcome.edit for outcome in made.outcomes] == proposed
    changed = {change.lesson.id for change in made.changes}
    for outcome in made.outcomes:
        assert outcome.accepted == bool(outcome.lesson_id)
        assert outcome.accepted or outcome.reason
        assert not outcome.accepted or outcome.lesson_id in changed
    if not any(outcome.accepted for outcome in made.outcomes):
        assert made.changes == ()


@given(mixed, lessons(), approvals, caps)
def test_the_caps_are_never_exceeded(proposed, known, approval, cap):
    made = decide(proposed, known, approval, cap)
    for status in ("active", "candidate"):
        demoted = sum("kept as a candidate: there is no room" in outcome.reason for outcome in made.outcomes)
        extra = demoted if status == "candidate" else 0
        assert count(after(made, known).values(), status) <= max(cap, count(known, status)) + extra


@given(mixed, lessons(), approvals, caps)
def test_pinned_lessons_are_untouched(proposed, known, approval, cap):
    pinned = {lesson.id for lesson in known if lesson.pinned}
    assert not pinned & {change.lesson.id for change in decide(proposed, known, approval, cap).changes}


@given(mixed, lessons(), approvals, caps)
def test_no_source_is_ever_lost(proposed, known, approval, cap):
    made = decide(proposed, known, approval, cap)
    now = after(made, known)
    for lesson in known:
        assert set(lesson.sources) <= set(now[lesson.id].sources)
    for change in made.changes:
        for parent in change.lesson.replaces:
            assert set(now[parent].sources) <= set(change.lesson.sources)


@given(mixed, lessons(), approvals, caps)
def test_versions_go_up_by_one_and_new_lessons_start_at_one(proposed, known, approval, cap):
    versions = {lesson.id: lesson.version for lesson in known}
    made = decide(proposed, known, approval, cap)
    assert len({change.lesson.id for change in made.changes}) == len(made.changes)
    for change in made.changes:
        assert change.expected_version == versions.get(change.lesson.id, 0)
        assert change.lesson.version == change.expected_version + 1
        assert change.lesson.sources or change.expected_version
        assert change.lesson.namespace == NS


@given(edits(st.sampled_from(GARBAGE)), lessons(), approvals, caps)
def test_garbage_never_removes_or_changes_a_lesson(proposed, known, approval, cap):
    # Evidence of a lesson that is itself garbage may be quoted by a merge: such lessons are no part of this promise.
    known = tuple(lesson.model_copy(update={"because": WORDS[0]}) for lesson in known)
    made = decide(proposed, known, approval, cap)
    assert all(change.expected_version == 0 for change in made.changes)
    assert all(change.lesson.status == "candidate" for change in made.changes)
    assert all(not change.lesson.supported for change in made.changes)


@given(st.text(max_size=300), lessons())
def test_an_answer_of_any_text_changes_nothing_that_stands(text, known):
    proposed, _ = parse_answer(text)
    assert all(change.expected_version == 0 for change in decide(proposed, known).changes)


keys = st.sampled_from(["edits", "op", "episodes", "lessons", "because", "when", "do", "lesson", "action", "x"])
leaves = (
    st.sampled_from(["add", "edit", "merge", "retire", "delete", "E1", "L1", "L2", "all", "", *GARBAGE])
    | st.integers()
    | st.none()
    | st.booleans()
    | st.text(max_size=12)
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=25
)
wrapped = st.sampled_from(
    ["{}", "```json\n{}\n```", "<think>{}</think>", "Sure! {} Done.", '{{"edits": {}}}', "{}}}", "[{}"]
)


@given(anything, wrapped, st.integers(0, 60), lessons(), approvals)
def test_an_answer_of_any_json_whole_or_cut_changes_nothing_that_stands(value, around, cut, known, approval):
    known = tuple(lesson.model_copy(update={"because": WORDS[0]}) for lesson in known)
    text = around.format(json.dumps(value))
    for answer in (text, text[: -cut or None]):
        proposed, _ = parse_answer(answer)
        made = decide(proposed, known, approval)
        assert all(change.expected_version == 0 and not change.lesson.supported for change in made.changes)


@given(mixed, lessons(), caps)
def test_where_a_person_decides_what_agents_see_stays_as_it_is(proposed, known, cap):
    now = after(decide(proposed, known, "human", cap), known)
    active = {lesson.id: lesson.text for lesson in known if lesson.status == "active"}
    assert {lesson.id: lesson.text for lesson in now.values() if lesson.status == "active"} == active


@given(mixed, lessons(), approvals, caps)
def test_what_became_active_is_supported_and_short(proposed, known, approval, cap):
    before = {lesson.id for lesson in known if lesson.status == "active"}
    for change in decide(proposed, known, approval, cap).changes:
        if change.lesson.status == "active" and change.lesson.id not in before:
            assert change.lesson.supported
            assert len(change.lesson.when) <= 20
            assert len(change.lesson.do) <= 20


@given(mixed, lessons(), approvals, caps)
def test_deciding_is_deterministic_and_leaves_its_input_alone(proposed, known, approval, cap):
    copies = [lesson.model_copy(deep=True) for lesson in known]
    first, second = decide(proposed, known, approval, cap), decide(proposed, known, approval, cap)
    assert [change.lesson for change in first.changes] == [change.lesson for change in second.changes]
    assert first.outcomes == second.outcomes
    assert list(known) == copies


@settings(max_examples=50)
@given(mixed, lessons())
def test_the_same_answer_again_adds_no_lesson_that_stands(proposed, known):
    now = tuple(after(decide(proposed, known, cap=20), known).values())
    again = decide([edit for edit in proposed if edit.op == "add"], now, cap=20)
    assert all(change.expected_version or change.lesson.text not in {lesson.text for lesson in now if
               lesson.status != "retired"} for change in again.changes)  # fmt: skip


@given(st.text(min_size=12, max_size=80), st.text(max_size=40), st.text(max_size=40))
def test_what_is_copied_is_quoted(words, before, after_):
    episode = EPISODES[0].model_copy(update={"task": f"{before} {words} {after_}"})
    assert quoted(words, episode) or not any(char.isalnum() for char in words)
