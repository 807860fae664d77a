from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from reflect_middleware.alike import alike
from reflect_middleware.batch import Batch
from reflect_middleware.curate import Limits, Plan, curate, episode_text, quoted, texts_to_embed
from reflect_middleware.types import TASK_CHARS, Edit, Episode, Lesson, Reward, Step

NS = ("desk",)
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)
AT = datetime(2026, 1, 2, tzinfo=UTC)
SAID = "Rejected: amount must be given in whole cents."
QUOTE = "amount must be given in whole cents"
EPISODES = (
    Episode(
        id="e-one",
        namespace=NS,
        task="File the taxi ride",
        status="completed",
        started_at=BEFORE,
        trajectory=(Step(kind="tool", name="submit", input='{"amount": 12.5}', output=SAID),),
        rewards=(Reward(value=0, comment="The date form was wrong", correction="20260305"),),
    ),
    Episode(
        id="e-two",
        namespace=NS,
        task="File the hotel",
        status="failed",
        started_at=BEFORE,
        error="ValueError: no account",
    ),
)
UNIT = np.eye(8, dtype=np.float32)


def lesson(id: str, when: str = "", **fields: Any) -> Lesson:
    known = {"because": SAID, "sources": ("e-old",), "created_at": BEFORE, "updated_at": BEFORE, "created_by": "r-0"}
    return Lesson(**{"id": id, "namespace": NS, "when": when or f"case {id}", "do": f"act {id}", **known, **fields})


def add(**fields: Any) -> Edit:
    return Edit(
        **{"op": "add", "episodes": ("E1",), "because": QUOTE, "when": "an amount", "do": "use cents", **fields}
    )


def change(op: str, *handles: str, **fields: Any) -> Edit:
    return Edit(**{"op": op, "lessons": handles, "because": QUOTE, **fields})


def plan(*edits: Edit, lessons: tuple[Lesson, ...] = (), **given: Any) -> Plan:
    batch = Batch(namespace=NS, episodes=EPISODES, lessons=given.pop("read", lessons))
    existing = given.pop("existing", [(known, None) for known in lessons])
    known = {"vectors": {}, "limits": Limits(), "approval": "auto", "reflection_id": "r-1", "clock": lambda: AT}
    return curate(edits, batch, existing=existing, **{**known, **given})


def refusal(made: Plan, number: int = -1) -> str:
    """The reason why this edit was refused; the plan must not follow it."""
    outcome = made.outcomes[number]
    assert not outcome.accepted
    assert outcome.lesson_id == ""
    return outcome.reason


def test_an_addition_with_its_quote_is_an_active_lesson():
    made = plan(add(because=f'the desk said "{QUOTE}"', when=" an   amount ", episodes=("E2", "E1")))
    (new,) = made.changes
    assert new.expected_version == 0
    assert new.lesson.model_dump(exclude={"id"}) == lesson(
        "x",
        "an amount",
        do="use cents",
        because=f'the desk said "{QUOTE}"',
        task="File the hotel",
        sources=("e-two", "e-one"),
        created_by="r-1",
        created_at=AT,
        updated_at=AT,
    ).model_dump(exclude={"id"})
    assert made.outcomes[0].accepted
    assert made.outcomes[0].lesson_id == new.lesson.id


def test_equal_arguments_give_an_equal_plan_and_another_reflection_other_ids():
    assert plan(add()) == plan(add())
    assert plan(add()).changes[0].lesson.id != plan(add(), reflection_id="r-2").changes[0].lesson.id


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (add(episodes=()), "names no episode"),
        (add(episodes=("E1", "E9")), "no episode E9; there are E1 to E2"),
        (add(when=" "), '"when" is empty'),
        (add(do=""), '"do" is empty'),
        (add(when="w" * 201), '"when" has 201 characters; at most 200'),
        (add(do="d" * 401), '"do" has 401 characters; at most 400'),
    ],
)
def test_a_bad_addition_is_refused_with_its_reason(edit: Edit, reason: str):
    made = plan(edit)
    assert reason in refusal(made)
    assert made.changes == ()


