"""Two worlds that nothing is tuned on: nobody looks at their prompts or answers while something is changed."""

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


def access(seed: int) -> World:
    """Passes for a building: a level for each role, hours of validity, an escort from some floor on."""
    rng = random.Random(f"access {seed}")
    cleaner, auditor, gate, prefix = draw_codes(rng, 4)
    floor = rng.choice((2, 3, 4))

    def plain(facts: Facts) -> dict[str, Value]:
        return {"badge": facts["badge"], "valid": facts["days"], "level": "normal", "gate": "main", "escort": "no"}

    def task(rng: random.Random, stream: str, number: int) -> Task:
        role = ("cleaner", "auditor")[number % 2]
        badge, days, floor = str(rng.randint(1000, 9999)), rng.randint(1, 9), rng.randint(1, 8)
        held = stream == HELD_OUT
        name = rng.choice(("Ines", "Tariq", "Yuki") if held else ("Marta", "Jonas", "Priya"))
        told = f"{name}, {role}, badge {badge}, works on floor {floor} for {days} days."
        text = (
            f"For {days} days the {role} {name} needs to go to floor {floor}; the badge is {badge}." if held else told
        )
        facts = {"role": role, "badge": badge, "days": days, "floor": floor}
        return Task(text=text, facts=facts, own=(name, badge))

    return World(
        name="access",
        about="You write passes for a building. Fill in the pass: badge, valid, level, gate, escort.",
        fields={
            "badge": text_field(),
            "valid": number_field(),
            "level": text_field(),
            "gate": text_field(),
            "escort": one_of("no", "yes"),
        },
        rules=(
            made("badge", f"must be {prefix}#<number>", lambda f: f"{prefix}#{f['badge']}", rf"\b{prefix}\b"),
            made("valid", "must be in hours, 24 for each day", lambda f: 24 * f["days"], r"\bhours?\b"),
            in_case("level", "role", "cleaner", cleaner),
            in_case("level", "role", "auditor", auditor),
            always("gate", gate),
            above("escort", "floor", floor, "yes", "(the floor)"),
        ),
        plain=plain,
        make=task,
        refusal=("Pass denied: ", " / ", ""),
    )


def routing(seed: int) -> World:
    """Tickets of a help desk: a team for each product, a severity as a number, an id in a form of its own."""
    rng = random.Random(f"routing {seed}")
    printer, laptop, site, channel = draw_codes(rng, 4)
    severity = rng.choice((30, 40, 70))

    def plain(facts: Facts) -> dict[str, Value]:
        return {"ticket": facts["ticket"], "team": "support", "severity": 1, "site": "unknown", "channel": "mail"}

    def task(rng: random.Random, stream: str, number: int) -> Task:
        product = ("printer", "laptop")[number % 2]
        ticket = str(rng.randint(10_000, 99_999))
        held = stream == HELD_OUT
        name = rng.choice(("Silva", "Kowalski", "Haddad") if held else ("Becker", "Costa", "Larsen"))
        told = f"Ticket {ticket} by {name}: the {product} does not start."
        text = f"{name} says that a {product} makes a noise (no. {ticket})." if held else told
        return Task(text=text, facts={"product": product, "ticket": ticket}, own=(ticket, name))

    return World(
        name="routing",
        about="You route tickets of a help desk. Fill in: ticket, team, severity, site, channel.",
        fields={
            "ticket": text_field(),
            "team": text_field(),
            "severity": number_field(),
            "site": text_field(),
            "channel": text_field(),
        },
        rules=(
            made("ticket", "must be <number>/IT", lambda f: f"{f['ticket']}/IT", r"/IT\b"),
            in_case("team", "product", "printer", printer),
            in_case("team", "product", "laptop", laptop),
            made("severity", f"must be {severity}", lambda _: severity, rf"\b{severity}\b"),
            always("site", site),
            always("channel", channel),
        ),
        plain=plain,
        make=task,
        refusal=("Not routed. ", ". ", "."),
        told="comment",
    )
