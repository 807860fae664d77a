"""Worlds of the office: labels of parcels, bookings of rooms, queries, and e-mail to be sorted."""

from __future__ import annotations

import random

from benchmarks.reflecting.world import (
    HELD_OUT,
    Facts,
    Task,
    Value,
    World,
    above,
    always,
    draw_codes,
    in_case,
    made,
    number_field,
    one_of,
    text_field,
)

REJECTED = ("rejected: ", "; ", "")


def shipping(seed: int) -> World:
    """Labels of parcels: weight in grams, an account number around the order, a zone for each kind of goods."""
    rng = random.Random(f"shipping {seed}")
    glass, food, prefix, carrier = draw_codes(rng, 4)
    limit = rng.choice((100, 150, 250, 400))

    def plain(facts: Facts) -> dict[str, Value]:
        order = facts["order"]
        return {
            "weight": facts["kilos"],
            "reference": str(order),
            "zone": "standard",
            "carrier": "post",
            "insurance": "no",
        }

    def task(rng: random.Random, stream: str, number: int) -> Task:
        goods = ("glass", "food")[number % 2]
        kilos, order, value = rng.randint(12, 98) / 10, rng.randint(10_000, 99_999), rng.randint(20, 900)
        if stream == HELD_OUT:
            city = rng.choice(("Oslo", "Porto", "Ghent"))
            text = f"To {city}, order no. {order}: {goods} worth {value} euros. The scales show {kilos} kg."
        else:
            city = rng.choice(("Berlin", "Lyon", "Turin"))
            text = f"Send {kilos} kg of {goods} to {city}. Order {order}, value {value} euros."
        facts = {"kilos": kilos, "order": order, "goods": goods, "value": value}
        return Task(text=text, facts=facts, own=(str(order), city, str(value)))

    return World(
        name="shipping",
        about="You make labels for parcels. Fill in the label: weight, reference, zone, carrier, insurance.",
        fields={
            "weight": number_field(),
            "reference": text_field(),
            "zone": text_field(),
            "carrier": text_field(),
            "insurance": one_of("no", "yes"),
        },
        rules=(
            made("weight", "must be in grams, not kg", lambda f: round(f["kilos"] * 1000), r"\bgrams?\b"),
            made("reference", f"must be {prefix}-<order>", lambda f: f"{prefix}-{f['order']}", rf"\b{prefix}\b"),
            in_case("zone", "goods", "glass", glass),
            in_case("zone", "goods", "food", food),
            always("carrier", carrier),
            above("insurance", "value", limit, "yes", "euros"),
        ),
        plain=plain,
        make=task,
        refusal=REJECTED,
    )


def bookings(seed: int) -> World:
    """Bookings of meeting rooms: minutes since midnight, a floor for each kind of meeting, a title's suffix."""
    rng = random.Random(f"bookings {seed}")
    review, workshop, suffix, owner = draw_codes(rng, 4)
    limit = rng.choice((6, 8, 10, 12))

    def plain(facts: Facts) -> dict[str, Value]:
        return {
            "start": f"{facts['hour']:02}:{facts['minute']:02}",
            "title": facts["title"],
            "room": "any",
            "owner": "me",
            "catering": "no",
        }

    def task(rng: random.Random, stream: str, number: int) -> Task:
        kind = ("review", "workshop")[number % 2]
        hour, minute, people = rng.randint(8, 17), rng.choice((0, 15, 30, 45)), rng.randint(3, 20)
        names = ("Atlas", "Comet", "Delta") if stream == HELD_OUT else ("Maple", "Birch", "Cedar")
        title, clock = rng.choice(names), f"{hour:02}:{minute:02}"
        if stream == HELD_OUT:
            text = f"We are {people} people and meet at {clock} for a {kind}. Its title is {title}."
        else:
            text = f"Book a {kind} titled {title} at {clock} for {people} people."
        facts = {"kind": kind, "hour": hour, "minute": minute, "people": people, "title": title}
        return Task(text=text, facts=facts, own=(title, clock))

    return World(
        name="bookings",
        about="You book meeting rooms. Fill in the booking: start, title, room, owner, catering.",
        fields={
            "start": text_field(),
            "title": text_field(),
            "room": text_field(),
            "owner": text_field(),
            "catering": one_of("no", "yes"),
        },
        rules=(
            made(
                "start",
                "must be written as in 09h30, with an h between hours and minutes",
                lambda f: f"{f['hour']:02}h{f['minute']:02}",
                r"\d\dh\d\d|\ban? '?\"?h\b|hh?h(?:mm|\d\d)|\bh between\b",
            ),
            made("title", f"must end with /{suffix}", lambda f: f"{f['title']}/{suffix}", rf"\b{suffix}\b"),
            in_case("room", "kind", "review", review),
            in_case("room", "kind", "workshop", workshop),
            always("owner", owner),
            above("catering", "people", limit, "yes", "people"),
        ),
        plain=plain,
        make=task,
        refusal=("The booking was not made. ", ". ", "."),
        told="comment",
    )


