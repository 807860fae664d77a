"""What pgvector's store does beyond the contract, on a real PostgreSQL."""

from __future__ import annotations

import os
import sys
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from reflect_adapters._names import hashed
from reflect_adapters.pgvector import SEARCH_INDEX, PgvectorStore, _index_name, _sql, open_store
from reflect_middleware import Reflection
from reflect_middleware.errors import ConfigurationError, MissingExtraError, StoreError
from reflect_middleware.store import Entry, StoreContext
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.testing.store_contract import entries, nearest, vectors

HERE = ("acme", "user-7")


@pytest.fixture
def store(postgres):
    store = PgvectorStore(postgres)
    yield store
    store.close()


@pytest.fixture
def sql(postgres, postgres_server):
    """Run one statement as the superuser in the test's database."""
    database = postgres.partition("@/")[2].partition("?")[0]
    return lambda statement: postgres_server.execute(statement, database)


def end_connections(sql):
    return len(sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reflect%'"))


def test_it_connects_again_after_the_server_has_ended_its_connections(store, sql):
    store.upsert(HERE, entries(3))
    assert end_connections(sql) == 1
    assert store.ids(HERE) == {"id-0", "id-1", "id-2"}
    end_connections(sql)
    store.upsert(HERE, entries(4))
    assert len(store.ids(HERE)) == 4


@pytest.mark.process
def test_a_server_that_is_away_is_a_store_error_and_it_goes_on_when_it_is_back(store, postgres_server):
    if postgres_server.given:
        pytest.skip("a server that was given cannot be stopped")
    store.upsert(HERE, entries(3))
    postgres_server.stop()
    try:
        with pytest.raises(StoreError, match=r"while listing .*OperationalError.*Check that the server runs") as info:
            store.ids(HERE)
        assert type(info.value.__cause__).__name__ == "OperationalError"
    finally:
        postgres_server.start()
    assert len(store.ids(HERE)) == 3


def test_no_more_connections_than_allowed_for_any_number_of_threads(postgres, sql):
    store = PgvectorStore(postgres, connections=2)
    start = threading.Barrier(8)

    def work(number):
        start.wait(timeout=30)
        store.upsert((str(number),), entries(50))
        return len(store.ids((str(number),)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [50] * 8
    assert 1 <= end_connections(sql) <= 2
    store.close()


def test_a_closed_store_leaves_no_connection_and_says_that_it_is_closed(store):
    store.upsert(HERE, entries(3))
    [kept] = store._connections._idle
    assert not kept.closed
    store.close()
    assert kept.closed
    with pytest.raises(StoreError, match="is closed"):
        store.ids(HERE)


def test_vectors_of_two_sizes_do_not_share_a_namespace(store):
    store.upsert(HERE, entries(3))
    with pytest.raises(StoreError, match=r"different sizes \[64, 128\].*drop the namespace"):
        store.upsert(HERE, entries(1, dim=128))
    with pytest.raises(StoreError, match="different vector dimensions"):
        store.search(HERE, vectors(1, dim=128)[0], 3)
    assert len(store.ids(HERE)) == 3


def test_a_failed_upsert_leaves_nothing(store):
    with pytest.raises(StoreError, match="writing to the namespace"):
        store.upsert(HERE, [*entries(3), Entry(id="nul\0", vector=vectors(1)[0])])
    assert store.ids(HERE) == set()


def test_two_stores_that_set_up_at_once_do_not_fail(postgres):
    start = threading.Barrier(6)

    def opened(_):
        start.wait(timeout=30)
        store = PgvectorStore(postgres)
        store.close()
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(opened, range(6)))


def test_without_the_right_to_make_the_extension_the_error_says_who_has_it(postgres, sql):
    sql("DROP ROLE IF EXISTS reflect_nobody")
    sql("CREATE ROLE reflect_nobody LOGIN")
    sql("GRANT CREATE ON SCHEMA public TO reflect_nobody")
    try:
        weak = postgres.replace("//postgres@", "//reflect_nobody@", 1)
        with pytest.raises(StoreError, match=r"permission denied .*A superuser .*CREATE EXTENSION vector once"):
            PgvectorStore(weak)
        sql("CREATE EXTENSION vector")
        store = PgvectorStore(weak)
        store.upsert(HERE, entries(2))
        assert len(store.ids(HERE)) == 2
        store.close()
    finally:
        sql("DROP OWNED BY reflect_nobody")
        sql("DROP ROLE reflect_nobody")


def test_an_index_finds_the_nearest_and_is_used(postgres, sql):
    store = PgvectorStore(postgres, hnsw_above=1_000)
    made, space = entries(5_000), hashed(HERE)
    store.upsert(HERE, made[:999])
    assert not store.capabilities.exact
    assert sql(f"SELECT to_regclass('{_index_name(space)}')") == [(None,)]
    store.upsert(HERE, made[999:])
    store.upsert(("other",), entries(5, dim=8))
    sql("ANALYZE reflect_vectors")
    found = sum(len(nearest(made, query, 10) & set(dict(store.search(HERE, query, 10)))) for query in vectors(40))
    assert found / 400 >= 0.99
    statement = _sql(SEARCH_INDEX, space, 64).as_string(None)
    text = "[" + ",".join(map(str, vectors(1)[0].tolist())) + "]"
    plan = sql("EXPLAIN " + statement.replace("%(query)s", f"'{text}'").replace("%(k)s", "10"))
    assert any(_index_name(space) in line for (line,) in plan), plan
    store.drop(HERE)
    assert store.search(HERE, made[0].vector, 3) == []
    assert sql(f"SELECT to_regclass('{_index_name(space)}')") == [(None,)]
    store.close()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own(store):
    store.upsert(HERE, entries(3))
    child = os.fork()
    if not child:
        code = 1
        try:
            store.upsert(HERE, entries(5))
            code = 0 if len(store.ids(HERE)) == 5 else 2
            store.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(store.ids(HERE)) == 5


def test_it_lives_next_to_the_ledger(postgres, sql, tmp_path):
    made = {"path": tmp_path, "namespace": ("acme",), "embeddings": HashingEmbeddings()}
    with Reflection(store="pgvector", ledger=postgres, **made) as reflection:
        rule = reflection.lessons.add(when="refunding an order", do="ask a manager above 200 EUR")
        for _ in range(2):  # the first search does not wait for a store to open
            assert [one.lesson.id for one in reflection.lessons.search("refunds")] == [rule.id]
        index = reflection._core.parts.index
        index.lane.wait_idle(None)
        assert index.describe() == "the store"
        assert [one.lesson.id for one in reflection.lessons.search("refunds")] == [rule.id]
        assert sql("SELECT id FROM reflect_vectors") == [(rule.id,)]
        reflection.lessons.retire(rule.id)
        assert list(reflection.lessons.search("refunds")) == []


def test_a_url_and_options_say_where(postgres, tmp_path):
    url = "pgvector://" + postgres.partition("://")[2]
    for context in (
        StoreContext(path=tmp_path, url=url, ledger_url="sqlite:///x"),
        StoreContext(path=tmp_path, options={"url": url, "connections": "1"}),
    ):
        store = open_store(context)
        store.upsert(HERE, entries(1))
        store.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"ledger_url": "sqlite:////x/ledger.db"},
            r"sqlite://…'; allowed: pgvector://.*put the ledger into PostgreSQL",
        ),
        ({"url": "pgvector://host/db", "options": {"conections": 3}}, r"conections.*allowed: url, connections"),
        ({"url": "pgvector://host/db", "options": {"connections": 0}}, "connections is 0; allowed: 1 or more"),
        ({"url": "pgvector://host/db?nonsense=1"}, "not shown.*nonsense"),
    ],
)
def test_wrong_settings_are_refused_without_connecting(tmp_path, given, match):
    pytest.importorskip("psycopg", reason="PostgreSQL needs pip install 'reflect-middleware[postgres]'")
    with pytest.raises(ConfigurationError, match=match):
        open_store(StoreContext(path=tmp_path, **given))


def test_a_url_that_cannot_be_read_does_not_show_its_password(tmp_path):
    pytest.importorskip("psycopg", reason="PostgreSQL needs pip install 'reflect-middleware[postgres]'")
    password = uuid.uuid4().hex
    with pytest.raises(ConfigurationError, match="what libpq reads") as info:
        open_store(StoreContext(path=tmp_path, url=f"pgvector://me:{password}@[::1/db"))
    assert password not in "".join(traceback.format_exception(info.value))


def test_without_psycopg_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"reflect-middleware\[pgvector\]"):
        open_store(StoreContext(path=tmp_path, url="pgvector://host/db"))
