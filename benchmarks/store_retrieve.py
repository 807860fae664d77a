"""The retrieve step as a whole, on one store at one size, in a process of its own: prints one line of JSON.

The ledger is SQLite, its lessons' vectors lie around those of real tasks, and the tasks are embedded by the local
model: one that nobody has embedded yet, and the same one again. What is measured is `Reflection.preview`, which is what
a run waits for: the namespace's state, the task's vector, the search, the lessons' bodies, and which of them are shown.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ledgers import Size, filled
from benchmarks.store_kinds import KINDS, Kind, Place
from benchmarks.store_run import Job, centred, floor, milliseconds
from reflect_middleware import Reflection
from reflect_middleware.types import Namespace

STEPS = ("embed", "search", "again", "cached", "new", "floor")
ACTS = ("refund", "ship", "cancel", "invoice", "insure", "exchange", "reserve", "price")
THINGS = ("a pair of shoes", "a night train ticket", "a broken phone", "a rented car", "a hotel room", "a box of wine")
CASES = (
    "for a customer in France",
    "after the deadline",
    "without a receipt",
    "that was paid by voucher",
    "for a company with its own contract",
    "that was ordered twice",
)
WARM_UP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """Medians in milliseconds."""

    store: str
    size: int
    queries: int
    embed: float
    """Embedding a task that nobody has embedded yet."""
    search: float
    """The index alone."""
    again: float
    """All of it for a task that was just retrieved for: its vector and its lessons' bodies are in memory."""
    cached: float
    """All of it for a task whose vector alone is in memory: its lessons' bodies come from the ledger unless known."""
    new: float
    """All of it for a task that nobody has embedded yet."""
    floor: float
    """Plain numpy over the same vectors."""


def tasks() -> list[str]:
    """What lessons are about."""
    return [" ".join(words) for words in itertools.product(ACTS, THINGS, CASES)]


def prepared(reflection: Reflection, size: Size) -> NDArray[np.float32]:
    """Give each lesson a vector around some task's, and open the store; the vectors, one a row."""
    parts = reflection._core.parts  # noqa: SLF001 - the parts are what is measured
    space = size.namespace(0)
    centres = np.array(parts.embedder.embed_documents(tasks()))
    matrix = centred(size.lessons, np.random.default_rng(0), centres)
    known = [lesson.id for lesson in parts.ledger.lessons.find(space, "active")]
    lessons = parts.ledger.lessons.many(known)
    parts.ledger.lessons.set_vectors(space, list(zip(lessons, matrix, strict=True)), parts.embedder.id)
    for _ in range(3):  # the first search does not open a store yet
        reflection.preview({"messages": tasks()[0]})
        parts.index.lane.wait_idle(None)
    return matrix


def measured(kind: Kind, job: Job) -> Retrieved:
    """Fill a ledger and a store, then retrieve."""
    size = Size(episodes=0, lessons=job.size, namespaces=1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        url = f"sqlite:///{folder}/ledger.db"
        filled(size, url)
        place = Place(folder=Path(folder), dim=job.dim, postgres=job.postgres, stack=stack, folders=[])
        reflection = stack.enter_context(
            Reflection(
                path=folder,
                ledger=url,
                namespace=size.namespace(0),
                store=kind.spec(place),
                store_options={**kind.options, **({"url": job.postgres} if job.postgres else {})},
                embeddings="local",
                max_lessons=1_000_000,
                reflector=lambda _: [],
            )
        )
        matrix = prepared(reflection, size)
        if job.store != "exact" and not reflection._core.parts.index.is_open:  # noqa: SLF001
            sys.exit(f"The benchmark measures nothing: the store {job.store!r} is not open.")
        turns = range(-WARM_UP, job.queries)
        taken = np.array([_turn(reflection, size.namespace(0), matrix, turn) for turn in turns])[WARM_UP:]
    medians = dict(zip(STEPS, np.median(taken, axis=0).tolist(), strict=True))
    return Retrieved(store=job.store, size=job.size, queries=len(taken), **medians)


def _turn(reflection: Reflection, space: Namespace, matrix: NDArray[np.float32], number: int) -> list[float]:
    """Milliseconds of each of `STEPS`, on two tasks that were never seen."""
    parts, text = reflection._core.parts, tasks()[number % len(tasks())]  # noqa: SLF001
    first, second = (f"{text}, reference {2 * number + more}" for more in range(2))
    embed = milliseconds(partial(parts.embedder.embed_query, first))
    vector = parts.embedder.embed_query(first)
    cached, again = (milliseconds(partial(reflection.preview, {"messages": first})) for _ in range(2))
    new = milliseconds(partial(reflection.preview, {"messages": second}))
    revision = parts.ledger.lessons.state(space)[0]
    search = milliseconds(partial(parts.index.search, space, revision, vector, 10))
    return [embed, search, again, cached, new, milliseconds(partial(floor, matrix, vector))]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asked_for = Job(**json.loads(sys.argv[1]))
    [chosen] = [kind for kind in KINDS if kind.title == asked_for.store]
    print(json.dumps(asdict(measured(chosen, asked_for))))
