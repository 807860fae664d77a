"""The labelled set: lessons as the project keeps them, tasks as users put them, and which lessons fit which task.

Written for this project, by hand, before anything was measured on it. A domain is either for tuning or held out, with
all its tasks, so that what was tuned is judged on lessons and tasks of another kind; every task is searched among the
lessons of all domains. `taught.jsonl` has the task that could have taught each lesson, in the order of the lessons:
written later, without looking at the tasks that are searched for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reflect_middleware.types import Lesson

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
HELD_OUT = frozenset(
    (
        *("sql", "travel", "python", "sheets", "expenses", "support"),
        *("hiring", "tutoring", "git", "insurance", "zh_shop", "es_restaurante"),
    )
)
"""Domains that nothing is chosen on. Never change this: add new domains to either part."""
Part = Literal["tuning", "held out"]
COMMON = frozenset(
    """a about all an and any are as at be been but by can could did do does for from get give has have he her here him
    his how i if in into is it its just me more my no not of off on one or our out over please she should so some
    something than that the their them then there they this to up us was we were what when where which who why will
    with would yes you your""".split()  # noqa: SIM905 - a list of words is read as words
)
"""Words that say nothing about a matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One task with the ids of the lessons that fit it."""

    id: str
    """Of the form `domain-q3`."""
    kind: str
    """What makes it hard:

    - `paraphrase`: the words of the lesson do not occur;
    - `near_miss`: another lesson of the domain has much the same words and another condition;
    - `cross_lingual`: task and lesson are in different languages;
    - `same_language`: both are in one other than English;
    - `long`: the matter is one sentence of many;
    - `none`: far from every lesson; `none_near`: in a lesson's domain, and yet none fits.
    """
    task: str
    fits: frozenset[str]
    """Ids of lessons; empty if none fits."""

    @property
    def part(self) -> Part:
        """Whether defaults may be chosen on it."""
        return "held out" if domain(self.id) in HELD_OUT else "tuning"


def domain(name: str) -> str:
    """The domain of a lesson's or a task's id."""
    return name.rpartition("-")[0]


def lessons() -> tuple[Lesson, ...]:
    """All lessons of the set, as if each had been learned from its task."""
    taught = {line["id"]: line["task"] for line in _lines("taught.jsonl")}
    return tuple(Lesson(namespace=("labelled",), task=taught[line["id"]], **line) for line in _lines("lessons.jsonl"))


def by_hand(learned: Iterable[Lesson]) -> tuple[Lesson, ...]:
    """The lessons as if a person had written them: no task taught them."""
    return tuple(lesson.model_copy(update={"task": ""}) for lesson in learned)


def tasks() -> tuple[Labelled, ...]:
    """All tasks of the set."""
    return tuple(Labelled(**{**found, "fits": frozenset(found["fits"])}) for found in _lines("tasks.jsonl"))


def _lines(name: str) -> list[Any]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def telling(text: str) -> frozenset[str]:
    """The words of a text that say something, without their endings."""
    return frozenset(word[:5] for word in re.findall(r"[^\W\d_]{2,}", text.casefold()) if word not in COMMON)


def shared(task: str, lesson: Lesson) -> float:
    """Which share of a task's words the lesson has too, from 0 to 1."""
    words = telling(task)
    return len(words & telling(lesson.text)) / len(words) if words else 0.0
