"""How lessons are used: read-only questions to the ledger whose cost does not grow with it."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from reflect_middleware.database import Database, portions
from reflect_middleware.namespaces import to_key
from reflect_middleware.schema import episodes, exposures
from reflect_middleware.types import Namespace

LOOKED_AT = 1_000
"""Among so many newest episodes of a namespace those are looked for in which a lesson was eligible."""


def eligible(database: Database, namespace: Namespace, most: int) -> list[frozenset[str]]:
    """The ids of the lessons that were eligible, for each of the newest episodes that had any, the newest first.

    Args:
        database: The ledger's.
        namespace: Of the episodes.
        most: At most so many episodes.
    """
    newest = sa.select(episodes.c.id).where(episodes.c.namespace == to_key(namespace))
    found: dict[str, set[str]] = {}
    with database.read() as connection:
        ids = connection.execute(newest.order_by(episodes.c.started_at.desc()).limit(LOOKED_AT)).scalars().all()
        for some in portions(ids):
            if len(found) >= most:
                break
            query = sa.select(exposures.c.episode_id, exposures.c.lesson_id).where(exposures.c.episode_id.in_(some))
            for row in connection.execute(query):
                found.setdefault(row.episode_id, set()).add(row.lesson_id)
    return [frozenset(found[i]) for i in ids if i in found][:most]


def kept(database: Database, ids: Iterable[str]) -> set[str]:
    """Those of some episodes that are in the ledger."""
    with database.read() as connection:
        rows = (connection.execute(sa.select(episodes.c.id).where(episodes.c.id.in_(x))) for x in portions(ids))
        return {row.id for some in rows for row in some}
