"""What makes a lesson one that may stand: the reasons to refuse it or to hold it back. Pure.

Each gives the reason in words that say what would be accepted, or nothing where the lesson passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect_middleware.opposite import contradict
from reflect_middleware.restating import restated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reflect_middleware.batch import Batch
    from reflect_middleware.particular import Tasks
    from reflect_middleware.types import Episode, Lesson

QUOTED = 120
"""Characters of a text that a reason repeats."""


def one_tasks_own(when: str, do: str, batch: Batch, tasks: Tasks, *, old: str = "") -> tuple[tuple[str, ...], str]:
    """The values that only one of the batch's tasks has and `old` has not, and what to say of them."""
    found = [(value, episode) for value, episode in tasks.particular(when, do) if value.text not in old]
    if not found:
        return (), ""
    named = ", ".join(f"{value.kind} {value.text[:QUOTED]!r} ({batch.handle(e.id)})" for value, e in found)
    wanted = "say it in general words, such as 'an order', or quote the words that make the value a rule"
    return tuple(value.text for value, _ in found), f"it names what belongs to one task only: {named}; {wanted}"


def told_already(do: str, sources: Sequence[Episode]) -> str:
    """Why advice that the agent of each of these episodes has in its own instructions needs no lesson."""
    said = [restated(do, episode.instructions) for episode in sources]
    if not said or not all(said):
        return ""
    wanted = "a lesson must add what they do not say"
    return f"the agent is told so already by its own instructions: {said[0][:QUOTED]!r}; {wanted}"


def contradicted(when: str, do: str, standing: Iterable[Lesson]) -> str:
    """Why advice against an active lesson on the same situation may not stand beside it."""
    for lesson in standing:
        if lesson.status == "active" and contradict(when, do, lesson.when, lesson.do):
            who = "only a person changes it, it is pinned" if lesson.pinned else "edit or retire that lesson instead"
            return f"it contradicts lesson {lesson.id} ({lesson.text[:QUOTED]}): {who}"
    return ""
