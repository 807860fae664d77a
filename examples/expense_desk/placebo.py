"""Lessons that have nothing to do with expenses, for the arm that shows what advice as such does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

UNRELATED = (
    ("watering tomatoes", "water the soil in the morning and keep the leaves dry"),
    ("baking bread", "let the dough rest until it has doubled in size"),
    ("pruning a hedge", "cut it narrower at the top than at the bottom"),
    ("tuning a guitar", "tune up to the note and never down to it"),
    ("packing a rucksack", "put heavy things close to the back"),
    ("painting a wall", "start with the edges and end at the window"),
    ("washing wool", "use cold water and dry it lying flat"),
    ("repairing a bicycle tyre", "roughen the rubber before the glue goes on"),
    ("playing chess", "castle early and keep the pawns in front of the king"),
    ("cooking rice", "rinse it until the water stays clear"),
    ("sharpening a knife", "hold the blade at the same angle on every stroke"),
    ("lighting a stove", "open the air vent first and close it slowly"),
    ("sailing upwind", "pull the sail in and steer close to the wind"),
    ("growing basil", "pinch off the flowers so that the leaves stay large"),
    ("taking photographs at dusk", "rest the camera on something solid"),
    ("swimming long distances", "breathe out under water, slowly and all of it"),
)
PADDING = "and take your time with it, for haste has spoiled more of this work than bad tools ever did"


def unrelated(lessons: Sequence[str]) -> list[tuple[str, str]]:
    """As many unrelated lessons, each as long as its model to the word."""
    return [as_long_as(text, when, do) for text, (when, do) in zip(lessons, cycle(UNRELATED), strict=False)]


def as_long_as(model: str, when: str, do: str) -> tuple[str, str]:
    """The lesson, cut or padded word by word to the length of the model's text."""
    words = [*do.split(), *PADDING.split()]
    room = max(len(model) - len(f"When {when}: "), len(words[0]))
    while len(words) > 1 and len(" ".join(words)) > room:
        words.pop()
    return when, " ".join(words)
