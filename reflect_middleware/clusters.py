"""When lessons are consolidated, and which may be merged: those on related matters without contradiction. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reflect_middleware.opposite import contradict
from reflect_middleware.words import content

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Lesson

RELATED: Final = 0.6
"""Cosine from which two lessons are about related matters."""
NEAR: Final = 0.4
"""Cosine from which they are, if they also share words."""
SHARED: Final = 0.35
"""Share of their telling words that both must have then."""
MOST_LESSONS: Final = 6
"""Most lessons of one cluster: what a small model can still hold together, and one lesson still say."""
MOST_CLUSTERS: Final = 8
"""Most clusters of one consolidation."""

NEAR_CAP: Final = 0.8
"""Share of the cap from which a namespace is consolidated sooner."""
SOONER: Final = 4
"""Then so many times as often."""

Pair = tuple["Lesson", "Vector"]
Cluster = tuple["Lesson", ...]


def consolidation_due(every: int | None, since: int, active: int, cap: int) -> bool:
    """Whether a namespace is to be consolidated.

    Args:
        every: After how many reflections; None or 0: never by itself.
        since: How many reflections there were since the last time.
        active: How many lessons are active.
        cap: How many may be.
    """
    if not every:
        return False
    return since >= every or (active >= NEAR_CAP * cap and since >= max(1, every // SOONER))


def left_alone(lesson: Lesson) -> bool:
    """Whether only a person changes it, or a reflection has to look at it first: nothing merges it or lets it fade."""
    theirs = lesson.pinned or lesson.created_by in ("human", "import") or lesson.always
    return theirs or lesson.needs_review or lesson.status != "active"


def clusters(pairs: Sequence[Pair], *, asked: Collection[str] = ()) -> tuple[Cluster, ...]:
    """Groups of two to `MOST_LESSONS` related lessons, the most closely related group first.

    Each group is a lesson and its nearest relatives; no two of a group contradict each other. Equal arguments give
    equal groups.

    Args:
        pairs: The active lessons with their unit vectors; those that are to be left alone are passed by.
        asked: Groups, as `named` names them, that were tried before and are left out while their lessons are the same.
    """
    import numpy as np

    free = sorted((p for p in pairs if not left_alone(p[0])), key=lambda p: (p[0].created_at, p[0].text, p[0].id))
    if len(free) <= 1:
        return ()
    matrix = np.stack([vector for _, vector in free])
    cosines = matrix @ matrix.T
    about = [content(lesson.text) for lesson, _ in free]
    relatives: list[dict[int, float]] = [{} for _ in free]
    for one, other in zip(*np.nonzero(np.triu(cosines >= NEAR, 1)), strict=True):
        if _related(float(cosines[one, other]), about[one], about[other]):
            relatives[one][int(other)] = relatives[other][int(one)] = float(cosines[one, other])
    found: list[Cluster] = []
    taken: set[int] = set()
    for seed in sorted(range(len(free)), key=lambda n: -round(sum(relatives[n].values()), 6)):
        members = _gathered(seed, relatives[seed], free, taken)
        if len(members) <= 1:
            continue
        taken.update(members)
        cluster = tuple(free[n][0] for n in sorted(members))
        if named(cluster) not in asked:
            found.append(cluster)
    return tuple(found[:MOST_CLUSTERS])


def named(cluster: Cluster) -> str:
    """The lessons of a cluster and their versions, as one text."""
    return " ".join(f"{lesson.id}@{lesson.version}" for lesson in cluster)


def _related(cosine: float, one: frozenset[str], other: frozenset[str]) -> bool:
    if cosine >= RELATED:
        return True
    return cosine >= NEAR and len(one & other) >= SHARED * len(one | other)


def _gathered(seed: int, relatives: dict[int, float], free: Sequence[Pair], taken: Collection[int]) -> list[int]:
    """The seed and its nearest relatives that are free, without any that contradicts one of them."""
    if seed in taken:
        return []
    members = [seed]
    for n in sorted(relatives, key=lambda n: (-round(relatives[n], 6), n)):
        if len(members) == MOST_LESSONS:
            break
        lesson = free[n][0]
        if n not in taken and not any(_opposed(lesson, free[m][0]) for m in members):
            members.append(n)
    return members


def _opposed(one: Lesson, other: Lesson) -> bool:
    return contradict(one.when, one.do, other.when, other.do)
