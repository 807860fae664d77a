"""What an embedder does on the labelled set, and the defaults that follow from its tuning part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval.labelled import Labelled, Part
from reflect_middleware.embed import Embedder
from reflect_middleware.retrieve import Limits, choose, estimate_tokens
from reflect_middleware.types import Lesson

FLOORS = (-1.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
STEP = 0.05
MOST = 10
"""The largest `top_k` that is looked at."""
ENOUGH = 0.9
"""`top_k` is the smallest that finds this share of what `MOST` finds."""
TOGETHER = 8
"""Least `top_k`: in the worlds of `make bench-reflect` six rules fall on one agent, and some lessons are not right."""
TOKEN_BUDGET = 600
SPARE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is shown for one task, with some `top_k` and floor."""

    task: Labelled
    shown: tuple[str, ...]
    """Ids, best first."""

    @property
    def right(self) -> int:
        """How many of the shown lessons fit."""
        return sum(i in self.task.fits for i in self.shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Shares from 0 to 1, over some tasks."""

    tasks: int
    """How many of them have a lesson that fits."""
    recall: float
    """Share of these tasks that are shown a lesson that fits."""
    hit_at_1: float
    """Share of these tasks whose nearest lesson is shown and fits."""
    wrong: float
    """Share of the lessons shown for these tasks that do not fit."""
    shown: float
    """Lessons shown for each of these tasks."""
    idle: float
    """Share of the tasks that no lesson fits that are shown any."""
    idle_shown: float
    """Lessons shown for each of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The labelled set as one embedder sees it."""

    lessons: Sequence[Lesson]
    tasks: Sequence[Labelled]
    cosines: NDArray[np.float32]
    """Of each task (row) with each lesson (column)."""

    def found(self, part: Part, top_k: int, floor: float) -> list[Found]:
        """What the tasks of a part are shown, by the same choice as a run makes."""
        limits = Limits(top_k=top_k, token_budget=TOKEN_BUDGET, min_similarity=floor)
        return [
            Found(task=task, shown=self._shown(row, limits)) for row, task in enumerate(self.tasks) if task.part == part
        ]

    def _shown(self, row: int, limits: Limits) -> tuple[str, ...]:
        best = np.argsort(-self.cosines[row], kind="stable")[: limits.top_k + SPARE]
        candidates = [(self.lessons[column], float(self.cosines[row, column])) for column in best]
        hits = [x for x in choose(candidates, [], limits, estimate_tokens).considered if x.shown]
        return tuple(hit.lesson.id for hit in sorted(hits, key=lambda hit: -hit.similarity))


def rank(embedder: Embedder, lessons: Sequence[Lesson], tasks: Sequence[Labelled]) -> Ranked:
    """Embed the set and compare everything with everything."""
    columns = np.array(embedder.embed_documents([lesson.searched for lesson in lessons]))
    rows = np.array([embedder.embed_query(task.task) for task in tasks])
    return Ranked(lessons=lessons, tasks=tasks, cosines=rows @ columns.T)


def scores(found: Sequence[Found]) -> Scores:
    """The figures over what was found for some tasks."""
    fitting = [x for x in found if x.task.fits]
    idle = [x for x in found if not x.task.fits]
    shown = sum(len(x.shown) for x in fitting)
    return Scores(
        tasks=len(fitting),
        recall=_mean([x.right > 0 for x in fitting]),
        hit_at_1=_mean([bool(x.shown) and x.shown[0] in x.task.fits for x in fitting]),
        wrong=1 - sum(x.right for x in fitting) / shown if shown else 0.0,
        shown=_mean([len(x.shown) for x in fitting]),
        idle=_mean([bool(x.shown) for x in idle]),
        idle_shown=_mean([len(x.shown) for x in idle]),
    )


def best_top_k(ranked: Ranked) -> int:
    """The smallest `top_k` that finds `ENOUGH` of what `MOST` lessons find, on the tuning part, without a floor."""
    recall = [scores(ranked.found("tuning", k, -1.0)).recall for k in range(1, MOST + 1)]
    return next(k for k, found in enumerate(recall, 1) if found >= ENOUGH * recall[-1])


def best_floor(ranked: Ranked, top_k: int) -> float:
    """One step below the highest floor that loses nothing on the tuning part.

    A lesson that is not shown is lost; a wrong one costs some forty tokens. So no floor that loses a lesson is taken,
    and a step stays for the tasks that the sample lacks.
    """
    whole = scores(ranked.found("tuning", top_k, -1.0)).recall
    kept = [floor for floor in FLOORS[1:] if scores(ranked.found("tuning", top_k, floor)).recall >= whole]
    return round(max(kept, default=0.0) - STEP, 2) if kept else -1.0


def chosen(*ranked: Ranked) -> tuple[int, float]:
    """The `top_k` and the floor that serve all of these: the largest and the lowest of those that suit each.

    In this set one lesson fits a task. Where several do, as many more must have room: `TOGETHER`.
    """
    top_k = max(TOGETHER, *map(best_top_k, ranked))
    return top_k, min(best_floor(x, top_k) for x in ranked)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
