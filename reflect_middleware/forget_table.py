"""Erasing in the ledger: what is to go, what stays of the rest, and whether anything still says it."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.desk import Change
from reflect_middleware.errors import LessonStateError
from reflect_middleware.hints import HEARD, SOURCE
from reflect_middleware.lessons_table import LessonTable
from reflect_middleware.names_table import erase_orphans
from reflect_middleware.namespaces import to_key
from reflect_middleware.retention_table import DROPPED
from reflect_middleware.schema import (
    aliases,
    episodes,
    exposures,
    lesson_sources,
    lesson_versions,
    lessons,
    metadata,
    nested,
    owned,
    reflections,
    rewards,
    vectors,
)
from reflect_middleware.types import Episode, Lesson, Namespace, ReflectionRecord, Reward

CHUNK = 500
"""Rows per transaction or list: other writers come in between."""
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
        erase_orphans(self.db)
        return counts

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
