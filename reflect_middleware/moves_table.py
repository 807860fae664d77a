"""How far moves to another store have come, and where the ledger was moved to."""

from __future__ import annotations

import json
from dataclasses import dataclass

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.namespaces import to_key
from reflect_middleware.schema import meta
from reflect_middleware.schema import moves as table
from reflect_middleware.types import Namespace

STORE, INDEXED = "store", "indexed"
"""In `meta`: the store for whoever names none; and for which embedder all was last indexed, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """The last move that was completed."""

    store: str
    """The store for every Reflection that names none; empty for the default one."""
    embedder: str
    """For whose vectors it was; empty if there was no move."""
    at: float
    """When (epoch seconds)."""


class MoveTable:
    """Reads and writes the notes. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database

    def begin(self, target: str, namespace: Namespace, revision: int) -> tuple[int, str]:
        """Begin with a namespace, or go on: the revision at which it was begun, and the last id that is written."""
        key = to_key(namespace)
        mine = sa.and_(table.c.target == target, table.c.namespace == key)
        with self.db.write() as connection:
            new = self.db.insert_new(table).values(target=target, namespace=key, revision=revision)
            connection.execute(new)
            row = connection.execute(sa.select(table.c.revision, table.c.last).where(mine)).one()
        return row.revision, row.last

    def advance(self, target: str, namespace: Namespace, last: str) -> None:
        """Note that lessons up to an id are written."""
        mine = sa.and_(table.c.target == target, table.c.namespace == to_key(namespace))
        with self.db.write() as connection:
            connection.execute(table.update().where(mine).values(last=last))

    def forget(self, target: str) -> None:
        """The next move there begins anew."""
        with self.db.write() as connection:
            connection.execute(table.delete().where(table.c.target == target))

    def complete(self, target: str, store: str | None, embedder: str | None) -> None:
        """Note that a move is done, and switch every process whose code names no store.

        Args:
            target: Whose notes are not needed any more.
            store: Its name or URL, without a password; None: which store it is stays as it was.
            embedder: Whose vectors are indexed; None: as noted before.
        """
        with self.db.write() as connection:
            self.db.changing(connection)
            connection.execute(table.delete().where(table.c.target == target))
            if store is not None:
                connection.execute(self.db.upsert(meta, key=STORE, value=store))
            if embedder is not None:
                note = json.dumps({"embedder": embedder, "at": self.db.clock()})
                connection.execute(self.db.upsert(meta, key=INDEXED, value=note))

    def last(self) -> Indexed:
        """The last move that was completed."""
        with self.db.read() as connection:
            query = sa.select(meta.c.key, meta.c.value).where(meta.c.key.in_((STORE, INDEXED)))
            known = {row.key: row.value for row in connection.execute(query)}
        return Indexed(store=known.get(STORE, ""), **{"embedder": "", "at": 0.0} | json.loads(known.get(INDEXED, "{}")))
