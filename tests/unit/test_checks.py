"""What a lesson must not be: of one task, a repetition of the agent's instructions, against one that stands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from reflect_middleware.batch import Batch
from reflect_middleware.checks import told_already
from reflect_middleware.curate import Limits, Plan, curate
from reflect_middleware.opposite import contradict
from reflect_middleware.refusals import refused_before
from reflect_middleware.restating import restated
from reflect_middleware.types import Edit, EditOutcome, Episode, Lesson, ReflectionRecord, Step

AT = datetime(2026, 1, 2, tzinfo=UTC)
NS = ("desk",)
QUOTE = "needs a manager above 200 EUR"

OPPOSITE = [
    ("filing a travel claim", "use account T41", "filing a travel claim", "use account H33"),
    ("when filing travel claims", "use account T41", "filing the travel claim", "use the account H33"),
    ("a date", "write it as YYYYMMDD", "writing a date", "write it as DD.MM.YYYY"),
    ("a claim", "use T41 for travel, not any other", "a claim", "use H33 for travel, not any other"),
    ("moving a box", "use a speed of at most 3", "moving a box", "use a speed of at most 5"),
    ("a timeout", "wait 5 seconds and retry", "a timeout", "wait 30 seconds and retry"),
    ("paying abroad", "pay in USD", "paying abroad", "pay in EUR"),
    ("choosing the grip", 'set it to "wide"', "choosing the grip", 'set it to "narrow"'),
    ("an amount", "give it in cents", "an amount", "do not give it in cents"),
    ("an amount", "never round the amount", "an amount", "round the amount"),
    ("joining two tables", "filter before the join", "joining two tables", "filter after the join"),
    ("sorting the list", "sort in ascending order", "sorting the list", "sort in descending order"),
    ("ein Datum", "schreibe es als JJJJMMTT", "ein Datum", "schreibe es als TT.MM.JJJJ"),
    ("eine Erstattung", "frage die Leitung", "eine Erstattung", "frage nicht die Leitung"),
    ("un remboursement", "demander au chef", "un remboursement", "ne demander jamais rien sans chef"),
    ("a refund", "answer without asking", "a refund", "answer asking"),
]
NOT_OPPOSITE = [
    ("filing a travel claim", "use account T41", "filing a meals claim", "use account H33"),
    ("filing a travel claim", "use account T41", "filing a travel claim", "set the entity to QX12"),
    ("filing a travel claim", "use account T41", "filing a travel claim", "attach the receipt above 25 EUR"),
    ("an amount", "give at most 200", "an amount", "give at least 10"),
    ("a refund above 200 EUR", "ask", "a refund above 500 EUR", "ask"),
    ("refunding an order", "refund it", "refunding an order of a premium customer", "do not refund it"),
    ("an amount", "never round the amount", "an amount", "do not round the amount"),
    ("an amount", "give it in cents", "an amount", "give it in whole cents"),
    ("a claim", "use T41 for travel and H33 for meals", "a claim", "use T41 for travel"),
    ("a claim", "use T41 for travel, not any other", "a claim", "use H33 for meals, not any other"),
    (
        "the zone",
        "use DR64 for food instead of any other zone",
        "the zone",
        "use SD49 for glass instead of any other zone",
    ),
    ("the zone", "set it to DR64 if the parcel is heavy", "the zone", "set it to SD49 if a sender is new"),
    ("a refund", "check the invoice", "a refund", "check the customer"),
    ("a refund", "do not call the customer", "a refund", "ask a manager first"),
    ("never before noon", "use T41", "before noon", "use H33"),
    ("the", "use T41", "a", "use H33"),
    ("a timeout", "wait 5 seconds and retry", "a timeout", "give up after 30 tries"),
    ("joining two tables", "do not filter before the join", "joining two tables", "filter after the join"),
]


@pytest.mark.parametrize(("when", "do", "other_when", "other_do"), OPPOSITE[:14] + OPPOSITE[15:])
def test_what_cannot_both_hold_is_a_contradiction(when: str, do: str, other_when: str, other_do: str):
    assert contradict(when, do, other_when, other_do)
    assert contradict(other_when, other_do, when, do)


@pytest.mark.parametrize(("when", "do", "other_when", "other_do"), [*NOT_OPPOSITE, OPPOSITE[14]])
def test_what_may_both_hold_is_none(when: str, do: str, other_when: str, other_do: str):
    assert not contradict(when, do, other_when, other_do)
    assert not contradict(other_when, other_do, when, do)


TOLD = """You are the desk of Acme. Always confirm the order number with the customer before any refund.
Never promise a delivery date.
refund: Pays money back. Refunds above 500 EUR need the approval of a manager.
Sei höflich und nenne dem Kunden immer das Datum der Lieferung."""


@pytest.mark.parametrize(
    ("do", "yes"),
    [
        ("Always confirm the order number with the customer before any refund", True),
        ("confirm order numbers with the customer before a refund", True),
        ("never promise any delivery date to be kept", False),
        ("nenne dem Kunden immer das Datum der Lieferung", True),
        ("refunds above 500 EUR need a manager's approval", True),
        ("refunds above 200 EUR need a manager's approval", False),
        ("refunds above 500 EUR do not need a manager's approval", False),
        ("promise a delivery date to the customer, always", False),
        ("confirm the order number with the bank before the refund of a voucher", False),
        ("confirm refund", False),
        ("call lookup before refund, so that the order number is known", False),
        ("", False),
    ],
)
def test_what_the_instructions_say_word_for_word_is_restated(do: str, *, yes: bool):
    assert bool(restated(do, TOLD)) is yes


def run(id: str = "e1", task: str = "Refund order 1182", **fields: Any) -> Episode:
    steps = (Step(kind="tool", name="refund", output=f"order 1182: denied. A refund {QUOTE}"),)
    known = {"namespace": NS, "status": "completed", "started_at": AT, "trajectory": steps}
    return Episode(id=id, task=task, **{**known, **fields})


def add(when: str = "a refund above 200 EUR", do: str = "ask a manager first", **fields: Any) -> Edit:
    return Edit(**{"op": "add", "episodes": ("E1",), "because": QUOTE, "when": when, "do": do, **fields})


def standing(when: str, do: str, **fields: Any) -> Lesson:
    known = {"id": "old", "namespace": NS, "sources": ("e0",), "created_by": "r0", "created_at": AT, "updated_at": AT}
    return Lesson(when=when, do=do, **{**known, **fields})


def plan(*edits: Edit, lessons: tuple[Lesson, ...] = (), episodes: tuple[Episode, ...] = (), **given: Any) -> Plan:
    batch = Batch(namespace=NS, episodes=episodes or (run(), run("e2", "Refund it", trajectory=())), lessons=lessons)
    existing = [(lesson, None) for lesson in lessons]
    known = {"vectors": {}, "limits": Limits(), "approval": "auto", "reflection_id": "r1", "clock": lambda: AT}
    return curate(edits, batch, existing=existing, **{**known, **given})


def test_a_rule_of_the_environment_is_a_lesson():
    (made,) = plan(add()).changes
    assert (made.lesson.status, made.lesson.held) == ("active", ())


def test_a_lesson_of_one_task_waits_as_a_candidate_and_says_why():
    made = plan(add("refunding order 1182"))
    (moved,) = made.changes
    assert (moved.lesson.status, moved.lesson.held, moved.lesson.supported) == ("candidate", ("1182",), True)
    assert made.outcomes[0].accepted
    assert made.outcomes[0].reason.startswith(
        "kept as a candidate: it names what belongs to one task only: id '1182' (E1)"
    )
    assert "say it in general words" in made.outcomes[0].reason


def test_both_reasons_to_wait_are_named():
    reason = plan(add("refunding order 1182", because="the desk never said that")).outcomes[0].reason
    assert "its quote is not in E1" in reason
    assert "id '1182' (E1)" in reason


HELD = standing("refunding order 1182", "ask a manager first", status="candidate", held=("1182",))


def test_general_words_make_a_held_candidate_active():
    edit = Edit(op="edit", lessons=("L1",), because=QUOTE, when="a refund above 200 EUR")
    (moved,) = plan(edit, lessons=(HELD,)).changes
    assert (moved.lesson.status, moved.lesson.held) == ("active", ())
    (moved,) = plan(edit, lessons=(HELD,), approval="human").changes
    assert (moved.lesson.status, moved.lesson.held, moved.lesson.replaces) == ("candidate", (), ("old",))


def test_an_edit_that_keeps_the_value_leaves_it_waiting():
    edit = Edit(op="edit", lessons=("L1",), because=QUOTE, do="ask a manager before you refund")
    (moved,) = plan(edit, lessons=(HELD,)).changes
    assert (moved.lesson.status, moved.lesson.held) == ("candidate", ("1182",))


def test_a_merge_makes_no_active_lesson_of_held_ones_unless_in_general_words():
    both = (HELD, HELD.model_copy(update={"id": "other", "do": "call them first"}))
    merge = Edit(op="merge", lessons=("L1", "L2"), because=QUOTE, when="refunding order 1182", do="ask or call them")
    made = plan(merge, lessons=both)
    assert "keeps what belongs to one task only: 1182" in made.outcomes[0].reason
    assert made.changes == ()
    general = plan(merge.model_copy(update={"when": "refunding an order"}), lessons=both)
    new = next(change.lesson for change in general.changes if change.expected_version == 0)
    assert (new.status, new.held) == ("active", ())


def test_an_edit_of_the_situation_alone_is_not_refused_for_its_old_advice():
    told = "Refunds above 200 EUR need a manager first."
    known = standing("a refund", "refunds above 200 EUR need a manager first")
    edit = Edit(op="edit", lessons=("L1",), episodes=("E1",), because=QUOTE, when="a refund or a return")
    assert plan(edit, lessons=(known,), episodes=(run(instructions=told),)).outcomes[0].accepted


def test_a_second_sighting_in_the_same_task_leaves_it_waiting_and_a_rule_makes_it_active():
    again = add("refunding order 1182")
    (moved,) = plan(again, lessons=(HELD,)).changes
    assert (moved.lesson.status, moved.lesson.held, moved.lesson.sources) == ("candidate", ("1182",), ("e0", "e1"))
    rule = (run(trajectory=(Step(kind="tool", output=f"order 1182 must be asked for; it {QUOTE}"),)),)
    (moved,) = plan(again, lessons=(HELD,), episodes=rule).changes
    assert (moved.lesson.status, moved.lesson.held) == ("active", ())


@pytest.mark.parametrize("op", ["edit", "merge"])
def test_a_lesson_that_stands_gets_no_value_of_one_task(op: str):
    known = (standing("a refund", "ask"), standing("a return", "ask", id="new"))
    edit = Edit(op=op, lessons=("L1", "L2")[: 1 + (op == "merge")], because=QUOTE, when="order 1182", do="ask them")
    made = plan(edit, lessons=known)
    assert "belongs to one task only: id '1182' (E1)" in made.outcomes[0].reason
    assert made.outcomes[0].lasting
    assert made.changes == ()


def test_what_the_agent_is_told_anyway_is_refused():
    told = "Refunds above 200 EUR need a manager first. Be kind."
    do = "refunds above 200 EUR need a manager first"
    made = plan(add(do=do), episodes=(run(instructions=told),))
    assert (
        "told so already by its own instructions: 'Refunds above 200 EUR need a manager first.'"
        in made.outcomes[0].reason
    )
    assert (made.outcomes[0].accepted, made.outcomes[0].lasting, made.changes) == (False, True, ())
    other_agent = (run(instructions=told), run("e2"))
    assert plan(add(do=do, episodes=("E1", "E2")), episodes=other_agent).outcomes[0].accepted
    assert told_already(do, ()) == ""


def test_the_opposite_of_an_active_lesson_is_refused_with_what_to_do_instead():
    known = standing("a refund", "ask a manager above 500 EUR")
    made = plan(add("a refund", "ask a manager above 200 EUR"), lessons=(known,))
    assert made.outcomes[0].reason == (
        "it contradicts lesson old (a refund: ask a manager above 500 EUR): edit or retire that lesson instead"
    )
    assert made.changes == ()
    pinned = plan(add("a refund", "ask a manager above 200 EUR"), lessons=(known.model_copy(update={"pinned": True}),))
    assert "only a person changes it, it is pinned" in pinned.outcomes[0].reason
    waiting = plan(
        add("a refund", "ask a manager above 200 EUR"), lessons=(known.model_copy(update={"status": "candidate"}),)
    )
    assert waiting.outcomes[0].accepted


def test_an_answer_may_retire_a_lesson_and_add_its_opposite_in_any_order():
    known = standing("a refund", "ask a manager above 500 EUR")
    retire = Edit(op="retire", lessons=("L1",), because=QUOTE)
    made = plan(add("a refund", "ask a manager above 200 EUR"), retire, lessons=(known,))
    assert [outcome.accepted for outcome in made.outcomes] == [True, True]
    assert [outcome.edit.op for outcome in made.outcomes] == ["add", "retire"]


def test_two_opposites_of_one_answer_are_not_both_learned():
    made = plan(add("a refund", "ask a manager above 200 EUR"), add("a refund", "ask a manager above 300 EUR"))
    assert [outcome.accepted for outcome in made.outcomes] == [True, False]


def outcome(when: str, reason: str = "it contradicts lesson old", **fields: Any) -> EditOutcome:
    known = {"edit": Edit(op="add", when=when, do="x"), "accepted": False, "reason": reason, "lasting": True}
    return EditOutcome(**{**known, **fields})


def record(number: int, *outcomes: EditOutcome, status: str = "done") -> ReflectionRecord:
    return ReflectionRecord(id=f"r{number}", namespace=NS, status=status, outcomes=outcomes)


def told(*records: ReflectionRecord, lessons: tuple[Lesson, ...] = ()) -> list[tuple[str, str]]:
    return [(o.edit.when, o.reason) for o in refused_before(records, lessons)]


def test_refusals_are_told_once_by_handles_of_now_and_not_for_ever():
    old = standing("a", "b")
    assert told(record(1, outcome("w"), outcome("W!")), record(2, outcome("w")), lessons=(old,)) == [
        ("w", "it contradicts lesson L1")
    ]
    failed = [record(n, status="failed") for n in range(6)]
    assert len(told(*failed, record(7, outcome("w")))) == 1
    assert told(*(record(n) for n in range(5)), record(6, outcome("w"))) == []
    assert len(told(record(1, *(outcome(f"w{n}") for n in range(30))))) == 10


def test_what_may_come_again_with_evidence_or_stands_by_now_is_not_told():
    assert told(record(1, outcome("w", lasting=False), outcome("v", accepted=True))) == []
    assert told(record(1, outcome("W")), lessons=(standing("w", "x"),)) == []
