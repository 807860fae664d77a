"""What a sentence is about: its words without those that every sentence has. Pure."""

from __future__ import annotations

import re
from typing import Final

from reflect_middleware.evidence import plain

STEM: Final = 5
"""Words of more letters are the same if they begin with the same so many letters: account, accounts, accounting."""

NEGATIONS: Final = frozenset(
    """no not never none without except unless neither nor cannot don't doesn't mustn't shouldn't won't isn't avoid stop
    nicht kein keine keinen keinem keiner nie niemals ohne weder pas jamais sans aucun aucune ne nunca sin jamás ningún
    ninguna non mai senza nessun nessuna não nem sem niet geen nooit zonder""".split()  # noqa: SIM905 - a list to read
)
"""Words that turn a rule round, in the languages that we know some of."""

EMPTY: Final = frozenset(
    """a an the this that these those it its they them their there here of for to in on at by with from into as and or
    but if when while then than so be is are was were been being do does did has have had can could may might will would
    shall should must need needs please also any all each every some such one you your i my we our he she his her
    der die das den dem des ein eine einen einem einer eines und oder aber wenn falls beim bei zu zum zur von vom für
    mit auf im in an am ist sind war wird werden sein soll muss müssen man sie er es ihr
    le la les un une des du de et ou si quand lors pour avec dans sur est sont être au aux ce cette il elle
    el los las una unos unas y o cuando para con en es son ser al del lo se
    setting set using use used uses choosing choose writing write giving give filling fill filing making make doing
    entering enter putting put submitting submit sending send case cases situation time times task tasks always must
    only exactly value values""".split()  # noqa: SIM905 - a list to read
)
"""Words that tell no two situations or pieces of advice apart."""

_WORD = re.compile(r"[\w']+")


def negations(text: str) -> int:
    """How many words of it turn something round."""
    words = [word.casefold() for word in _WORD.findall(text.replace("\u2019", "'"))]
    return sum(word in NEGATIONS for word in words)


def stem(word: str) -> str:
    """The beginning of a word, which its forms share; a word with a digit is whole."""
    return word if any(c.isdigit() for c in word) else word[:STEM]


def content(text: str) -> frozenset[str]:
    """The stems of the words that tell what it is about; negations are no part of it."""
    kept = (word for word in plain(text).split() if word not in EMPTY and word not in NEGATIONS)
    return frozenset(stem(word) for word in kept if len(word) > 1 or word.isdigit())
