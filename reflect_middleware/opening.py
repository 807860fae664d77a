"""Opening a ledger: the right place, one process at a time, the present schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from reflect_middleware.connecting import engine_for
from reflect_middleware.migrating import copy_of, migrate, prepare
from reflect_middleware.places import alone, clear_away, identity, refuse_network

Identity = tuple[int, int]


def file_of(url: str) -> Path | None:
    """SQLite's file; None for a ledger without one."""
    file = sa.make_url(url).database if url.startswith("sqlite") else None
    return Path(file.removeprefix("file:")) if file and file != ":memory:" else None


def opened(url: str, shown: str, *, fsync: bool = False) -> tuple[sa.Engine, Identity | None]:
    """An engine on a ledger of the present schema, and which file that is.

    Raises:
        LedgerError: If the ledger may not be there, or has another schema that may not be changed here.
        MissingExtraError: If the database's driver is not installed.
    """
    engine, file = engine_for(url, fsync=fsync), file_of(url)
    try:
        if file is None:
            prepare(engine, shown, (lambda _: None) if url.startswith("sqlite") else None)
            return engine, None
        with _place(file):
            prepare(engine, shown, copy_of(file))
            return engine, identity(file)
    except BaseException:
        engine.dispose()
        raise


def migrated(url: str, shown: str) -> tuple[int | None, int]:
    """Bring a ledger's schema to the present. Gives its version before (None: it was new) and now."""
    engine, file = engine_for(url), file_of(url)
    try:
        if file is None:
            return migrate(engine, shown)
        with _place(file):
            return migrate(engine, shown, copy_of(file))
    finally:
        engine.dispose()


@contextmanager
def _place(file: Path) -> Iterator[None]:
    refuse_network(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file):
        clear_away(file)
        yield
