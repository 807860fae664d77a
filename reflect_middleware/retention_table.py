"""What the ledger holds, and dropping the oldest of it that nobody waits for."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.namespaces import from_key
from reflect_middleware.rewards_table import WAITING_SECONDS
from reflect_middleware.schema import dead, episodes, exposures, lesson_sources, meta, reflections, rewards
from reflect_middleware.types import Episode, ReflectionRecord

SOME = 200
"""Episodes dropped in one transaction."""
EMPTIED = "reflections emptied before"
"""In `meta`: up to which start reflections have lost prompt and answer, in epoch seconds."""


DROPPED = "dropped by retention"
"""In `dead_letter`, where only the episode's name is left."""


class RetentionTable:
    """Housekeeping, in small transactions."""

    def __init__(self, database: Database) -> None:
        self.db = database

    def count(self) -> int:
        """How many episodes there are, without those of which only the name is left."""
        rows = sa.select(sa.func.count()).select_from(episodes)
        with self.db.read() as connection:
            names = connection.execute(rows.where(dead, episodes.c.dead_letter == DROPPED)).scalar_one()
            return int(connection.execute(rows).scalar_one() - names)

    def size(self) -> int:
        """Bytes in use: of SQLite's file without its free pages, of PostgreSQL's episodes as text."""
        with self.db.read() as connection:
            if not self.db.is_sqlite:
                return int(connection.execute(sa.select(sa.func.sum(episodes.c.size))).scalar() or 0)
            pages, free, each = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0)
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * each

    def drop(self, before: float, *, unread: bool, most: int = SOME) -> int:
        """Drop the oldest episodes that started before a time, with their rewards and exposures; gives how many.

        Of one that a lesson names, its name stays, without content: so that a purge still finds the lesson.

        Args:
            before: Epoch seconds.
            unread: Also those that wait for a reflection.
            most: At most so many.
        """
        running = sa.select(reflections.c.id).where(reflections.c.status == "running")
        where = [episodes.c.started_at < before, episodes.c.dead_letter != DROPPED]
        where.append(episodes.c.reflection_id.not_in(running))
        if not unread:
            done = sa.or_(episodes.c.reflection_id != "", episodes.c.dead_letter != "", ~episodes.c.sampled)
            where += [episodes.c.ready_at.is_not(None), done]
        query = sa.select(episodes.c.id).where(*where).order_by(episodes.c.started_at).limit(min(most, SOME))
        with self.db.write() as connection:
            ids = connection.execute(query).scalars().all()
            for table, column in ((rewards, rewards.c.target), (exposures, exposures.c.episode_id)):
                connection.execute(table.delete().where(column.in_(ids)))
            named = sa.select(lesson_sources.c.episode_id).where(lesson_sources.c.episode_id.in_(ids)).distinct()
            names = set(connection.execute(named).scalars())
            for row in connection.execute(sa.select(episodes).where(episodes.c.id.in_(names))).all():
                mine = episodes.update().where(episodes.c.id == row.id)
                connection.execute(mine.values(body=_name_only(row), size=0, dead_letter=DROPPED))
            rest = [episode for episode in ids if episode not in names]
            connection.execute(episodes.delete().where(episodes.c.id.in_(rest)))
        return len(ids)

    def oldest(self) -> float | None:
        """When the oldest episode started (epoch seconds); None without one."""
        with self.db.read() as connection:
            return connection.execute(sa.select(sa.func.min(episodes.c.started_at))).scalar()

    def empty_reflections(self, before: float) -> int:
        """Take prompt and answer out of reflections that ended and began before a time; gives how many."""
        with self.db.read() as connection:
            since = float(connection.execute(sa.select(meta.c.value).where(meta.c.key == EMPTIED)).scalar() or 0)
            where = (reflections.c.started_at >= since, reflections.c.started_at < before)
            query = sa.select(reflections.c.id).where(*where, reflections.c.status != "running")
            ids = connection.execute(query.order_by(reflections.c.started_at).limit(SOME)).scalars().all()
        with self.db.write() as connection:
            for row in connection.execute(sa.select(reflections).where(reflections.c.id.in_(ids))).all():
                record = ReflectionRecord.model_validate_json(row.body)
                bare = record.model_copy(update={"prompt": "", "answer": ""})
                mine = reflections.update().where(reflections.c.id == row.id)
                connection.execute(mine.values(body=bare.model_dump_json()))
                since = max(since, row.started_at)
            upto = before if len(ids) < SOME else since
            connection.execute(self.db.upsert(meta, key=EMPTIED, value=str(upto)))
        return len(ids)

    def forget_stale_rewards(self) -> None:
        """Drop rewards that have waited too long for their episodes."""
        with self.db.write() as connection:
            stale = rewards.c.waiting & (rewards.c.at < time.time() - WAITING_SECONDS)
            connection.execute(rewards.delete().where(stale))


def _name_only(row: Any) -> str:
    """An episode's body with nothing in it but who and when."""
    names = {name: getattr(row, name) for name in ("id", "root_run_id", "parent_id", "agent", "thread_id", "principal")}
    bare = Episode(
        **names,
        namespace=from_key(row.namespace),
        task="",
        status=row.status,
        started_at=datetime.fromtimestamp(row.started_at, UTC),
    )
    return bare.model_dump_json(exclude={"rewards", "exposures", "reflection_id", "dead_letter"})
