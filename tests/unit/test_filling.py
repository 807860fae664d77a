"""Comparing a store with what it ought to have, and telling embedders apart."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import sqlalchemy as sa

from reflect_middleware.embedders_table import EmbedderTable
from reflect_middleware.errors import LedgerUnavailableError
from reflect_middleware.exact import ExactStore
from reflect_middleware.filling import Difference, compare, mend, questions, recall
from reflect_middleware.ledger import Ledger
from reflect_middleware.registry import kept, shown
from reflect_middleware.store import Entry

if TYPE_CHECKING:
    from pathlib import Path

    from reflect_middleware.store import Vector

SPACE = ("acme",)


def entries(count: int, size: int = 16, seed: int = 1) -> list[Entry]:
    matrix = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return [Entry(id=f"l{number:04}", vector=row) for number, row in enumerate(matrix)]


def filled(wanted: list[Entry]) -> ExactStore:
    store = ExactStore()
    store.upsert(SPACE, wanted)
    return store


def test_equal_stores_differ_in_nothing() -> None:
    wanted = entries(50)
    assert compare(filled(wanted), SPACE, wanted) == Difference()
    assert compare(ExactStore(), SPACE, []) == Difference()


def test_lessons_of_one_vector_stand_behind_each_other() -> None:
    same = [Entry(id=f"l{number}", vector=entries(1)[0].vector) for number in range(30)]
    assert compare(filled(same), SPACE, same) == Difference()


def test_one_wrong_vector_of_the_sample_has_all_written() -> None:
    wanted = entries(100)
    store = filled([*entries(100, seed=2)[:50], *wanted[50:99], Entry(id="old", vector=wanted[0].vector)])
    found = mend(store, SPACE, wanted)
    assert (found.missing, found.superfluous, found.wrong) == (1, 1, 10)
    assert compare(store, SPACE, wanted) + Difference() == Difference()
    assert recall(store, SPACE, wanted, questions(wanted, 5)) == 1.0


def test_recall_counts_the_nearest_that_are_found() -> None:
    wanted = entries(40)
    asked = questions(wanted, 20)
    assert [x.tolist() for x in asked] == [x.tolist() for x in questions(wanted, 20)]
    assert recall(filled(wanted), SPACE, wanted, asked) == 1.0
    half = recall(filled(wanted[::2]), SPACE, wanted, asked)
    assert 0.3 < half < 0.7
    assert recall(filled(entries(40, seed=2)), SPACE, wanted, asked) < 0.6
    assert recall(ExactStore(), SPACE, [], []) == 1.0


def test_opposite_lessons_have_nothing_between_them() -> None:
    one = entries(1)[0]
    asked = questions([one, Entry(id="o", vector=-one.vector)], 50)
    assert 0 < len(asked) < 50
    assert questions([], 5) == []


@pytest.mark.parametrize(
    ("spec", "may", "text"),
    [
        ("chroma", True, "chroma"),
        ("pgvector://agents@db/vectors", True, "pgvector://agents@db/vectors"),
        ("pgvector://agents:pw@db:5/vectors", False, "pgvector://db/vectors"),
        ("qdrant://host?api_key=k", False, "qdrant://host"),
        (ExactStore(), False, "ExactStore"),
    ],
)
def test_secrets_are_neither_shown_nor_kept(spec: object, text: str, *, may: bool) -> None:
    assert (kept(spec), shown(spec)) == (may, text)


# Embedders.


@pytest.fixture
def table(tmp_path: Path) -> EmbedderTable:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").embedders


def vector(number: int, size: int = 16) -> Vector:
    return entries(number + 1, size)[number].vector


def test_a_name_belongs_to_who_came_first(table: EmbedderTable) -> None:
    assert table.identity("m", vector(0)) == "m"
    others = {table.identity("m", vector(1)), table.identity("m", vector(0, size=8))}
    assert len(others) == 2
    assert all(other.startswith("m#") for other in others)
    assert {table.identity("m", vector(1)), table.identity("m", vector(0, size=8))} == others
    assert table.identity("another", vector(1)) == "another"
    nearly = vector(0) + 0.005 * vector(1)
    assert table.identity("m", nearly / np.linalg.norm(nearly)) == "m"
    table.db.close()


def test_many_at_once_agree(table: EmbedderTable) -> None:
    noise = [x / np.linalg.norm(x) for x in (vector(0) + 0.001 * vector(n) for n in range(1, 9))]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda probe: table.identity("m", probe), noise)) == {"m"}
    with table.db.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM embedders")).scalar() == 1
    table.db.close()


def test_a_ledger_that_cannot_be_written_still_tells_them_apart(
    table: EmbedderTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    table.identity("m", vector(0))

    def refuse() -> None:
        raise LedgerUnavailableError("the disk is full")

    monkeypatch.setattr(table.db, "write", refuse)
    assert table.identity("m", vector(0)) == "m"
    assert table.identity("m", vector(1)).startswith("m#")
    assert table.identity("new", vector(1)) == "new"
    assert "could not be noted" in caplog.text
    table.db.close()
