"""What must survive of the lessons that one lesson replaces: a merge that loses or invents something is refused."""

from __future__ import annotations

import pytest

from reflect_middleware.surviving import lost
from reflect_middleware.types import Lesson

BIG = ("refunding more than 200 EUR", "ask a manager")
PREMIUM = ("refunding a premium customer", "refund up to 500 EUR without a manager")
TAXI = ("filing a taxi", "set category to T41 and add the route")
TRAIN = ("filing a train ticket", "set category to T42 and add the route")
NO_WEEKEND = ("shipping an order", "do not ship on Sundays")
SPELL = ("counting letters in a word", "spell the word out and count by tool")
FLIGHT = ("filing a flight", "set category to T43 and add the route")
MOVES = ("moving a red box", "grip it hard")
LIFTS = ("lifting a blue box", "grip it hard")
DIGITS = ("counting digits in a number", "write the digits apart and count by tool")

Texts = tuple[str, str]


def reason(parents: tuple[Texts, ...], merged: Texts) -> str:
    lessons = [Lesson(id=f"p{n}", namespace=("n",), when=when, do=do) for n, (when, do) in enumerate(parents, 1)]
    return lost(*merged, lessons)


@pytest.mark.parametrize(
    ("parents", "merged"),
    [
        ((TAXI, TRAIN), ("filing travel", "set category to T41 for a taxi, to T42 for a train; add the route")),
        ((TAXI, TRAIN), ("filing a taxi or train ticket", "set category to T41 or T42, add the route")),
        ((MOVES, LIFTS), ("handling any box", "grip it hard")),
        ((TAXI, TRAIN), ("filing travel", "add the route; set category to T42 (train) or T41 (taxi)")),
        (
            (BIG, PREMIUM),
            (
                "refunding",
                "ask a manager for more than 200 EUR; refund a premium customer up to 500 EUR without a manager",
            ),
        ),
        ((SPELL, DIGITS), ("counting letters or digits", "write or spell the word or the digits apart, count by tool")),
        (
            (NO_WEEKEND, TAXI),
            ("shipping or filing a taxi", "never ship on Sundays; set category to T41 and add the route"),
        ),
    ],
)
def test_words_may_change_where_all_that_counts_stays(parents: tuple[Texts, ...], merged: Texts) -> None:
    assert reason(parents, merged) == ""


@pytest.mark.parametrize(
    ("parents", "merged", "says"),
    [
        ((TAXI, TRAIN), ("filing travel", "set category to T41 and add the route"), "drops 't42' of lesson p2"),
        ((TAXI, TRAIN), ("filing travel", "set category to T41, T42 or T43, add the route"), "says 't43', which none"),
        ((TAXI, TRAIN), ("filing travel", "T41 or T42"), "drops the advice of lesson p1"),
        (
            (TAXI, TRAIN),
            ("filing travel", "set category to T41, T42, add the route, ask anna@acme.com"),
            "anna@acme.com",
        ),
        ((TAXI, TRAIN), ("filing travel", "never set category T41, T42; add the route"), "forbids what none"),
        ((TAXI, TRAIN), ("filing travel", "set category T41 or T42 and add the route only"), "says 'only'"),
        (
            (BIG, PREMIUM),
            ("refunding", "ask a manager for 200 EUR; refund premium up to 500 EUR without a manager"),
            "'above'",
        ),
        (
            (NO_WEEKEND, TAXI),
            ("shipping, taxi", "ship on Sundays; set category to T41 and add the route"),
            "must not be done",
        ),
        (
            (BIG, NO_WEEKEND),
            ("shipping, refunding", "do not ask a manager for more than 200 EUR, ship on Sundays"),
            "turns round",
        ),
        ((SPELL, DIGITS), ("counting", "count by tool"), "drops the advice"),
        ((TAXI, TRAIN, FLIGHT), ("filing a ticket", "set category to T41, T42, or T43; add the route"), "which case"),
        ((TAXI, TRAIN), ("filing", "taxi: set category to T42, train ticket: T41; add the route"), "of one case"),
        ((TAXI, TRAIN), ("filing a train ticket or taxi", "set category to T41 or T42, add the route"), "of one case"),
        ((SPELL, DIGITS), ("counting", "spell the word, write digits apart, count by tool twice"), "'twice'"),
    ],
)
def test_what_would_be_lost_or_invented_is_said(parents: tuple[Texts, ...], merged: Texts, says: str) -> None:
    assert says in reason(parents, merged)


REFUNDS = ("refunding an order of a premium customer", "refund up to 500 EUR without a manager")
REFUNDED = (
    "order above 200 EUR: ask a manager before refunding; premium customer: refund up to 500 EUR without a manager"
)
BOOKED = "more than 8 people: choose room B12; at most 8 people: choose room A03; on a Friday: book before 15:00 only"
ROOMS = (
    ("booking a meeting room for more than 8 people", "choose room B12"),
    ("booking a meeting room for at most 8 people", "choose room A03"),
)
QUERIES = (
    ("querying orders by customer", "pass the customer id as text, not as a number"),
    ("querying invoices by customer", "pass the customer id as text, not as a number"),
    ("querying shipments by customer", "pass the customer id as text and set limit to 50"),
)


@pytest.mark.parametrize(
    ("parents", "merged", "says"),
    [
        (
            (TAXI, TRAIN, FLIGHT),
            ("filing an expense for a ticket", "set category to T41, T42, or T43; add the route"),
            "which case",
        ),
        (
            ROOMS,
            (
                "booking a meeting room",
                BOOKED,
            ),
            "'15:00', which none",
        ),
        (
            QUERIES,
            ("querying orders, invoices, or shipments by customer", "customer id: pass as text; limit: 50"),
            "must not be done",
        ),
        (
            (("refunding an order above 200 EUR", "ask a manager before refunding"), REFUNDS),
            (
                "refunding an order",
                REFUNDED,
            ),
            "",
        ),
    ],
)
def test_what_a_model_of_1_5_billion_parameters_wrote(parents: tuple[Texts, ...], merged: Texts, says: str) -> None:
    said = reason(parents, merged)
    assert says in said
    assert bool(said) == bool(says)
