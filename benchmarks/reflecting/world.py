"""What a world is: a form to fill in, hidden rules about its fields, and tasks drawn by seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Value = str | float
Facts = Mapping[str, Any]
"""What really is the case: what a correct form is computed from."""
Form = Mapping[str, Any]

PRACTICE, HELD_OUT = "practice", "held-out"
LONGEST = 60
"""Most characters of a text in a form; a small model may not find an end by itself."""
NEGATION = (
    r"(?:\bnot\b|n't|\bnever\b|\bavoid\b|\binstead of\b|\brather than\b|\bwithout\b)\s+(?:[\w'\"]+\s+){0,3}?['\"]?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One hidden rule: the only value that a field may have, wherever the rule applies."""

    name: str
    """The cause of failure when it is broken; unique in its world."""
    field: str
    text: str
    """The rule in words, as the environment words it."""
    wants: Callable[[Facts], Value | None]
    """The value that it demands; None where it does not apply."""
    patterns: tuple[str, ...]
    """Regular expressions that a text which states the rule matches, all of them: the condition or the field, and the
    value. Upper and lower case are one."""
    codes: tuple[str, ...] = ()
    """Values that were drawn for this rule alone; whoever writes one of them means this rule."""
    case: str = ""
    """A pattern for the case in which alone the rule applies; empty for none."""

    def stated_in(self, text: str) -> bool:
        """Whether a text states the rule; "not X" and "instead of X" do not state X."""
        return all(found(pattern, text) for pattern in self.patterns)


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is in the text other than right behind a negation."""
    affirmed = re.sub(NEGATION + f"(?:{pattern})", " ", text, flags=re.IGNORECASE)
    return re.search(pattern, affirmed, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: the words that the agent reads, and the facts that only the environment knows."""

    text: str
    facts: Facts
    own: tuple[str, ...]
    """Values that belong to this task alone: names, ids, amounts."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One environment with its hidden rules, drawn by seed.

    In some the agent is not told in its run what was wrong: the words come with the reward.
    """

    name: str
    about: str
    """The agent's instructions."""
    fields: Mapping[str, Mapping[str, Any]]
    """JSON schema of each field of the form."""
    rules: tuple[Rule, ...]
    plain: Callable[[Facts], dict[str, Value]]
    """The form of an agent that knows the task and no rule."""
    make: Callable[[random.Random, str, int], Task]
    """Draws the n-th task of a stream; held-out tasks have other words and values."""
    refusal: tuple[str, str, str]
    """What is said before the complaints, between them and after them."""
    told: Literal["result", "comment"] = "result"
    tool: str = ""
    """A tool that a form may ask for in its field `tool`; empty for none."""
    use: Callable[[Facts], str] = lambda _: ""
    """What the tool answers."""
    habits: tuple[Mapping[str, Value], ...] = ({},)
    """Each practice task is tried once per habit: values that the rollout's fields are fixed to."""

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The form's JSON schema."""
        return self.schema_with({})

    def schema_with(self, habit: Mapping[str, Value]) -> dict[str, Any]:
        """The form's JSON schema with some fields fixed."""
        properties = {name: dict(field) for name, field in self.fields.items()}
        for name, value in habit.items():
            properties[name] = {"type": "string", "enum": [value]}
        for field in properties.values():
            if field["type"] == "string" and "enum" not in field:
                field["maxLength"] = LONGEST
        return {
            "title": "form",
            "description": "The form, filled in.",
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def tasks(self, stream: str, count: int, seed: int) -> list[Task]:
        """The first `count` tasks of a stream."""
        rng = random.Random(f"{self.name} {stream} {seed}")
        return [self.make(rng, stream, number) for number in range(count)]

    def right(self, facts: Facts) -> dict[str, Value]:
        """The values that the rules demand, by rule."""
        demands = {rule.name: rule.wants(facts) for rule in self.rules}
        return {name: value for name, value in demands.items() if value is not None}

    def obedient(self, facts: Facts, known: Sequence[Rule]) -> dict[str, Value]:
        """The form of an agent that knows the task and follows these rules."""
        demands = {rule.field: value for rule in known if (value := rule.wants(facts)) is not None}
        return {**self.plain(facts), **demands}

    def broken(self, facts: Facts, form: Form) -> tuple[Rule, ...]:
        """The rules that a form breaks: the causes of its failure."""
        right = self.right(facts)
        return tuple(r for r in self.rules if r.name in right and not same(form.get(r.field), right[r.name]))

    def answer(self, broken: Sequence[Rule]) -> str:
        """What the environment says to a form that breaks these rules."""
        before, between, after = self.refusal
        return before + between.join(rule.text for rule in broken) + after if broken else ACCEPTED


ACCEPTED = "accepted"


def same(given: Any, right: Value) -> bool:
    """Whether a field has its value; texts letter by letter, numbers by value."""
    if isinstance(right, str) or isinstance(given, (str, bool)) or not isinstance(given, (int, float)):
        return bool(given == right)
    return abs(given - right) < 1e-6  # noqa: PLR2004 - room for rounding only


# Rules of one shape each, with the patterns that tell whether a text states them.


def word(name: str) -> str:
    """A pattern for a field's name, also written apart."""
    return rf"\b{name.replace('_', '[ _-]?')}s?\b"


def code(value: str) -> str:
    """A pattern for a drawn value, as a whole."""
    return rf"(?<![\w]){re.escape(value)}(?![\w])"


def always(field: str, value: str) -> Rule:
    """The field has this value in every task."""
    return Rule(
        name=field,
        field=field,
        text=f"{field} must be {value}",
        wants=lambda _: value,
        patterns=(word(field), code(value)),
        codes=(value,),
    )


def in_case(field: str, key: str, case: str, value: str) -> Rule:
    """The field has this value where a fact is the case."""
    named = rf"\b{case.rstrip('s')}"
    return Rule(
        name=f"{field} {case}",
        field=field,
        text=f"{field} must be {value} for {case}",
        wants=lambda facts: value if facts[key] == case else None,
        patterns=(named, code(value)),
        codes=(value,),
        case=named,
    )


def above(field: str, key: str, limit: int, value: str, unit: str) -> Rule:
    """The field has this value where a number is above a limit."""
    return Rule(
        name=field,
        field=field,
        text=f"{field} must be {value} above {limit} {unit}",
        wants=lambda facts: value if facts[key] > limit else None,
        patterns=(rf"\b{limit}\b", code(value)),
    )


def made(field: str, text: str, make: Callable[[Facts], Value], *patterns: str) -> Rule:
    """The field is made from the task's facts in a certain form."""
    return Rule(
        name=field,
        field=field,
        text=f"{field} {text}",
        wants=make,
        patterns=(word(field), *patterns),
    )


def draw_codes(rng: random.Random, count: int) -> list[str]:
    """Different codes such as KD47, which no task has."""
    letters = rng.sample("BDFGHKLMPRSVWXZ", count + 1)
    return [f"{letters[n]}{letters[n + 1]}{rng.randint(11, 98)}" for n in range(count)]


def text_field() -> dict[str, Any]:
    """A field of text."""
    return {"type": "string"}


def number_field() -> dict[str, Any]:
    """A field with a number."""
    return {"type": "number"}


def one_of(*values: str) -> dict[str, Any]:
    """A field with one of these values."""
    return {"type": "string", "enum": list(values)}