@pytest.mark.parametrize("because", ["amounts are always in dollars here", "", "File the hotel bill tonight"])
def test_an_addition_without_its_quote_waits_as_an_unsupported_candidate(because: str):
    made = plan(add(because=because))
    (new,) = made.changes
    assert (new.lesson.status, new.lesson.supported) == ("candidate", False)
    assert made.outcomes[0].accepted
    assert made.outcomes[0].reason.startswith("kept as a candidate: it")


def test_long_evidence_is_cut_not_refused():
    (new,) = plan(add(because=f"{QUOTE}. " + "and so on " * 100)).changes
    assert len(new.lesson.because) == 600
    assert new.lesson.supported


def test_an_answer_with_too_many_edits_is_cut_off_visibly():
    made = plan(*(add(when=f"case {n}") for n in range(4)), limits=Limits(edits=3))
    assert [outcome.accepted for outcome in made.outcomes] == [True, True, True, False]
    assert "may have 3 edits" in refusal(made)


def test_the_same_words_are_merged_into_the_standing_lesson_with_all_sources():
    standing = lesson("l", "An amount", do="Use cents!", version=4)
    made = plan(add(), lessons=(standing,))
    (moved,) = made.changes
    assert moved.lesson.sources == ("e-old", "e-one")
    assert (moved.lesson.version, moved.expected_version) == (5, 4)
    assert (moved.lesson.when, moved.lesson.do) == ("An amount", "Use cents!")
    assert made.outcomes[0].reason == "merged into lesson l"
    assert standing.sources == ("e-old",)


def test_what_is_known_with_its_source_is_refused():
    made = plan(add(), lessons=(lesson("l", "an amount", do="use cents", sources=("e-one",)),))
    assert "already known" in refusal(made)
    assert made.changes == ()


def test_two_equal_additions_of_one_answer_are_one_lesson():
    made = plan(add(), add(episodes=("E1", "E2")))
    (new,) = made.changes
    assert new.lesson.sources == ("e-one", "e-two")
    assert (new.lesson.version, new.expected_version) == (1, 0)
    assert {outcome.lesson_id for outcome in made.outcomes} == {new.lesson.id}


def near(cosine: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (cosine * UNIT[0] + np.sqrt(1 - cosine**2) * UNIT[1]).astype(np.float32)


@pytest.mark.parametrize(("cosine", "count"), [(0.94, 0), (0.92, 1)])
def test_near_duplicates_are_merged_from_the_threshold_on(cosine: float, count: int):
    standing = lesson("l", "an amount of money", do="use cents")
    made = plan(
        add(), lessons=(standing,), existing=[(standing, UNIT[0])], vectors={"an amount: use cents": near(cosine)}
    )
    assert sum(change.expected_version == 0 for change in made.changes) == count


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a refund above 200 EUR: ask", "a refund above 500 EUR: ask"),
        ("joining: filter before the join", "joining: filter after the join"),
        ("an amount: give it in cents", "an amount: never give it in cents"),
        ("a timeout: retry once", "a timeout: retry three times"),
        ("a bill in dollars: convert to euros", "a bill in euros: convert to dollars"),
        ("a ride: use T41", "a ride: use H33"),
    ],
)
def test_opposites_are_no_duplicates_however_near(one: str, other: str):
    assert not alike(one, UNIT[0], other, UNIT[0], 0.93)
    assert alike(one, UNIT[0], one.replace("a ", "the "), UNIT[0], 0.93)


def test_further_evidence_makes_an_unsupported_candidate_active():
    waiting = lesson("l", "an amount", do="use cents", status="candidate", supported=False, because="hearsay")
    (moved,) = plan(add(), lessons=(waiting,)).changes
    assert (moved.lesson.status, moved.lesson.supported, moved.lesson.because) == ("active", True, QUOTE)
    (moved,) = plan(add(), lessons=(waiting,), approval="human").changes
    assert (moved.lesson.status, moved.lesson.supported) == ("candidate", True)


