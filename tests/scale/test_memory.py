"""A process holds the lessons of the namespaces that it serves, whatever other namespaces have."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.ledgers import DIMENSIONS, embeddings
from reflect_middleware import Reflection
from reflect_middleware.embed import Embedder
from reflect_middleware.namespaces import to_key
from reflect_middleware.schema import lessons, namespaces
from reflect_middleware.types import Lesson

if TYPE_CHECKING:
    from pathlib import Path

FEW, MANY = 100, 20_000
ALLOWED = 6.0
"""MB more; the vectors alone of all these lessons have 30."""
IDLE = """
import ctypes, gc, sys
from pathlib import Path
from benchmarks.ledgers import embeddings
from reflect_middleware import Reflection

with Reflection(path=sys.argv[1], namespace=("mine",), store=sys.argv[2], embeddings=embeddings()) as reflection:
    for _ in range(3):
        found = reflection.preview({"messages": "refund an order"}).lessons
        reflection._core.parts.index.lane.wait_idle(None)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(len(found), pages * 4_096 / 1e6)
"""


def fill(path: Path, elsewhere: int) -> None:
    """One lesson of ours and many of others, written as the ledger would."""
    with Reflection(path=str(path), namespace=("mine",), store="exact", embeddings=embeddings()) as reflection:
        reflection.lessons.add(when="refunding an order", do="ask a manager above 200 EUR")
        body = Lesson(namespace=("other",), when="writing the date", do="say the month" * 20).model_dump_json()
        vectors = np.random.default_rng(0).standard_normal((elsewhere, DIMENSIONS)).astype(np.float32)
        shared = {"status": "active", "version": 1, "revision": 1, "embedder": Embedder(embeddings).id, "body": body}
        rows = [
            {"id": f"other-{n}", "namespace": to_key((f"other {n % 50}",)), "vector": vector.tobytes(), **shared}
            for n, vector in enumerate(vectors)
        ]
        with reflection._core.parts.ledger.database.write() as connection:
            connection.execute(lessons.insert(), rows)
            connection.execute(
                namespaces.insert(), [{"namespace": to_key((f"other {n}",)), "revision": 1} for n in range(50)]
            )


def resident(path: Path, store: str) -> float:
    """MB of a process that has retrieved in its own namespace."""
    command = [sys.executable, "-c", IDLE, str(path), store]
    shown, megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert shown == "1"
    return float(megabytes)


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize("store", ["exact", "chroma"])
def test_memory_does_not_grow_with_the_lessons_of_others(tmp_path, store):
    fill(tmp_path / "few", FEW)
    fill(tmp_path / "many", MANY)
    few, many = resident(tmp_path / "few", store), resident(tmp_path / "many", store)
    assert many < few + ALLOWED
