"""Making a store what the ledger says, and looking whether it is: for the index, for moves and for `doctor`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reflect_middleware.errors import StoreError
from reflect_middleware.exact import ExactStore
from reflect_middleware.registry import open_store
from reflect_middleware.store import Entry, LessonStore, StoreContext

if TYPE_CHECKING:
    from reflect_middleware.lessons_table import Indexed
    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace

logger = logging.getLogger(__name__)
SAME = 0.999
"""From this cosine on a store has the vector that it was given; some keep fewer digits."""
SAMPLE = 20
"""Of so many entries of a namespace the vectors are compared."""
NEAREST = 10
"""How deep answers are compared."""
GENERATION = "reflect.generation"
"""In a store's folder: of which generation of the ledger its entries are."""
TIE = 1e-3
"""Cosines that differ by less are equally near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a store has of a namespace, compared with the ledger."""

    missing: int = 0
    """Lessons that it lacks."""
    superfluous: int = 0
    """Ids that it has and the ledger has not, or not any more."""
    wrong: int = 0
    """Lessons that are not found by their own vector, of a sample of `SAMPLE`."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.missing + self.superfluous + self.wrong

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            missing=self.missing + other.missing,
            superfluous=self.superfluous + other.superfluous,
            wrong=self.wrong + other.wrong,
        )


def entries(rows: Sequence[Indexed]) -> list[Entry]:
    """The active lessons that have a vector."""
    import numpy as np

    return [
        Entry(id=row.id, vector=np.frombuffer(row.vector, dtype=np.float32))
        for row in rows
        if row.active and row.vector is not None
    ]


def fill(store: LessonStore, space: Namespace, wanted: Sequence[Entry]) -> None:
    """Make a namespace of a store that was just opened what the ledger says.

    One that only this process holds may have been damaged on the disk: where it fails it is dropped and made anew.
    """
    try:
        store.delete(space, store.ids(space) - {entry.id for entry in wanted})
        store.upsert(space, wanted)
    except StoreError as error:
        if store.capabilities.multi_process:
            raise
        logger.warning("reflect: the store of %s is made anew from the ledger: %s", "/".join(space), error)
        store.drop(space)
        store.upsert(space, wanted)


def compare(store: LessonStore, space: Namespace, wanted: Sequence[Entry]) -> Difference:
    """What is wrong with a namespace; nothing is changed."""
    there, ids = store.ids(space), {entry.id for entry in wanted}
    present = [entry for entry in wanted if entry.id in there]
    step = max(1, -(-len(present) // SAMPLE))
    wrong = sum(not _finds(store, space, entry) for entry in present[::step])
    return Difference(missing=len(ids - there), superfluous=len(there - ids), wrong=wrong)


def mend(store: LessonStore, space: Namespace, wanted: Sequence[Entry]) -> Difference:
    """Make a namespace what the ledger says; gives what was wrong. One wrong vector of the sample: all are written."""
    found, there = compare(store, space, wanted), store.ids(space)
    store.delete(space, there - {entry.id for entry in wanted})
    store.upsert(space, [entry for entry in wanted if found.wrong or entry.id not in there])
    return found


def questions(wanted: Sequence[Entry], count: int) -> list[Vector]:
    """Vectors to ask for: halfway between two lessons each, where tasks lie too. The same ones for equal lessons."""
    import numpy as np

    if not wanted:
        return []
    chance = np.random.default_rng(len(wanted))
    pairs: list[list[int]] = chance.integers(len(wanted), size=(count, 2)).tolist()
    sums = [wanted[one].vector + wanted[other].vector for one, other in pairs]
    return [np.asarray(x / n, dtype=np.float32) for x in sums if (n := float(np.linalg.norm(x))) > TIE]


def recall(store: LessonStore, space: Namespace, wanted: Sequence[Entry], asked: Sequence[Vector]) -> float:
    """Which share of the `NEAREST` lessons of each question a store finds; 1.0 where there is nothing to find."""
    if not wanted or not asked:
        return 1.0
    import numpy as np

    exact, matrix = ExactStore(lambda _: wanted), np.stack([entry.vector for entry in wanted])
    found = expected = 0
    for question in asked:
        best = exact.search(space, question, NEAREST)
        near = {wanted[row].id for row in np.flatnonzero(matrix @ question >= best[-1][1] - TIE).tolist()}
        hits = {one for one, _ in store.search(space, question, NEAREST)}
        expected += len(best)
        found += min(len(best), len(hits & near))
    return found / expected


def folder_of(store: object) -> str:
    """The name of a store's own folder. One that is named by a URL is elsewhere: a folder of its kind is not its."""
    return store if isinstance(store, str) and "://" not in store else "store"


def renewed(store: LessonStore, folder: Path, generation: str) -> None:
    """Empty a store in a folder of ours that was filled before the ledger's present generation."""
    if outdated(folder, generation):
        if (clear := getattr(store, "clear", None)) is not None:
            clear()
        (folder / GENERATION).write_text(generation)


def outdated(folder: Path, generation: str) -> bool:
    """Whether a store's folder was filled before the ledger's present generation."""
    note = folder / GENERATION
    return folder.is_dir() and (note.read_text() if note.is_file() else "") != generation


def clear_folder(name: str, folder: Path, generation: str) -> str:
    """Empty the folder of a store that this process does not use; gives the reason where that cannot be."""
    try:
        store = open_store(name, StoreContext(path=folder))
        try:
            renewed(store, folder, generation)
        finally:
            store.close()
    except Exception as error:  # noqa: BLE001 - any driver, and a process that holds the folder
        return f"{type(error).__name__}: {error}"
    return ""


def _finds(store: LessonStore, space: Namespace, entry: Entry) -> bool:
    """Whether an entry is found by its own vector, or so many others of the same vector that it may stand behind."""
    hits = store.search(space, entry.vector, NEAREST)
    own = [cosine for one, cosine in hits if one == entry.id]
    if own:
        return own[0] >= SAME
    return len(hits) == NEAREST and hits[-1][1] >= SAME
