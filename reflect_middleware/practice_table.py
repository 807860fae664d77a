"""A practice's runs in the ledger: found by their places, judged, and what of them no reflection has read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from reflect_middleware.database import Database, portions
from reflect_middleware.rewards_table import insert, lock
from reflect_middleware.schema import aliases, episodes, unread
from reflect_middleware.schema import rewards as given
from reflect_middleware.types import Reward


class PracticeTable:
    """What only a practice asks. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database

    def places(self, names: Iterable[str]) -> dict[str, str]:
        """The latest ended episode of each of these places that has one; a run that was cut off is none."""
        query = sa.select(aliases.c.alias, episodes.c.id).join(episodes, episodes.c.id == aliases.c.episode_id)
        ended = query.where(episodes.c.status.in_(("completed", "failed", "interrupted"))).order_by(
            episodes.c.started_at
        )
        found: dict[str, str] = {}
        with self.db.read() as connection:
            for some in portions(names):
                found |= {row.alias: row.id for row in connection.execute(ended.where(aliases.c.alias.in_(some)))}
        return found

    def judge(self, episode_id: str, rewards: Sequence[Reward]) -> None:
        """Give a rollout its rewards, all or none; it goes on waiting for the practice's reflection."""
        with self.db.write() as connection:
            lock(connection, [episode_id])
            for reward in rewards:
                same = (given.c.target == episode_id, given.c.source == reward.source, given.c.key == reward.key)
                connection.execute(given.update().where(*same, given.c.current).values(current=False))
                insert(connection, episode_id, reward)

    def unread(self, ids: Iterable[str]) -> list[str]:
        """Those of these episodes that wait for a reflection, in their order."""
        wanted, found = list(ids), set[str]()
        with self.db.read() as connection:
            for some in portions(wanted):
                query = sa.select(episodes.c.id).where(unread, episodes.c.id.in_(some))
                found |= set(connection.execute(query).scalars())
        return [i for i in wanted if i in found]
