"""Episodes, rewards and exposures in the ledger."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database, portions
from reflect_middleware.decisions import PREFIX
from reflect_middleware.errors import EpisodeNotFoundError
from reflect_middleware.forget_table import PURGING
from reflect_middleware.hints import SOURCE, ours
from reflect_middleware.namespaces import from_key, to_key
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
from reflect_middleware.schema import aliases, early, exposures, lessons, nested, open_, rewards, unread
from reflect_middleware.schema import dead as given_up
from reflect_middleware.schema import episodes as table
from reflect_middleware.slot import HELD_OUT
from reflect_middleware.types import Episode, Exposure, Namespace, Reward, combined, most_trusted

ELSEWHERE = {"rewards", "exposures", "reflection_id", "dead_letter"}

ROW = {column.name for column in table.columns} - {"reflection_id", "dead_letter", "tries"}
"""The columns that the writer fills; the others belong to the reflection."""
STATISTICS = 500
"""Of how many of the latest episodes that showed a lesson the rewards are looked at."""
NAMED = "episodes and the rewards that wait for them"
"""Who stores a run looks for waiting rewards, who lets a reward wait looks for the run: one after the other."""
NAMED_AFTER_ITS_CALL = re.compile(r"lc_run--([0-9a-f-]{36})(?:-\d+)?")
"""The id of an answer whose provider gives none."""
WAITING = sa.select(sa.literal(1)).where(early).limit(1)
REWARDED = sa.union_all(
    sa.select(rewards.c.seq).where(early),
    sa.select(rewards.c.seq).where(rewards.c.target == sa.bindparam("id")),
)
"""Rewards that came before the episode: those that wait for any, and its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One ended or interrupted run, as the writer thread stores it."""

    episode: Episode
    checkpoint_ns: str = ""
    ready_at: float | None = None
    """Epoch seconds from when on it counts towards K; None while it is interrupted."""
    asked: bool = False
    """Whether a reward callable is being asked: the episode waits for it, whatever others say."""
    aliases: tuple[str, ...] = ()
    """Run and message ids under which a reward may name it."""
    rewards: tuple[Reward, ...] = ()
    """A reviewer's decisions in this run, and what the run says of itself. They end no wait for another reward."""
    heard: tuple[Reward, ...] = ()
    """What the user's message, with which it began, says of the run before it in its thread."""
    sampled: bool = True
    """False: it does not count towards K unless it has a reward, or until one comes."""
    measured: bool = False
    """Whether it measured what was learned: no reflection reads it."""


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
        body = episode.model_dump_json(exclude=ELSEWHERE)
        row = {
            "id": episode.id,
            "namespace": to_key(episode.namespace),
            "agent": episode.agent,
            "thread_id": episode.thread_id,
            "checkpoint_ns": record.checkpoint_ns,
            "root_run_id": episode.root_run_id,
            "parent_id": episode.parent_id,
            "principal": episode.principal,
            "status": episode.status,
            "started_at": episode.started_at.timestamp(),
            "ended_at": episode.ended_at.timestamp() if episode.ended_at else None,
            "ready_at": record.ready_at,
            "sampled": record.sampled,
            "size": len(body),
            "body": body,
        }
        names, at = {*map(_known_as, record.aliases), *episode.run_ids, episode.id}, time.time()
        named = [{"alias": alias, "episode_id": episode.id, "at": at} for alias in sorted(names)]
        exposed = [
            exposure.model_dump(exclude={"namespace"}) | {"episode_id": episode.id} for exposure in episode.exposures
        ]
        inserts = ((self._put, [row]), (self._name, named), (self._expose, exposed))
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
            found = self._resolve(connection, name)
            for episode_id in found:
                add(connection, episode_id, reward, given_at)
            if not found:
                add_later(connection, _known_as(name), reward, given_at)
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
            return self._resolve(connection, alias)

    def get(self, episode_id: str) -> Episode:
        """One episode with its rewards and exposures.

        Raises:
            EpisodeNotFoundError: If there is none of this id.
        """
        with self.db.read() as connection:
            found = self._by_id(connection, [episode_id])
        if not found:
            raise EpisodeNotFoundError(episode_id)
        return found[0]

    def many(self, ids: Sequence[str]) -> tuple[Episode, ...]:
        """The episodes of these ids, in this order; unknown ids are left out."""
        with self.db.read() as connection:
            return tuple(self._by_id(connection, ids))

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
        """For each lesson: in how many episodes it was shown, counted up to `most`, and their mean reward.

        The mean is over those that have a reward, of the `STATISTICS` latest ones (at most `most`) by their ids, which
        grow with time;
        over those of one source, the most trusted that judged any of them. Signs found in the run are left out: a clean
        run has none, so their mean would only speak of the others.
        """
        counted, latest = (_SHOWN, _LATEST) if most is None else (_shown_up_to(most), _latest(most))
        times: dict[str, int] = {}
        judged: dict[tuple[str, str], list[Reward]] = {}
        with self.db.read() as connection:
            for some in portions(lesson_ids):
                mine = connection.execute(counted.where(lessons.c.id.in_(some)))
                times |= {row.id: row.times for row in mine if row.times}
                for row in connection.execute(latest.where(lessons.c.id.in_(some))):
                    judged.setdefault((row.id, row.target), []).append(Reward.model_validate_json(row.body))
        earned: dict[str, list[list[Reward]]] = {}
        for (lesson_id, _), given in judged.items():
            earned.setdefault(lesson_id, []).append(given)
        return {lesson_id: (count, _mean(earned.get(lesson_id, ()))) for lesson_id, count in times.items()}

    def _newest(self, connection: sa.Connection, *where: Any, limit: int | None) -> list[Episode]:
        # Ids first: where no index has the order, a database then sorts ids and not bodies.
        query = sa.select(table.c.id).where(*where).order_by(table.c.started_at.desc()).limit(limit)
        return self._by_id(connection, connection.execute(query).scalars().all())

    def _by_id(self, connection: sa.Connection, ids: Sequence[str]) -> list[Episode]:
        """The episodes of these ids, in this order; unknown ids are left out."""
        judged = current(connection, ids)
        exposed: dict[str, list[Exposure]] = {}
        rows: dict[str, Any] = {}
        for some in portions(ids):
            for row in connection.execute(_EXPOSED.where(exposures.c.episode_id.in_(some))):
                place = from_key(row.namespace) if row.namespace else ()
                found = Exposure.model_validate({**row._mapping, "namespace": place})  # noqa: SLF001
                exposed.setdefault(row.episode_id, []).append(found)
            rows |= {row.id: row for row in connection.execute(sa.select(table).where(table.c.id.in_(some)))}
        return [_episode(rows[i], judged.get(i, ()), exposed.get(i, ())) for i in dict.fromkeys(ids) if i in rows]

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

    def _resolve(self, connection: sa.Connection, alias: str) -> list[str]:
        alias = _known_as(alias)
        query = sa.select(aliases.c.episode_id).where(aliases.c.alias == alias).order_by(aliases.c.at)
        found = [row.episode_id for row in connection.execute(query)]
        if found and not alias.startswith("out:"):
            return found[:1]
        if not found:
            roots = sa.select(table.c.id).where(nested, table.c.root_run_id == alias, table.c.parent_id == "")
            found = [row.id for row in connection.execute(roots)]
        return found


