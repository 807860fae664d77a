"""The names of episodes in the ledger: ids of runs and messages, under which a reward may mean one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import Database, portions
from reflect_middleware.schema import aliases, episodes, nested

NAMED_AFTER_ITS_CALL = re.compile(r"lc_run--([0-9a-f-]{36})(?:-\d+)?")
"""The id of an answer whose provider gives none."""
STARTS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""What names begin with."""


def known_as(name: str) -> str:
    """The name that is kept: of an answer that LangChain has named after its model call, the call's run id."""
    found = NAMED_AFTER_ITS_CALL.fullmatch(name) if name.startswith("lc_run--") else None
    return found[1] if found else name


def name_rows(episode_id: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows by which an episode has these names from now on."""
    at = time.time()
    return [{"alias": alias, "episode_id": episode_id, "at": at} for alias in sorted(names)]


def named(connection: sa.Connection, name: str) -> list[str]:
    """Ids of the episodes that are meant by a name; see `EpisodeTable.resolve`."""
    alias = known_as(name)
    query = sa.select(aliases.c.episode_id).where(aliases.c.alias == alias).order_by(aliases.c.at)
    found = [row.episode_id for row in connection.execute(query)]
    if found and not alias.startswith("out:"):
        return found[:1]
    if not found:
        roots = sa.select(episodes.c.id).where(nested, episodes.c.root_run_id == alias, episodes.c.parent_id == "")
        found = [row.id for row in connection.execute(roots)]
    return found


def names_of(database: Database, ids: Iterable[str]) -> set[str]:
    """Everything by which a reward may name one of these episodes."""
    wanted = list(ids)
    found = set(wanted)
    with database.read() as connection:
        for some in portions(wanted):
            query = sa.select(aliases.c.alias).where(aliases.c.episode_id.in_(some))
            found.update(connection.execute(query).scalars())
    return found


def erase_orphans(database: Database) -> None:
    """Remove the names of episodes that are gone: they have no index of their own, which each run would pay for."""
    orphan = ~sa.exists().where(episodes.c.id == aliases.c.episode_id)
    for first, last in pairwise(["", *STARTS, None]):
        here = [aliases.c.alias >= first] + ([] if last is None else [aliases.c.alias < last])
        with database.write() as connection:  # a part at a time, so that others can write in between
            connection.execute(aliases.delete().where(*here, orphan))