def test_a_candidate_that_waits_for_a_person_is_not_promoted_by_a_second_sighting():
    waiting = lesson("l", "an amount", do="use cents", status="candidate")
    assert plan(add(), lessons=(waiting,)).changes[0].lesson.status == "candidate"


def test_hearsay_is_no_further_evidence():
    made = plan(add(because="everybody says so here"), lessons=(lesson("l", "an amount", do="use cents"),))
    assert "already known" in refusal(made)
    assert made.changes == ()


def test_an_edit_changes_what_it_names_and_keeps_the_rest():
    old = lesson("l", "an amount", version=2, needs_review=True)
    made = plan(change("edit", "L1", do="use whole cents"), lessons=(old,))
    (moved,) = made.changes
    assert moved.lesson == old.model_copy(
        update={
            "do": "use whole cents",
            "because": QUOTE,
            "task": "File the taxi ride",
            "sources": ("e-old", "e-one"),
            "version": 3,
            "updated_at": AT,
            "created_by": "r-1",
            "needs_review": False,
        }
    )
    assert moved.expected_version == 2


@pytest.mark.parametrize("op", ["edit", "merge", "retire"])
@pytest.mark.parametrize("because", ["", "it seems to be wrong now"])
def test_no_evidence_no_change(op: str, because: str):
    made = plan(
        change(op, *(("L1", "L2") if op == "merge" else ("L1",)), because=because, when="a", do="b"),
        lessons=(lesson("l"), lesson("m")),
    )
    assert "evidence" in refusal(made) or "quote is not in any episode" in refusal(made)
    assert made.changes == ()


@pytest.mark.parametrize("op", ["edit", "merge", "retire"])
def test_pinned_lessons_are_left_alone(op: str):
    handles = ("L1", "L2") if op == "merge" else ("L1",)
    made = plan(change(op, *handles, when="a", do="b"), lessons=(lesson("l", pinned=True), lesson("m")))
    assert refusal(made) == "lesson L1 is pinned: only a person changes it"
    assert made.changes == ()


def test_a_pinned_lesson_gets_no_sources_either():
    made = plan(add(), lessons=(lesson("l", "an amount", do="use cents", pinned=True),))
    assert "already known" in refusal(made)
    assert made.changes == ()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (change("edit", "L9", do="x"), "no lesson L9"),
        (change("edit", do="x"), "edit takes one lesson; 0 are named"),
        (change("edit", "L1", "L2", do="x"), "edit takes one lesson; 2 are named"),
        (change("edit", "L1", do="d" * 401), '"do" has 401'),
        (change("edit", "L1", because=SAID, episodes=()), "changes nothing"),
        (change("edit", "L1", when="case m", do="act m"), "would say the same as lesson m"),
        (change("merge", "L1", when="a", do="b"), "two lessons or more; 1 are named"),
        (change("merge", "L1", "L1", when="a", do="b"), "two lessons or more; 1 are named"),
        (change("merge", "L1", "L2", when="a"), '"do" is empty'),
        (change("merge", "L1", "L2", when="case n", do="act n"), "would say the same as lesson n"),
        (change("retire"), "retire takes one lesson; 0 are named"),
        (change("retire", "L1", episodes=("E2",)), "its quote is not in E2"),
    ],
)
def test_a_bad_change_is_refused_with_its_reason(edit: Edit, reason: str):
    made = plan(edit, lessons=(lesson("l", sources=("e-one",)), lesson("m"), lesson("n")))
    assert reason in refusal(made)
    assert made.changes == ()


def test_two_edits_of_one_lesson_the_second_is_refused():
    made = plan(change("edit", "L1", do="first"), change("retire", "L1"), lessons=(lesson("l"),))
    assert refusal(made) == "an earlier edit of this answer changes lesson L1"
    assert [moved.lesson.do for moved in made.changes] == ["first"]


