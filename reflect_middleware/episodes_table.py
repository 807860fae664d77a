"""Episodes in the ledger: writing a run, naming it, judging it, finding it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.decisions import PREFIX
from reflect_middleware.errors import EpisodeNotFoundError
from reflect_middleware.forget_table import PURGING
from reflect_middleware.hints import ours
from reflect_middleware.names_table import known_as, name_rows, named
from reflect_middleware.namespaces import to_key
from reflect_middleware.retention_table import DROPPED
from reflect_middleware.rewards_table import (
    add,
    add_later,
    adopt,
    current,
    found_by_us,
    insert,
    note,
    row_of,
    withdraw,
)
from reflect_middleware.rows_table import ROW, Record, by_id, episode_row, exposure_rows
from reflect_middleware.schema import aliases, early, exposures, open_, rewards, unread
from reflect_middleware.schema import dead as given_up
from reflect_middleware.schema import episodes as table
from reflect_middleware.slot import HELD_OUT
from reflect_middleware.types import Episode, Namespace, Reward
from reflect_middleware.use_table import STATISTICS, statistics

__all__ = ["STATISTICS", "EpisodeTable", "Record"]

NAMED = "episodes and the rewards that wait for them"
"""Who stores a run looks for waiting rewards, who lets a reward wait looks for the run: one after the other."""
WAITING = sa.select(sa.literal(1)).where(early).limit(1)
REWARDED = sa.union_all(
    sa.select(rewards.c.seq).where(early),
    sa.select(rewards.c.seq).where(rewards.c.target == sa.bindparam("id")),
)
"""Rewards that came before the episode: those that wait for any, and its own."""


class EpisodeTable:
    """Reads and writes episodes. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database
        self._put = database.replacing(table, ROW)
        self._name = database.insert_new(aliases)
        self._expose = database.insert_new(exposures)
        self._judge = rewards.insert().inline()

    def put(self, record: Record, *, again: bool = False) -> str:
        """Store a run; the second record of a resumed run replaces the interrupted first one.

        With `again` it may have been stored before, and what came after it, too: that stays as it is.

        Returns:
            The id of the episode to which the rewards in `heard` went; empty for none.
        """
        episode = record.episode
        names = {*map(known_as, record.aliases), *episode.run_ids, episode.id}
        inserts = (
            (self._put, [episode_row(record)]),
            (self._name, name_rows(episode.id, names)),
            (self._expose, exposure_rows(episode)),
        )
        quick = not (again or record.heard or record.measured) and all(map(ours, record.rewards))
        signs = (self._judge, [row_of(episode.id, reward) for reward in record.rewards])
        if quick and self.db.append(*inserts, signs, unless=REWARDED, given={"id": episode.id}):
            return ""
        with self.db.write() as connection:
            if again and self._held(connection, episode):
                return ""
            self.db.take_turn(connection, NAMED, shared=True)
            for statement, rows in inserts:
                self.db.insert(connection, statement, *rows)
            if len(episode.run_ids) > 1:
                withdraw(connection, episode.id)
            for reward in record.rewards:
                insert(connection, episode.id, reward)
            if connection.execute(WAITING).first() is not None:
                adopt(connection, episode.id, names)
            _who_reads(connection, record)
            if record.ready_at:
                self._open(connection, episode.id, record.ready_at, at_once=not record.asked)
            previous = self._before(connection, episode) if record.heard else ""
            for reward in record.heard if previous else ():
                add(connection, previous, reward)
            return previous

    def reward(self, episode_id: str, reward: Reward, *, given_at: float | None = None) -> None:
        """Add a reward; the same source and key replaces the former one, which stays in the history.

        Without such an episode (not written yet, or purged) it waits, as every reward for an unknown run does.

        With `given_at` (epoch seconds) it was given then, and may have been added before.
        """
        with self.db.write() as connection:
            known = connection.execute(sa.select(table.c.id).where(table.c.id == episode_id)).first()
            (add if known else add_later)(connection, episode_id, reward, given_at)

    def reward_later(self, name: str, reward: Reward, *, given_at: float | None = None) -> list[str]:
        """Keep a reward for an episode that is not known yet; gives the ids of those that have become known."""
        with self.db.write() as connection:
            self.db.take_turn(connection, NAMED)  # no run is stored meanwhile that this reward would never find
            found = named(connection, name)
            for episode_id in found:
                add(connection, episode_id, reward, given_at)
            if not found:
                add_later(connection, known_as(name), reward, given_at)
        return found

    def note(self, reflection_id: str, given: Mapping[str, Sequence[Reward]]) -> None:
        """Write what was found out about the episodes of a claim, while it holds; the same again changes nothing."""
        with self.db.write() as connection:
            note(connection, reflection_id, given)

    def rewards(self, ids: Iterable[str]) -> Mapping[str, Sequence[Reward]]:
        """The standing rewards of these episodes, also of those that have none."""
        wanted = list(ids)
        with self.db.read() as connection:
            found = current(connection, wanted)
        return {i: found.get(i, ()) for i in wanted}

    def open_for_reflection(self, episode_id: str, ready_at: float) -> None:
        """Say from when on an ended episode counts, unless a reward has already said so."""
        with self.db.write() as connection:
            self._open(connection, episode_id, ready_at, at_once=True)

    def resolve(self, alias: str) -> list[str]:
        """Ids of the episodes that are meant: the first one with this run or message, all that gave this output.

        For a root run that is no episode itself: the outermost ones under it.
        """
        with self.db.read() as connection:
            return named(connection, alias)

    def get(self, episode_id: str) -> Episode:
        """One episode with its rewards and exposures.

        Raises:
            EpisodeNotFoundError: If there is none of this id.
        """
        with self.db.read() as connection:
            found = by_id(connection, [episode_id])
        if not found:
            raise EpisodeNotFoundError(episode_id)
        return found[0]

    def many(self, ids: Sequence[str]) -> tuple[Episode, ...]:
        """The episodes of these ids, in this order; unknown ids are left out."""
        with self.db.read() as connection:
            return tuple(by_id(connection, ids))

    def find(
        self,
        *,
        namespace: Namespace | None = None,
        thread_id: str | None = None,
        status: str | None = None,
        agent: str | None = None,
        waiting: bool = False,
        dead: bool = False,
        limit: int | None = 100,
    ) -> tuple[Episode, ...]:
        """The newest episodes first; `waiting` keeps those that no reflection has read, `dead` those that none will."""
        where: list[Any] = [table.c.namespace == to_key(namespace)] if namespace is not None else []
        for column, value in ((table.c.thread_id, thread_id), (table.c.status, status), (table.c.agent, agent)):
            if value is not None:
                where.append(column == value)
        if waiting:
            where.append(sa.or_(unread, open_))
        if dead:
            where.append(given_up)
        with self.db.read() as connection:
            return tuple(self._newest(connection, *where, limit=limit))

    def latest(self, thread_id: str, namespace: Namespace | None = None, before: float | None = None) -> str | None:
        """The id of a thread's latest episode, or of the latest one that had begun at a time (epoch seconds)."""
        query = sa.select(table.c.id).where(table.c.thread_id == thread_id)
        if namespace is not None:
            query = query.where(table.c.namespace == to_key(namespace))
        if before is not None:
            query = query.where(table.c.started_at <= before)
        with self.db.read() as connection:
            found: str | None = connection.execute(query.order_by(table.c.started_at.desc()).limit(1)).scalar()
        return found

    def interrupted(self, agent: str, thread_id: str, checkpoint_ns: str) -> Episode | None:
        """The open episode that a resume of this thread goes on with."""
        with self.db.read() as connection:
            found = self._newest(
                connection,
                table.c.thread_id == thread_id,
                table.c.checkpoint_ns == checkpoint_ns,
                table.c.agent == agent,
                open_,
                table.c.ready_at.is_(None),
                limit=1,
            )
        return found[0] if found else None

    def abandon(self, before: float) -> None:
        """Give up episodes that were interrupted before this time and never resumed."""
        with self.db.write() as connection:
            connection.execute(
                table.update()
                .where(open_, table.c.ready_at.is_(None), table.c.started_at < before)
                .values(status="abandoned", ready_at=0.0, ended_at=time.time())
            )

    def shown_in_thread(self, namespace: Namespace, thread_id: str) -> list[str]:
        """Ids of the lessons that the thread's latest episode was shown, in their order in the prompt."""
        latest = (
            sa.select(table.c.id)
            .where(table.c.thread_id == thread_id, table.c.namespace == to_key(namespace))
            .order_by(table.c.started_at.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = (
            sa.select(exposures.c.lesson_id)
            .where(exposures.c.episode_id == latest, exposures.c.shown)
            .order_by(exposures.c.position)
        )
        with self.db.read() as connection:
            return [row.lesson_id for row in connection.execute(query)]

    def lesson_statistics(
        self, lesson_ids: Iterable[str], most: int | None = None
    ) -> dict[str, tuple[int, float | None]]:
        """For each lesson: in how many episodes it was shown, and their mean reward; see `use_table.statistics`."""
        return statistics(self.db, lesson_ids, most)

    def _newest(self, connection: sa.Connection, *where: Any, limit: int | None) -> list[Episode]:
        # Ids first: where no index has the order, a database then sorts ids and not bodies.
        query = sa.select(table.c.id).where(*where).order_by(table.c.started_at.desc()).limit(limit)
        return by_id(connection, connection.execute(query).scalars().all())

    def _held(self, connection: sa.Connection, episode: Episode) -> bool:
        """Whether this state of an episode, or a later one, is stored. If not, nobody else stores it before us."""
        ours = {"id": episode.id, "started_at": episode.started_at.timestamp(), "body": ""}
        connection.execute(self.db.insert_new(table).values(**ours))
        query = sa.select(table.c.body).where(table.c.id == episode.id).with_for_update()
        body: str = connection.execute(query).scalar_one()
        return bool(body) and set(episode.run_ids) <= set(json.loads(body).get("run_ids", ()))

    def _before(self, connection: sa.Connection, episode: Episode) -> str:
        """The id of the thread's run before this one, held; empty if there is none, or another agent was the last."""
        query = (
            sa.select(table.c.id, table.c.agent, table.c.dead_letter)
            .where(
                table.c.thread_id == episode.thread_id,
                table.c.namespace == to_key(episode.namespace),
                table.c.started_at < episode.started_at.timestamp(),
                table.c.root_run_id != episode.root_run_id,
                table.c.parent_id == "",
            )
            .order_by(table.c.started_at.desc())
            .limit(1)
        )
        found = connection.execute(query.with_for_update()).first()
        known = found is not None and found.agent == episode.agent and found.dead_letter not in (PURGING, DROPPED)
        return str(found.id) if found is not None and known else ""

    def _open(self, connection: sa.Connection, episode_id: str, ready_at: float, *, at_once: bool) -> None:
        """Let an ended episode count from a time on; with `at_once` now, if it has a reward."""
        given = rewards.c.current & ~rewards.c.waiting & ~rewards.c.key.startswith(PREFIX) & ~found_by_us
        has_reward = sa.exists().where(rewards.c.target == table.c.id, given)
        counts_at = self.db.at(ready_at)
        when = sa.case((has_reward, 0.0), else_=counts_at) if at_once else counts_at
        ended = (table.c.id == episode_id, table.c.ready_at.is_not(None))
        connection.execute(table.update().where(*ended).values(ready_at=when))


def _who_reads(connection: sa.Connection, record: Record) -> None:
    """No reflection, if it measured; one all the same, if it was sampled out and has a reward."""
    mine = table.update().where(table.c.id == record.episode.id)
    if record.measured:
        connection.execute(mine.values(reflection_id=HELD_OUT))
    if not record.sampled:
        judged = sa.exists().where(rewards.c.target == record.episode.id, rewards.c.current, ~found_by_us)
        connection.execute(mine.where(judged).values(sampled=True))
