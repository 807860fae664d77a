"""Erasing in the ledger: what is to go, what stays of the rest, and whether anything still says it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.desk import Change
from reflect_middleware.errors import LessonStateError
from reflect_middleware.hints import HEARD, SOURCE
from reflect_middleware.lessons_table import FLOOR, LessonTable
from reflect_middleware.namespaces import to_key
from reflect_middleware.retention_table import DROPPED
from reflect_middleware.schema import (
    aliases,
    audit,
    counters,
    episodes,
    exposures,
    lesson_sources,
    lesson_versions,
    lessons,
    meta,
    metadata,
    namespaces,
    nested,
    owned,
    reflections,
    rewards,
    vectors,
    work,
)
from reflect_middleware.types import AuditEntry, Episode, Lesson, Namespace, ReflectionRecord, Reward

CHUNK = 500
"""Rows per transaction or list: other writers come in between."""
NAME_STARTS = "0123456789abcdefghijklmnopqrstuvwxyz"
PURGING = "purging"
"""In `dead_letter`, while a purge is under way: no reflection takes such an episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """Which episodes are meant: those for which all of it holds. One of the first four is given."""

    ids: tuple[str, ...] = ()
    principal: str | None = None
    thread_id: str | None = None
    before: float | None = None
    """Epoch seconds: those that started earlier."""
    namespace: Namespace | None = None

    @property
    def kinds(self) -> list[str]:
        """What was asked for, in words that name nobody."""
        given = {"ids": self.ids, "principal": self.principal, "thread": self.thread_id, "before": self.before}
        return [kind for kind, value in {**given, "namespace": self.namespace}.items() if value]

    def fits(self, episode: Episode) -> bool:
        """Whether an episode is meant, as far as it can tell by itself."""
        return (
            (not self.ids or episode.id in self.ids)
            and self.principal in (None, episode.principal)
            and self.thread_id in (None, episode.thread_id)
            and (self.before is None or episode.started_at.timestamp() < self.before)
            and self.namespace in (None, episode.namespace)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """The episodes of a purge, taken out of every reflection's reach."""

    ids: tuple[str, ...]
    namespaces: tuple[str, ...]
    """Their namespaces' keys."""
    since: float
    """When the first of them started, in epoch seconds."""


class ForgetTable:
    """Erases. Every step can be done again: the episodes themselves go last."""

    def __init__(self, database: Database, table: LessonTable) -> None:
        self.db = database
        self.lessons = table

    def wanted(self, criteria: Criteria) -> list[str]:
        """Ids of the episodes that are meant, and of those that ran inside them."""
        where = []
        if criteria.principal is not None:
            where += [owned, episodes.c.principal == criteria.principal]
        if criteria.thread_id is not None:
            where.append(episodes.c.thread_id == criteria.thread_id)
        if criteria.before is not None:
            where.append(episodes.c.started_at < criteria.before)
        if criteria.namespace is not None:
            where.append(episodes.c.namespace == to_key(criteria.namespace))
        with self.db.read() as connection:
            found: dict[str, None] = {}
            for some in chunks(criteria.ids) if criteria.ids else [None]:
                named = where if some is None else [*where, episodes.c.id.in_(some)]
                found |= dict.fromkeys(connection.execute(sa.select(episodes.c.id).where(*named)).scalars())
            return list(_with_nested(connection, found))

    def scope(self, ids: Sequence[str]) -> Marked:
        """Where and since when these episodes may have left something."""
        spaces, since = set[str](), time.time()
        mine = sa.select(episodes.c.namespace, sa.func.min(episodes.c.started_at)).group_by(episodes.c.namespace)
        with self.db.read() as connection:
            for some in chunks(ids):
                for key, first in connection.execute(mine.where(episodes.c.id.in_(some))).all():
                    spaces.add(key)
                    since = min(since, first)
        return Marked(ids=tuple(ids), namespaces=tuple(sorted(spaces)), since=since)

    def mark(self, marked: Marked) -> None:
        """Take episodes out of every reflection's reach, and back from those that are reading them.

        A reflection under way in their namespaces may have read them, or lessons from them: it is not committed.
        """
        for some in chunks(marked.ids):
            with self.db.write() as connection:
                change = episodes.update().where(episodes.c.id.in_(some))
                connection.execute(change.values(dead_letter=PURGING))
        running = (reflections.c.status == "running", reflections.c.namespace.in_(marked.namespaces))
        with self.db.write() as connection:
            for claim in connection.execute(sa.select(reflections.c.id).where(*running)).scalars().all():
                connection.execute(reflections.update().where(reflections.c.id == claim).values(status="released"))
                batch = episodes.update().where(episodes.c.reflection_id == claim)
                connection.execute(batch.values(reflection_id=""))

    def names(self, ids: Sequence[str]) -> set[str]:
        """Everything by which a reward may name one of these episodes."""
        found = set(ids)
        with self.db.read() as connection:
            for some in chunks(ids):
                query = sa.select(aliases.c.alias).where(aliases.c.episode_id.in_(some))
                found.update(connection.execute(query).scalars())
        return found

    def judgements(self, ids: Sequence[str]) -> Iterator[Reward]:
        """All rewards of these episodes, the replaced ones too."""
        for some in chunks(ids):
            with self.db.read() as connection:
                bodies = connection.execute(sa.select(rewards.c.body).where(rewards.c.target.in_(some))).scalars().all()
            yield from (Reward.model_validate_json(body) for body in bodies)

    def resting_on(self, ids: Sequence[str]) -> list[str]:
        """Ids of the lessons that name, or once named, one of these episodes."""
        found: dict[str, None] = {}
        with self.db.read() as connection:
            for some in chunks(ids):
                query = sa.select(lesson_sources.c.lesson_id).where(lesson_sources.c.episode_id.in_(some)).distinct()
                found |= dict.fromkeys(connection.execute(query).scalars())
        return list(found)

    def standing(self, ids: Sequence[str]) -> dict[str, tuple[Lesson, list[Lesson]]]:
        """Lessons with all their versions, by id; unknown ones are left out."""
        versions: dict[str, list[Lesson]] = {}
        query = sa.select(lesson_versions.c.body).order_by(lesson_versions.c.version)
        with self.db.read() as connection:
            for body in connection.execute(query.where(lesson_versions.c.lesson_id.in_(ids))).scalars():
                version = Lesson.model_validate_json(body)
                versions.setdefault(version.id, []).append(version)
        return {lesson.id: (lesson, versions.get(lesson.id, [])) for lesson in self.lessons.many(ids)}

    def erase_lessons(self, found: Iterable[Lesson]) -> None:
        """Remove lessons with all their versions; a store learns of it by the ledger's new generation."""
        for some in chunks(list(found)):
            ids = [lesson.id for lesson in some]
            with self.db.write() as connection:
                for namespace in {lesson.namespace for lesson in some}:
                    self.lessons.touch(connection, namespace)
                connection.execute(lessons.delete().where(lessons.c.id.in_(ids)))
                for table in (lesson_versions, lesson_sources, exposures, vectors):
                    connection.execute(table.delete().where(table.c.lesson_id.in_(ids)))

    def keep_lesson(self, lesson: Lesson, expected: int, drop: Sequence[int], gone: Collection[str]) -> bool:
        """Write what stays of a lesson as a new version, without the versions that have to go.

        Returns:
            False if somebody changed it meanwhile: it has to be read again.
        """
        try:
            with self.db.write() as connection:
                if lesson.version != expected:
                    self.lessons.apply(connection, [Change(lesson=lesson, vector=None, expected_version=expected)], "")
                self._drop_of_lesson(connection, lesson.id, drop, gone)
        except LessonStateError:
            return False
        return True

    def _drop_of_lesson(
        self, connection: sa.Connection, lesson_id: str, versions: Sequence[int], sources: Collection[str]
    ) -> None:
        here = lesson_versions.c.lesson_id == lesson_id
        connection.execute(lesson_versions.delete().where(here, lesson_versions.c.version.in_(versions)))
        mine = lesson_sources.c.lesson_id == lesson_id
        named = connection.execute(sa.select(lesson_sources.c.episode_id).where(mine)).scalars().all()
        for some in chunks([source for source in named if source in sources]):
            connection.execute(lesson_sources.delete().where(mine, lesson_sources.c.episode_id.in_(some)))

    def records(self, marked: Marked) -> Iterator[ReflectionRecord]:
        """Reflections of these namespaces that may have read these episodes, or what came from them: oldest first."""
        query = (
            sa.select(reflections.c.id)
            .where(reflections.c.namespace.in_(marked.namespaces), reflections.c.started_at >= marked.since - 86_400)
            .order_by(reflections.c.started_at)
        )
        with self.db.read() as connection:
            ids = connection.execute(query).scalars().all()
        for some in chunks(ids, 20):  # a record may be large
            bodies = sa.select(reflections.c.body).where(reflections.c.id.in_(some)).order_by(reflections.c.started_at)
            with self.db.read() as connection:
                found = connection.execute(bodies).scalars().all()
            yield from (ReflectionRecord.model_validate_json(body) for body in found)

    def scrub(self, record: ReflectionRecord) -> None:
        """Replace a reflection's record; of one that read nothing else, nothing stays."""
        with self.db.write() as connection:
            mine = reflections.c.id == record.id
            if record.episodes:
                connection.execute(reflections.update().where(mine).values(body=record.model_dump_json()))
            else:
                connection.execute(reflections.delete().where(mine))
            failed = (episodes.c.dead_letter.not_in(["", PURGING, DROPPED]), episodes.c.id.in_(record.episodes))
            connection.execute(episodes.update().where(*failed).values(dead_letter="failed (the reason was purged)"))

    def erase_episodes(self, ids: Sequence[str]) -> dict[str, int]:
        """Remove episodes with all that hangs on them; gives how many rows of each kind."""
        counts = dict.fromkeys(("episodes", "rewards", "exposures"), 0)
        for some in chunks(ids):
            with self.db.write() as connection:
                runs = sa.select(episodes.c.root_run_id).where(episodes.c.id.in_(some))
                waiting = rewards.c.waiting & rewards.c.target.in_(runs)
                counts["rewards"] += connection.execute(rewards.delete().where(waiting)).rowcount
                counts["rewards"] += connection.execute(rewards.delete().where(rewards.c.target.in_(some))).rowcount
                counts["rewards"] += connection.execute(rewards.delete().where(_quoting(some))).rowcount
                gone = exposures.delete().where(exposures.c.episode_id.in_(some))
                counts["exposures"] += connection.execute(gone).rowcount
                connection.execute(aliases.delete().where(aliases.c.alias.in_(some)))
                connection.execute(lesson_sources.delete().where(lesson_sources.c.episode_id.in_(some)))
                counts["episodes"] += connection.execute(episodes.delete().where(episodes.c.id.in_(some))).rowcount
        self.erase_names()
        return counts

    def erase_names(self) -> None:
        """Remove the names of episodes that are gone: they have no index of their own, which each run would pay for."""
        orphan = ~sa.exists().where(episodes.c.id == aliases.c.episode_id)
        for first, last in pairwise(["", *NAME_STARTS, None]):
            here = [aliases.c.alias >= first] + ([] if last is None else [aliases.c.alias < last])
            with self.db.write() as connection:  # a part at a time, so that others can write in between
                connection.execute(aliases.delete().where(*here, orphan))

    def finish(self, action: str, body: Mapping[str, Any], *, rebuild: bool) -> None:
        """The end of a purge: no error text that may quote, no empty namespace, an entry in the audit.

        Args:
            action: What was done.
            body: Counts and kinds, no content.
            rebuild: Whether every store is to be built anew.
        """
        with self.db.write() as connection:
            connection.execute(counters.update().values(last=""))
            self._drop_empty(connection)
            if rebuild:
                self._renew(connection)
            self._note(connection, action, body)

    def restored(self, seen: int, body: Mapping[str, Any]) -> None:
        """After a restore: no process may take what it read before for what is here now.

        Args:
            seen: The highest revision of a namespace that one may have seen.
            body: For the audit.
        """
        with self.db.write() as connection:
            connection.execute(namespaces.update().values(revision=namespaces.c.revision + seen + 1))
            floor = self.lessons.floor(connection) + seen + 1
            connection.execute(self.db.upsert(meta, key=FLOOR, value=str(floor)))
            self._renew(connection)
            self._note(connection, "restore", body)

    def audit(self, limit: int | None = None) -> tuple[AuditEntry, ...]:
        """What was done to the ledger as a whole, the newest first."""
        query = sa.select(audit.c.at, audit.c.action, audit.c.body).order_by(audit.c.seq.desc()).limit(limit)
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        return tuple(
            AuditEntry(at=datetime.fromtimestamp(row.at, UTC), action=row.action, details=json.loads(row.body))
            for row in rows
        )

    def holding(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Where one of these words, and not a longer one that begins or ends with it, still stands: (place, word)."""
        found = []
        with self.db.read() as connection:
            for column in _texts():
                for some in chunks(words, 100):
                    holds = sa.or_(*(_position(self.db, column, word) > 0 for word in some))
                    texts = connection.execute(sa.select(column).where(holds).limit(CHUNK)).scalars().all()
                    place = f"{column.table.name}.{column.name}"
                    found += [(place, word) for word in some if any(_stands(word, text) for text in texts)]
        return found

    def compact(self, *, vacuum: bool) -> None:
        """SQLite: leave nothing of what was deleted in the file or its log. Waits for the other processes' reads."""
        if not self.db.is_sqlite:
            return
        with self.db.read() as connection:
            if vacuum:
                connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()

    def _drop_empty(self, connection: sa.Connection) -> None:
        """Forget the names of namespaces in which nothing is left; a revision that has been is never used again."""
        key, value = namespaces.c.namespace, sa.func.max(namespaces.c.revision)
        empty = ~sa.exists().where(lessons.c.namespace == key)
        if (last := connection.execute(sa.select(value).where(empty)).scalar()) is not None:
            self.db.changing(connection)
            floor = max(last, self.lessons.floor(connection))
            connection.execute(self.db.upsert(meta, key=FLOOR, value=str(floor)))
            connection.execute(namespaces.delete().where(empty))
        nothing = ~sa.exists().where(episodes.c.namespace == work.c.namespace)
        connection.execute(work.delete().where(nothing))

    def _renew(self, connection: sa.Connection) -> None:
        self.db.changing(connection)
        connection.execute(self.db.upsert(meta, key="generation", value=uuid4().hex))

    def _note(self, connection: sa.Connection, action: str, body: Mapping[str, Any]) -> None:
        connection.execute(audit.insert().values(at=time.time(), action=action, body=json.dumps(body)))


def chunks(items: Sequence[Any], size: int = CHUNK) -> Iterator[Sequence[Any]]:
    """The items in lists of at most `size`."""
    return (items[n : n + size] for n in range(0, len(items), size))


def _with_nested(connection: sa.Connection, found: dict[str, None]) -> dict[str, None]:
    newest = list(found)
    while newest:
        inner: list[str] = []
        for some in chunks(newest):
            roots = sa.select(episodes.c.root_run_id).where(episodes.c.id.in_(some))  # by parent there is no index
            query = sa.select(episodes.c.id).where(nested, episodes.c.root_run_id.in_(roots))
            children = connection.execute(query.where(episodes.c.parent_id.in_(some))).scalars()
            inner += [child for child in children if child not in found]
        found |= dict.fromkeys(inner)
        newest = inner
    return found


def _texts() -> Iterator[sa.Column[str]]:
    return (c for table in metadata.sorted_tables for c in table.columns if isinstance(c.type, sa.Text))


def _position(database: Database, column: Any, word: str) -> Any:
    return sa.func.instr(column, word) if database.is_sqlite else sa.func.strpos(column, word)


def _stands(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def _quoting(ids: Sequence[str]) -> sa.ColumnElement[bool]:
    """Rewards of other runs in their threads that may quote a message of one of these episodes."""
    gone = episodes.alias()
    thread = (gone.c.thread_id == episodes.c.thread_id) & (gone.c.namespace == episodes.c.namespace)
    mine = sa.select(episodes.c.id).join(gone, thread).where(gone.c.id.in_(ids), gone.c.thread_id != "")
    return (rewards.c.source == SOURCE) & rewards.c.key.in_(HEARD) & rewards.c.target.in_(mine)
