"""What of some lessons must survive in the one that takes their place: every value, condition and negation. Pure.

A merge that only reads well is worth less than the lessons it replaces. What is unsure is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from reflect_middleware.evidence import plain
from reflect_middleware.forms import values_in
from reflect_middleware.opposite import values
from reflect_middleware.words import NEGATIONS, content, negations, stem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reflect_middleware.types import Lesson

KEPT: Final = 0.5
"""Share of the telling words of each parent's advice that the merged lesson must have."""

_WORD = re.compile(r"[\w']+")
_CLAUSE = re.compile(
    r"[;:]|[.,!?](?=\s|$)|\b(?:but|and|or|otherwise|while|whereas|aber|und|oder|sonst|mais|et|ou|pero|y)\b"
)
_NUMBERS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve half double once twice thrice null eins zwei
    drei vier fünf sechs sieben acht neun zehn deux trois quatre cinq huit neuf dix dos tres cuatro cinco seis siete
    ocho nueve diez""".split()  # noqa: SIM905 - a list to read
)
_SENSES: Final = {
    "above": "above over more exceed exceeds exceeding beyond greater larger longer higher über mehr plus más",
    "below": "below under less fewer smaller shorter lower unter weniger moins menos",
    "at most": "most maximum max until höchstens bis maximal",
    "at least": "least minimum min mindestens",
    "before": "before prior earlier vor zuerst avant antes",
    "after": "after later following afterwards nach danach après después",
    "except": "except unless without excluding außer ohne sauf sans excepto salvo sin",
    "only": "only solely exclusively just nur seulement sólo solo",
}
_SENSE = {word: name for name, words in _SENSES.items() for word in words.split()}


def lost(when: str, do: str, parents: Sequence[Lesson]) -> str:
    """Why these words may not stand for the parents; empty if they may."""
    text = f"{when}, {do}"
    for reason in (
        _missing_values(text, parents),
        _new_values(text, parents),
        _changed_senses(text, parents),
        _turned_values(text, parents),
        _dropped(text, parents),
        _unnamed_cases(text, parents),
        _crossed(when, do, parents),
    ):
        if reason:
            return reason
    return ""


def _figures(text: str) -> frozenset[str]:
    """Numbers, codes, capitals, quoted words; numbers in words too."""
    return values(text) | {word.casefold() for word in _WORD.findall(text) if word.casefold() in _NUMBERS}


def _missing_values(text: str, parents: Sequence[Lesson]) -> str:
    words = f" {plain(text)} "
    for parent in parents:
        missing = sorted(v for v in _figures(parent.text) if v not in _figures(text) and f" {plain(v)} " not in words)
        if missing:
            return f"it drops {_listed(missing)} of lesson {parent.id}; every number, code and limit must stay"
    return ""


def _new_values(text: str, parents: Sequence[Lesson]) -> str:
    known = " ".join(lesson.text for lesson in parents)
    words = f" {plain(known)} "
    new = [v for v in sorted(_figures(text) - _figures(known)) if f" {plain(v)} " not in words]
    new += [value.text for value in values_in(text) if f" {plain(value.text)} " not in words]
    said = _listed(sorted(set(new)))
    return f"it says {said}, which none of the lessons says; invent nothing" if new else ""


def _senses(text: str) -> frozenset[str]:
    return frozenset(_SENSE[word.casefold()] for word in _WORD.findall(text) if word.casefold() in _SENSE)


def _changed_senses(text: str, parents: Sequence[Lesson]) -> str:
    """Words such as above, before, except and not: all that a parent has, and none that no parent has."""
    mine, known = _senses(text), frozenset[str]().union(*(_senses(lesson.text) for lesson in parents))
    if gone := sorted(known - mine):
        return f"it drops a condition: {_listed(gone)}; keep every condition and limit"
    if new := sorted(mine - known):
        return f"it says {_listed(new)}, which none of the lessons says"
    negated = any(negations(lesson.text) for lesson in parents)
    if negated != bool(negations(text)):
        return "it drops what must not be done" if negated else "it forbids what none of the lessons forbids"
    return ""


def _turned_values(text: str, parents: Sequence[Lesson]) -> str:
    """A value must stand in the company in which its parent has it: not 5 where it said 5, above 5 as above 5."""
    around = _company(text)
    for parent in parents:
        for value, sides in _company(f"{parent.when}, {parent.do}").items():
            if value in around and not sides & around[value]:
                return f"it turns round what lesson {parent.id} says of {value!r}"
    return ""


def _company(text: str) -> dict[str, frozenset[tuple[bool, frozenset[str]]]]:
    """By value: whether the clauses that have it are negated, and which senses they have."""
    found: dict[str, frozenset[tuple[bool, frozenset[str]]]] = {}
    for clause in _CLAUSE.split(text):
        negated = any(word.casefold() in NEGATIONS for word in _WORD.findall(clause.replace("\u2019", "'")))
        for value in values(clause):
            found[value] = found.get(value, frozenset()) | {(negated, _senses(clause))}
    return found


def _dropped(text: str, parents: Sequence[Lesson]) -> str:
    """A parent of whose advice too little is left."""
    mine = content(text)
    for parent in parents:
        advice = content(parent.do)
        if advice and len(advice & mine) < KEPT * len(advice):
            return f"it drops the advice of lesson {parent.id}: {parent.do[:120]}"
    return ""


def _cases(parents: Sequence[Lesson]) -> list[frozenset[str]]:
    """For each parent the words of its situation that no other parent's has."""
    about = [content(lesson.when) for lesson in parents]
    return [mine.difference(*(about[:n] + about[n + 1 :])) for n, mine in enumerate(about)]


def _unnamed_cases(text: str, parents: Sequence[Lesson]) -> str:
    """Where the advice differs from case to case, each case must still be named."""
    if len({content(lesson.do) for lesson in parents}) <= 1:
        return ""
    mine = content(text)
    for parent, case in zip(parents, _cases(parents), strict=True):
        if len(case & mine) < KEPT * len(case):
            words = [word for word in plain(parent.when).split() if stem(word) in case - mine]
            return f"it no longer says for which case the advice of lesson {parent.id} is: {_listed(words)}"
    return ""


def _crossed(when: str, do: str, parents: Sequence[Lesson]) -> str:
    """The values that only one parent has must come in the order in which its cases do: not the one's for the other."""
    set_by = [values(lesson.do) for lesson in parents]
    own = [mine.difference(*(set_by[:n] + set_by[n + 1 :])) for n, mine in enumerate(set_by)]
    paired = [(case, some) for case, some in zip(_cases(parents), own, strict=True) if case and some]
    words = plain(do).split()
    if any(not case & {stem(word) for word in words} for case, _ in paired):
        words = plain(f"{when}, {do}").split()
    firsts = [{plain(value).split()[0] for value in some if plain(value)} for _, some in paired]
    by_case = _order([[stem(word) in case for word in words] for case, _ in paired])
    by_value = _order([[word in some for word in words] for some in firsts])
    return (
        "" if by_case == by_value else "it gives the value of one case to another, or in another order than the cases"
    )


def _order(marks: Sequence[Sequence[bool]]) -> list[int]:
    """The numbers of the rows by where their first mark is."""
    return sorted(range(len(marks)), key=lambda n: marks[n].index(True) if True in marks[n] else -1)


def _listed(items: Iterable[str]) -> str:
    return ", ".join(map(repr, items))
