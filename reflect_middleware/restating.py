"""Does a lesson only repeat what the agent is told anyway, in its own instructions or its tools' descriptions? Pure.

Measured by words, never by embeddings: advice on a matter and the instruction that is broken are near each other.
"""

from __future__ import annotations

import re

from reflect_middleware.alike import telling
from reflect_middleware.evidence import plain
from reflect_middleware.words import content, negations

LEAST = 4
"""So many words of its own advice must have; shorter advice is in every text by chance."""
SHARE = 0.9
"""Share of them that one sentence of the instructions must have."""

_SENTENCE = re.compile(r"\n+|(?<=[.!?;])\s+")


def restated(do: str, instructions: str) -> str:
    """The sentence that says it already; empty if none does.

    Numbers, codes, negations and comparisons must be the same: "above 200" does not repeat "above 500".
    """
    about, marks = content(do), telling(do)
    if len(about) < LEAST:
        return ""
    words = plain(do)
    for sentence in _SENTENCE.split(instructions):
        if f" {words} " in f" {plain(sentence)} ":
            return sentence.strip()
        shared = len(about & content(sentence)) / len(about)
        if shared >= SHARE and marks <= telling(sentence) and negations(do) % 2 == negations(sentence) % 2:
            return sentence.strip()
    return ""
