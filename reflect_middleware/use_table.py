"""How lessons are used: in which runs, and what those earned. Read-only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from reflect_middleware.database import Database, portions
from reflect_middleware.hints import SOURCE, ours
from reflect_middleware.namespaces import to_key
from reflect_middleware.schema import episodes, exposures, lessons, rewards
from reflect_middleware.types import Namespace, Reward, combined, most_trusted

LOOKED_AT = 1_000
"""Among so many newest episodes of a namespace those are looked for in which a lesson was eligible."""
STATISTICS = 500
"""Of how many of the latest episodes that showed a lesson the rewards are looked at."""


def eligible(database: Database, namespace: Namespace, most: int) -> list[frozenset[str]]:
    """The ids of the lessons that were eligible, for each of the newest episodes that had any, the newest first.

    Args:
        database: The ledger's.
        namespace: Of the episodes.
        most: At most so many episodes.
    """
    newest = sa.select(episodes.c.id).where(episodes.c.namespace == to_key(namespace))
    found: dict[str, set[str]] = {}
    with database.read() as connection:
        ids = connection.execute(newest.order_by(episodes.c.started_at.desc()).limit(LOOKED_AT)).scalars().all()
        for some in portions(ids):
            if len(found) >= most:
                break
            query = sa.select(exposures.c.episode_id, exposures.c.lesson_id).where(exposures.c.episode_id.in_(some))
            for row in connection.execute(query):
                found.setdefault(row.episode_id, set()).add(row.lesson_id)
    return [frozenset(found[i]) for i in ids if i in found][:most]


def kept(database: Database, ids: Iterable[str]) -> set[str]:
    """Those of some episodes that are in the ledger."""
    with database.read() as connection:
        rows = (connection.execute(sa.select(episodes.c.id).where(episodes.c.id.in_(x))) for x in portions(ids))
        return {row.id for some in rows for row in some}


def statistics(
    database: Database, lesson_ids: Iterable[str], most: int | None = None
) -> dict[str, tuple[int, float | None]]:
    """For each lesson: in how many episodes it was shown, counted up to `most`, and their mean reward.

    The mean is over those that have a reward, of the `STATISTICS` latest ones (at most `most`) by their ids, which
    grow with time; over those of one source, the most trusted that judged any of them. Signs found in the run are left
    out: a clean run has none, so their mean would only speak of the others.
    """
    counted, latest = (_SHOWN, _LATEST) if most is None else (_shown_up_to(most), _latest(most))
    times: dict[str, int] = {}
    judged: dict[tuple[str, str], list[Reward]] = {}
    with database.read() as connection:
        for some in portions(lesson_ids):
            mine = connection.execute(counted.where(lessons.c.id.in_(some)))
            times |= {row.id: row.times for row in mine if row.times}
            for row in connection.execute(latest.where(lessons.c.id.in_(some))):
                judged.setdefault((row.id, row.target), []).append(Reward.model_validate_json(row.body))
    earned: dict[str, list[list[Reward]]] = {}
    for (lesson_id, _), given in judged.items():
        earned.setdefault(lesson_id, []).append(given)
    return {lesson_id: (count, _mean(earned.get(lesson_id, ()))) for lesson_id, count in times.items()}


def _mean(judged: Sequence[Sequence[Reward]]) -> float | None:
    """The mean over episodes of what the most trusted source says that judged any of them."""
    told = [[reward for reward in given if reward.source != SOURCE or not ours(reward)] for given in judged]
    source = most_trusted(reward for given in told for reward in given)
    known = [value for given in told if (value := combined([r for r in given if r.source == source])) is not None]
    return sum(known) / len(known) if known else None


def _latest(most: int) -> sa.Select[str, str, str]:
    """Lessons with the rewards of the latest episodes that showed them: a short walk over an index for each lesson."""
    inner = exposures.alias()
    oldest = (
        sa.select(inner.c.episode_id)
        .where(inner.c.lesson_id == lessons.c.id, inner.c.shown)
        .order_by(inner.c.episode_id.desc())
        .limit(1)
        .offset(most - 1)
        .scalar_subquery()
    )
    late = exposures.c.episode_id >= sa.func.coalesce(oldest, "")
    pair = (exposures.c.lesson_id == lessons.c.id) & exposures.c.shown & late
    given = (rewards.c.target == exposures.c.episode_id) & rewards.c.current & ~rewards.c.waiting
    query = sa.select(lessons.c.id, rewards.c.target, rewards.c.body)
    return query.join_from(lessons, exposures, pair).join(rewards, given)


def _shown_up_to(most: int) -> sa.Select[str, int]:
    """Lessons with how often each was shown, as far as it is counted."""
    shown = sa.select(sa.literal(1)).where(exposures.c.lesson_id == lessons.c.id, exposures.c.shown)
    some = shown.limit(most).correlate(lessons).subquery()
    return sa.select(lessons.c.id, sa.select(sa.func.count()).select_from(some).scalar_subquery().label("times"))


_SHOWN = sa.select(
    lessons.c.id,
    sa.select(sa.func.count())
    .where(exposures.c.lesson_id == lessons.c.id, exposures.c.shown)
    .correlate(lessons)
    .scalar_subquery()
    .label("times"),
)
_LATEST = _latest(STATISTICS)
