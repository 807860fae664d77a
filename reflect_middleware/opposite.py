"""Do two lessons contradict each other? Pure, and cautious: true only where both cannot hold.

Embeddings cannot tell: "at most 200" and "at most 500" are nearer to each other than most paraphrases. So words do.
"""

from __future__ import annotations

import re

from reflect_middleware.words import content, negations

SAME_FRAME = 0.6
"""Share of the words around two values that both pieces of advice must have for the values to rival each other."""
SAME_WORDS = 0.8
"""Share of the words that advice and its negation must have in common."""

_TOKEN = re.compile(r"[\w'./:%-]*\w%?")
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|`([^`]+)`')
_PAIRS = (
    *(("before", "after"), ("above", "below"), ("over", "under"), ("first", "last"), ("more", "less")),
    *(("most", "least"), ("maximum", "minimum"), ("max", "min"), ("ascending", "descending"), ("upper", "lower")),
    *(("uppercase", "lowercase"), ("left", "right"), ("on", "off"), ("enable", "disable"), ("start", "end")),
    *(("accept", "reject"), ("true", "false"), ("vor", "nach"), ("avant", "après")),
    *(("antes", "después"), ("mindestens", "höchstens")),
)
_CASE = re.compile(
    r"\b(?:for|if|when|in case of|bei|für|falls|wenn|pour|si|para|cuando)\s+(?:(?:an?|the|any)\s+)?([^\W\d]\w+)",
    re.IGNORECASE,
)
"""The case for which a piece of advice is given, inside of the advice."""
_SIDES = {word: (number, side) for number, pair in enumerate(_PAIRS) for side, word in enumerate(pair)}
_UP = frozenset("above over more most maximum max höchstens upto until".split())  # noqa: SIM905 - a list to read
_DOWN = frozenset("below under less least minimum min mindestens from".split())  # noqa: SIM905 - a list to read


def contradict(when: str, do: str, other_when: str, other_do: str) -> bool:
    """True if both speak of the same situation and advise the opposite, or another value for the same thing.

    An exception ("of a premium customer") makes another situation, and an upper and a lower bound can both hold.
    """
    if not _same_situation(when, other_when):
        return False
    return _rivals(do, other_do) or _turned_round(do, other_do)


def _same_situation(one: str, other: str) -> bool:
    """The same words, whatever their order and the small words between them, values and negations included."""
    about = content(one)
    return bool(about) and about == content(other) and negations(one) % 2 == negations(other) % 2


def values(text: str) -> frozenset[str]:
    """What a rule sets: numbers, codes, capitals, and what stands in quotation marks."""
    quoted = {next(filter(None, groups)).casefold() for groups in _QUOTED.findall(text)}
    words = _TOKEN.findall(_QUOTED.sub(" ", text))
    coded = {word.casefold() for word in words if any(c.isdigit() for c in word) or (len(word) > 1 and word.isupper())}
    return frozenset(quoted | coded)


def _shared(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def _frame(text: str) -> frozenset[str]:
    """The words around the values."""
    bare = _TOKEN.sub(
        lambda m: " " if any(c.isdigit() for c in m[0]) or (len(m[0]) > 1 and m[0].isupper()) else m[0],
        _QUOTED.sub(" ", text),
    )
    return content(bare)


def _rivals(one: str, other: str) -> bool:
    """The same words but for one value."""
    mine, theirs = values(one) - values(other), values(other) - values(one)
    if len(mine) != 1 or len(theirs) != 1 or negations(one) % 2 != negations(other) % 2:
        return False
    if _bounds(one) != _bounds(other):  # at most 20, at least 5: both hold
        return False
    here, there = _cases(one), _cases(other)
    if here and there and here.isdisjoint(there):  # T41 for travel, H33 for meals
        return False
    return _shared(_frame(one), _frame(other)) >= SAME_FRAME


def _bounds(text: str) -> tuple[bool, bool]:
    """Whether it bounds something from above, and from below."""
    words = _plain_words(text)
    return bool(words & _UP), bool(words & _DOWN)


def _cases(text: str) -> frozenset[str]:
    """The stems of the words that name a case."""
    return content(" ".join(_CASE.findall(text)))


def _plain_words(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _TOKEN.findall(text))


def _turned_round(one: str, other: str) -> bool:
    """The same words and values, once with a negation or the other word of a pair, once without."""
    if values(one) != values(other):
        return False
    mine, theirs = _plain_words(one), _plain_words(other)
    sides = [{_SIDES[word] for word in words if word in _SIDES} for words in (mine - theirs, theirs - mine)]
    flipped = {(number, 1 - side) for number, side in sides[0]} & sides[1]
    negated = negations(one) % 2 != negations(other) % 2
    if bool(flipped) == negated:  # neither, or both: "not before" is "after"
        return False
    alike = [content(" ".join(word for word in words if word not in _SIDES)) for words in (mine, theirs)]
    return _shared(alike[0], alike[1]) >= SAME_WORDS and bool(alike[0] & alike[1])
