"""Lessons with all their versions and vectors in the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from reflect_middleware.database import PORTION, Database, portions
from reflect_middleware.desk import Change
from reflect_middleware.errors import LessonNotFoundError, LessonStateError
from reflect_middleware.moves_table import STORE
from reflect_middleware.namespaces import from_key, to_key
from reflect_middleware.schema import embedders, everywhere, lesson_sources, lesson_versions, meta, namespaces, vectors
from reflect_middleware.schema import lessons as table
from reflect_middleware.types import Lesson, Namespace

if TYPE_CHECKING:
    from reflect_middleware.store import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """What the index needs to know of one lesson."""

    id: str
    active: bool
    revision: int
    vector: bytes | None
    """float32 bytes; None if the present embedder has not seen it."""


STATE = sa.select(
    sa.select(namespaces.c.revision)
    .where(namespaces.c.namespace == sa.bindparam("namespace"))
    .scalar_subquery()
    .label("revision"),
    sa.select(meta.c.value).where(meta.c.key == "paused").scalar_subquery().label("paused"),
    sa.select(meta.c.value).where(meta.c.key == "generation").scalar_subquery().label("generation"),
    sa.select(meta.c.value).where(meta.c.key == STORE).scalar_subquery().label("store"),
)
"""Asked by every run: built once."""
BODIES = sa.select(table.c.id, table.c.body).where(table.c.id.in_(sa.bindparam("ids", expanding=True)))
"""So is this: building it takes as long as SQLite's answer."""


REVISIONS = sa.select(namespaces.c.namespace, namespaces.c.revision).where(
    namespaces.c.namespace.in_(sa.bindparam("keys", expanding=True))
)
PAUSED = sa.select(meta.c.value).where(meta.c.key == "paused")

FLOOR = "revision floor"
"""In `meta`: where the revision of a new namespace begins, so that one that was purged and comes back goes on."""
STANDING = ("active", "candidate")
"""The statuses of lessons that are in use, or may be."""
FRESH_SECONDS = 5.0
"""How long a namespace's state is believed unchanged at most: shared memory can fail on odd file systems."""
STATES = 4_096
"""Of how many namespaces the state is remembered."""


