"""Reflections in the ledger: claims with an owner and a lease, and effects that commit once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.desk import Change
from reflect_middleware.due import Quota
from reflect_middleware.errors import ReflectionNotFoundError
from reflect_middleware.lessons_table import LessonTable
from reflect_middleware.namespaces import from_key, to_key
from reflect_middleware.rewards_table import changed_since, hold, lock, mark_for_review
from reflect_middleware.schema import CONSOLIDATION, episodes, running
from reflect_middleware.schema import reflections as table
from reflect_middleware.types import Namespace, ReflectionRecord, Reward, new_id
from reflect_middleware.work_table import EVER, SLACK, check, note_failure, note_success, ready, spend

LOOKED_AT = 200
"""How far back consolidations are looked for among a namespace's reflections: there may be a million."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A batch of episodes that one owner reflects on, or lessons that it consolidates, until its lease ends."""

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

    def release_expired(self) -> tuple[Namespace, ...]:
        """Give back the batches of processes that have died; gives the namespaces of which there were any."""
        late = sa.select(table.c.namespace).where(*self._over())
        with self.db.read() as connection:
            names = {from_key(row.namespace) for row in connection.execute(late)}
        for namespace in names:
            with self.db.write() as connection:
                self._release_expired(connection, namespace)
        return tuple(sorted(names))

    def claim(
        self,
        namespace: Namespace,
        owner: str,
        *,
        at_least: int,
        at_most: int,
        lease: float,
        whatever: bool = False,
        quota: Quota | None = None,
        only: Sequence[str] | None = None,
    ) -> Claim | None:
        """Take the oldest ready episodes, `whatever` the rewards they still wait for; `only` those of these ids.

        Returns:
            None if fewer than `at_least` are ready, or another reflection of the namespace is under way.

        Raises:
            QuotaError: If there is something to take, but a limit is reached.
        """
        with self.db.write() as connection:
            if not self._free(connection, namespace):
                return None
            mine = () if only is None else (episodes.c.id.in_(only),)
            query = (
                sa.select(episodes.c.id)
                .where(*ready(self.db, to_key(namespace), EVER if whatever else self.db.now()), *mine)
                .order_by(episodes.c.ended_at, episodes.c.id)
                .limit(at_most)
                .with_for_update(skip_locked=True)
            )
            ids = tuple(row.id for row in connection.execute(query))
            if len(ids) < max(1, at_least):
                return None
            if quota is not None:
                check(connection, self.db, quota)
            claim = Claim(id=new_id(), namespace=namespace, owner=owner, episodes=ids)
            connection.execute(episodes.update().where(episodes.c.id.in_(ids)).values(reflection_id=claim.id))
            self._begin(connection, claim, lease)
            return claim

    def claim_lessons(self, namespace: Namespace, owner: str, *, lease: float, quota: Quota) -> Claim | None:
        """Take a namespace's lessons, to consolidate them.

        Returns:
            None if a reflection or a consolidation of the namespace is under way.

        Raises:
            QuotaError: If a limit is reached.
        """
        with self.db.write() as connection:
            if not self._free(connection, namespace):
                return None
            check(connection, self.db, quota)
            claim = Claim(id=f"{CONSOLIDATION}{new_id()}", namespace=namespace, owner=owner, episodes=())
            self._begin(connection, claim, lease)
            return claim

    def since_consolidation(self, namespace: Namespace, most: int) -> int:
        """How many reflections of a namespace were committed since the last consolidation ended; counted up to `most`.

        One that its process could not end does not count: it is owed.
        """
        count = 0
        for row in self._newest(namespace, most + LOOKED_AT):
            if row.id.startswith(CONSOLIDATION) and row.status in ("done", "failed"):
                break
            count += row.status == "done"
        return min(count, most)

    def consolidations(self, namespace: Namespace) -> tuple[ReflectionRecord, ...]:
        """The consolidations among a namespace's newest reflections, the newest first."""
        ids = [row.id for row in self._newest(namespace, LOOKED_AT) if row.id.startswith(CONSOLIDATION)]
        return tuple(self._read(table.c.id.in_(ids)))

    def _newest(self, namespace: Namespace, limit: int) -> Sequence[Any]:
        query = sa.select(table.c.id, table.c.status).where(table.c.namespace == to_key(namespace))
        with self.db.read() as connection:
            return connection.execute(query.order_by(table.c.started_at.desc()).limit(limit)).all()

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
        tokens: tuple[int, int] = (0, 0),
    ) -> bool:
        """Write the edits and the done-mark together; `reviewed` lessons need no further review.

        Except where a reward has come meanwhile: `read` are the rewards, by episode, that the reflector was told of.
        `tokens`, read and written, count for the day.

        Returns:
            False if the claim was lost; nothing is written then.

        Raises:
            LessonStateError: If somebody changed one of the lessons meanwhile; nothing is written, the claim holds.
        """
        with self.db.write() as connection:
            if connection.execute(table.update().where(*_mine(claim)).values(status="done")).rowcount != 1:
                return False
            told = read or {}
            lock(connection, told)  # before the lessons, as a reward does
            hold(connection, [to_key(claim.namespace)])
            self.lessons.apply(connection, changes, embedder)
            self.lessons.reviewed(connection, reviewed)
            mark_for_review(connection, changed_since(connection, told))
            self._body(connection, record)
            if claim.episodes:
                note_success(connection, self.db, claim.namespace)
            spend(connection, self.db, tokens)
            return True

    def fail(
        self,
        claim: Claim,
        record: ReflectionRecord,
        reason: str,
        *,
        tries: int | None = 3,
        tokens: tuple[int, int] = (0, 0),
    ) -> int:
        """Give the batch back and let the namespace rest.

        Args:
            claim: The batch.
            record: What is kept of the reflection.
            reason: Why it failed.
            tries: After so many of them an episode is dead-lettered; None: this was no try.
            tokens: Read and written, for the day's count; also where the claim was lost.

        Returns:
            How many episodes were dead-lettered.
        """
        with self.db.write() as connection:
            spend(connection, self.db, tokens)
            if connection.execute(table.update().where(*_mine(claim)).values(status="failed")).rowcount != 1:
                return 0
            self._body(connection, record)
            if claim.episodes:  # of a consolidation that failed no reflection has to rest
                note_failure(connection, self.db, claim.namespace)
            mine = _batch(claim.id, claim.episodes)
            tried = episodes.c.tries + (0 if tries is None else 1)
            last = sa.false() if tries is None else tried >= tries
            dead = sa.select(sa.func.count()).select_from(episodes).where(*mine, last)
            given_up = int(connection.execute(dead).scalar_one())
            connection.execute(
                episodes.update()
                .where(*mine)
                .values(
                    reflection_id="",
                    tries=tried,
                    dead_letter=sa.case((last, reason[:2_000] or "failed"), else_=""),
                )
            )
            return given_up

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

    def _free(self, connection: sa.Connection, namespace: Namespace) -> bool:
        """Whether nothing of a namespace is under way; nobody else can begin something until the transaction ends."""
        self.db.take_turn(connection, f"claim {to_key(namespace)}")
        self._release_expired(connection, namespace)
        busy = sa.select(table.c.id).where(table.c.namespace == to_key(namespace), running)
        return connection.execute(busy).first() is None

    def _begin(self, connection: sa.Connection, claim: Claim, lease: float) -> None:
        record = ReflectionRecord(id=claim.id, namespace=claim.namespace, status="running", episodes=claim.episodes)
        connection.execute(
            table.insert().values(
                id=claim.id,
                namespace=to_key(claim.namespace),
                status="running",
                owner=claim.owner,
                lease_until=self.db.now() + lease,
                lease=lease,
                started_at=self.db.now(),
                body=record.model_dump_json(),
            )
        )

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


def _batch(reflection_id: str, claimed: Sequence[str]) -> tuple[Any, ...]:
    """Those of a claim's episodes that are still its own, found by their ids."""
    return episodes.c.id.in_(claimed), episodes.c.reflection_id == reflection_id


def _mine(claim: Claim) -> tuple[Any, ...]:
    return (table.c.id == claim.id, table.c.owner == claim.owner, table.c.status == "running")