def test_a_lesson_that_changed_meanwhile_is_left_alone():
    now = lesson("l", version=2, do="written by a person just now")
    made = plan(change("edit", "L1", do="x"), read=(lesson("l"),), existing=[(now, None)])
    assert "changed or retired while" in refusal(made)
    assert "changed or retired while" in refusal(plan(change("edit", "L1", do="x"), read=(lesson("l"),), existing=[]))


def test_a_merge_keeps_all_sources_and_retires_the_parents():
    parents = (lesson("l", sources=("a", "b")), lesson("m", sources=("b", "c"), version=3))
    made = plan(change("merge", "L1", "L2", episodes=("E1",), when="any amount", do="use cents"), lessons=parents)
    by_id = {moved.lesson.id: moved for moved in made.changes}
    new = by_id[made.outcomes[0].lesson_id]
    assert new.lesson.sources == ("a", "b", "c", "e-one")
    assert (new.lesson.replaces, new.lesson.status, new.expected_version) == (("l", "m"), "active", 0)
    assert [(by_id[old].lesson.status, by_id[old].expected_version) for old in "lm"] == [("retired", 1), ("retired", 3)]


def test_a_merge_may_quote_the_evidence_of_its_parents():
    parents = (lesson("l", because="account 4711 is closed"), lesson("m"))
    edit = change("merge", "L1", "L2", because="account 4711 is closed", when="a", do="b")
    assert plan(edit, lessons=parents).outcomes[0].accepted
    unsupported = (parents[0].model_copy(update={"supported": False}), parents[1])
    assert "quote" in refusal(plan(edit, lessons=unsupported))


def test_a_retirement_with_evidence_retires():
    made = plan(change("retire", "L1"), lessons=(lesson("l"),))
    assert [(moved.lesson.status, moved.lesson.version) for moved in made.changes] == [("retired", 2)]


def test_with_a_person_everything_waits_and_nothing_that_stands_changes():
    standing = (lesson("l"), lesson("m"), lesson("n"), lesson("o"))
    made = plan(
        add(),
        change("edit", "L1", do="better"),
        change("merge", "L2", "L3", when="both", do="this"),
        change("retire", "L4"),
        lessons=standing,
        approval="human",
    )
    assert [moved.lesson.status for moved in made.changes] == ["candidate"] * 3
    assert [moved.expected_version for moved in made.changes] == [0, 0, 0]
    assert [moved.lesson.replaces for moved in made.changes] == [("l",), ("m", "n"), ()]
    assert made.changes[0].lesson.when == "case l"
    assert made.changes[0].lesson.sources == ("e-old", "e-one")
    assert refusal(made) == "needs a person: lessons.retire('o')"


@pytest.mark.parametrize("first", ["edit", "merge"])
def test_with_a_person_too_a_lesson_is_changed_once_by_an_answer(first: str):
    handles = ("L1", "L2") if first == "merge" else ("L1",)
    merge = change("merge", "L1", "L2", when="c", do="d")
    made = plan(change(first, *handles, when="a", do="b"), merge, lessons=(lesson("l"), lesson("m")), approval="human")
    assert refusal(made) == "an earlier edit of this answer changes lesson L1"


def test_candidates_are_bounded_too():
    waiting = tuple(lesson(str(n), status="candidate") for n in range(3))
    made = plan(add(), lessons=waiting, approval="human", limits=Limits(lessons=3))
    assert "3 candidates wait already" in refusal(made)


def test_the_weakest_lesson_makes_room():
    many = (
        lesson("strong", sources=("a", "b")),
        lesson("new", updated_at=BEFORE + timedelta(hours=1)),
        lesson("old"),
        lesson("pinned", sources=(), pinned=True),
        lesson("by hand", sources=(), created_by="human"),
    )
    made = plan(add(), lessons=many, limits=Limits(lessons=5))
    assert [moved.lesson.id for moved in made.changes if moved.lesson.status == "retired"] == ["old"]
    assert made.outcomes[0].accepted