class LessonTable:
    """Reads and writes lessons. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database
        self.generation = ""
        """As last read: another one says that lessons were erased or restored, and that every index begins anew."""
        self.store = ""
        """As last read: the store to which the ledger was moved, for whoever names none."""
        self._states: dict[Namespace, tuple[int, float, tuple[int, bool]]] = {}
        """Each namespace's state, with the ledger's mark and the time of reading it."""

    def apply(self, connection: sa.Connection, changes: Sequence[Change], embedder: str) -> None:
        """Write changes that belong together.

        Raises:
            LessonStateError: If somebody else changed one of the lessons meanwhile; the transaction must not commit.
        """
        for namespace in dict.fromkeys(change.lesson.namespace for change in changes):
            revision = self._next_revision(connection, namespace)
            for change in changes:
                mine = change.lesson.namespace == namespace
                if mine and not self._write(connection, change, revision, embedder):
                    raise LessonStateError(
                        f"Lesson {change.lesson.id!r} is no longer at version {change.expected_version}:"
                        " it was changed meanwhile. Read it again with `lessons.get(id)` and repeat the change."
                    )

    def reviewed(self, connection: sa.Connection, ids: Sequence[str]) -> None:
        """Take back the mark that lessons need review."""
        for row in connection.execute(sa.select(table.c.id, table.c.body).where(table.c.id.in_(ids))).all():
            lesson = Lesson.model_validate_json(row.body).model_copy(update={"needs_review": False})
            connection.execute(table.update().where(table.c.id == row.id).values(body=lesson.model_dump_json()))

    def save_all(self, changes: Sequence[Change], embedder: str) -> tuple[Lesson, ...]:
        """Write changes, all of them or none.

        Raises:
            LessonStateError: If somebody else changed one of the lessons meanwhile.
        """
        with self.db.write() as connection:
            self.apply(connection, changes, embedder)
        return tuple(change.lesson for change in changes)

    def get(self, lesson_id: str) -> Lesson:
        """One lesson as it is now.

        Raises:
            LessonNotFoundError: If there is none of this id.
        """
        found = self.many([lesson_id])
        if not found:
            raise LessonNotFoundError(lesson_id)
        return found[0]

    def many(self, ids: Sequence[str]) -> tuple[Lesson, ...]:
        """The lessons of these ids, in this order; unknown ids are left out."""
        found: dict[str, Lesson] = {}
        with self.db.read() as connection:
            for some in portions(ids):
                rows = connection.execute(BODIES, {"ids": some})
                found |= {row.id: Lesson.model_validate_json(row.body) for row in rows}
        return tuple(found[i] for i in ids if i in found)

    def find(self, namespace: Namespace, status: str | None = None, *, standing: bool = False) -> tuple[Lesson, ...]:
        """The lessons of a namespace, the oldest first; `standing` leaves out the retired ones, which pile up.

        Those of one reflection come by their words, because ids differ from one run of the same to the other.
        """
        where: list[Any] = [table.c.namespace == to_key(namespace)]
        if status is not None:
            where.append(table.c.status == status)
        if standing:
            where.append(table.c.status.in_(STANDING))
        with self.db.read() as connection:
            rows = connection.execute(sa.select(table.c.body).where(*where)).all()
        found = [Lesson.model_validate_json(row.body) for row in rows]
        return tuple(sorted(found, key=lambda lesson: (lesson.created_at, lesson.text, lesson.id)))

    def always(self, namespace: Namespace) -> tuple[Lesson, ...]:
        """The active lessons of a namespace that apply everywhere, the oldest first."""
        query = sa.select(table.c.body).where(table.c.namespace == to_key(namespace), everywhere)
        with self.db.read() as connection:
            found = [Lesson.model_validate_json(row.body) for row in connection.execute(query)]
        return tuple(sorted(found, key=lambda lesson: (lesson.created_at, lesson.id)))

    def standing(self, namespace: Namespace) -> dict[str, int]:
        """How many lessons of a namespace stand, by status."""
        query = sa.select(table.c.status, sa.func.count()).where(
            table.c.namespace == to_key(namespace), table.c.status.in_(STANDING)
        )
        with self.db.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query.group_by(table.c.status))}

    def to_review(self, namespace: Namespace) -> tuple[Lesson, ...]:
        """The standing lessons that rewards have come for since they were learned."""
        marked = table.c.body.contains('"needs_review":true')  # as JSON is written; in a text the quotes are escaped
        query = sa.select(table.c.body).where(
            table.c.namespace == to_key(namespace), table.c.status.in_(STANDING), marked
        )
        with self.db.read() as connection:
            return tuple(Lesson.model_validate_json(row.body) for row in connection.execute(query))

    def least_changed(self, namespace: Namespace, most: int) -> list[str]:
        """Ids of the active lessons that nobody has changed for the longest time."""
        query = sa.select(table.c.id).where(table.c.namespace == to_key(namespace), table.c.status == "active")
        with self.db.read() as connection:
            return list(connection.execute(query.order_by(table.c.revision).limit(most)).scalars())

    def vectors(self, ids: Sequence[str], embedder: str) -> dict[str, bytes]:
        """The vectors of these lessons, of those that this embedder has seen."""
        query = sa.select(table.c.id, table.c.vector).where(table.c.embedder == embedder, table.c.vector.is_not(None))
        with self.db.read() as connection:
            rows = [row for some in portions(ids) for row in connection.execute(query.where(table.c.id.in_(some)))]
            found = {row.id: row.vector for row in rows}
            return found | _beside(connection, [i for i in ids if i not in found], embedder)

    def history(self, lesson_id: str) -> tuple[Lesson, ...]:
        """All versions of a lesson, the first one first."""
        query = sa.select(lesson_versions.c.body).where(lesson_versions.c.lesson_id == lesson_id)
        with self.db.read() as connection:
            rows = connection.execute(query.order_by(lesson_versions.c.version)).all()
        if not rows:
            raise LessonNotFoundError(lesson_id)
        return tuple(Lesson.model_validate_json(row.body) for row in rows)

    def as_of(self, namespace: Namespace, at: datetime) -> dict[str, Lesson]:
        """Each lesson of the namespace as it stood at a time; later ones are missing."""
        query = sa.select(lesson_versions.c.body).where(
            lesson_versions.c.namespace == to_key(namespace), lesson_versions.c.at <= at.timestamp()
        )
        with self.db.read() as connection:
            rows = connection.execute(query.order_by(lesson_versions.c.version)).all()
        return {lesson.id: lesson for row in rows for lesson in [Lesson.model_validate_json(row.body)]}

    def state(self, namespace: Namespace) -> tuple[int, bool]:
        """The namespace's revision (0: it never had a lesson), and whether learning and lessons are paused."""
        if (known := self.known_state(namespace)) is not None:
            return known
        mark, at = self.db.mark(), time.monotonic()
        with self.db.read() as connection:
            row = connection.execute(STATE, {"namespace": to_key(namespace)}).one()
        found = row.revision or 0, row.paused == "1"
        self.generation, self.store = row.generation or "", row.store or ""
        self._remember(namespace, mark, at, found)
        return found

    def revisions(self, spaces: Sequence[Namespace]) -> list[int]:
        """The revisions of namespaces, in their order; one question for all that are not known."""
        known = {space: self.known_state(space) for space in spaces}
        keys = {to_key(space): space for space, state in known.items() if state is None}
        if keys:
            mark, at = self.db.mark(), time.monotonic()
            with self.db.read() as connection:
                rows = connection.execute(REVISIONS, {"keys": list(keys)}).all()
                paused = mark is not None and connection.execute(PAUSED).scalar() == "1"
            read = {row.namespace: row.revision for row in rows}
            for key, space in keys.items():
                known[space] = read.get(key, 0), paused
                self._remember(space, mark, at, (read.get(key, 0), paused))
        return [state[0] for space in spaces if (state := known[space])]

    def _remember(self, namespace: Namespace, mark: int | None, at: float, found: tuple[int, bool]) -> None:
        if mark is not None:
            if len(self._states) >= STATES:
                self._states.clear()
            self._states[namespace] = mark, at, found

    def forget(self) -> None:
        """Ask the ledger again: it is another one now."""
        self._states.clear()

    def known_state(self, namespace: Namespace) -> tuple[int, bool] | None:
        """As `state`, if nothing has changed since this process last asked; else None. Never blocks."""
        mark, at, found = self._states.get(namespace, (None, 0.0, None))
        fresh = mark is not None and mark == self.db.mark() and time.monotonic() - at < FRESH_SECONDS
        return found if fresh else None

    def pause(self, *, value: bool) -> None:
        """Switch every process on this ledger off or on."""
        with self.db.write() as connection:
            self.db.changing(connection)
            connection.execute(self.db.upsert(meta, key="paused", value="1" if value else "0"))

    def read_generation(self) -> str:
        """The generation as it is now; empty for the first one. And `store`, as it is now."""
        query = sa.select(meta.c.key, meta.c.value).where(meta.c.key.in_(("generation", STORE)))
        with self.db.read() as connection:
            known: dict[str, str] = {row.key: row.value for row in connection.execute(query)}
        self.store = known.get(STORE, "")
        return known.get("generation", "")

    def touch(self, connection: sa.Connection, namespace: Namespace) -> int:
        """Say, inside a write transaction, that lessons of a namespace change; gives its new revision."""
        return self._next_revision(connection, namespace)

    def floor(self, connection: sa.Connection) -> int:
        """The least revision of a new namespace, less one."""
        return int(connection.execute(sa.select(meta.c.value).where(meta.c.key == FLOOR)).scalar() or 0)

    def paused(self) -> bool:
        """Whether everything is paused."""
        with self.db.read() as connection:
            return connection.execute(sa.select(meta.c.value).where(meta.c.key == "paused")).scalar() == "1"

    def indexed(self, namespace: Namespace, after: int, embedder: str) -> list[Indexed]:
        """What changed in a namespace after a revision, for the index; after 0 without what is retired.

        Retired lessons pile up in the course of time, and who starts from nothing need not hear of them.
        """
        query = sa.select(table.c.id, table.c.status, table.c.revision, table.c.vector, table.c.embedder).where(
            table.c.namespace == to_key(namespace),
            table.c.revision > after if after else table.c.status.in_(STANDING),
        )
        with self.db.read() as connection:
            rows = connection.execute(query.order_by(table.c.id)).all()
            others = [row.id for row in rows if row.embedder != embedder and row.status == "active"]
            beside = _beside(connection, others, embedder)
        return [
            Indexed(
                id=row.id,
                active=row.status == "active",
                revision=row.revision,
                vector=row.vector if row.embedder == embedder else beside.get(row.id),
            )
            for row in rows
        ]

    def set_vectors(self, namespace: Namespace, made: Sequence[tuple[Lesson, Vector]], embedder: str) -> None:
        """Store vectors that were missing or came from another embedder, whose own is kept beside.

        So agents with either embedder find theirs. A lesson that was changed meanwhile is left out.
        """
        for start in range(0, len(made), PORTION):
            some = made[start : start + PORTION]
            ids = [lesson.id for lesson, _ in some]
            with self.db.write() as connection:
                new = {"embedder": embedder, "revision": self._next_revision(connection, namespace)}
                former = sa.select(table.c.id, table.c.embedder, table.c.vector).where(
                    table.c.id.in_(ids), table.c.vector.is_not(None), table.c.embedder != embedder
                )
                connection.execute(self.db.insert_new(vectors).from_select(["lesson_id", "embedder", "vector"], former))
                rows = [{"lesson": x.id, "seen": x.version, "vector": v.tobytes(), **new} for x, v in some]
                same = (table.c.id == sa.bindparam("lesson"), table.c.version == sa.bindparam("seen"))
                connection.execute(table.update().where(*same), rows)

    def without_vectors(self, namespace: Namespace, embedder: str) -> list[str]:
        """Ids of the active lessons that this embedder has not seen."""
        other = sa.or_(table.c.embedder < embedder, table.c.embedder > embedder)  # an index can be asked so, `!=` not
        query = sa.select(table.c.id).where(table.c.namespace == to_key(namespace), table.c.status == "active", other)
        with self.db.read() as connection:
            found = list(connection.execute(query.order_by(table.c.id)).scalars())
            beside = _beside(connection, found, embedder)
        return [i for i in found if i not in beside]

    def embedders(self) -> tuple[str, ...]:
        """Every embedder whose vectors a store may have."""
        with self.db.read() as connection:
            return tuple(connection.execute(sa.select(embedders.c.id)).scalars())

    def namespaces(self) -> tuple[Namespace, ...]:
        """Every namespace that ever had a lesson."""
        with self.db.read() as connection:
            rows = connection.execute(sa.select(namespaces.c.namespace).order_by(namespaces.c.namespace)).all()
        return tuple(from_key(row.namespace) for row in rows)

    def _next_revision(self, connection: sa.Connection, namespace: Namespace) -> int:
        self.db.changing(connection)
        key = to_key(namespace)
        floor = self.floor(connection)
        connection.execute(self.db.insert_new(namespaces).values(namespace=key, revision=floor))
        mine = namespaces.c.namespace == key
        connection.execute(namespaces.update().where(mine).values(revision=namespaces.c.revision + 1))
        return int(connection.execute(sa.select(namespaces.c.revision).where(mine)).scalar_one())

    def _write(self, connection: sa.Connection, change: Change, revision: int, embedder: str) -> bool:
        lesson = change.lesson
        row: dict[str, Any] = {
            "namespace": to_key(lesson.namespace),
            "status": lesson.status,
            "version": lesson.version,
            "revision": revision,
            "always": lesson.always,
            "body": lesson.model_dump_json(exclude={"shown", "shown_reward"}),
        }
        if change.vector is None:  # never that of former words: it is made when an embedder works
            row |= {"vector": None, "embedder": ""}
        else:
            row |= {"vector": change.vector.tobytes(), "embedder": embedder}
        if change.expected_version == 0:
            written = connection.execute(self.db.insert_new(table).values(id=lesson.id, **row)).rowcount
        else:
            same = (table.c.id == lesson.id, table.c.version == change.expected_version)
            written = connection.execute(table.update().where(*same).values(**row)).rowcount
            connection.execute(vectors.delete().where(vectors.c.lesson_id == lesson.id))  # those of its former words
        if not written:
            return False
        self._keep(connection, lesson)
        return True

    def _keep(self, connection: sa.Connection, lesson: Lesson) -> None:
        connection.execute(
            lesson_versions.insert().values(
                lesson_id=lesson.id,
                version=lesson.version,
                namespace=to_key(lesson.namespace),
                at=lesson.updated_at.timestamp(),
                by=lesson.created_by,
                body=lesson.model_dump_json(exclude={"shown", "shown_reward"}),
            )
        )
        pairs = [{"episode_id": source, "lesson_id": lesson.id} for source in lesson.sources]
        if pairs:
            connection.execute(self.db.insert_new(lesson_sources), pairs)


def _beside(connection: sa.Connection, ids: Sequence[str], embedder: str) -> dict[str, bytes]:
    """An embedder's vectors of lessons whose own row has another's; mostly nobody asks for any."""
    query = sa.select(vectors.c.lesson_id, vectors.c.vector).where(vectors.c.embedder == embedder)
    found: dict[str, bytes] = {}
    for some in portions(ids):
        rows = connection.execute(query.where(vectors.c.lesson_id.in_(some)))
        found |= {row.lesson_id: row.vector for row in rows}
    return found
