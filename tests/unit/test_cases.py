"""The case for which a rule holds, completed from the evidence."""

import pytest

from reflect_middleware.cases import with_case
from reflect_middleware.types import Edit

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


@pytest.mark.parametrize(("because", "when", "do", "completed"), COMPLETED)
def test_advice_without_its_case_gets_it_from_its_quote(because: str, when: str, do: str, completed: str):
    assert with_case(Edit(op="add", because=because, when=when, do=do)).do == completed


@pytest.mark.parametrize(("because", "when", "do"), LEFT_ALONE)
def test_other_advice_stays_as_it_is(because: str, when: str, do: str):
    edit = Edit(op="add", because=because, when=when, do=do)
    assert with_case(edit) is edit


def test_an_edit_that_retires_or_merges_stays_as_it_is():
    for op in ("merge", "retire"):
        edit = Edit(op=op, because="zone must be WF49 for glass", when="zones", do="use WF49")
        assert with_case(edit) is edit
