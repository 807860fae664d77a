"""Decide about merges: which are sound, and which leave retrieval as good as it was. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from reflect_middleware.alike import union
from reflect_middleware.desk import Change, Limits, Plan, taught
from reflect_middleware.surviving import lost
from reflect_middleware.types import Consolidation, Edit, EditOutcome, Lesson

if TYPE_CHECKING:
    from datetime import datetime

    from reflect_middleware.clusters import Cluster
    from reflect_middleware.coverage import Shelf
    from reflect_middleware.store import Vector

SHOWN = 80
"""Characters of a task that a refusal repeats."""

Handles = Mapping[str, Lesson]


def prepared(edit: Edit, cluster: Handles) -> Edit:
    """The edit as the curator reads it: what shows the parents to be right shows the merge to be right, too."""
    because = "\n".join(union(x.because for x in (cluster.get(h) for h in edit.lessons) if x is not None and x.because))
    when, do = " ".join(edit.when.split()), " ".join(edit.do.split())
    return edit.model_copy(update={"episodes": (), "because": because, "when": when, "do": do})


def unsound(edit: Edit, cluster: Handles, limits: Limits) -> str:
    """Why an edit may not stand, by what it says alone; empty if it may."""
    named = ", ".join(cluster)
    if edit.op != "merge":
        return f"{edit.op} is not asked for: only merge"
    if unknown := [handle for handle in edit.lessons if handle not in cluster]:
        return f"{', '.join(unknown)} is not among the lessons shown: {named}"
    if len(set(edit.lessons)) <= 1:
        return f'"lessons" must name two or more of {named}'
    for name, text, most in (("when", edit.when, limits.when), ("do", edit.do, limits.do)):
        if not text.strip():
            return f'"{name}" is empty'
        if len(text) > most:
            return f'"{name}" has {len(text)} characters; at most {most} are allowed'
    return lost(edit.when, edit.do, [cluster[handle] for handle in edit.lessons])


def wrong(edits: Sequence[Edit], cluster: Handles, limits: Limits) -> str:
    """What to tell the model where none of its merges may stand; nothing where one may, or it proposes none."""
    reasons = [unsound(edit, cluster, limits) for edit in edits]
    if not all(reasons):
        return ""
    problems = "; ".join(f"{'+'.join(e.lessons)}: {reason}" for e, reason in zip(edits, reasons, strict=True))
    for handle, lesson in cluster.items():
        problems = problems.replace(f"lesson {lesson.id}", handle)
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a consolidation starts from."""

    active: tuple[Lesson, ...]
    vectors: Mapping[str, Vector]
    """By id, of those active lessons that the present embedder has seen."""
    clusters: tuple[Cluster, ...]
    fading: tuple[tuple[Lesson, str], ...]
    """With the reason."""

    @property
    def worth(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.clusters or self.fading)

    @property
    def handles(self) -> tuple[Handles, ...]:
        """The lessons of each cluster by their handles, which count up from cluster to cluster."""
        numbers = count(1)
        return tuple({f"L{next(numbers)}": lesson for lesson in cluster} for cluster in self.clusters)

    @property
    def all_handles(self) -> dict[str, Lesson]:
        """Those of all clusters."""
        return {handle: lesson for cluster in self.handles for handle, lesson in cluster.items()}

    def cluster_of(self, edit: Edit) -> Handles:
        """The cluster that an edit is about: the one of the first lesson that it names."""
        mine = (cluster for cluster in self.handles if any(handle in cluster for handle in edit.lessons[:1]))
        return next(mine, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What a consolidation commits."""

    changes: tuple[Change, ...]
    outcomes: tuple[EditOutcome, ...]
    figures: Consolidation


def merged_text(edit: Edit) -> str:
    """The text of the lesson that a prepared merge makes."""
    return f"{edit.when}: {edit.do}"


def merged_lesson(edit: Edit, cluster: Handles, limits: Limits) -> Lesson:
    """The lesson that a prepared merge makes, as far as tasks are compared with it."""
    task = taught(cluster[handle] for handle in edit.lessons if handle in cluster)
    return Lesson(namespace=(), when=edit.when, do=edit.do, because=edit.because[: limits.because], task=task)


def retired(lesson: Lesson, vector: Vector | None, *, by: str, at: datetime) -> Change:
    """The change that lets a lesson fade."""
    news = {"status": "retired", "version": lesson.version + 1, "created_by": by, "updated_at": at}
    return Change(lesson=lesson.model_copy(update=news), vector=vector, expected_version=lesson.version)


def fate(lesson: Lesson, reason: str, *, accepted: bool) -> EditOutcome:
    """What became of a lesson that fades; where a person decides, it does not."""
    edit = Edit(op="retire", lessons=(lesson.id,), when=lesson.when, do=lesson.do)
    said = reason if accepted else f"needs a person: lessons.retire({lesson.id!r}); {reason}"
    return EditOutcome(edit=edit, accepted=accepted, reason=said, lesson_id=lesson.id)


@dataclass(slots=True, kw_only=True)
class Merger:
    """Takes one merge after the other, each on top of those that it has taken."""

    curate: Callable[[Sequence[Edit]], Plan]
    """The curator, with the lessons as they are now."""
    vectors: Mapping[str, Vector]
    """By which tasks would find the merged lessons, by their text."""
    shelf: Shelf
    limits: Limits
    taken: list[Edit] = field(default_factory=list)
    outcomes: list[EditOutcome] = field(default_factory=list)
    changes: tuple[Change, ...] = ()

    def take(self, edit: Edit, cluster: Handles) -> None:
        """Accept a merge, or say why not."""
        if reason := unsound(edit, cluster, self.limits):
            self._refuse(edit, reason)
            return
        plan = self.curate([*self.taken, edit])
        outcome = plan.outcomes[-1]
        if not outcome.accepted:
            self._refuse(edit, outcome.reason)
            return
        parents = [cluster[handle].id for handle in edit.lessons]
        shelf = self.shelf.merged(parents, outcome.lesson_id, self.vectors[merged_text(edit)])
        if missed := sorted(self.shelf.found() - shelf.found()):
            tasks = ", ".join(repr(shelf.trials[n].text[:SHOWN]) for n in missed[:3])
            self._refuse(edit, f"retrieval would no longer find the lesson of {len(missed)} tasks, such as {tasks}")
            return
        self.taken.append(edit)
        self.outcomes.append(outcome)
        self.shelf, self.changes = shelf, plan.changes

    def standing(self, active: Sequence[Lesson], faded: Sequence[Lesson]) -> list[Lesson]:
        """The lessons that are active afterwards, merges that wait for a person among them."""
        heirs = set(self.shelf.heirs.values())
        gone = {*self.shelf.heirs, *(lesson.id for lesson in faded)}
        made = [change.lesson for change in self.changes if change.lesson.id in heirs]
        return [*(lesson for lesson in active if lesson.id not in gone), *made]

    def _refuse(self, edit: Edit, reason: str) -> None:
        self.outcomes.append(EditOutcome(edit=edit, accepted=False, reason=reason))
