"""Worlds of the home and the school: recipes to be scaled, letters to be counted."""

from __future__ import annotations

import random

from benchmarks.reflecting.world import (
    HELD_OUT,
    Facts,
    Rule,
    Task,
    Value,
    World,
    always,
    draw_codes,
    in_case,
    made,
    number_field,
    one_of,
    text_field,
)

COUNT = "count_letters"
BY_TOOL = (
    rf"\b(?:use|call|choose|set|by|must be) (?:\w+ ){{0,3}}?(?:{COUNT}|tool)\b(?! call)"
    r"|\bspell|\b(?:one|letter) by (?:one|letter)\b"
)
"""As advice: that a lesson is about "the course of a count_letters call" is no advice to make one."""
WORDS = {
    HELD_OUT: ("parallel", "raspberry", "committee", "millennium", "bookkeeper", "possession", "assassin", "banana"),
    "practice": (
        "strawberry",
        "mississippi",
        "occurrence",
        "referrer",
        "cranberry",
        "tennessee",
        "blackboard",
        "success",
    ),
}


def recipes(seed: int) -> World:
    """Recipes to be scaled: amounts in grams for all guests, minutes, a pan for each kind of dish."""
    rng = random.Random(f"recipes {seed}")
    soup, cake, label, cook = draw_codes(rng, 4)

    def plain(facts: Facts) -> dict[str, Value]:
        return {"flour": facts["ounces"], "time": facts["hours"], "pan": "any", "label": facts["dish"], "cook": "me"}

    def task(rng: random.Random, stream: str, number: int) -> Task:
        kind = ("soup", "cake")[number % 2]
        ounces, hours = rng.randint(3, 19), rng.choice((1.5, 2, 2.5, 3))
        held = stream == HELD_OUT
        dish = rng.choice(("Tulip", "Heron", "Amber") if held else ("Rosa", "Falcon", "Ivory"))
        told = f"Card for the {kind} called {dish}: {ounces} ounces of flour, {hours} hours."
        text = f"{dish} is a {kind}. It takes {hours} hours and needs {ounces} ounces of flour." if held else told
        return Task(text=text, facts={"kind": kind, "ounces": ounces, "hours": hours, "dish": dish}, own=(dish,))

    return World(
        name="recipes",
        about="You write cards for a kitchen. Fill in the card: flour, time, pan, label, cook.",
        fields={
            "flour": number_field(),
            "time": number_field(),
            "pan": text_field(),
            "label": text_field(),
            "cook": text_field(),
        },
        rules=(
            made("flour", "must be in grams, 30 for each ounce", lambda f: 30 * f["ounces"], r"\bgrams?\b", r"\b30\b"),
            made("time", "must be in minutes, not hours", lambda f: round(60 * f["hours"]), r"\bminutes?\b"),
            in_case("pan", "kind", "soup", soup),
            in_case("pan", "kind", "cake", cake),
            made("label", f"must begin with {label}:", lambda f: f"{label}:{f['dish']}", rf"\b{label}\b"),
            always("cook", cook),
        ),
        plain=plain,
        make=task,
        refusal=("The chef says no. ", ". ", ""),
    )


def letters(seed: int) -> World:
    """Letters to be counted. That the tool counts right, and a guess does not, is said nowhere: rollouts show it."""
    rng = random.Random(f"letters {seed}")
    course, room, pupil = draw_codes(rng, 3)

    def plain(facts: Facts) -> dict[str, Value]:
        wrong = 1 if facts["count"] != 1 else 2  # what a model that counts in its head says too often
        return {"tool": "none", "count": wrong, "word": facts["word"], "course": "none", "room": "none", "pupil": "me"}

    def task(rng: random.Random, stream: str, number: int) -> Task:
        word = WORDS[stream][(number + rng.randint(0, 1) * 4) % len(WORDS[stream])]
        letter = max(sorted(set(word)), key=word.count)
        told = f"How many times is the letter {letter} in {word}?"
        text = f"Count the letter {letter} in the word {word}." if stream == HELD_OUT else told
        facts = {"word": word, "letter": letter, "count": word.count(letter)}
        return Task(text=text, facts=facts, own=(word,))

    way = Rule(
        name="count",
        field="count",
        text="count is wrong",
        wants=lambda facts: int(facts["count"]),
        patterns=(BY_TOOL,),
    )
    return World(
        name="letters",
        about=(
            "You count letters. Fill in the sheet: tool, count, word, course, room, pupil. With tool count_letters you"
            " see the word spelled and counted before you fill in the sheet again; with none you answer at once."
        ),
        fields={
            "tool": one_of("none", COUNT),
            "count": number_field(),
            "word": text_field(),
            "course": text_field(),
            "room": text_field(),
            "pupil": text_field(),
        },
        rules=(
            way,
            made(
                "word",
                "must be in capital letters",
                lambda f: f["word"].upper(),
                r"\bcapital|\bupper[- ]?case|\ball caps\b",
            ),
            always("course", course),
            always("room", room),
            always("pupil", pupil),
        ),
        plain=plain,
        make=task,
        refusal=("rejected: ", "; ", ""),
        tool=COUNT,
        use=lambda facts: f"{' '.join(facts['word'])}: {facts['count']} times {facts['letter']}",
        habits=({"tool": "none"}, {"tool": COUNT}),
    )
