"""What SQLite and PostgreSQL say differently, for statements that are to mean the same in both."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


class Dialect:
    """How a ledger is spoken to; connects to nothing.

    Args:
        url: A SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = time.time
        """This process's clock (epoch seconds)."""

    @property
    def is_sqlite(self) -> bool:
        """Whether the ledger is a file of ours."""
        return self.url.startswith("sqlite")

    def take_turn(self, connection: sa.Connection, what: str, *, shared: bool = False) -> None:
        """Wait, inside a write transaction, until no other one that takes the same turn is under way.

        Waiting takes milliseconds; to pass on instead could leave what has just been written to nobody. SQLite lets one
        writer in at a time anyway.

        Args:
            connection: Of a write transaction. The turn ends with it.
            what: The turn's name, within the ledger.
            shared: Whether it goes together with others that share it.
        """
        if self.is_sqlite:
            return
        lock = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
        name = sa.func.concat("reflect ", sa.func.current_schema(), " ", what)
        connection.execute(sa.select(lock(sa.func.hashtextextended(name, 0))))

    def now(self) -> sa.ColumnElement[float]:
        """The present time for statements (epoch seconds): PostgreSQL's own, whatever the clocks of its clients say."""
        if self.is_sqlite:
            return sa.literal(self.clock(), sa.Float)
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)

    def at(self, moment: float) -> sa.ColumnElement[float]:
        """A time of this process's clock (epoch seconds) as the ledger's clock tells it."""
        if self.is_sqlite:
            return sa.literal(moment, sa.Float)
        return self.now() + sa.literal(moment - self.clock(), sa.Float)

    def insertion(self, table: sa.Table) -> Any:
        """An INSERT that can be told what becomes of a row that is already there."""
        return (sqlite.insert if self.is_sqlite else postgresql.insert)(table)

    def insert_new(self, table: sa.Table) -> Any:
        """An INSERT that leaves a row alone that is already there."""
        return self.insertion(table).on_conflict_do_nothing()

    def upsert(self, table: sa.Table, **values: Any) -> Any:
        """An INSERT that replaces the other columns of a row with the same primary key."""
        return self.replacing(table, values).values(**values)

    def replacing(self, table: sa.Table, columns: Iterable[str]) -> Any:
        """As `upsert`, for these columns, whose values come later."""
        keys = [column.name for column in table.primary_key]
        statement = self.insertion(table)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={k: statement.excluded[k] for k in columns if k not in keys}
        )
