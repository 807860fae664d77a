"""What `reflect doctor` asks of the ledger: counts and newest rows, each by an index or over a bounded sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reflect_middleware.counters import Count
from reflect_middleware.database import Database
from reflect_middleware.decisions import PREFIX
from reflect_middleware.namespaces import from_key
from reflect_middleware.rewards_table import found_by_us
from reflect_middleware.schema import (
    counters,
    dead,
    episodes,
    exposures,
    lessons,
    meta,
    open_,
    reflections,
    rewards,
    spent,
    unread,
    vectors,
    work,
)
from reflect_middleware.types import Namespace, ReflectionRecord

SAMPLE = 1_000
"""So many of the newest episodes, or rewards, are looked at where looking at all would take too long."""
NEVER_SHOWN_AFTER = 5
"""A lesson that fitted so many tasks of the sample and was never shown does not get into the prompt."""
LAST_CHARS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the ledger lives and how."""

    schema: int
    """Its version; 0 if it says none."""
    bytes: int
    """Its size."""
    mode: str
    """SQLite's journal mode as read back; the server's version on PostgreSQL."""
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeCounts:
    """Episodes by what becomes of them."""

    total: int
    waiting: int
    """Ended, and no reflection has read them."""
    oldest: float | None
    """When the first of those ended, epoch seconds."""
    interrupted: int
    dead: int
    """Dead-lettered."""
    dead_reason: str
    """Of the newest of those."""
    sampled_out: int
    """Of the newest `SAMPLE`: not to be reflected on unless they are rewarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonCounts:
    """Lessons by status."""

    by_status: Mapping[str, int]
    needs_review: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A reflection under way."""

    id: str
    namespace: Namespace
    owner: str
    lease: float
    """Seconds until its lease ends, by the ledger's clock; below 0 it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """How the newest rewards came, compared with the reflections on their episodes."""

    rewards: int
    """Of ended episodes."""
    late: int
    """Of those: given after the reflection had begun to read."""
    seconds: tuple[float, ...]
    """From the episode's end to each, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """A namespace that rests after failed reflections."""

    namespace: Namespace
    failures: int
    """In a row."""
    seconds: float
    """For how long it still rests, by the ledger's clock."""


