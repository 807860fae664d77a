"""The rule by which lessons fade, with a clock of the test's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reflect_middleware.fading import DAYS, EPISODES, GONE, fading, idle
from reflect_middleware.types import Lesson

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OTHERS = frozenset({"other"})
MINE = frozenset({"mine", "other"})
HALF = int(EPISODES * GONE)


def lesson(days: float = DAYS, **news: Any) -> Lesson:
    given = {"created_by": "r1", "updated_at": NOW - timedelta(days=days)} | news
    return Lesson(id="mine", namespace=("n",), when="w", do="d", **given)


def reasons(one: Lesson, looked: list[frozenset[str]], *, gone: bool = False) -> list[str]:
    unused = idle([one], looked, NOW)
    return [reason for _, reason in fading(unused, looked, {"mine"} if gone else set(), NOW)]


def test_it_fades_when_nothing_has_called_for_it_for_long() -> None:
    (reason,) = reasons(lesson(), [OTHERS] * EPISODES)
    assert f"none of the last {EPISODES} tasks" in reason
    assert f"{DAYS:g} days" in reason


@pytest.mark.parametrize(
    ("one", "looked"),
    [
        (lesson(), [OTHERS] * (EPISODES - 1)),  # too few tasks to tell
        (lesson(), [*[OTHERS] * (EPISODES - 1), MINE]),
        (lesson(days=DAYS - 0.01), [OTHERS] * EPISODES),  # too young
        (lesson(pinned=True), [OTHERS] * EPISODES),
        (lesson(created_by="human"), [OTHERS] * EPISODES),
        (lesson(created_by="import"), [OTHERS] * EPISODES),
        (lesson(needs_review=True), [OTHERS] * EPISODES),
        (lesson(status="candidate"), [OTHERS] * EPISODES),
    ],
)
def test_it_stays_otherwise(one: Lesson, looked: list[frozenset[str]]) -> None:
    assert reasons(one, looked) == []


def test_a_use_longer_ago_does_not_keep_it() -> None:
    assert reasons(lesson(), [*[OTHERS] * EPISODES, MINE])


def test_without_any_source_half_the_time_is_enough() -> None:
    young = lesson(days=DAYS * GONE)
    assert reasons(young, [OTHERS] * HALF) == []
    (reason,) = reasons(young, [OTHERS] * HALF, gone=True)
    assert "none of its sources is kept" in reason
    assert reasons(young, [*[OTHERS] * (HALF - 1), MINE], gone=True) == []
