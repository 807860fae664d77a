"""What a purge leaves of any lesson: no purged source, nothing that only purged episodes said, and no more is lost."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from reflect_middleware.forget import by_hand, remains, said, scrubbed
from reflect_middleware.types import Edit, EditOutcome, Lesson, ReflectionRecord

AT = datetime(2026, 1, 1, tzinfo=UTC)
IDS = ("e1", "e2", "e3", "e4")
PURGED = "Mrs Zwetschgenbaum of order CANARY-7712 wants her money back before the end of May"
KEPT = "a customer wants to know when the parcel will come, and asks politely for a call"
WORDS = (
    "ask first",
    "be polite",
    "look up CANARY-7712",
    "wants her money back before the end",
    "wants to know when the parcel will come",
)
TASKS = ("", PURGED[:30], PURGED[:5], KEPT[:30], KEPT, "of an episode that is no more")

ids = st.lists(st.sampled_from(IDS), unique=True, max_size=4).map(tuple)
gone_ids = st.sets(st.sampled_from(IDS), min_size=1)


@st.composite
def histories(draw: st.DrawFn) -> list[Lesson]:
    """All versions of one lesson, as people and reflections may have written them."""
    return [
        Lesson(
            id="l",
            namespace=("n",),
            when=draw(st.sampled_from(["w", "x", *WORDS[:2]])),
            do=draw(st.sampled_from(WORDS)),
            because=draw(st.sampled_from(["", *WORDS])),
            task=draw(st.sampled_from(TASKS)),
            version=version,
            sources=draw(ids),
            supported=draw(st.booleans()),
            created_by=draw(st.sampled_from(["human", "r1", "r2"])),
            created_at=AT,
            updated_at=AT,
        )
        for version in range(1, draw(st.integers(1, 4)) + 1)
    ]


@given(histories(), gone_ids)
def test_no_purged_source_and_no_purged_words_stay(versions: list[Lesson], gone: set[str]) -> None:
    lesson = versions[-1]
    stays = remains(lesson, versions, gone, PURGED, KEPT)
    if stays is None:
        return
    only_there = said([PURGED]) - said([KEPT])
    assert gone.isdisjoint(stays.sources)
    assert not only_there.repeated_in(stays.because)
    assert stays.task in {"", lesson.task}
    assert stays.task not in TASKS[1:3]
    rested = any(not gone.isdisjoint(version.sources) for version in versions)
    assert (stays.task == lesson.task) == (lesson.task in {"", *TASKS[3:5], *(() if rested else TASKS[5:])})
    assert by_hand(lesson, versions) or not only_there.repeated_in(stays.text)


@given(histories(), gone_ids)
def test_it_is_erased_only_without_support_or_for_its_words_and_never_if_a_person_wrote_it(
    versions: list[Lesson], gone: set[str]
) -> None:
    lesson = versions[-1]
    stays = remains(lesson, versions, gone, PURGED, KEPT)
    unsupported = bool(lesson.sources) and gone.issuperset(lesson.sources)
    tells = (said([PURGED]) - said([KEPT])).repeated_in(lesson.text)
    assert (stays is None) == ((unsupported or tells) and not by_hand(lesson, versions))
    if stays is not None:
        assert set(lesson.sources) - gone == set(stays.sources)
        assert (stays.when, stays.do, stays.status, stays.pinned) == (
            lesson.when,
            lesson.do,
            lesson.status,
            lesson.pinned,
        )


@given(histories(), gone_ids)
def test_what_has_nothing_to_do_with_it_is_the_same_object_and_again_changes_nothing(
    versions: list[Lesson], gone: set[str]
) -> None:
    lesson = versions[-1]
    stays = remains(lesson, versions, gone, PURGED, KEPT)
    if stays is not None:
        assert stays is lesson or stays.needs_review
        assert remains(stays, [*versions, stays], gone, PURGED, KEPT) is stays
    assert remains(lesson.model_copy(update={"because": ""}), versions, set(), "", KEPT) is not None


@given(st.lists(st.sampled_from(WORDS), max_size=4), ids, gone_ids)
def test_a_scrubbed_reflection_has_no_words(texts: list[str], read: tuple[str, ...], gone: set[str]) -> None:
    edits = [Edit(op="add", episodes=("E1",), because=text, when=text, do=text) for text in texts]
    outcomes = tuple(EditOutcome(edit=edit, accepted=True, reason=edit.do, lesson_id="l") for edit in edits)
    record = ReflectionRecord(
        id="r", namespace=("n",), status="done", episodes=read, prompt=PURGED, answer=PURGED, note=PURGED,
        error=PURGED, outcomes=outcomes, started_at=AT,
    )  # fmt: skip
    bare = scrubbed(record, gone, {"l"})
    text = bare.model_dump_json()
    assert not any(word in text for word in (*WORDS, PURGED, '"l"'))
    assert gone.isdisjoint(bare.episodes)
    assert [(o.accepted, o.edit.op) for o in bare.outcomes] == [(True, "add")] * len(texts)
