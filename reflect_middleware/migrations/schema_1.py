"""The schema of the first release. What is there already stays: a process may have died while it made the tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op


def upgrade() -> None:
    """Make the tables."""
    _runs()
    _lessons()
    _table(
        "reflections",
        *_key("id"),
        *_texts("namespace", "status", "owner"),
        *_times("lease_until", "started_at"),
        _body(),
    )
    _index("reflections_namespace", "reflections", "namespace", "status")
    _table("meta", *_key("key"), *_texts("value"))
    _table("counters", *_key("name"), _whole("count"), *_texts("last"), *_times("at"))


def _runs() -> None:
    names = ("namespace", "agent", "thread_id", "checkpoint_ns", "root_run_id", "parent_id", "status")
    late = [sa.Column(name, sa.Float) for name in ("ended_at", "ready_at")]
    tries = sa.Column("tries", sa.Integer, server_default="0", nullable=False)
    marks = _texts("reflection_id", "dead_letter")
    _table("episodes", *_key("id"), *_texts(*names), *_times("started_at"), *late, *marks, tries, _body())
    _index("episodes_ready", "episodes", "namespace", "reflection_id", "dead_letter", "ready_at")
    _index("episodes_thread", "episodes", "thread_id", "started_at")
    _index("episodes_root", "episodes", "root_run_id")
    _index("episodes_time", "episodes", "started_at")
    _table("aliases", *_key("alias", "episode_id"), *_times("at"))
    words = [sa.Column(name, sa.Text, nullable=False) for name in ("target", "source", "key")]
    flags = [sa.Column(name, sa.Boolean, nullable=False) for name in ("current", "waiting")]
    seq = sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True)
    _table("rewards", seq, *words, *flags, *_times("at"), _body())
    _index("rewards_target", "rewards", "target", "current")
    _index("rewards_waiting", "rewards", "waiting", "at")
    shown = sa.Column("shown", sa.Boolean, nullable=False)
    numbers = _times("probability", "similarity")
    _table("exposures", *_key("episode_id", "lesson_id"), _whole("version"), shown, *numbers, _whole("position"))
    _index("exposures_lesson", "exposures", "lesson_id")


def _lessons() -> None:
    _table("namespaces", *_key("namespace"), _whole("revision"))
    counted, vector = (_whole("version"), _whole("revision")), sa.Column("vector", sa.LargeBinary)
    _table("lessons", *_key("id"), *_texts("namespace", "status"), *counted, vector, *_texts("embedder"), _body())
    _index("lessons_namespace", "lessons", "namespace", "status")
    _index("lessons_revision", "lessons", "namespace", "revision")
    number = sa.Column("version", sa.Integer, primary_key=True)
    _table("lesson_versions", *_key("lesson_id"), number, *_texts("namespace"), *_times("at"), *_texts("by"), _body())
    _index("lesson_versions_time", "lesson_versions", "namespace", "at")
    _table("lesson_sources", *_key("episode_id", "lesson_id"))


def _table(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(name, *columns, if_not_exists=True)


def _index(name: str, table: str, *columns: str) -> None:
    op.create_index(name, table, list(columns), if_not_exists=True)


def _key(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, primary_key=True) for name in names]


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, server_default="", nullable=False) for name in names]


def _times(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Float, nullable=False) for name in names]


def _whole(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def _body() -> sa.Column[str]:
    return sa.Column("body", sa.Text, nullable=False)