class HealthTable:
    """Reads what says how the ledger is doing, and keeps the counters. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database
        added = database.insertion(counters)
        last = sa.case((added.excluded.last == "", counters.c.last), else_=added.excluded.last)
        self._add = added.on_conflict_do_update(
            index_elements=[counters.c.name],
            set_={"count": counters.c.count + added.excluded.count, "last": last, "at": added.excluded["at"]},
        )

    def add(self, counts: Mapping[str, Count]) -> None:
        """Add to the counters of things that went wrong; several processes may at once."""
        rows = [
            {"name": name, "count": x.count, "last": x.last[:LAST_CHARS], "at": x.at}
            for name, x in sorted(counts.items())
        ]
        with self.db.write() as connection:
            connection.execute(self._add, rows)

    def counts(self) -> dict[str, Count]:
        """All counters."""
        with self.db.read() as connection:
            rows = connection.execute(sa.select(counters)).mappings().all()
        return {row["name"]: Count(count=row["count"], last=row["last"], at=row["at"]) for row in rows}

    def place(self) -> Place:
        """Where the ledger lives and how."""
        with self.db.read() as connection:
            known = {row.key: row.value for row in connection.execute(sa.select(meta))}
            if self.db.is_sqlite:
                mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
                size = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            else:
                mode = "PostgreSQL " + str(connection.exec_driver_sql("SHOW server_version").scalar())
                size = "SELECT pg_database_size(current_database())"
            total = int(connection.exec_driver_sql(size).scalar() or 0)
        schema = known.get("schema", "")
        return Place(
            schema=int(schema) if schema.isdigit() else 0, bytes=total, mode=mode, paused=known.get("paused") == "1"
        )

    def episodes(self) -> EpisodeCounts:
        """How many episodes wait, are open, or could not be used."""
        ended = sa.and_(unread, episodes.c.ended_at.is_not(None))
        newest = sa.select(episodes.c.sampled).order_by(episodes.c.started_at.desc()).limit(SAMPLE).subquery()
        with self.db.read() as connection:

            def how_many(*where: Any) -> int:
                query = sa.select(sa.func.count()).select_from(episodes).where(*where)
                return int(connection.execute(query).scalar_one())

            lettered = how_many(dead)
            reason = sa.select(episodes.c.dead_letter).where(dead).order_by(episodes.c.started_at.desc()).limit(1)
            out = sa.select(sa.func.count()).select_from(newest).where(~newest.c.sampled)
            return EpisodeCounts(
                total=how_many(),
                waiting=how_many(ended),
                oldest=connection.execute(sa.select(sa.func.min(episodes.c.ended_at)).where(ended)).scalar(),
                interrupted=how_many(open_),
                dead=lettered,
                dead_reason=str(connection.execute(reason).scalar() or "") if lettered else "",
                sampled_out=int(connection.execute(out).scalar_one()),
            )

    def lessons(self) -> LessonCounts:
        """Lessons by status: one pass over the lessons, which are few beside the episodes."""
        review = lessons.c.body.contains('"needs_review":true')  # a quotation mark inside a text is escaped
        columns = (lessons.c.status, review.label("review"))
        query = sa.select(*columns, sa.func.count().label("n")).group_by(*columns)
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        by_status: dict[str, int] = {}
        for row in rows:
            by_status[row.status] = by_status.get(row.status, 0) + row.n
        marked = sum(row.n for row in rows if row.review and row.status != "retired")
        return LessonCounts(by_status=by_status, needs_review=marked)

    def lacking(self, embedder: str) -> dict[str, int]:
        """Active lessons of which this embedder has made no vector, by the one that has; an empty name for none."""
        beside = sa.exists().where(vectors.c.lesson_id == lessons.c.id, vectors.c.embedder == embedder)
        mine = sa.or_(lessons.c.embedder == embedder, beside)
        query = sa.select(lessons.c.embedder, sa.func.count().label("n")).where(lessons.c.status == "active", ~mine)
        with self.db.read() as connection:
            return {row.embedder: row.n for row in connection.execute(query.group_by(lessons.c.embedder))}

    def newest_reflection(self, status: str) -> tuple[float, ReflectionRecord] | None:
        """The newest reflection of this status, with the time of its start (epoch seconds)."""
        query = sa.select(reflections.c.started_at, reflections.c.body).where(reflections.c.status == status)
        with self.db.read() as connection:
            row = connection.execute(query.order_by(reflections.c.started_at.desc()).limit(1)).first()
        return None if row is None else (row.started_at, ReflectionRecord.model_validate_json(row.body))

    def running(self) -> tuple[Running, ...]:
        """The reflections under way, and those whose process has died."""
        lease = (reflections.c.lease_until - self.db.now()).label("lease")
        query = sa.select(reflections.c.id, reflections.c.namespace, reflections.c.owner, lease).where(
            reflections.c.status == "running"
        )
        with self.db.read() as connection:
            rows = connection.execute(query.order_by(reflections.c.started_at).limit(SAMPLE)).all()
        return tuple(
            Running(id=row.id, namespace=from_key(row.namespace), owner=row.owner, lease=row.lease) for row in rows
        )

    def delays(self) -> Delays:
        """When the newest `SAMPLE` rewards came; a reviewer's decisions and what we find ourselves do not count."""
        newest = (
            sa.select(rewards.c.target, rewards.c.at)
            .where(~rewards.c.waiting, ~rewards.c.key.startswith(PREFIX), ~found_by_us)
            .order_by(rewards.c.seq.desc())
            .limit(SAMPLE)
            .subquery()
        )
        query = (
            sa.select(newest.c["at"], episodes.c.ended_at, reflections.c.started_at)
            .select_from(newest)
            .join(episodes, episodes.c.id == newest.c.target)
            .outerjoin(
                reflections, sa.and_(reflections.c.id == episodes.c.reflection_id, reflections.c.status == "done")
            )
            .where(episodes.c.ended_at.is_not(None))
        )
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        late = sum(read is not None and at > read for at, _, read in rows)
        seconds = tuple(sorted(max(0.0, at - ended) for at, ended, _ in rows))
        return Delays(rewards=len(rows), late=late, seconds=seconds)

    def never_shown(self) -> tuple[str, ...]:
        """Ids of active lessons that fitted several of the newest tasks and were in no prompt."""
        newest = sa.select(episodes.c.id).order_by(episodes.c.started_at.desc()).limit(SAMPLE).subquery()
        shown = sa.func.sum(sa.case((exposures.c.shown, 1), else_=0))
        query = (
            sa.select(exposures.c.lesson_id)
            .join(newest, newest.c.id == exposures.c.episode_id)
            .join(lessons, lessons.c.id == exposures.c.lesson_id)
            .where(lessons.c.status == "active")
            .group_by(exposures.c.lesson_id)
            .having(sa.func.count() >= NEVER_SHOWN_AFTER, shown == 0)
            .order_by(exposures.c.lesson_id)
        )
        with self.db.read() as connection:
            return tuple(connection.execute(query).scalars())

    def resting(self) -> tuple[Resting, ...]:
        """The namespaces that rest after failed reflections."""
        left = (work.c.rest_until - self.db.now()).label("left")
        query = sa.select(work.c.namespace, work.c.failures, left).where(left > 0).order_by(left.desc())
        with self.db.read() as connection:
            rows = connection.execute(query.limit(SAMPLE)).all()
        return tuple(
            Resting(namespace=from_key(row.namespace), failures=row.failures, seconds=row.left) for row in rows
        )

    def spent(self, day: str) -> int:
        """Tokens that reflections have used on a day (of UTC, as 2026-11-22)."""
        query = sa.select(spent.c.input_tokens + spent.c.output_tokens).where(spent.c.day == day)
        with self.db.read() as connection:
            return int(connection.execute(query).scalar() or 0)
