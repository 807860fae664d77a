"""One store at one size, measured in a process of its own: started by `benchmarks.stores`, prints one line of JSON.

The vectors stand in memory before the first look at the memory. Each query is asked twice, in random order: of the
store, and of plain numpy (the floor), so that a busy machine slows both alike.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.store_kinds import KINDS, Kind, opened
from reflect_middleware.store import Entry, LessonStore

HERE = ("benchmark",)
K = 10
"""As many as a retrieval asks for: five to show and five to spare."""
ROUNDS = 5
PER_CLUSTER = 50
"""Lessons about one thing."""
SPREAD = 0.75
"""Of a cluster: two lessons about one thing have a cosine of 0.64, and a task one of 0.64 with the lessons about it."""
LEAST_QUERIES = 20
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to measure."""

    store: str
    """A kind's title."""
    size: int
    """Lessons in the only namespace."""
    dim: int
    queries: int
    """In all rounds together; fewer where they take more than `seconds`."""
    seconds: float
    vectors: str
    """`clustered` or `uniform`."""
    postgres: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured; times in milliseconds unless the name says otherwise."""

    store: str
    size: int
    queries: int
    p50: float
    """The median over the rounds of a round's median."""
    p99: float
    """Over all rounds; NaN where fewer than 100 queries fitted in."""
    floor_p50: float
    floor_p99: float
    times: float
    """The median over the rounds of p50 to the floor's p50."""
    cpu: float
    """The median of what this process computed for a query, on all its threads; a server's work is not in it."""
    recall: float
    """How many of the ten nearest are found, in [0, 1]."""
    build_seconds: float
    """From opening it empty to the end of one `upsert` of all."""
    memory_mb: float
    """Growth of this process since the vectors stood in memory, the driver's code included."""
    disk_mb: float
    load: float
    """The system's load average at the end; NaN where it has none."""


def centred(count: int, chance: np.random.Generator, centres: Matrix) -> Matrix:
    """Unit vectors around given ones, each at random around one of them."""
    chosen = centres[chance.integers(0, len(centres), count)]
    noise = chance.standard_normal(chosen.shape, dtype=np.float32)
    return unit(chosen + noise * np.float32(SPREAD / np.sqrt(centres.shape[1])))


def unit(matrix: Matrix) -> Matrix:
    """Each row of length 1."""
    scaled: Matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return scaled


def drawn(kind: str, size: int, queries: int, dim: int) -> tuple[Matrix, Matrix]:
    """A namespace's vectors and queries that fit them, the same in each process."""
    chance = np.random.default_rng(size)
    if kind == "uniform":
        both = unit(chance.standard_normal((size + queries, dim), dtype=np.float32))
        return both[:size], both[size:]
    centres = unit(chance.standard_normal((max(1, size // PER_CLUSTER), dim), dtype=np.float32))
    return centred(size, chance, centres), centred(queries, chance, centres)


def floor(matrix: Matrix, query: Matrix) -> NDArray[np.intp]:
    """The rows of the nearest, by plain numpy: one product a row, which BLAS gives to no thread of its own."""
    cosines = (matrix[:, None, :] @ query[:, None])[:, 0, 0]
    best = np.argpartition(cosines, -K)[-K:] if len(cosines) > K else np.arange(len(cosines))
    rows: NDArray[np.intp] = best[np.argsort(-cosines[best])]
    return rows


def resident() -> float:
    """The process's memory in MB; its peak where the system does not tell the present."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def milliseconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return 1_000 * (time.perf_counter() - start)


def asked(store: LessonStore, matrix: Matrix, queries: Matrix, seconds: float) -> tuple[NDArray[np.float64], float]:
    """Milliseconds of each query, shape (queries, 3): store, floor and the store's processor time; and the recall."""
    found, taken = 0, []
    for query in queries[:3]:
        store.search(HERE, query, K)
    end = time.monotonic() + seconds
    for count, query in enumerate(queries):
        if count >= LEAST_QUERIES and time.monotonic() > end:
            break
        both = partial(store.search, HERE, query, K), partial(floor, matrix, query)
        times, computed = [0.0, 0.0], [0.0, 0.0]
        for which in random.sample(range(2), 2):
            before = time.process_time()
            times[which] = milliseconds(both[which])
            computed[which] = 1_000 * (time.process_time() - before)
        taken.append([*times, computed[0]])
        if count < 100:  # noqa: PLR2004 - enough to tell the recall
            wanted = {_id(row) for row in both[1]().tolist()}
            found += len(wanted & {one for one, _ in both[0]()})
    return np.array(taken), found / (min(len(taken), 100) * min(K, len(matrix)))


def measured(kind: Kind, job: Job) -> Result:
    """Open, fill and ask one store."""
    matrix, queries = drawn(job.vectors, job.size, job.queries, job.dim)
    entries = [Entry(id=_id(row), vector=vector) for row, vector in enumerate(matrix)]
    with tempfile.TemporaryDirectory() as folder:
        before, start = resident(), time.perf_counter()
        with opened(kind, Path(folder), job.dim, job.postgres) as (store, place):
            empty = place.bytes()
            store.upsert(HERE, entries)
            build = time.perf_counter() - start
            taken, recall = asked(store, matrix, queries, job.seconds)
            memory, disk = resident() - before, place.bytes() - empty
    rounds = np.array([np.median(part, axis=0) for part in np.array_split(taken, ROUNDS)])
    p99 = np.percentile(taken, 99, axis=0) if len(taken) >= 100 else [np.nan] * 3  # noqa: PLR2004
    return Result(
        store=job.store,
        size=job.size,
        queries=len(taken),
        p50=float(np.median(rounds[:, 0])),
        p99=float(p99[0]),
        floor_p50=float(np.median(rounds[:, 1])),
        floor_p99=float(p99[1]),
        times=float(np.median(rounds[:, 0] / rounds[:, 1])),
        cpu=float(np.median(taken[:, 2])),
        recall=recall,
        build_seconds=build,
        memory_mb=memory,
        disk_mb=disk / 1e6,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else np.nan,
    )


def _id(row: int) -> str:
    """As long as a lesson's own."""
    return f"{row:032x}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Qdrant's local mode says that it is not for so many; the table says so too
    asked_for = Job(**json.loads(sys.argv[1]))
    [chosen] = [kind for kind in KINDS if kind.title == asked_for.store]
    print(json.dumps(asdict(measured(chosen, asked_for))))
