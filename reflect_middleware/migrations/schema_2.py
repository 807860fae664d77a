"""Many processes and long lives: principals, samples, sizes, leases, work and tokens spent, an audit trail, indices."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

PORTION = 500
"""Episodes that are read and written at once."""
DROPPED = {
    "episodes": ("episodes_ready", "episodes_thread", "episodes_root"),
    "rewards": ("rewards_waiting",),
    "exposures": ("exposures_lesson",),
    "lessons": ("lessons_namespace",),
    "reflections": ("reflections_namespace",),
}
INDICES: dict[str, tuple[str, ...]] = {
    "episodes_namespace": ("episodes", "namespace", "started_at"),
    "episodes_thread_namespace": ("episodes", "thread_id", "namespace", "started_at"),
    "exposures_shown": ("exposures", "lesson_id", "shown", "episode_id"),
    "lesson_sources_lesson": ("lesson_sources", "lesson_id"),
    "lessons_status": ("lessons", "namespace", "status", "embedder"),
    "reflections_started": ("reflections", "namespace", "started_at"),
    "reflections_status": ("reflections", "status", "started_at"),
    "reflections_time": ("reflections", "started_at"),
}
UNREAD = "reflection_id = '' AND dead_letter = '' AND {sampled} AND ready_at IS NOT NULL"
FEW: dict[str, tuple[str, tuple[str, ...]]] = {
    "episodes_unread": (UNREAD, ("episodes", "namespace", "reflection_id", "ended_at", "id")),
    "episodes_waits": (f"{UNREAD} AND ready_at > 0", ("episodes", "namespace", "ready_at")),
    "episodes_open": ("status = 'interrupted'", ("episodes", "status", "thread_id", "started_at")),
    "episodes_dead": (
        "reflection_id = '' AND dead_letter != ''",
        ("episodes", "namespace", "reflection_id", "started_at"),
    ),
    "episodes_nested": ("root_run_id != id", ("episodes", "root_run_id")),
    "episodes_owned": ("principal != ''", ("episodes", "principal", "namespace", "started_at")),
    "rewards_early": ("{waiting}", ("rewards", "waiting", "seq", "at")),
    "lessons_always": ("{always} AND status = 'active'", ("lessons", "namespace", "status", "always")),
    "reflections_running": ("status = 'running'", ("reflections", "namespace")),
    "reflections_released": ("status = 'released'", ("reflections", "namespace", "status", "started_at")),
}
"""Indices over the rows that a condition picks. SQLite knows no booleans, and says `= 1`."""


def upgrade() -> None:
    """Change the tables, and fill what can be known of old rows."""
    _tables()
    op.add_column("episodes", sa.Column("principal", sa.Text, server_default="", nullable=False))
    op.add_column("episodes", sa.Column("sampled", sa.Boolean, server_default=sa.true(), nullable=False))
    op.add_column("episodes", sa.Column("size", sa.Integer, server_default="0", nullable=False))
    op.add_column("lessons", sa.Column("always", sa.Boolean, server_default=sa.false(), nullable=False))
    op.execute(
        "UPDATE lessons SET embedder = '', vector = NULL"
    )  # their evidence is embedded with them now: vectors are made anew
    op.add_column("reflections", sa.Column("lease", sa.Float, server_default="30", nullable=False))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE episodes SET (toast_tuple_target = 128, fillfactor = 85)"
        )  # of rows written from now on
    _fill(op.get_bind())
    for table, names in DROPPED.items():
        for name in names:
            op.drop_index(name, table_name=table)
    for name, (table, *columns) in INDICES.items():
        op.create_index(name, table, columns)
    for name, (where, (table, *columns)) in FEW.items():
        on_sqlite = sa.text(where.format(sampled="sampled = 1", waiting="waiting = 1", always="always = 1"))
        on_postgres = sa.text(where.format(sampled="sampled", waiting="waiting = true", always="always"))
        op.create_index(name, table, columns, sqlite_where=on_sqlite, postgresql_where=on_postgres)


def _tables() -> None:
    op.create_table(
        "work",
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("failures", sa.Integer, server_default="0", nullable=False),
        sa.Column("rest_until", sa.Float, server_default="0", nullable=False),
        sa.Column("reflected_at", sa.Float, server_default="0", nullable=False),
    )
    op.create_table(
        "spent",
        sa.Column("day", sa.Text, primary_key=True),
        sa.Column("input_tokens", sa.Integer, server_default="0", nullable=False),
        sa.Column("output_tokens", sa.Integer, server_default="0", nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("action", sa.Text, server_default="", nullable=False),
        sa.Column("body", sa.Text, server_default="", nullable=False),
    )
    op.create_index("audit_time", "audit", ["at"])
    op.create_table(
        "vectors",
        sa.Column("lesson_id", sa.Text, primary_key=True),
        sa.Column("embedder", sa.Text, primary_key=True),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "embedders",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("probe", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "moves",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("last", sa.Text, server_default="", nullable=False),
    )


def _fill(connection: sa.Connection) -> None:
    """The principal and the size of each episode, from its body."""
    episodes = sa.table("episodes", *(sa.column(name) for name in ("id", "body", "principal", "size")))
    some, last = sa.select(episodes.c.id, episodes.c.body).order_by(episodes.c.id).limit(PORTION), ""
    change = episodes.update().where(episodes.c.id == sa.bindparam("which"))
    change = change.values(principal=sa.bindparam("who"), size=sa.bindparam("length"))
    while rows := connection.execute(some.where(episodes.c.id > last)).all():
        filled = [{"which": row.id, "who": _principal(row.body), "length": len(row.body)} for row in rows]
        connection.execute(change, filled)
        last = rows[-1].id


def _principal(body: str) -> str:
    found: Any = json.loads(body)
    return str(found.get("principal") or "")
