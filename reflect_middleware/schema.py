"""The ledger's tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

SCHEMA_VERSION = 2
metadata = sa.MetaData()


def _text(name: str, **kwargs: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="", **kwargs)


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
    sa.Index("episodes_ready", "namespace", "reflection_id", "dead_letter", "ready_at"),
    sa.Index("episodes_thread", "thread_id", "started_at"),
    sa.Index("episodes_root", "root_run_id"),
    sa.Index("episodes_time", "started_at"),
    sa.Index("episodes_principal", "principal", "started_at"),
)
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("episode_id", sa.Text, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("aliases_episode", "episode_id"),
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
    sa.Index("rewards_waiting", "waiting", "at"),
)
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
    sa.Index("exposures_lesson", "lesson_id"),
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
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("lessons_namespace", "namespace", "status"),
    sa.Index("lessons_revision", "namespace", "revision"),
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
)
reflections = sa.Table(
    "reflections",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("namespace"),
    _text("status"),
    _text("owner"),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("reflections_namespace", "namespace", "status"),
    sa.Index("reflections_status", "status", "started_at"),
)
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
