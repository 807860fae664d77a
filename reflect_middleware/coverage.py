"""Does retrieval still bring what it brought, if some lessons take the place of others? Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reflect_middleware.retrieve import Limits
    from reflect_middleware.store import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A task, and the lesson that should be found for it."""

    text: str
    vector: Vector
    lesson: str
    """The lesson's id; after merges the one that took its place is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The lessons of a namespace as retrieval sees them."""

    vectors: Mapping[str, Vector]
    """By id, of the active ones."""
    trials: Sequence[Trial]
    limits: Limits
    """A lesson counts as found among the `top_k` nearest, at least one, and from `min_similarity` on."""
    heirs: Mapping[str, str] = field(default_factory=dict)
    """By id, the lesson that took the place of another."""

    def without(self, gone: Iterable[str]) -> Shelf:
        """The shelf without some lessons."""
        left = dict(self.vectors)
        for lesson_id in gone:
            left.pop(lesson_id, None)
        return replace(self, vectors=left)

    def merged(self, parents: Sequence[str], heir: str, vector: Vector) -> Shelf:
        """The shelf with a lesson in the place of others."""
        heirs = {old: heir if new in parents else new for old, new in self.heirs.items()} | dict.fromkeys(parents, heir)
        return replace(self, vectors={**self.without(parents).vectors, heir: vector}, heirs=heirs)

    def found(self) -> frozenset[int]:
        """The numbers of the trials for which the right lesson is found."""
        import numpy as np

        if not self.trials or not self.vectors:
            return frozenset()
        place = {lesson_id: n for n, lesson_id in enumerate(self.vectors)}
        cosines = np.stack([t.vector for t in self.trials]) @ np.stack(list(self.vectors.values())).T
        good: set[int] = set()
        for number, trial in enumerate(self.trials):
            at = place.get(self.heirs.get(trial.lesson, trial.lesson))
            if at is None or cosines[number, at] < self.limits.min_similarity:
                continue
            if int((cosines[number] > cosines[number, at]).sum()) < max(1, self.limits.top_k):
                good.add(number)
        return frozenset(good)
