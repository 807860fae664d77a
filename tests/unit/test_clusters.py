"""Which lessons are put together, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from reflect_middleware.clusters import MOST_CLUSTERS, MOST_LESSONS, clusters, consolidation_due, named
from reflect_middleware.coverage import Shelf, Trial
from reflect_middleware.retrieve import Limits
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.types import Lesson

AT = datetime(2026, 1, 1, tzinfo=UTC)
EMBED = HashingEmbeddings(dimensions=512)


def lesson(number: int, when: str, do: str, **news: Any) -> Lesson:
    given = {"created_by": "r1", "created_at": AT + timedelta(seconds=number)} | news
    return Lesson(id=f"l{number}", namespace=("n",), when=when, do=do, **given)


def vector(text: str) -> Any:
    return np.array(EMBED.embed_query(text), dtype=np.float32)


def groups(*lessons: Lesson, asked: tuple[str, ...] = ()) -> list[set[str]]:
    pairs = [(x, vector(x.text)) for x in lessons]
    found = clusters(pairs, asked=asked)
    assert found == clusters(list(reversed(pairs)), asked=asked)  # whatever the order
    return [{x.id for x in cluster} for cluster in found]


BOXES = [
    lesson(n, f"moving the {c} box to the shelf", f"grip the {c} box with both arms")
    for n, c in enumerate(["red", "blue", "green"])
]
MAIL = lesson(8, "writing to a customer", "say hello politely")


def test_related_lessons_come_together_and_others_stay_apart() -> None:
    assert groups(*BOXES, MAIL) == [{"l0", "l1", "l2"}]
    assert groups() == groups(MAIL) == groups(BOXES[0], MAIL) == []


def test_contradictions_never_do() -> None:
    one = lesson(1, "refunding an order of a customer", "ask a manager above 200 EUR")
    other = lesson(2, "refunding an order of a customer", "ask a manager above 500 EUR")
    assert groups(one, other) == []
    third = lesson(3, "refunding an order of a regular customer", "ask a manager above 200 EUR kindly")
    assert all(not {"l1", "l2"} <= group for group in groups(one, other, third))


@pytest.mark.parametrize(
    "news",
    [
        {"pinned": True},
        {"created_by": "human"},
        {"created_by": "import"},
        {"needs_review": True},
        {"status": "retired"},
    ],
)
def test_some_are_left_alone(news: dict[str, Any]) -> None:
    assert groups(BOXES[0], BOXES[1].model_copy(update=news)) == []


def test_a_group_is_asked_about_once_until_it_changes() -> None:
    (cluster,) = clusters([(x, vector(x.text)) for x in BOXES])
    assert groups(*BOXES, asked=(named(cluster),)) == []
    changed = BOXES[0].model_copy(update={"version": 2})
    assert groups(changed, *BOXES[1:], asked=(named(cluster),)) == [{"l0", "l1", "l2"}]


def test_their_size_and_number_are_bounded() -> None:
    many = [lesson(n, f"moving box {n} to the shelf", "grip the box with both arms") for n in range(40)]
    found = groups(*many)
    assert all(len(group) <= MOST_LESSONS for group in found)
    assert len(found) == len(many) // MOST_LESSONS + 1
    topics = [f"topic{n} matter{n} thing{n}" for n in range(MOST_CLUSTERS + 3)]
    pairs = [lesson(n, f"{t} {k}", t) for n, (t, k) in enumerate((t, k) for t in topics for k in ("here", "soon"))]
    assert len(groups(*pairs)) == MOST_CLUSTERS


@pytest.mark.parametrize(
    ("every", "since", "active", "due"),
    [
        (10, 10, 5, True),
        (10, 9, 79, False),
        (10, 2, 80, True),
        (10, 1, 80, False),
        (1, 1, 1, True),
        (2, 1, 100, True),
        (2, 0, 100, False),
        (0, 99, 100, False),
        (None, 99, 100, False),
    ],
)
def test_when_it_is_due(every: int | None, since: int, active: int, due: bool) -> None:  # noqa: FBT001 - a table
    assert consolidation_due(every, since, active, 100) is due


def shelf(**texts: str) -> Shelf:
    trials = [Trial(text=t, vector=vector(t), lesson=i) for i, t in texts.items()]
    limits = Limits(top_k=1, token_budget=100, min_similarity=0.3)
    return Shelf(vectors={i: vector(t) for i, t in texts.items()}, trials=trials, limits=limits)


def test_coverage_is_what_retrieval_finds() -> None:
    before = shelf(a="red box", b="blue box", c="write a letter")
    assert before.found() == {0, 1, 2}
    assert before.merged(["a", "b"], "m", vector("red box blue box")).found() == {0, 1, 2}
    assert before.merged(["a", "b"], "m", vector("nothing alike")).found() == {2}
    twice = before.merged(["a", "b"], "m", vector("red box blue box")).merged(
        ["m", "c"], "n", vector("red blue box write a letter")
    )
    assert twice.heirs == {"a": "n", "b": "n", "m": "n", "c": "n"}
    assert twice.found() == {0, 1, 2}
    assert before.without(["c"]).found() == {0, 1}
    assert before.merged(["a", "b", "c"], "m", vector("x")).without(["m"]).found() == frozenset()
