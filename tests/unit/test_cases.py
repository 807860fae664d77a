"""The case for which a rule holds, completed from the evidence."""

import pytest

from reflect_middleware.cases import told_apart
from reflect_middleware.types import Edit, EditOp

COMPLETED = [
    ("zone must be WF49 for glass", "filling in the zone", "use WF49", "use WF49 (for glass)"),
    ("rejected: receipt must be attached above 25 euros", "filing a claim", "attach it", "attach it (above 25 euros)"),
    ("Queue must be XF91 for billing.", "choosing the queue", "use XF91.", "use XF91 (for billing)"),
    (
        "no refund; a manager must approve if it is a gift",
        "refunds",
        "ask a manager",
        "ask a manager (if it is a gift)",
    ),
    ("zone muss WF49 sein für Glas", "die Zone", "nimm WF49", "nimm WF49 (für Glas)"),
]
LEFT_ALONE = [
    ("zone must be WF49 for glass", "choosing the zone for glass", "use WF49"),
    ("zone must be WF49 for glass", "choosing the zone", "use WF49 for glasses"),
    ("carrier must be PS35", "choosing the carrier", "use PS35"),
    ("the search for shoes found nothing", "searching", "use fewer words"),
    ("zone must be WF49 for glass; zone must be FG18 for food", "choosing the zone", "look it up"),
    ("receipt must be attached above 25 euros", "a claim above 25", "attach the receipt"),
    ("", "choosing the zone", "use WF49"),
]


def add(because: str, when: str, do: str) -> Edit:
    return Edit(op="add", because=because, when=when, do=do)


def completed(because: str, when: str, do: str) -> Edit:
    """What becomes of it beside another rule on the same situation."""
    return told_apart([add(because, when, do), add("it must be FG18 for food", when, "use FG18 for food")])[0]


@pytest.mark.parametrize(("because", "when", "do", "wanted"), COMPLETED)
def test_advice_without_its_case_gets_it_from_its_quote(because: str, when: str, do: str, wanted: str):
    assert completed(because, when, do).do == wanted


@pytest.mark.parametrize(("because", "when", "do"), LEFT_ALONE)
def test_other_advice_stays_as_it_is(because: str, when: str, do: str):
    assert completed(because, when, do) == add(because, when, do)


@pytest.mark.parametrize(("because", "when", "do", "wanted"), COMPLETED)
def test_advice_that_is_alone_in_its_situation_stays_as_it_is(because: str, when: str, do: str, wanted: str):
    alone = (add(because, when, do), add("it must be FG18 for food", "something else", "use FG18"))
    assert told_apart(alone) == alone


@pytest.mark.parametrize("op", ["edit", "merge", "retire"])
def test_changes_of_lessons_stay_as_they_are(op: EditOp):
    edit = Edit(op=op, because="zone must be WF49 for glass", when="zones", do="use WF49")
    assert told_apart([edit, edit]) == (edit, edit)
