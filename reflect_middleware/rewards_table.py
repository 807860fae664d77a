"""Rewards in the ledger: of episodes, or waiting for one, and what a late one sets off. All inside a transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import portions
from reflect_middleware.schema import early, episodes, lesson_sources, lessons
from reflect_middleware.schema import rewards as table
from reflect_middleware.types import Lesson, Reward

WAITING_REWARDS = 10_000
"""Most rewards kept for episodes that are not known yet."""
WAITING_SECONDS = 7 * 86_400.0
"""How long such a reward waits."""


def current(connection: sa.Connection, ids: Iterable[str]) -> Mapping[str, Sequence[Reward]]:
    """The standing rewards of these episodes, the oldest first; episodes without one are left out."""
    found: dict[str, list[Reward]] = {}
    query = sa.select(table.c.target, table.c.body).where(table.c.current, ~table.c.waiting).order_by(table.c.seq)
    for some in portions(ids):
        for row in connection.execute(query.where(table.c.target.in_(some))):
            found.setdefault(row.target, []).append(Reward.model_validate_json(row.body))
    return found


def add(connection: sa.Connection, episode_id: str, reward: Reward, given_at: float | None = None) -> None:
    """Give an episode a reward. One that says the same as the one that stands changes nothing.

    With `given_at` (epoch seconds) it was given then, and may have been added before.
    """
    lock(connection, [episode_id])
    if given_at is not None and _overtaken(connection, episode_id, reward, given_at):
        return
    standing = current(connection, [episode_id]).get(episode_id, ())
    if said(reward) in map(said, standing):
        return
    same = (table.c.target == episode_id, table.c.source == reward.source, table.c.key == reward.key)
    connection.execute(table.update().where(*same, table.c.current).values(current=False))
    insert(connection, episode_id, reward)
    counts = episodes.update().where(
        episodes.c.id == episode_id, episodes.c.reflection_id == "", episodes.c.ready_at.is_not(None)
    )
    if connection.execute(counts.values(ready_at=0.0)).rowcount == 0:
        mark_for_review(connection, [episode_id])


def insert(connection: sa.Connection, target: str, reward: Reward, *, waiting: bool = False) -> None:
    """Write a reward, and nothing that follows from it."""
    connection.execute(
        table.insert().values(
            target=target,
            source=reward.source,
            key=reward.key,
            current=True,
            waiting=waiting,
            at=time.time() if waiting else reward.at.timestamp(),
            body=reward.model_dump_json(),
        )
    )


def _overtaken(connection: sa.Connection, target: str, reward: Reward, given_at: float) -> bool:
    """Whether this very reward was added before, or one of its source and key that was given later."""
    body = reward.model_dump_json()
    later = table.c.current & ~table.c.waiting & (table.c.at > given_at)
    query = sa.select(table.c.seq).where(table.c.target == target, table.c.source == reward.source)
    query = query.where(table.c.key == reward.key, sa.or_(table.c.body == body, later))
    return connection.execute(query.limit(1)).first() is not None


def add_later(connection: sa.Connection, name: str, reward: Reward, given_at: float | None = None) -> None:
    """Keep a reward for an episode that is not known yet; of those that wait, the oldest are forgotten."""
    if given_at is not None and _overtaken(connection, name, reward, given_at):
        return
    insert(connection, name, reward, waiting=True)
    newest = sa.select(table.c.seq).where(early).order_by(table.c.seq.desc())
    last_kept = newest.limit(1).offset(WAITING_REWARDS - 1).scalar_subquery()
    too_many = table.c.seq < sa.func.coalesce(last_kept, 0)
    connection.execute(table.delete().where(early, sa.or_(~_fresh(), too_many)))


def adopt(connection: sa.Connection, episode_id: str, names: Iterable[str]) -> None:
    """Give an episode the rewards that have waited for it under one of its names."""
    waiting = table.c.waiting != sa.false()  # not `early`: a few names, in an index, among thousands that may wait
    query = sa.select(table).where(table.c.target.in_(list(names)), waiting, _fresh()).order_by(table.c.seq)
    for row in connection.execute(query).all():
        connection.execute(table.delete().where(table.c.seq == row.seq))
        add(connection, episode_id, Reward.model_validate_json(row.body))


def mark_for_review(connection: sa.Connection, ids: Iterable[str]) -> None:
    """A reward that comes after the reflection never re-claims the episode; its lessons are looked at again."""
    query = (
        sa.select(lessons.c.id, lessons.c.body)
        .join(lesson_sources, lesson_sources.c.lesson_id == lessons.c.id)
        .where(lesson_sources.c.episode_id.in_(list(ids)), lessons.c.status != "retired")
        .order_by(lessons.c.id)
        .with_for_update(
            of=lessons
        )  # the body is written back: what another transaction has just put there must be in it
    )
    for row in connection.execute(query).all():
        lesson = Lesson.model_validate_json(row.body).model_copy(update={"needs_review": True})
        connection.execute(lessons.update().where(lessons.c.id == row.id).values(body=lesson.model_dump_json()))


def changed_since(connection: sa.Connection, read: Mapping[str, Sequence[Reward]]) -> list[str]:
    """Ids of the episodes, locked ones, whose rewards no longer say what was read of them."""
    standing = current(connection, read)
    return [i for i, then in read.items() if set(map(said, then)) != set(map(said, standing.get(i, ())))]


def lock(connection: sa.Connection, ids: Iterable[str]) -> None:
    """Let no other transaction judge these episodes, or reflect on them, until this one ends."""
    query = sa.select(episodes.c.id).where(episodes.c.id.in_(list(ids))).order_by(episodes.c.id)
    connection.execute(query.with_for_update())


def said(reward: Reward) -> tuple[Any, ...]:
    """All of a reward but its time."""
    return reward.source, reward.key, reward.value, reward.comment, reward.correction


def _fresh() -> Any:
    return table.c.at >= time.time() - WAITING_SECONDS
