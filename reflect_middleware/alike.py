"""Do two lessons say the same? Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reflect_middleware.evidence import plain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Lesson

CARRYING = 4
"""Letters from which a word carries meaning of its own, so that its place in the sentence counts."""

_WORD = re.compile(r"[\w']+")
_TELLING = frozenset(
    re.findall(
        r"\S+",
        """no not never none without except unless neither nor cannot don't doesn't mustn't avoid stop before after
        above below over under more less most least only first last once twice thrice zero one two three four five
        six seven eight nine ten half double minimum maximum min max start end left right up down on off""",
    )
)


def telling(text: str) -> frozenset[str]:
    """The words that embedders blur and rules live by: numbers, codes, capitals, negations, comparisons."""
    words = _WORD.findall(text.replace("\u2019", "'"))
    codes = {word.casefold() for word in words if any(c.isdigit() for c in word) or (len(word) > 1 and word.isupper())}
    return frozenset(codes | ({word.casefold() for word in words} & _TELLING))


def _same_order(one: str, other: str) -> bool:
    """True if the words that both have come in the same order: "dollars to euros" is not "euros to dollars"."""
    first, second = (
        dict.fromkeys(word for word in plain(text).split() if len(word) >= CARRYING) for text in (one, other)
    )
    return [word for word in first if word in second] == [word for word in second if word in first]


def alike(one: str, vector: Vector | None, other: str, other_vector: Vector | None, threshold: float) -> bool:
    """True if two lessons are the same words, or mean the same.

    Meaning the same is a cosine of at least `threshold`, the same telling words and the same order. The cosine alone
    would merge opposites: with all-MiniLM-L6-v2, "ask above 200" and "ask above 500" are at .97, "filter before" and
    "filter after" at .96, true paraphrases between .71 and .92.
    """
    if plain(one) == plain(other):
        return True
    if vector is None or other_vector is None or float(vector @ other_vector) < threshold:
        return False
    return telling(one) == telling(other) and _same_order(one, other)


def union(*groups: Iterable[str]) -> tuple[str, ...]:
    """All ids once, in the order in which they first appear."""
    return tuple(dict.fromkeys(item for group in groups for item in group))


def weakest(lessons: Iterable[Lesson]) -> Lesson | None:
    """The lesson to give up first: fewest sources, then least recently updated.

    People's own come last, and behind them those that apply everywhere.
    """
    return min(lessons, key=_strength, default=None)


def _strength(lesson: Lesson) -> tuple[bool, bool, int, datetime, str]:
    by_hand = lesson.created_by in ("human", "import")
    return lesson.always, by_hand, len(lesson.sources), lesson.updated_at, lesson.id