def queries(seed: int) -> World:
    """Queries of a database: tables with a prefix, a status in code, a limit that every query needs."""
    rng = random.Random(f"queries {seed}")
    schema, paid, late, index = draw_codes(rng, 4)
    rows = rng.choice((25, 40, 60, 75))

    def plain(facts: Facts) -> dict[str, Value]:
        return {"table": facts["table"], "status": facts["status"], "limit": 0, "order_by": "date", "hint": "none"}

    def task(rng: random.Random, stream: str, number: int) -> Task:
        status = ("paid", "late")[number % 2]
        tables = ("refunds", "visits", "quotes") if stream == HELD_OUT else ("invoices", "orders", "contracts")
        table, person = rng.choice(tables), f"C-{rng.randint(1000, 9999)}"
        if stream == HELD_OUT:
            text = f"Which {table} of client {person} have the status {status}?"
        else:
            text = f"Show the {status} {table} of customer {person}."
        return Task(text=text, facts={"table": table, "status": status}, own=(person,))

    return World(
        name="queries",
        about="You turn questions into queries. Fill in: table, status, limit (0 for none), order_by, hint.",
        fields={
            "table": text_field(),
            "status": text_field(),
            "limit": number_field(),
            "order_by": text_field(),
            "hint": text_field(),
        },
        rules=(
            made("table", f"must be {schema}.<name>", lambda f: f"{schema}.{f['table']}", rf"\b{schema}\b"),
            in_case("status", "status", "paid", paid),
            in_case("status", "status", "late", late),
            made("limit", f"must be {rows}", lambda _: rows, rf"\b{rows}\b"),
            made("order_by", "must be created_at", lambda _: "created_at", r"\bcreated_at\b"),
            always("hint", index),
        ),
        plain=plain,
        make=task,
        refusal=("ERROR: query refused. ", ". ", "."),
    )


def triage(seed: int) -> World:
    """E-mail to be sorted: a queue for each topic, a tag, a subject in capitals, a day for the answer."""
    rng = random.Random(f"triage {seed}")
    billing, complaint, tag, desk = draw_codes(rng, 4)
    days = rng.choice((3, 5, 9))

    def plain(facts: Facts) -> dict[str, Value]:
        return {"queue": facts["topic"], "subject": facts["subject"], "tag": "none", "due_days": 0, "desk": "any"}

    def task(rng: random.Random, stream: str, number: int) -> Task:
        topic = ("billing", "complaint")[number % 2]
        held = stream == HELD_OUT
        subject = rng.choice(
            ("lost key", "old card", "blue form") if held else ("wrong sum", "broken lamp", "new bank")
        )
        name = rng.choice(("Okafor", "Lind", "Moreau") if held else ("Weber", "Rossi", "Novak"))
        told = f"Mail from {name}, subject '{subject}': it is about {topic}."
        text = f"{name} writes under the subject '{subject}'. Topic: {topic}." if held else told
        return Task(text=text, facts={"topic": topic, "subject": subject}, own=(name, subject))

    return World(
        name="triage",
        about="You sort e-mail. Fill in the slip: queue, subject, tag, due_days, desk.",
        fields={
            "queue": text_field(),
            "subject": text_field(),
            "tag": text_field(),
            "due_days": number_field(),
            "desk": text_field(),
        },
        rules=(
            in_case("queue", "topic", "billing", billing),
            in_case("queue", "topic", "complaint", complaint),
            made(
                "subject",
                "must be in capital letters",
                lambda f: f["subject"].upper(),
                r"\bcapital|\bupper[- ]?case|\ball caps\b",
            ),
            always("tag", tag),
            made("due_days", f"must be {days}", lambda _: days, rf"\b{days}\b"),
            always("desk", desk),
        ),
        plain=plain,
        make=task,
        refusal=("Sent back by the mail room: ", ", and ", "."),
        told="comment",
    )
