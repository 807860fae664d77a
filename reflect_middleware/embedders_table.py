"""Which embedders a ledger has seen: each is known by its name and by the vector of one sentence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import sqlalchemy as sa

from reflect_middleware.database import Database
from reflect_middleware.errors import LedgerError
from reflect_middleware.schema import embedders as table

if TYPE_CHECKING:
    from reflect_middleware.store import Vector

logger = logging.getLogger(__name__)
SAME = 0.999
"""From this cosine on two vectors of one sentence are one model's: machines and batches differ by far less."""
TURN = "embedders"


class EmbedderTable:
    """Recognises embedders. All methods are one transaction each."""

    def __init__(self, database: Database) -> None:
        self.db = database

    def identity(self, name: str, probe: Vector) -> str:
        """The id under which a model's vectors are kept: its name, unless that one's vectors are others.

        Another model under a known name (new weights, another dimension) gets an id of its own, and keeps it.

        Args:
            name: Class and model name.
            probe: The vector of `embed.PROBE`, of unit length.
        """
        with self.db.read() as connection:
            known = self._known(connection, name)
        return _recognised(known, probe) or self._new(name, probe, known)

    def _new(self, name: str, probe: Vector, known: Sequence[tuple[str, Vector]]) -> str:
        own = f"{name}#{sha256(probe.tobytes()).hexdigest()[:8]}"
        try:
            with self.db.write() as connection:
                self.db.take_turn(connection, TURN)
                known = self._known(connection, name)  # another process may have been faster
                if (found := _recognised(known, probe)) is not None:
                    return found
                row = {"id": own if known else name, "name": name, "probe": probe.tobytes(), "at": self.db.clock()}
                connection.execute(self.db.insert_new(table).values(**row))
        except LedgerError as error:  # it can be read, as a replica or with a full disk: noted by another process
            logger.debug("reflect: the embedder %s could not be noted: %s", name, error)
        if known:
            logger.warning(
                "reflect: the embedder %s gives other vectors than it did (cosine %.3f for one sentence): it is %s from"
                " now on, and lessons are embedded again as they are needed, or all at once by `reflect reindex`",
                *(name, max(_cosine(vector, probe) for _, vector in known), own),
            )
        return own if known else name

    @staticmethod
    def _known(connection: sa.Connection, name: str) -> list[tuple[str, Vector]]:
        import numpy as np

        rows = connection.execute(sa.select(table.c.id, table.c.probe).where(table.c.name == name))
        return [(row.id, np.frombuffer(row.probe, dtype=np.float32)) for row in rows]


def _recognised(known: Sequence[tuple[str, Vector]], probe: Vector) -> str | None:
    nearest = max(known, key=lambda one: _cosine(one[1], probe), default=None)
    return nearest[0] if nearest is not None and _cosine(nearest[1], probe) >= SAME else None


def _cosine(one: Vector, other: Vector) -> float:
    """-1 for vectors of different sizes."""
    return float(one @ other) if one.shape == other.shape else -1.0
