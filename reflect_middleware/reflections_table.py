"""Reflections in the ledger: claims with an owner and a lease, and effects that commit once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.desk import Change
from reflect_middleware.errors import ReflectionNotFoundError
from reflect_middleware.lessons_table import LessonTable
from reflect_middleware.namespaces import from_key, to_key
from reflect_middleware.rewards_table import changed_since, lock, mark_for_review
from reflect_middleware.schema import episodes, running, unread, waits
from reflect_middleware.schema import reflections as table
from reflect_middleware.types import Namespace, ReflectionRecord, Reward, new_id

TRIES = 3
"""After so many failed reflections an episode is dead-lettered."""
LAST = 1e18
"""After every time (epoch seconds)."""
SLACK = 1.0
"""Seconds by which a clock may be put back unnoticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A batch of episodes that one owner reflects on, until its lease ends."""

    id: str
    namespace: Namespace
    owner: str
    episodes: tuple[str, ...]
    """The oldest first."""


class ReflectionTable:
    """Claims, commits and reads reflections. All methods are one transaction each."""

    def __init__(self, database: Database, lessons: LessonTable) -> None:
        self.db = database
        self.lessons = lessons

    def ready(self, namespace: Namespace, at: float | None = None, *, most: int | None = None) -> int:
        """How many episodes of a namespace count towards K at a time (epoch seconds; now by default).

        Args:
            namespace: The namespace.
            at: The time.
            most: Counting stops here, whatever a backlog holds; None counts them all.
        """
        found = sa.select(sa.literal(1)).where(*self._ready(namespace, self.db.now() if at is None else at)).limit(most)
        with self.db.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(found.subquery())).scalar_one())

    def next_ready_at(self, namespace: Namespace) -> float | None:
        """When the next waiting episode will count (epoch seconds of this process's clock); None if none waits."""
        now = self.db.now()
        soon = sa.select(sa.func.min(episodes.c.ready_at) - now).where(
            episodes.c.namespace == to_key(namespace), waits, episodes.c.ready_at > now
        )
        with self.db.read() as connection:
            wait = connection.execute(soon).scalar()
        return None if wait is None else self.db.clock() + wait

    def waiting(self) -> tuple[Namespace, ...]:
        """Namespaces with ended episodes that no reflection has read, claims with an ended lease included."""
        free = sa.select(episodes.c.namespace).where(unread)
        stuck = sa.select(table.c.namespace).where(*self._over())
        with self.db.read() as connection:
            rows = connection.execute(sa.union(free, stuck)).all()
        return tuple(from_key(row.namespace) for row in rows)

    def claim(
        self, namespace: Namespace, owner: str, *, at_least: int, at_most: int, lease: float, whatever: bool = False
    ) -> Claim | None:
        """Take the oldest ready episodes, `whatever` the rewards they still wait for.

        Returns:
            None if fewer than `at_least` are ready, or another reflection of the namespace is under way.
        """
        with self.db.write() as connection:
            self.db.take_turn(connection, f"claim {to_key(namespace)}")  # one reflection of a namespace at a time
            self._release_expired(connection, namespace)
            busy = sa.select(table.c.id).where(table.c.namespace == to_key(namespace), running)
            if connection.execute(busy).first() is not None:
                return None
            query = (
                sa.select(episodes.c.id)
                .where(*self._ready(namespace, LAST if whatever else self.db.now()))
                .order_by(episodes.c.ended_at, episodes.c.id)
                .limit(at_most)
                .with_for_update(skip_locked=True)
            )
            ids = tuple(row.id for row in connection.execute(query))
            if len(ids) < max(1, at_least):
                return None
            claim = Claim(id=new_id(), namespace=namespace, owner=owner, episodes=ids)
            connection.execute(episodes.update().where(episodes.c.id.in_(ids)).values(reflection_id=claim.id))
            record = ReflectionRecord(id=claim.id, namespace=namespace, status="running", episodes=ids)
            connection.execute(
                table.insert().values(
                    id=claim.id,
                    namespace=to_key(namespace),
                    status="running",
                    owner=owner,
                    lease_until=self.db.now() + lease,
                    lease=lease,
                    started_at=self.db.now(),
                    body=record.model_dump_json(),
                )
            )
            return claim

    def renew(self, claim: Claim, lease: float) -> bool:
        """Hold the claim for another `lease` seconds; False if it is no longer ours."""
        with self.db.write() as connection:
            done = table.update().where(*_mine(claim)).values(lease_until=self.db.now() + lease, lease=lease)
            return connection.execute(done).rowcount == 1

    def commit(
        self,
        claim: Claim,
        record: ReflectionRecord,
        changes: Sequence[Change],
        embedder: str,
        *,
        reviewed: Sequence[str] = (),
        read: Mapping[str, Sequence[Reward]] | None = None,
    ) -> list[Change] | None:
        """Write the edits and the done-mark together; `reviewed` lessons need no further review.

        Except where a reward has come meanwhile: `read` are the rewards, by episode, that the reflector was told of.

        Returns:
            The changes written: those whose lesson nobody changed meanwhile. None if the claim was lost; nothing is
            written then.
        """
        with self.db.write() as connection:
            if connection.execute(table.update().where(*_mine(claim)).values(status="done")).rowcount != 1:
                return None
            told = read or {}
            lock(connection, told)  # before the lessons, as a reward does
            self.lessons.lock(connection, [*(change.lesson.id for change in changes), *reviewed], told)
            done = self.lessons.apply(connection, changes, embedder)
            self.lessons.reviewed(connection, reviewed)
            mark_for_review(connection, changed_since(connection, told))
            self._body(connection, record)
            return done

    def amend(self, record: ReflectionRecord) -> None:
        """Replace what is kept of a finished reflection."""
        with self.db.write() as connection:
            self._body(connection, record)

    def fail(self, claim: Claim, record: ReflectionRecord, reason: str) -> None:
        """Give the batch back and count the try; after `TRIES` of them its episodes are dead-lettered."""
        with self.db.write() as connection:
            if connection.execute(table.update().where(*_mine(claim)).values(status="failed")).rowcount != 1:
                return
            self._body(connection, record)
            tries = episodes.c.tries + 1
            connection.execute(
                episodes.update()
                .where(*_batch(claim.id, claim.episodes))
                .values(
                    reflection_id="",
                    tries=tries,
                    dead_letter=sa.case((tries >= TRIES, reason[:2_000] or "failed"), else_=""),
                )
            )

    def release(self, claim: Claim) -> None:
        """Give the batch back without counting a try."""
        with self.db.write() as connection:
            if connection.execute(table.update().where(*_mine(claim)).values(status="released")).rowcount == 1:
                connection.execute(episodes.update().where(*_batch(claim.id, claim.episodes)).values(reflection_id=""))

    def get(self, reflection_id: str) -> ReflectionRecord:
        """One reflection.

        Raises:
            ReflectionNotFoundError: If there is none of this id.
        """
        found = self._read(table.c.id == reflection_id)
        if not found:
            raise ReflectionNotFoundError(reflection_id)
        return found[0]

    def find(self, namespace: Namespace | None = None, limit: int | None = 100) -> tuple[ReflectionRecord, ...]:
        """The newest reflections first."""
        where = [] if namespace is None else [table.c.namespace == to_key(namespace)]
        return tuple(self._read(*where, limit=limit))

    def _read(self, *where: Any, limit: int | None = None) -> list[ReflectionRecord]:
        query = sa.select(table.c.body, table.c.status).where(*where).order_by(table.c.started_at.desc()).limit(limit)
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        return [
            ReflectionRecord.model_validate_json(row.body).model_copy(update={"status": row.status}) for row in rows
        ]

    def _body(self, connection: sa.Connection, record: ReflectionRecord) -> None:
        connection.execute(table.update().where(table.c.id == record.id).values(body=record.model_dump_json()))

    def _release_expired(self, connection: sa.Connection, namespace: Namespace) -> None:
        late = (table.c.namespace == to_key(namespace), *self._over())
        for row in connection.execute(sa.select(table.c.id, table.c.body).where(*late).with_for_update()).all():
            claimed = ReflectionRecord.model_validate_json(row.body).episodes
            connection.execute(table.update().where(table.c.id == row.id).values(status="released"))
            connection.execute(episodes.update().where(*_batch(row.id, claimed)).values(reflection_id=""))

    def _over(self) -> tuple[Any, ...]:
        """A running reflection whose lease has ended. One that reaches further than a lease can is of a wrong clock."""
        now = self.db.now()
        return running, sa.or_(table.c.lease_until < now, table.c.lease_until - table.c.lease > now + SLACK)

    def _ready(self, namespace: Namespace, at: Any) -> tuple[Any, ...]:
        counts = episodes.c.ready_at <= at
        if self.db.is_sqlite:  # it ended in the future: the clock was put back since, and how long it waits is unknown
            ahead = episodes.c.ended_at > self.db.now() + SLACK
            counts = sa.or_(counts, ahead)
        return episodes.c.namespace == to_key(namespace), unread, counts


def _batch(reflection_id: str, claimed: Sequence[str]) -> tuple[Any, ...]:
    """Those of a claim's episodes that are still its own, found by their ids."""
    return episodes.c.id.in_(claimed), episodes.c.reflection_id == reflection_id


def _mine(claim: Claim) -> tuple[Any, ...]:
    return (table.c.id == claim.id, table.c.owner == claim.owner, table.c.status == "running")