def test_an_addition_without_room_is_refused():
    many = (lesson("pinned", pinned=True), lesson("edited"))
    made = plan(change("edit", "L2", do="better"), add(), add(when="more"), lessons=many, limits=Limits(lessons=2))
    assert [outcome.accepted for outcome in made.outcomes] == [True, False, False]
    assert "no room" in refusal(made)
    assert [moved.lesson.id for moved in made.changes] == ["edited"]


def test_nothing_retires_for_an_addition_that_finds_no_room_all_the_same():
    many = (lesson("spare"), lesson("p", pinned=True), lesson("q", pinned=True))  # the cap was lowered since
    made = plan(add(), lessons=many, limits=Limits(lessons=1))
    assert "no room" in refusal(made)
    assert made.changes == ()


def test_an_addition_confirmed_in_the_same_answer_goes_as_a_whole():
    made = plan(add(), add(episodes=("E1", "E2")), lessons=(lesson("l", pinned=True),), limits=Limits(lessons=1))
    assert [outcome.accepted for outcome in made.outcomes] == [False, False]
    assert made.changes == ()


def test_a_candidate_that_finds_no_room_waits_on():
    waiting = lesson("l", "an amount", do="use cents", status="candidate", supported=False)
    made = plan(add(), lessons=(waiting, lesson("p", pinned=True)), limits=Limits(lessons=1))
    (moved,) = made.changes
    assert (moved.lesson.status, moved.lesson.version, moved.lesson.supported) == ("candidate", 2, True)
    assert "no room" in made.outcomes[0].reason


def test_a_merge_of_active_lessons_needs_no_room():
    made = plan(
        change("merge", "L1", "L2", when="both", do="this"),
        lessons=(lesson("l"), lesson("m"), lesson("p", pinned=True)),
        limits=Limits(lessons=1),
    )
    assert [moved.lesson.status for moved in made.changes] == ["retired", "retired", "active"]


def test_lessons_of_another_namespace_do_not_exist_here():
    foreign = lesson("l", "an amount", do="use cents").model_copy(update={"namespace": ("other",)})
    made = plan(add(), change("retire", "L1"), lessons=(foreign,))
    assert [moved.expected_version for moved in made.changes] == [0]
    assert not made.outcomes[1].accepted


def test_a_change_carries_the_vector_of_its_text():
    standing = lesson("l", "an amount")
    read = Batch(namespace=NS, episodes=EPISODES, lessons=(standing,))
    edits = [add(when="b", do="c"), change("edit", "L1", do="new"), change("retire", "L1"), add(when="b", do="c")]
    assert texts_to_embed(edits, read) == ("b: c", "an amount: new")
    made = plan(
        *edits[:2],
        lessons=(standing,),
        existing=[(standing, UNIT[0])],
        vectors={"b: c": UNIT[1], "an amount: new": UNIT[2]},
    )
    vectors = {moved.lesson.text: moved.vector for moved in made.changes}
    assert np.array_equal(vectors["b: c"], UNIT[1])
    assert np.array_equal(vectors["an amount: new"], UNIT[2])
    (retired,) = plan(edits[2], lessons=(standing,), existing=[(standing, UNIT[0])]).changes
    assert np.array_equal(retired.vector, UNIT[0])


@pytest.mark.parametrize(
    ("edit", "tasks"),
    [
        (add(when="an amount", do="act a"), ("the first", "")),
        (add(when="a date", do="act b"), ("", "File the taxi ride")),
        (change("edit", "L1", do="use whole cents"), ("the first", "the first")),
        (change("merge", "L1", "L2", when="w", do="d"), ("", "the first")),
        (change("merge", "L2", "L3", when="w", do="d"), ("", "the third")),
        (change("merge", "L3", "L1", when="w", do="d"), ("", "the third the first")),
        (change("merge", "L2", "L4", when="w", do="d"), ("", "File the taxi ride")),
    ],
)
@pytest.mark.parametrize("approval", ["auto", "human"])
def test_a_lesson_keeps_the_task_that_taught_it(edit: Edit, tasks: tuple[str, str], approval: Any):
    standing = (
        lesson("a", "an amount", do="act a", task="the first"),
        lesson("b", "a date", do="act b"),
        lesson("c", "a place", do="act c", task="the third"),
        lesson("d", "a name", do="act d"),
    )
    made = plan(edit, lessons=standing, approval=approval)
    assert made.outcomes[0].accepted
    (moved,) = (x.lesson for x in made.changes if x.lesson.status != "retired")
    assert moved.task == (tasks[1] or tasks[0])


