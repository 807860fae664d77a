"""The ledger's tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

SCHEMA_VERSION = 2
metadata = sa.MetaData()


def _text(name: str, **kwargs: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="", **kwargs)


def _few(name: str, *columns: sa.ColumnElement[Any], where: sa.ColumnElement[bool]) -> sa.Index:
    """An index over the few rows that a condition picks, however many others there are.

    A query uses it only if it states the condition in the same words, values included: hence the names below for
    conditions, and `literal_column` in them. A column that the condition fixes may stand in the index all the same:
    SQLite, which knows no statistics, prefers the index of which a query fixes the most columns.
    """
    return sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


EMPTY: sa.ColumnElement[str] = sa.literal_column("''", sa.Text)


meta = sa.Table("meta", metadata, sa.Column("key", sa.Text, primary_key=True), _text("value"))

episodes = sa.Table(
    "episodes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("namespace"),
    _text("agent"),
    _text("thread_id"),
    _text("checkpoint_ns"),
    _text("root_run_id"),
    _text("parent_id"),
    _text("principal"),
    _text("status"),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("ready_at", sa.Float),  # from when on it counts towards K; null while it is interrupted
    _text("reflection_id"),
    _text("dead_letter"),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("sampled", sa.Boolean, nullable=False, server_default=sa.true()),  # false: it counts once it is rewarded
    sa.Column("size", sa.Integer, nullable=False, server_default="0"),  # characters of its body
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("episodes_time", "started_at"),
    sa.Index("episodes_namespace", "namespace", "started_at"),
    sa.Index("episodes_thread_namespace", "thread_id", "namespace", "started_at"),
)
APART = "ALTER TABLE episodes SET (toast_tuple_target = 128, fillfactor = 85)"
"""PostgreSQL keeps bodies apart from the rows, and room in a page: a claim writes short rows again, where they are."""
_apart = sa.DDL(APART).execute_if(dialect="postgresql")  # type: ignore[no-untyped-call]
sa.event.listen(episodes, "after_create", _apart)
unread = sa.and_(
    episodes.c.reflection_id == EMPTY,
    episodes.c.dead_letter == EMPTY,
    episodes.c.sampled,
    episodes.c.ready_at.is_not(None),
)
"""Has ended, and waits for a reflection."""
waits = sa.and_(unread, episodes.c.ready_at > sa.literal_column("0"))
"""Unread, and counts from a time on only: it waited for a reward, or still does."""
open_ = episodes.c.status == sa.literal_column("'interrupted'", sa.Text)
"""May be resumed."""
dead = sa.and_(episodes.c.reflection_id == EMPTY, episodes.c.dead_letter != EMPTY)
"""No reflection could use it."""
nested = episodes.c.root_run_id != episodes.c.id
"""Ran inside another run. The others have the root's id as their own."""
owned = episodes.c.principal != EMPTY
"""Ran on somebody's behalf."""
_few(
    "episodes_unread",
    episodes.c.namespace,
    episodes.c.reflection_id,
    episodes.c.ended_at,
    episodes.c.id,
    where=unread,
)
_few("episodes_waits", episodes.c.namespace, episodes.c.ready_at, where=waits)
_few("episodes_open", episodes.c.status, episodes.c.thread_id, episodes.c.started_at, where=open_)
_few("episodes_dead", episodes.c.namespace, episodes.c.reflection_id, episodes.c.started_at, where=dead)
_few("episodes_nested", episodes.c.root_run_id, where=nested)
_few("episodes_owned", episodes.c.principal, episodes.c.namespace, episodes.c.started_at, where=owned)
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("episode_id", sa.Text, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sqlite_with_rowid=False,  # the largest table by rows: its key is all there is, kept once instead of twice
)
rewards = sa.Table(
    "rewards",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("target", sa.Text, nullable=False),  # an episode's id; anything else waits for its episode
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("current", sa.Boolean, nullable=False),
    sa.Column("waiting", sa.Boolean, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("rewards_target", "target", "current"),
)
early = rewards.c.waiting == sa.true()
"""Came before its episode."""
_few("rewards_early", rewards.c.waiting, rewards.c.seq, rewards.c.at, where=early)
exposures = sa.Table(
    "exposures",
    metadata,
    sa.Column("episode_id", sa.Text, primary_key=True),
    sa.Column("lesson_id", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("shown", sa.Boolean, nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("similarity", sa.Float, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Index("exposures_shown", "lesson_id", "shown", "episode_id"),
    sqlite_with_rowid=False,
)
namespaces = sa.Table(
    "namespaces",
    metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),  # grows with every change to its lessons
)
lessons = sa.Table(
    "lessons",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("namespace"),
    _text("status"),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),  # the namespace's revision that last touched it
    sa.Column("vector", sa.LargeBinary),
    _text("embedder"),  # which embedder made the vector
    sa.Column("always", sa.Boolean, nullable=False, server_default=sa.false()),  # shown to every run
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("lessons_status", "namespace", "status", "embedder"),
    sa.Index("lessons_revision", "namespace", "revision"),
)
everywhere = sa.and_(lessons.c.always, lessons.c.status == sa.literal_column("'active'", sa.Text))
"""Applies to every task."""
_few("lessons_always", lessons.c.namespace, lessons.c.status, lessons.c.always, where=everywhere)
vectors = sa.Table(
    "vectors",  # of lessons whose row has another embedder's: only of their present version
    metadata,
    sa.Column("lesson_id", sa.Text, primary_key=True),
    sa.Column("embedder", sa.Text, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)
embedders = sa.Table(
    "embedders",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),  # its class and model
    sa.Column("id", sa.Text, primary_key=True),  # the name; of a second one, with other vectors, one of its own
    sa.Column("probe", sa.LargeBinary, nullable=False),  # the vector of a fixed sentence
    sa.Column("at", sa.Float, nullable=False),
)
moves = sa.Table(
    "moves",  # how far a store that is being built has come
    metadata,
    sa.Column("target", sa.Text, primary_key=True),
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),  # the namespace's when it was begun
    _text("last"),  # lessons up to this id are written, as they were then
)
lesson_versions = sa.Table(
    "lesson_versions",
    metadata,
    sa.Column("lesson_id", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    _text("namespace"),
    sa.Column("at", sa.Float, nullable=False),
    _text("by"),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("lesson_versions_time", "namespace", "at"),
)
lesson_sources = sa.Table(
    "lesson_sources",
    metadata,
    sa.Column("episode_id", sa.Text, primary_key=True),
    sa.Column("lesson_id", sa.Text, primary_key=True),
    sa.Index("lesson_sources_lesson", "lesson_id"),
    sqlite_with_rowid=False,
)
reflections = sa.Table(
    "reflections",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("namespace"),
    _text("status"),
    _text("owner"),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("lease", sa.Float, nullable=False, server_default="30"),  # seconds for which it was given
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("reflections_time", "started_at"),
    sa.Index("reflections_started", "namespace", "started_at"),
    sa.Index("reflections_status", "status", "started_at"),
)
CONSOLIDATION = "consolidation-"
"""What the id of a consolidation begins with: a claim on a namespace's lessons, without episodes."""
running = reflections.c.status == sa.literal_column("'running'", sa.Text)
"""Somebody's claim. Its lease is in no index, so that PostgreSQL can renew it in place."""
released = reflections.c.status == sa.literal_column("'released'", sa.Text)
"""Was cut off by the end of its process."""
_few("reflections_running", reflections.c.namespace, where=running)
_few("reflections_released", reflections.c.namespace, reflections.c.status, reflections.c.started_at, where=released)
work = sa.Table(
    "work",
    metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # failed reflections in a row
    sa.Column("rest_until", sa.Float, nullable=False, server_default="0"),  # after a failure, in the database's time
    sa.Column("reflected_at", sa.Float, nullable=False, server_default="0"),  # when the last one was committed
)
spent = sa.Table(
    "spent",
    metadata,
    sa.Column("day", sa.Text, primary_key=True),  # of UTC, as 2026-11-22
    sa.Column("input_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("output_tokens", sa.Integer, nullable=False, server_default="0"),
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    _text("action"),
    _text("body"),  # JSON: counts and settings, never content
    sa.Index("audit_time", "at"),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    _text("last"),
    sa.Column("at", sa.Float, nullable=False),
)
