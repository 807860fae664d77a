"""An episode as rows of the ledger: taken apart to be written, and put together again to be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from reflect_middleware.database import portions
from reflect_middleware.namespaces import from_key, to_key
from reflect_middleware.rewards_table import current
from reflect_middleware.schema import episodes as table
from reflect_middleware.schema import exposures, lessons
from reflect_middleware.types import Episode, Exposure, Reward

ELSEWHERE = {"rewards", "exposures", "reflection_id", "dead_letter"}
"""Fields of an episode that are not in its body, but in columns and tables of their own."""
ROW = {column.name for column in table.columns} - {"reflection_id", "dead_letter", "tries"}
"""The columns that the writer fills; the others belong to the reflection."""
_EXPOSED = (
    sa.select(exposures, lessons.c.namespace)
    .outerjoin(lessons, lessons.c.id == exposures.c.lesson_id)
    .order_by(exposures.c.position)
)


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


def episode_row(record: Record) -> dict[str, Any]:
    """The row of a run's episode."""
    episode = record.episode
    body = episode.model_dump_json(exclude=ELSEWHERE)
    return {
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


def exposure_rows(episode: Episode) -> list[dict[str, Any]]:
    """The rows that say which lessons a run could have been shown, and was."""
    return [exposure.model_dump(exclude={"namespace"}) | {"episode_id": episode.id} for exposure in episode.exposures]


def by_id(connection: sa.Connection, ids: Sequence[str]) -> list[Episode]:
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