def test_a_merge_keeps_an_equal_part_of_each_parents_task():
    standing = tuple(lesson(letter, task=(letter * 9 + " ") * 20) for letter in "abc")
    made = plan(change("merge", "L1", "L2", "L3", when="w", do="d"), lessons=standing)
    (merged,) = (x.lesson for x in made.changes if x.lesson.status != "retired")
    assert len(merged.task) == TASK_CHARS
    assert [merged.task.count(letter) for letter in "abc"] == [60, 60, 60]


def test_a_task_is_cut_and_its_spaces_collapsed():
    long = EPISODES[0].model_copy(update={"task": "File  the\ntaxi   " + "x" * 300})
    batch = Batch(namespace=NS, episodes=(long,), lessons=())
    given: Any = {"vectors": {}, "limits": Limits(), "approval": "auto", "reflection_id": "r-1", "clock": lambda: AT}
    (made,) = curate([add()], batch, existing=[], **given).changes
    assert made.lesson.task == "File the taxi " + "x" * (TASK_CHARS - 14)
    assert made.lesson.searched == f"{made.lesson.task} an amount: use cents {QUOTE}"


@pytest.mark.parametrize(
    ("because", "yes"),
    [
        (SAID, True),
        ("AMOUNT must be  given\nin whole-cents!", True),
        ('The desk said: "amount must be given in whole cents" twice', True),
        ("Rejected: amount must be given … whole cents", True),
        ("It went badly. The date form was wrong.", True),
        ("20260305", True),
        ("File the taxi ride", True),
        ("amount must be given in whole euros", False),
        ("mount must be given in whole cent", False),
        ('the "amount" must be euros here', False),
        ("ValueError: no account", False),
        ("", False),
        ("…", False),
    ],
)
def test_a_quote_is_word_for_word_and_tolerant_of_form_only(because: str, *, yes: bool):
    assert quoted(because, EPISODES[0]) is yes


@pytest.mark.parametrize(("reward", "yes"), [((), True), ((0.4,), False), ((0.5,), True)])
def test_what_the_agent_said_is_evidence_only_where_it_went_well(reward: tuple[float, ...], *, yes: bool):
    steps = (
        Step(kind="model", input="human: the words of the user", output="the words of the agent"),
        Step(
            kind="tool",
            input="the arguments of the call",
            output="the words of the tool",
            error="the words of the error",
        ),
    )
    rewards = tuple(Reward(value=value) for value in reward)
    told = EPISODES[1].model_copy(update={"trajectory": steps, "rewards": rewards, "output": "the end of the run"})
    for own in ("the words of the agent", "the arguments of the call", "the end of the run"):
        assert quoted(own, told) is yes
    for other in ("the words of the user", "the words of the tool", "the words of the error", "File the hotel"):
        assert quoted(other, told)


def test_a_quote_is_found_in_json_with_escapes():
    said = Step(kind="tool", output='{"error": "line one\\nneeds a \\"manager\\" now"}')
    assert quoted('line one\nneeds a "manager" now', EPISODES[1].model_copy(update={"trajectory": (said,)}))


def test_all_that_an_episode_says_can_be_quoted():
    text = episode_text(EPISODES[0])
    for part in ("File the taxi ride", SAID, "The date form was wrong", "20260305"):
        assert part in text
    assert "ValueError: no account" in episode_text(EPISODES[1])
