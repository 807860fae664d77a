"""The adapter `langgraph` over stores that last: SQLite's and PostgreSQL's."""

from __future__ import annotations

import itertools
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import TTLConfig
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

from reflect_adapters import langgraph as adapter
from reflect_adapters.langgraph import LangGraphStore, open_store
from reflect_middleware import Reflection
from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.store import Entry, StoreContext
from reflect_middleware.testing import StoreContract
from reflect_middleware.testing.embeddings import HashingEmbeddings
from reflect_middleware.testing.store_contract import entries, vectors


@pytest.fixture
def sqlite(tmp_path):
    connection = sqlite3.connect(tmp_path / "store.db", check_same_thread=False, isolation_level=None)
    store = SqliteStore(connection)
    store.setup()
    yield store
    connection.close()


FEWER = 3_000
"""With 10,000 the adapter is tested in test_stores.py; these databases need 5 s for that."""


class TestSqliteStore(StoreContract):
    at_scale = FEWER

    @pytest.fixture
    def open_store(self, sqlite):
        return lambda: LangGraphStore(sqlite)

    @pytest.fixture
    def break_driver(self, sqlite):
        return lambda store: sqlite.conn.close()


class TestPostgresStore(StoreContract):
    at_scale = FEWER

    @pytest.fixture
    def open_store(self, postgres):
        module = pytest.importorskip("langgraph.store.postgres", reason="needs langgraph-checkpoint-postgres")
        pool = pytest.importorskip("psycopg_pool", reason="needs psycopg[pool]")
        from psycopg.rows import dict_row

        url = postgres.replace("postgresql+psycopg://", "postgresql://")
        options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        with pool.ConnectionPool(url, min_size=1, max_size=10, kwargs=options, open=True) as connections:
            store = module.PostgresStore(connections)
            store.setup()
            yield lambda: LangGraphStore(store)

    @pytest.fixture
    def break_driver(self):
        return lambda store: store._store.conn.close()


class Refusing(Embeddings):
    def embed_documents(self, texts):
        raise AssertionError(texts)

    def embed_query(self, text):
        raise AssertionError(text)


def test_a_store_with_an_index_embeds_nothing_of_ours():
    given = InMemoryStore(index={"dims": 3, "embed": Refusing()})
    store = LangGraphStore(given)
    store.upsert(("a",), entries(3))
    assert len(store.search(("a",), vectors(1)[0], 5)) == 3


def test_the_users_items_stay_and_are_not_ours():
    given = InMemoryStore()
    given.put(("users", "7"), "prefs", {"theme": "dark"})
    store = LangGraphStore(given)
    store.upsert(("users", "7"), entries(2))
    store.drop(("users", "7"))
    store.close()
    assert given.get(("users", "7"), "prefs").value == {"theme": "dark"}
    assert store.ids(("users", "7")) == set()


def test_items_never_expire_by_the_stores_default(sqlite):
    sqlite.ttl_config = TTLConfig(default_ttl=0.0001)
    LangGraphStore(sqlite).upsert(("a",), entries(1))
    row = sqlite.conn.execute("select expires_at, ttl_minutes from store").fetchone()
    assert tuple(row) == (None, None)


def test_more_items_than_a_first_search_asks_for_are_all_read(monkeypatch):
    monkeypatch.setattr(adapter, "FIRST_LIMIT", 5)
    store = LangGraphStore(InMemoryStore())
    store.upsert(("a",), entries(81))
    assert len(store.ids(("a",))) == 81


def test_a_store_that_fails_is_a_store_error(sqlite):
    store = LangGraphStore(sqlite)
    store.upsert(("a",), entries(1))
    sqlite.conn.close()
    for call in (lambda: store.ids(("a",)), lambda: store.upsert(("a",), entries(1))):
        with pytest.raises(StoreError, match="ProgrammingError") as caught:
            call()
        assert isinstance(caught.value.__cause__, sqlite3.ProgrammingError)


def test_vectors_of_another_size_are_refused():
    store = LangGraphStore(InMemoryStore())
    store.upsert(("a",), entries(1))
    with pytest.raises(StoreError, match="shape"):
        store.search(("a",), vectors(1, dim=8)[0], 1)


def test_the_name_alone_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="Give the object itself"):
        open_store(StoreContext(path=tmp_path))


def test_lessons_are_found_through_the_users_own_store(tmp_path):
    given = InMemoryStore()
    with Reflection(None, path=tmp_path, store=given, embeddings=HashingEmbeddings()) as reflection:
        lesson = reflection.lessons.add(when="a refund is asked for", do="ask a manager above 200 EUR")
        for _ in range(3):
            found = reflection.lessons.search("refund above 200 EUR")
            reflection.flush()
        assert [one.lesson.id for one in found] == [lesson.id]
    assert [item.value["id"] for item in given.search(("reflect_lessons",))] == [lesson.id]


def test_a_search_survives_somebody_elses_writes():
    """An `InMemoryStore` has no lock: without a second try, some of these searches fail."""
    given = InMemoryStore()
    store, other = LangGraphStore(given), LangGraphStore(given)
    made = entries(200)
    store.upsert(("a",), made)
    stop, before = threading.Event(), sys.getswitchinterval()

    def write():
        for number in itertools.count(200):
            if stop.is_set():
                return
            other.upsert(("a",), [Entry(id=f"id-{number}", vector=made[0].vector)])
            other.delete(("a",), [f"id-{number}"])

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write)
            try:
                assert all(len(store.ids(("a",))) in {200, 201} for _ in range(300))
            finally:
                stop.set()
    finally:
        sys.setswitchinterval(before)
