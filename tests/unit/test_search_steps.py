"""How often a search asks the ledger, a client or a server: what makes it slow comes back as one more call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from chromadb.api.client import Client

from reflect_adapters.chroma import ChromaStore
from reflect_adapters.pgvector import PgvectorStore
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.testing.store_contract import entries, vectors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = ("acme", "user-7")
QUERIES = vectors(10, seed=7)


@pytest.fixture(params=["exact", "chroma"])
def reflection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reflection]:
    """Lessons about two things, those about refunds found before, in a store that is open and up to date."""
    with Reflection(None, path=tmp_path, store=request.param, embeddings=HashingEmbeddings()) as made:
        for number in range(10):
            made.lessons.add(when=f"a refund of {number} EUR", do=f"write {number} into the form")
            made.lessons.add(when=f"shipping the parcel {number} abroad", do=f"declare {number} items")
        for _ in range(3):
            made.preview({"messages": "a refund of 3 EUR"})
            made._core.parts.index.lane.wait_idle(None)
        assert made._core.parts.index.is_open == (request.param != "exact")
        yield made


def test_a_task_that_is_known_asks_the_ledger_nothing(reflection: Reflection) -> None:
    statements = _statements(reflection)
    assert len(reflection.preview({"messages": "a refund of 3 EUR"}).lessons) >= 5
    assert statements == []


def test_lessons_not_yet_seen_are_read_at_once(reflection: Reflection) -> None:
    statements = _statements(reflection)
    assert len(reflection.preview({"messages": "shipping the parcel 3 abroad"}).lessons) >= 5
    assert len(statements) == 1


def test_chroma_looks_a_collection_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ChromaStore(tmp_path)
    written.upsert(HERE, entries(3))
    written.close()
    looked = []
    look = Client.get_collection
    monkeypatch.setattr(Client, "get_collection", lambda *given, **more: looked.append(1) or look(*given, **more))
    store = ChromaStore(tmp_path)
    for query in QUERIES:
        assert len(store.search(HERE, query, 3)) == 3
    store.close()
    assert len(looked) == 1


@pytest.mark.parametrize(("options", "statements"), [({}, 1), ({"hnsw_above": 1}, 4)])
def test_pgvector_asks_one_thing(
    postgres: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], statements: int
) -> None:
    """With an index: whether there is one, two settings of this transaction, and the search."""
    store = PgvectorStore(postgres, **options)
    store.upsert(HERE, entries(3))
    store.search(HERE, QUERIES[0], 3)
    seen, opened = [], []
    execute, connect = psycopg.Connection.execute, psycopg.connect
    monkeypatch.setattr(psycopg.Connection, "execute", lambda *given, **more: seen.append(1) or execute(*given, **more))
    monkeypatch.setattr(psycopg, "connect", lambda *given, **more: opened.append(1) or connect(*given, **more))
    for query in QUERIES:
        store.search(HERE, query, 3)
    store.close()
    assert len(seen) == statements * len(QUERIES)
    assert opened == []


def _statements(reflection: Reflection) -> list[str]:
    """What is asked of the ledger from now on."""
    seen: list[str] = []
    engine = reflection._core.parts.ledger.database._open()
    sa.event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    return seen
