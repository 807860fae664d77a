"""The ledger's tables are made, or brought to the present version, before they are used."""

from __future__ import annotations

import importlib
import logging
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from reflect_middleware.connecting import said
from reflect_middleware.errors import LedgerSchemaError
from reflect_middleware.schema import SCHEMA_VERSION, meta, metadata

logger = logging.getLogger(__name__)
NUMBERED = meta.c.key == "schema"
FIRST = {"meta", "episodes", "rewards", "lessons", "lesson_versions", "reflections"}
"""Tables that the first release made."""
FORBIDDEN = ("42501", "3F000")
"""PostgreSQL's codes for a missing right: to make tables in a schema, or to see any schema."""
TURN = 6_291_827_364_512_345
"""PostgreSQL's advisory lock under which tables are made or changed."""


def prepare(engine: sa.Engine, shown: str, back_up: Callable[[int], Path | None] | None = None) -> None:
    """Make the tables of a new ledger, or bring an old one to the present; mostly there is nothing to do.

    Safe with several processes: one of them does it, the others wait and find it done.

    Args:
        engine: Of the ledger.
        shown: Its URL without the password, for errors.
        back_up: Copies a SQLite file before it is changed, given its version. None: this is no file, and what is old
            stays so until `migrate`.

    Raises:
        LedgerSchemaError: If the ledger is newer than this version of the package, or older and may not be changed
            here, or its tables cannot be made.
    """
    with engine.connect() as connection:
        found = version(connection)
    if found == SCHEMA_VERSION:
        return
    if found is not None and found > SCHEMA_VERSION:
        raise LedgerSchemaError(
            f"The ledger at {shown} has schema {found}; this version of reflect-middleware knows schemas up to"
            f" {SCHEMA_VERSION}. Nothing was touched. Install the version that the other processes use, or a newer one."
        )
    if found is not None and back_up is None:
        raise LedgerSchemaError(
            f"The ledger at {shown} has schema {found}, this version of reflect-middleware needs {SCHEMA_VERSION}."
            f" Run `reflect migrate --ledger {shown}` with the password in it, as a user who may change tables."
        )
    migrate(engine, shown, back_up)


def migrate(
    engine: sa.Engine, shown: str, back_up: Callable[[int], Path | None] | None = None
) -> tuple[int | None, int]:
    """As `prepare`, on PostgreSQL too. Gives the version before (None for a new ledger) and now."""
    with engine.begin() as connection:
        _alone(connection)
        found = version(connection)
        if found is None:
            _make(connection, shown)
        elif found < SCHEMA_VERSION:
            copy = back_up(found) if back_up else None
            _upgrade(connection, found)
            kept = f"; a copy of it as it was: {copy}" if copy else ""
            logger.info("reflect: the ledger at %s has schema %d now, not %d%s", shown, SCHEMA_VERSION, found, kept)
    return found, SCHEMA_VERSION


def version(connection: sa.Connection) -> int | None:
    """The schema's version; None where there are no tables, 0 where the first release has not finished making them."""
    names = set(sa.inspect(connection).get_table_names()) & set(metadata.tables)
    ours = bool(names) if connection.dialect.name == "sqlite" else names >= FIRST  # a server has others' tables too
    if not ours:
        return None
    number = connection.execute(sa.select(meta.c.value).where(NUMBERED)).scalar() if meta.name in names else None
    return int(number or 0)


def copy_of(file: Path) -> Callable[[int], Path]:
    """Copies a SQLite ledger into the folder of its backups."""

    def back_up(found: int) -> Path:
        folder = file.parent / "backups"
        folder.mkdir(exist_ok=True)
        copy = folder / f"ledger-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-schema-{found}.db"
        source, target = sqlite3.connect(file), sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        return copy

    return back_up


def _alone(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    for setting in ("statement_timeout", "lock_timeout"):  # an index over a million rows takes its time
        connection.exec_driver_sql(f"SET LOCAL {setting} = 0")
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TURN)))


def _make(connection: sa.Connection, shown: str) -> None:
    if connection.dialect.name != "sqlite":
        _refuse_others(connection, shown)
    try:
        metadata.create_all(connection)
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", "") not in FORBIDDEN:
            raise
        raise LedgerSchemaError(
            f"The ledger at {shown} has no tables, and this user may not make them: {said(error)}."
            f" Run `reflect migrate --ledger {shown}` with a user and password that may."
        ) from error
    _stamp(connection)


def _refuse_others(connection: sa.Connection, shown: str) -> None:
    foreign = sorted(set(sa.inspect(connection).get_table_names()) & set(metadata.tables))
    if foreign:
        raise LedgerSchemaError(
            f"The database at {shown} has tables of another program that are named like ours: {', '.join(foreign)}. Use"
            " a database of its own, or a schema of its own: …?options=-csearch_path%3Dreflect"
        )


def _upgrade(connection: sa.Connection, found: int) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    with Operations.context(MigrationContext.configure(connection)):
        for number in range(found + 1, SCHEMA_VERSION + 1):
            importlib.import_module(f"reflect_middleware.migrations.schema_{number}").upgrade()
    _stamp(connection)


def _stamp(connection: sa.Connection) -> None:
    connection.execute(meta.delete().where(NUMBERED))
    connection.execute(meta.insert().values(key="schema", value=str(SCHEMA_VERSION)))
