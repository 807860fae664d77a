"""Which refused edits the next reflection is told of. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect_middleware.evidence import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reflect_middleware.types import EditOutcome, Lesson, ReflectionRecord

TOLD = 10
"""Most refused edits that are told."""
REFLECTIONS = 5
"""They are told for so many reflections, and then no more."""
LOOKED_AT = 15
"""Records among which these are looked for: failed ones, which refuse nothing, lie between them."""


def refused_before(records: Iterable[ReflectionRecord], lessons: Sequence[Lesson]) -> tuple[EditOutcome, ...]:
    """The refused edits worth telling, the newest first, each once, lessons by the handles that they have now.

    Only those that would be refused again: an edit that lacked evidence may be proposed again with evidence, and what
    stands as a lesson by now is shown as one.

    Args:
        records: The newest first.
        lessons: Those that the next reflection is shown, in the order of their handles.
    """
    done = [record for record in records if record.status == "done"][:REFLECTIONS]
    handles = {lesson.id: f"L{number}" for number, lesson in enumerate(lessons, 1)}
    seen = {plain(lesson.text) for lesson in lessons}
    told: list[EditOutcome] = []
    for outcome in (outcome for record in done for outcome in record.outcomes):
        name = plain(f"{outcome.edit.when}: {outcome.edit.do}")
        if outcome.accepted or not outcome.lasting or name in seen:
            continue
        seen.add(name)
        reason = outcome.reason
        for lesson_id, handle in handles.items():
            reason = reason.replace(lesson_id, handle)
        told.append(outcome.model_copy(update={"reason": reason}))
    return tuple(told[:TOLD])
