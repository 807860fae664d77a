"""What is done to the ledger as a whole, and the audit that tells of it: counts and settings, never content."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.lessons_table import FLOOR, LessonTable
from reflect_middleware.schema import audit, counters, episodes, lessons, meta, namespaces, work
from reflect_middleware.types import AuditEntry


class AuditTable:
    """The ends of purges, restores and rounds of retention. All methods are one transaction each."""

    def __init__(self, database: Database, table: LessonTable) -> None:
        self.db = database
        self.lessons = table

    def purged(self, body: Mapping[str, Any], *, rebuild: bool) -> None:
        """The end of a purge: no error text that may quote, no empty namespace, an entry in the audit.

        Args:
            body: Counts and kinds, no content.
            rebuild: Whether every store is to be built anew.
        """
        with self.db.write() as connection:
            connection.execute(counters.update().values(last=""))
            self._drop_empty(connection)
            if rebuild:
                self._renew(connection)
            self._note(connection, "purge", body)

    def restored(self, seen: int, body: Mapping[str, Any]) -> None:
        """After a restore: no process may take what it read before for what is here now.

        Args:
            seen: The highest revision of a namespace that one may have seen.
            body: For the audit.
        """
        with self.db.write() as connection:
            connection.execute(namespaces.update().values(revision=namespaces.c.revision + seen + 1))
            floor = self.lessons.floor(connection) + seen + 1
            connection.execute(self.db.upsert(meta, key=FLOOR, value=str(floor)))
            self._renew(connection)
            self._note(connection, "restore", body)

    def dropped(self, counts: Mapping[str, int]) -> None:
        """What retention has dropped: added to the audit's entry of today, so that it has one a day."""
        day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        with self.db.write() as connection:
            query = sa.select(audit.c.seq, audit.c.body).where(audit.c.action == "retention", audit.c.at >= day)
            if (row := connection.execute(query.order_by(audit.c.seq.desc()).limit(1)).first()) is None:
                self._note(connection, "retention", counts)
                return
            earlier = json.loads(row.body)
            total = {name: earlier.get(name, 0) + count for name, count in counts.items()}
            mine = audit.update().where(audit.c.seq == row.seq)
            connection.execute(mine.values(at=time.time(), body=json.dumps(total)))

    def entries(self, limit: int | None = None) -> tuple[AuditEntry, ...]:
        """What was done to the ledger as a whole, the newest first."""
        query = sa.select(audit.c.at, audit.c.action, audit.c.body).order_by(audit.c.seq.desc()).limit(limit)
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        return tuple(
            AuditEntry(at=datetime.fromtimestamp(row.at, UTC), action=row.action, details=json.loads(row.body))
            for row in rows
        )

    def _drop_empty(self, connection: sa.Connection) -> None:
        """Forget the names of namespaces in which nothing is left; a revision that has been is never used again."""
        key, value = namespaces.c.namespace, sa.func.max(namespaces.c.revision)
        empty = ~sa.exists().where(lessons.c.namespace == key)
        if (last := connection.execute(sa.select(value).where(empty)).scalar()) is not None:
            self.db.changing(connection)
            floor = max(last, self.lessons.floor(connection))
            connection.execute(self.db.upsert(meta, key=FLOOR, value=str(floor)))
            connection.execute(namespaces.delete().where(empty))
        nothing = ~sa.exists().where(episodes.c.namespace == work.c.namespace)
        connection.execute(work.delete().where(nothing))

    def _renew(self, connection: sa.Connection) -> None:
        self.db.changing(connection)
        connection.execute(self.db.upsert(meta, key="generation", value=uuid4().hex))

    def _note(self, connection: sa.Connection, action: str, body: Mapping[str, Any]) -> None:
        connection.execute(audit.insert().values(at=time.time(), action=action, body=json.dumps(body)))