def _latest(most: int) -> sa.Select[str, str, str]:
    """Lessons with the rewards of the latest episodes that showed them: a short walk over an index for each lesson."""
    inner = exposures.alias()
    oldest = (
        sa.select(inner.c.episode_id)
        .where(inner.c.lesson_id == lessons.c.id, inner.c.shown)
        .order_by(inner.c.episode_id.desc())
        .limit(1)
        .offset(most - 1)
        .scalar_subquery()
    )
    late = exposures.c.episode_id >= sa.func.coalesce(oldest, "")
    pair = (exposures.c.lesson_id == lessons.c.id) & exposures.c.shown & late
    given = (rewards.c.target == exposures.c.episode_id) & rewards.c.current & ~rewards.c.waiting
    query = sa.select(lessons.c.id, rewards.c.target, rewards.c.body)
    return query.join_from(lessons, exposures, pair).join(rewards, given)


def _shown_up_to(most: int) -> sa.Select[str, int]:
    """Lessons with how often each was shown, as far as it is counted."""
    shown = sa.select(sa.literal(1)).where(exposures.c.lesson_id == lessons.c.id, exposures.c.shown)
    some = shown.limit(most).correlate(lessons).subquery()
    return sa.select(lessons.c.id, sa.select(sa.func.count()).select_from(some).scalar_subquery().label("times"))


_SHOWN = sa.select(
    lessons.c.id,
    sa.select(sa.func.count())
    .where(exposures.c.lesson_id == lessons.c.id, exposures.c.shown)
    .correlate(lessons)
    .scalar_subquery()
    .label("times"),
)
_LATEST = _latest(STATISTICS)
_EXPOSED = (
    sa.select(exposures, lessons.c.namespace)
    .outerjoin(lessons, lessons.c.id == exposures.c.lesson_id)
    .order_by(exposures.c.position)
)


def _who_reads(connection: sa.Connection, record: Record) -> None:
    """No reflection, if it measured; one all the same, if it was sampled out and has a reward."""
    mine = table.update().where(table.c.id == record.episode.id)
    if record.measured:
        connection.execute(mine.values(reflection_id=HELD_OUT))
    if not record.sampled:
        judged = sa.exists().where(rewards.c.target == record.episode.id, rewards.c.current, ~found_by_us)
        connection.execute(mine.where(judged).values(sampled=True))


def _known_as(name: str) -> str:
    """The name that is kept: of an answer that LangChain has named after its model call, the call's run id."""
    found = NAMED_AFTER_ITS_CALL.fullmatch(name) if name.startswith("lc_run--") else None
    return found[1] if found else name


def _mean(judged: Sequence[Sequence[Reward]]) -> float | None:
    """The mean over episodes of what the most trusted source says that judged any of them."""
    told = [[reward for reward in given if reward.source != SOURCE or not ours(reward)] for given in judged]
    source = most_trusted(reward for given in told for reward in given)
    known = [value for given in told if (value := combined([r for r in given if r.source == source])) is not None]
    return sum(known) / len(known) if known else None


def _episode(row: Any, judged: Sequence[Reward], exposed: Sequence[Exposure]) -> Episode:
    body = json.loads(row.body)
    ended = datetime.fromtimestamp(row.ended_at, UTC) if row.ended_at else None
    return Episode.model_validate(
        body
        | {
            "status": row.status,
            "ended_at": ended,
            "rewards": tuple(judged),
            "exposures": tuple(exposed),
            "reflection_id": row.reflection_id,
            "dead_letter": row.dead_letter,
        }
    )
