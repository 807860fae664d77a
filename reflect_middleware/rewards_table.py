"""Rewards in the ledger: of episodes, or waiting for one, and what a late one sets off. All inside a transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import portions
from reflect_middleware.hints import IN_RUN, RULES, SELF, SOURCE, ours
from reflect_middleware.schema import early, episodes, lesson_sources, lessons, namespaces
from reflect_middleware.schema import rewards as table
from reflect_middleware.types import Lesson, Reward

WAITING_REWARDS = 10_000
"""Most rewards kept for episodes that are not known yet."""
WAITING_SECONDS = 7 * 86_400.0
"""How long such a reward waits."""
found_by_us = sa.or_(
    sa.and_(table.c.source == SOURCE, table.c.key.in_(list(RULES))),
    sa.and_(table.c.source == SELF[0], table.c.key == SELF[1]),
)
"""As `hints.ours`: signs found in runs, the model's assessments. When an episode is read does not depend on them."""


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
    if not _replace(connection, episode_id, reward):
        return
    unread = (episodes.c.id == episode_id, episodes.c.reflection_id == "", episodes.c.ready_at.is_not(None))
    if ours(reward):
        counts = connection.execute(sa.select(episodes.c.id).where(*unread)).first() is not None
    else:
        opened = episodes.update().where(*unread).values(ready_at=0.0, sampled=True)
        counts = connection.execute(opened).rowcount > 0
    if not counts:
        mark_for_review(connection, [episode_id])


def note(connection: sa.Connection, reflection_id: str, given: Mapping[str, Sequence[Reward]]) -> None:
    """Write what was found out about the episodes of a claim, before the reflection on them; it sets nothing off."""
    held = sa.select(episodes.c.id).where(episodes.c.id.in_(list(given)), episodes.c.reflection_id == reflection_id)
    for episode_id in connection.execute(held.order_by(episodes.c.id).with_for_update()).scalars().all():
        for reward in given[episode_id]:
            _replace(connection, episode_id, reward)


def withdraw(connection: sa.Connection, episode_id: str) -> None:
    """Take back what a run has said of itself: it went on, and is looked at as a whole."""
    mine = (table.c.target == episode_id, table.c.source == SOURCE, table.c.key.in_(IN_RUN), table.c.current)
    connection.execute(table.update().where(*mine).values(current=False))


def _replace(connection: sa.Connection, episode_id: str, reward: Reward) -> bool:
    """Write a reward in the place of the one of its source and key; False if that says the same."""
    standing = current(connection, [episode_id]).get(episode_id, ())
    if said(reward) in map(said, standing):
        return False
    same = (table.c.target == episode_id, table.c.source == reward.source, table.c.key == reward.key)
    connection.execute(table.update().where(*same, table.c.current).values(current=False))
    insert(connection, episode_id, reward)
    return True


def insert(connection: sa.Connection, target: str, reward: Reward, *, waiting: bool = False) -> None:
    """Write a reward, and nothing that follows from it."""
    row = row_of(target, reward)
    connection.execute(table.insert().values(**row | ({"waiting": True, "at": time.time()} if waiting else {})))


def row_of(target: str, reward: Reward) -> dict[str, Any]:
    """The row of an episode's reward."""
    return {
        "target": target,
        "source": reward.source,
        "key": reward.key,
        "current": True,
        "waiting": False,
        "at": reward.at.timestamp(),
        "body": reward.model_dump_json(),
    }


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
    learned = sa.select(lesson_sources.c.lesson_id).where(lesson_sources.c.episode_id.in_(list(ids)))
    mine = lessons.c.id.in_(learned) & (lessons.c.status != "retired")
    hold(connection, connection.execute(sa.select(lessons.c.namespace).where(mine).distinct()).scalars())
    query = sa.select(lessons.c.id, lessons.c.body).where(mine)
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


def hold(connection: sa.Connection, keys: Iterable[str]) -> None:
    """Let nobody else write lessons of these namespaces until this transaction ends; whoever writes them does this.

    A lesson's row is read, changed and written back: of two that do so at once, one would undo the other.
    """
    query = sa.select(namespaces.c.namespace).where(namespaces.c.namespace.in_(list(keys)))
    connection.execute(query.order_by(namespaces.c.namespace).with_for_update()).all()


def said(reward: Reward) -> tuple[Any, ...]:
    """All of a reward but its time."""
    return reward.source, reward.key, reward.value, reward.comment, reward.correction


def _fresh() -> Any:
    return table.c.at >= time.time() - WAITING_SECONDS
