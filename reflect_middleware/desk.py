"""The lessons of a namespace while a plan is made: what each would be, and whether it would change. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reflect_middleware.alike import alike
from reflect_middleware.types import TASK_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from reflect_middleware.store import Vector
    from reflect_middleware.types import EditOutcome, Episode, Lesson, Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one namespace may hold. Lengths are in characters."""

    when: int = 200
    """Longest situation; a longer one is refused."""
    do: int = 400
    """Longest advice; a longer one is refused."""
    because: int = 600
    """Longest evidence kept; a longer one is cut."""
    lessons: int = 200
    """Most active lessons, and most candidates, of a namespace."""
    duplicate: float = 0.93
    """Cosine from which two lessons that agree in numbers, negations and word order are the same."""
    edits: int = 40
    """Most edits taken from one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One lesson's new state, to be committed if the ledger still has it at `expected_version`."""

    lesson: Lesson
    vector: Vector | None
    """The vector of its text; None if none was given for it."""
    expected_version: int
    """The version it replaces; 0 for a new lesson."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to commit, and what became of each edit, in the order of the edits."""

    changes: tuple[Change, ...]
    outcomes: tuple[EditOutcome, ...]


def taught(lessons: Iterable[Lesson], episodes: Iterable[Episode] = ()) -> str:
    """The task by which a lesson is found: an equal part of those of the lessons it grows from, else its episode's."""
    parents = list(dict.fromkeys(lesson.task for lesson in lessons if lesson.task))
    part = (TASK_CHARS + 1) // max(1, len(parents)) - 1
    tasks = (" ".join(episode.task.split())[:TASK_CHARS].rstrip() for episode in episodes)
    return " ".join(task[:part].rstrip() for task in parents) or next(filter(None, tasks), "")


class Desk:
    """The lessons as they would be after the edits accepted so far. The lessons given stay as they are."""

    def __init__(
        self,
        namespace: Namespace,
        existing: Sequence[tuple[Lesson, Vector | None]],
        vectors: Mapping[str, Vector],
        *,
        threshold: float,
        by: str,
        at: datetime,
        more: Mapping[str, int],
    ) -> None:
        mine = [pair for pair in existing if pair[0].namespace == namespace and pair[0].status != "retired"]
        self.before: Mapping[str, Lesson] = {lesson.id: lesson for lesson, _ in mine}
        self.after = dict(self.before)
        self.touched: set[str] = set()
        """Ids that this plan made, changed, or took as the ground of a candidate."""
        self.grown: list[str] = []
        """Ids that this plan made active, in order."""
        self.by, self.at = by, at
        self._vectors, self._threshold, self._more = vectors, threshold, more
        self._vector_of = {lesson.id: vector for lesson, vector in mine}

    def count(self, status: str) -> int:
        """How many lessons have this status now."""
        return self._more.get(status, 0) + sum(lesson.status == status for lesson in self.after.values())

    def twin(self, text: str, *, apart_from: Sequence[Lesson] = ()) -> Lesson | None:
        """The standing lesson that says the same; an active one first."""
        skip = {lesson.id for lesson in apart_from}
        for other in sorted(self.after.values(), key=lambda lesson: lesson.status != "active"):
            if other.status == "retired" or other.id in skip:
                continue
            if alike(text, self._vectors.get(text), other.text, self._vector_of.get(other.id), self._threshold):
                return other
        return None

    def make(self, lesson: Lesson) -> Lesson:
        """Lay down a new lesson."""
        return self._lay(lesson)

    def change(self, lesson: Lesson, **news: Any) -> Lesson:
        """A new state of a lesson: one version up, however often this plan changes it."""
        version = self._version(lesson.id) + 1
        return self._lay(
            lesson.model_copy(update={**news, "version": version, "updated_at": self.at, "created_by": self.by})
        )

    def forget(self, lesson: Lesson) -> None:
        """Take back a lesson that this plan made."""
        del self.after[lesson.id]

    def spare(self) -> list[Lesson]:
        """The active lessons that may retire to make room: neither pinned nor part of this plan."""
        active = (lesson for lesson in self.after.values() if lesson.status == "active" and not lesson.pinned)
        return [lesson for lesson in active if lesson.id not in self.touched]

    def changes(self) -> tuple[Change, ...]:
        """Every lesson that is not as it was."""
        moved = [lesson for lesson in self.after.values() if lesson is not self.before.get(lesson.id)]
        return tuple(
            Change(lesson=lesson, vector=self._vector_of.get(lesson.id), expected_version=self._version(lesson.id))
            for lesson in moved
        )

    def _lay(self, lesson: Lesson) -> Lesson:
        before = self.before.get(lesson.id)
        self.after[lesson.id] = lesson
        self.touched.add(lesson.id)
        if before is None or before.text != lesson.text:
            self._vector_of[lesson.id] = self._vectors.get(lesson.text)
        if lesson.status == "active" and (before is None or before.status != "active") and lesson.id not in self.grown:
            self.grown.append(lesson.id)
        return lesson

    def _version(self, id: str) -> int:
        return self.before[id].version if id in self.before else 0
