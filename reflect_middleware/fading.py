"""Which lessons fade: those that no task has called for during a long time. Pure, and the clock is given."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from reflect_middleware.clusters import left_alone

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from reflect_middleware.types import Lesson

EPISODES: Final = 200
"""A lesson fades that was eligible in none of so many newest episodes for which some lesson was."""
DAYS: Final = 30.0
"""And that nobody has changed for so many days."""
GONE: Final = 0.5
"""Half of both is enough for a lesson of which no source is kept any more."""


def idle(lessons: Iterable[Lesson], looked: Sequence[Collection[str]], now: datetime) -> list[Lesson]:
    """The lessons that would fade, if their sources were gone.

    Args:
        lessons: Active ones; those that are to be left alone are passed by.
        looked: The ids of the lessons that were eligible, for each episode that had any, the newest first.
        now: With a time zone.
    """
    return [x for x in lessons if not left_alone(x) and _unused(x, looked, now, GONE)]


def fading(
    lessons: Iterable[Lesson], looked: Sequence[Collection[str]], gone: Collection[str], now: datetime
) -> list[tuple[Lesson, str]]:
    """The lessons that fade, and why.

    Args:
        lessons: As `idle` gives them.
        looked: As for `idle`.
        gone: Ids of the lessons of which no source is in the ledger any more.
        now: With a time zone.
    """
    found: list[tuple[Lesson, str]] = []
    for lesson in lessons:
        if _unused(lesson, looked, now, 1.0):
            found.append((lesson, _reason(1.0)))
        elif lesson.id in gone:
            found.append((lesson, f"{_reason(GONE)}, and none of its sources is kept"))
    return found


def _unused(lesson: Lesson, looked: Sequence[Collection[str]], now: datetime, share: float) -> bool:
    """Whether no episode has called for it in this share of the time that it takes to fade."""
    most = int(EPISODES * share)
    old = now - lesson.updated_at >= timedelta(days=DAYS * share)
    return old and len(looked) >= most and not any(lesson.id in eligible for eligible in looked[:most])


def _reason(share: float) -> str:
    return (
        f"faded: it fitted none of the last {int(EPISODES * share)} tasks that any lesson fitted, and is unchanged for"
        f" {DAYS * share:g} days; lessons.approve brings it back"
    )
