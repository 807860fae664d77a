"""Claims to file: a practice stream, and held-out claims in words that the practice never used."""

from __future__ import annotations

import random
from dataclasses import dataclass

from expense_desk.desk import KINDS, Facts

MONTH_NAMES = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One task: the words the employee uses, and the facts only the desk knows."""

    text: str
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The words that one stream of tasks is written in."""

    templates: tuple[str, ...]
    items: dict[str, tuple[str, ...]]
    amounts: tuple[str, ...]
    dates: tuple[str, ...]
    months: tuple[int, ...]


PRACTICE = Vocabulary(
    templates=(
        "Please file a {kind} claim: {item}, {amount}, {date}, cost centre {cc}.",
        "{kind} claim for cost centre {cc}: on {date} I paid {amount} for {item}.",
        "I had {item} on {date}. {amount}, cost centre {cc}, {kind}.",
    ),
    items={
        "travel": ("a taxi to the station", "a train ticket", "a bus ticket", "parking"),
        "meals": ("lunch with a client", "breakfast", "coffee for the team", "sandwiches"),
        "lodging": ("a night at Hotel Adler", "two hotel nights", "a room at the Grand", "a guest house"),
    },
    amounts=("{euros} euros", "{euros} EUR"),
    dates=("{day} {month} {year}", "{month} {day}, {year}"),
    months=(1, 2, 3, 4, 5, 6, 7),
)

HELD_OUT = Vocabulary(
    templates=(
        "Cost centre {cc} has to pay back {item} from {date}. It came to {amount} and counts as {kind}.",
        "Reimburse me: {amount} spent on {item}, {date}. Book it as {kind} under cost centre {cc}.",
        "My receipt says {amount} and {date} for {item}; that is {kind}, and my cost centre is {cc}.",
        "{item} ({kind}) on {date} cost me {amount}, to be charged to cost centre {cc}.",
    ),
    items={
        "travel": ("the ferry", "a rental bike", "an airport shuttle", "a tram pass", "the motorway toll"),
        "meals": ("pizza during the workshop", "dinner with auditors", "a sushi platter", "ice cream"),
        "lodging": ("a hostel bed", "three days in an inn", "a motel stop", "a serviced flat"),
    },
    amounts=("EUR {euros}", "€{euros}", "{euros} € in total"),
    dates=("the {day}{th} of {month} {year}", "{month} {day}{th}, {year}", "{day} {mon} {year}"),
    months=(8, 9, 10, 11, 12),
)


TEENS = range(11, 14)


def ordinal(day: int) -> str:
    """``st``, ``nd``, ``rd`` or ``th``."""
    return "th" if day in TEENS else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def draw_claims(vocabulary: Vocabulary, count: int, seed: int) -> list[Claim]:
    """The first ``count`` claims of a seed; kinds come round evenly, the rest is drawn."""
    rng = random.Random(f"{vocabulary.templates[0]} {seed}")
    return [draw_claim(vocabulary, KINDS[i % len(KINDS)], rng) for i in range(count)]


def draw_claim(vocabulary: Vocabulary, kind: str, rng: random.Random) -> Claim:
    """One claim of a kind."""
    facts = Facts(
        cents=rng.randint(301, 39_999),
        year=rng.choice((2025, 2026)),
        month=rng.choice(vocabulary.months),
        day=rng.randint(1, 28),
        cost_centre=rng.randint(1000, 9999),
        kind=kind,
    )
    return Claim(text=word(vocabulary, facts, rng), facts=facts)


def word(vocabulary: Vocabulary, facts: Facts, rng: random.Random) -> str:
    """The facts in the vocabulary's words."""
    month = MONTH_NAMES[facts.month - 1]
    date = rng.choice(vocabulary.dates).format(
        day=facts.day, th=ordinal(facts.day), month=month, mon=month[:3], year=facts.year
    )
    text = rng.choice(vocabulary.templates).format(
        kind=facts.kind,
        item=rng.choice(vocabulary.items[facts.kind]),
        amount=rng.choice(vocabulary.amounts).format(euros=f"{facts.cents / 100:.2f}"),
        date=date,
        cc=facts.cost_centre,
    )
    return text[0].upper() + text[1:]
