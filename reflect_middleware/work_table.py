"""What waits for a reflection, what rests, what was spent: the work of all processes on a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from reflect_middleware.cadence import Backlog, Cadence
from reflect_middleware.database import Database
from reflect_middleware.due import Quota, Standing, day_of, rest_after, until_tomorrow
from reflect_middleware.errors import EpisodeNotFoundError, QuotaError
from reflect_middleware.hints import ours
from reflect_middleware.namespaces import from_key, to_key
from reflect_middleware.rewards_table import current
from reflect_middleware.schema import (
    CONSOLIDATION,
    dead,
    episodes,
    reflections,
    released,
    running,
    spent,
    unread,
    waits,
)
from reflect_middleware.schema import work as table
from reflect_middleware.types import Namespace, combined

COUNTED = 1_000
"""Ready episodes of a namespace are counted up to here: no rule needs to know that there are a million."""
BAD = 0.5
"""A reward below this is a failure for `OnFailures`."""
MINUTE = 60.0
SLACK = 1.0
"""Seconds by which a clock may be put back unnoticed."""


EVER = 1e18
"""After every time (epoch seconds)."""


class WorkTable:
    """Reads where namespaces stand. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database

    def tokens_left(self, quota: Quota) -> int | None:
        """What is left of the day's tokens, from 0; None without a limit."""
        if quota.daily_tokens is None:
            return None
        with self.db.read() as connection:
            return max(0, quota.daily_tokens - _used(connection, clock_of(connection, self.db)))

    def standing(
        self, namespace: Namespace, cadence: Cadence, *, whatever: bool = False, closing: bool = False
    ) -> Standing:
        """Where a namespace stands; `whatever` counts what waits for its reward, too."""
        one = sa.select(sa.literal(to_key(namespace)).label("namespace")).cte("names")
        return self._standings(one, cadence, whatever=whatever, closing=closing)[0]

    def standings(self, cadence: Cadence) -> tuple[Standing, ...]:
        """Where all namespaces stand that have unread episodes. Its cost grows with their number, not the episodes'."""
        return self._standings(_unread_namespaces(), cadence)

    def under_way(self) -> dict[Namespace, float]:
        """The namespaces with a reflection under way, and for how many seconds its lease holds; below 0: it is over."""
        query = sa.select(reflections.c.namespace, sa.func.max(reflections.c.lease_until).label("until")).where(running)
        with self.db.read() as connection:
            rows, at = connection.execute(query.group_by(reflections.c.namespace)).all(), clock_of(connection, self.db)
        return {from_key(row.namespace): row.until - at for row in rows}

    def retry(
        self, episode_ids: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> dict[str, Namespace]:
        """Let dead-lettered episodes count again, with all their tries; their namespaces no longer rest.

        Args:
            episode_ids: Only these; None for all.
            namespace: Only of this one.

        Returns:
            The ids of those that were dead-lettered, and their namespaces.

        Raises:
            EpisodeNotFoundError: If there is none of an id.
        """
        where = [] if namespace is None else [episodes.c.namespace == to_key(namespace)]
        with self.db.write() as connection:
            if episode_ids is not None:
                where.append(episodes.c.id.in_(_known(connection, episode_ids)))
            query = sa.select(episodes.c.id, episodes.c.namespace).where(dead, *where).with_for_update()
            rows = connection.execute(query.order_by(episodes.c.started_at)).all()
            names = {row.namespace for row in rows}
            connection.execute(episodes.update().where(dead, *where).values(dead_letter="", tries=0))
            connection.execute(table.update().where(table.c.namespace.in_(names)).values(failures=0, rest_until=0.0))
        return {row.id: from_key(row.namespace) for row in rows}

    def _standings(
        self, names: sa.CTE, cadence: Cadence, *, whatever: bool = False, closing: bool = False
    ) -> tuple[Standing, ...]:
        most = max(COUNTED, cadence.batch)
        with self.db.read() as connection:
            at = clock_of(connection, self.db)
            rows = connection.execute(_query(self.db, names, at, most, whatever=whatever)).all()
            return tuple(
                Standing(
                    namespace=from_key(row.namespace),
                    backlog=Backlog(
                        ready=row.ready,
                        oldest=max(0.0, at - row.oldest) if row.oldest is not None else 0.0,
                        failures=_streak(connection, self.db, row.namespace, at, cadence.streak) if row.ready else 0,
                        closing=closing,
                    ),
                    owed=bool(row.owed),
                    next_ready=None if whatever or row.soon is None else max(0.0, row.soon - at),
                    rests=max(0.0, (row.rest_until or 0.0) - at),
                    held=max(0.0, (row.lease_until or 0.0) - at),
                )
                for row in rows
            )


def _unread_namespaces() -> sa.CTE:
    """Their names, found by going from each to the next one in the index."""
    names = sa.select(sa.func.min(episodes.c.namespace).label("namespace")).where(unread).cte("names", recursive=True)
    after = sa.select(sa.func.min(episodes.c.namespace)).where(unread, episodes.c.namespace > names.c.namespace)
    return names.union_all(sa.select(after.correlate(names).scalar_subquery()).where(names.c.namespace.is_not(None)))


def _query(database: Database, names: sa.CTE, at: float, most: int, *, whatever: bool) -> sa.Select[Any]:
    """Where the named namespaces stand; no part of it reads more than `most` episodes of one."""
    name = names.c.namespace
    counts = ready(database, name, EVER if whatever else at)
    counted = sa.select(sa.literal(1)).where(*counts).limit(most).correlate(names).subquery()
    rest = sa.select(table.c.rest_until).where(table.c.namespace == name)
    last = sa.select(table.c.reflected_at).where(table.c.namespace == name)
    cut_off = (
        reflections.c.namespace == name,
        released,
        ~reflections.c.id.startswith(CONSOLIDATION),  # it has read no episode, and owes none anything
        reflections.c.started_at > sa.func.coalesce(last.correlate(names).scalar_subquery(), 0.0),
    )
    oldest = sa.select(episodes.c.ended_at).where(*counts).order_by(episodes.c.ended_at).limit(1)
    soon = sa.select(sa.func.min(episodes.c.ready_at)).where(
        episodes.c.namespace == name, waits, episodes.c.ready_at > at
    )
    lease = sa.select(sa.func.max(reflections.c.lease_until)).where(reflections.c.namespace == name, running)
    owed = sa.select(reflections.c.id).where(*cut_off)
    return sa.select(
        name,
        sa.select(sa.func.count()).select_from(counted).scalar_subquery().label("ready"),
        oldest.correlate(names).scalar_subquery().label("oldest"),
        soon.correlate(names).scalar_subquery().label("soon"),
        rest.correlate(names).scalar_subquery().label("rest_until"),
        lease.correlate(names).scalar_subquery().label("lease_until"),
        owed.correlate(names).exists().label("owed"),
    ).where(name.is_not(None))


def ready(database: Database, name: Any, at: Any) -> tuple[Any, ...]:
    """Which episodes of a namespace, by its key, count towards K at a time of the ledger's clock."""
    counts = episodes.c.ready_at <= at
    if database.is_sqlite:  # it ended in the future: the clock was put back since, and how long it waits is unknown
        counts = sa.or_(counts, episodes.c.ended_at > database.now() + SLACK)
    return episodes.c.namespace == name, unread, counts


def clock_of(connection: sa.Connection, database: Database) -> float:
    """The ledger's time (epoch seconds)."""
    return database.clock() if database.is_sqlite else float(connection.execute(sa.select(database.now())).scalar_one())


def _streak(connection: sa.Connection, database: Database, name: str, at: float, most: int) -> int:
    """How many of the newest ready episodes, in a row, went badly; at most `most`."""
    if not most:
        return 0
    query = sa.select(episodes.c.id, episodes.c.status).where(*ready(database, name, at))
    rows = connection.execute(query.order_by(episodes.c.ended_at.desc()).limit(most)).all()
    judged = current(connection, [row.id for row in rows])
    for number, row in enumerate(rows):
        reward = combined([given for given in judged.get(row.id, ()) if not ours(given)])
        if not (row.status == "failed" if reward is None else reward < BAD):
            return number
    return len(rows)


def _known(connection: sa.Connection, episode_ids: Sequence[str]) -> list[str]:
    known = set(connection.execute(sa.select(episodes.c.id).where(episodes.c.id.in_(episode_ids))).scalars())
    if missing := [i for i in episode_ids if i not in known]:
        raise EpisodeNotFoundError(missing[0])
    return list(episode_ids)


# What follows happens inside the transactions that claim, commit and fail.


def check(connection: sa.Connection, database: Database, quota: Quota) -> None:
    """See whether another reflection may begin.

    Raises:
        QuotaError: If a limit is reached.
    """
    at = clock_of(connection, database)
    if quota.daily_tokens is not None and _used(connection, at) >= quota.daily_tokens:
        what = f"The day's {quota.daily_tokens:,} tokens (daily_tokens, in UTC) are spent"
        raise QuotaError(what, until_tomorrow(at), lasting=True)
    if quota.at_once is None and quota.per_minute is None:
        return
    database.take_turn(connection, "quota")
    live = sa.select(sa.func.count()).select_from(reflections).where(running, reflections.c.lease_until >= at)
    if quota.at_once is not None and connection.execute(live).scalar_one() >= quota.at_once:
        raise QuotaError(f"{quota.at_once} reflections are under way", 1.0)
    if quota.per_minute is not None:
        begun = sa.select(reflections.c.started_at).where(reflections.c.started_at > at - MINUTE)
        nth = connection.execute(begun.order_by(reflections.c.started_at.desc()).offset(quota.per_minute - 1)).scalar()
        if nth is not None:
            raise QuotaError(f"{quota.per_minute} reflections began within a minute", max(0.0, nth + MINUTE - at))


def note_failure(connection: sa.Connection, database: Database, namespace: Namespace) -> None:
    """Let a namespace rest after a failed reflection, longer each time."""
    name = to_key(namespace)
    failures = (connection.execute(sa.select(table.c.failures).where(table.c.namespace == name)).scalar() or 0) + 1
    until = clock_of(connection, database) + rest_after(failures)
    connection.execute(database.upsert(table, namespace=name, failures=failures, rest_until=until))


def note_success(connection: sa.Connection, database: Database, namespace: Namespace) -> None:
    """A reflection of a namespace was committed: nothing rests, nothing is owed."""
    at = clock_of(connection, database)
    row = {"namespace": to_key(namespace), "failures": 0, "rest_until": 0.0, "reflected_at": at}
    connection.execute(database.upsert(table, **row))


def spend(connection: sa.Connection, database: Database, tokens: tuple[int, int]) -> None:
    """Count the tokens, read and written, of a reflection, whatever became of it."""
    if any(tokens):
        today = day_of(clock_of(connection, database))
        day = spent.c.day == today
        connection.execute(database.insert_new(spent).values(day=today))
        more = {"input_tokens": spent.c.input_tokens + tokens[0], "output_tokens": spent.c.output_tokens + tokens[1]}
        connection.execute(spent.update().where(day).values(**more))


def _used(connection: sa.Connection, at: float) -> int:
    query = sa.select(spent.c.input_tokens + spent.c.output_tokens).where(spent.c.day == day_of(at))
    return int(connection.execute(query).scalar() or 0)
