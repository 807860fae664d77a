"""What a learned text is worth, by the rules of its world: no model judges."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.reflecting.world import Rule, Task, World, found, word

Kind = Literal["useful", "repeat", "wrong", "instance", "junk"]
KINDS: tuple[Kind, ...] = ("useful", "repeat", "wrong", "instance", "junk")
CLAIM = re.compile(r"\b[A-Z]{1,4}[-/]?\d+\b|\b\d+(?:\.\d+)?\b|'[^']{1,30}'|\"[^\"]{1,30}\"")
"""A particular value: a code, a number, something in quotation marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One learned text, the rules that it states, and what kind it is."""

    text: str
    states: frozenset[str]
    kind: Kind


def judged(world: World, texts: Sequence[str], tasks: Sequence[Task]) -> list[Verdict]:
    """Judge texts in their order.

    The first of these that holds is a text's kind. `instance`: it has a value of one practice task. `wrong`: it has
    the drawn value of a rule that it does not state, e.g. without its condition; or it has a rule for all tasks under a
    condition; or it names a ruled field, states no
    rule, and claims a particular value. `junk`: it states no rule. `repeat`: earlier useful texts state all it states.
    `useful`: it states a rule that none before it does.
    """
    rules = " ".join(rule.text for rule in world.rules)
    own = {value for task in tasks for value in task.own if value not in rules}
    known: set[str] = set()
    verdicts = []
    for text in texts:
        states = states_of(world, text)
        kind = _kind(world, text, states, own, known)
        known |= states if kind == "useful" else set()
        verdicts.append(Verdict(text=text, states=states, kind=kind))
    return verdicts


def states_of(world: World, text: str) -> frozenset[str]:
    """The rules that a text states. Under the condition of another rule alone, a rule for all tasks is not stated."""
    states = {rule.name for rule in world.rules if rule.stated_in(text)}
    if narrow(world, text, states):
        states = {rule.name for rule in world.rules if rule.name in states and rule.case}
    return frozenset(states)


def narrow(world: World, text: str, states: Collection[str]) -> bool:
    """Whether a text names some cases, not all, whose rules it does not state: what else it says is too narrow."""
    cases = [rule for rule in world.rules if rule.case]
    named = [rule for rule in cases if rule.name not in states and found(rule.case, text)]
    return 0 < len(named) < len(cases)


def stated(world: World, verdicts: Sequence[Verdict]) -> float:
    """The share of the world's hidden rules that are stated by a text, of whatever kind."""
    return len(frozenset[str]().union(*(verdict.states for verdict in verdicts))) / len(world.rules)


def _kind(world: World, text: str, states: frozenset[str], own: set[str], known: set[str]) -> Kind:
    if any(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) for value in own):
        return "instance"
    if any(rule.stated_in(text) for rule in world.rules if rule.name not in states):
        return "wrong"
    if any(_misused(rule, text) for rule in world.rules if rule.name not in states):
        return "wrong"
    if not states:
        names_field = any(found(word(rule.field), text) for rule in world.rules)
        return "wrong" if names_field and CLAIM.search(text) else "junk"
    return "repeat" if states <= known else "useful"


def _misused(rule: Rule, text: str) -> bool:
    return any(found(rf"(?<!\w){re.escape(code)}(?!\w)", text) for code in rule.codes)
