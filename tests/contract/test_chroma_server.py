"""Chroma beyond a folder of ours: a server, the cloud's way in, and clients of the user's."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket

import chromadb
import pytest
from chromadb.config import Settings
from langgraph.graph import START, MessagesState, StateGraph

from reflect_adapters import _chroma_server as served
from reflect_adapters._chroma_collections import Collections, collection_name
from reflect_adapters.chroma import ChromaClientStore, ChromaStore, open_store
from reflect_middleware import Reflection, registry
from reflect_middleware.errors import ConfigurationError, StoreError, StoreLockedError
from reflect_middleware.store import StoreContext
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel, StoreContract
from reflect_middleware.testing.store_contract import entries, vectors

HERE = ("acme", "user-7")


@pytest.fixture
def database(chroma_server):
    return chroma_server.fresh()


@pytest.fixture
def client(chroma_server, database):
    """The user's own."""
    settings = Settings(anonymized_telemetry=False)
    client = chromadb.HttpClient("127.0.0.1", chroma_server.port, database=database, settings=settings)
    yield client
    served._stop(client)


@pytest.fixture
def opened(tmp_path, chroma_server, database):
    """Opens stores of one database, and closes them."""
    made = []

    def opener(url=chroma_server.url, given=None, **options):
        if url:
            options.setdefault("database", database)
        made.append(open_store(StoreContext(path=tmp_path / "chroma", url=url, options=options, given=given)))
        return made[-1]

    yield opener
    for store in made:
        store.close()
    assert not list(tmp_path.iterdir()), "a server needs no folder here"


class TestServer(StoreContract):
    @pytest.fixture
    def open_store(self, opened):
        return opened

    @pytest.fixture
    def server(self, chroma_server):
        return chroma_server


class TestAnEmbeddedClientOfTheUsers(StoreContract):
    at_scale = 1_000

    @pytest.fixture
    def theirs(self, tmp_path_factory):
        client = chromadb.PersistentClient(str(tmp_path_factory.mktemp("theirs")))
        yield client
        served._stop(client)

    @pytest.fixture
    def open_store(self, opened, theirs):
        return lambda: opened("", theirs)

    @pytest.fixture
    def break_driver(self, theirs):
        return lambda store: setattr(theirs._server, "bindings", None)


def test_the_clouds_client_with_its_key_and_its_limits(chroma_server):
    """Before a server that is here: nothing of ours reaches the cloud."""
    options = {"api_key": "secret", "tenant": "default_tenant", "database": "default_database"}
    store = ChromaClientStore(served.cloud(options, url=f"http://127.0.0.1:{chroma_server.port}"))
    made = entries(700, dim=8)
    store.upsert(HERE, made)
    assert store.ids(HERE) == {entry.id for entry in made}
    assert len(store.search(HERE, made[0].vector, 500)) == served.CLOUD_LIMIT
    with store._source.call("looking") as collections:
        api, settings = collections.api, collections.api.get_settings()
        assert (api.tenant, api.database) == ("default_tenant", "default_database")
        assert settings.chroma_client_auth_credentials == "secret"
        assert served._sessions(api)[0].headers["x-chroma-token"] == "secret"
        assert collections.batch == collections.most == served.CLOUD_LIMIT
    store.delete(HERE, [entry.id for entry in made[1:]])
    assert store.ids(HERE) == {"id-0"}
    store.drop(HERE)
    store.close()


@pytest.mark.parametrize(
    ("url", "options"), [("chroma://cloud", {"api_key": "k", "database": "d"}), ("", {"api_key": "k", "tenant": "t"})]
)
def test_a_key_means_the_cloud(tmp_path, monkeypatch, url, options):
    seen = []
    monkeypatch.setattr(served, "_knock", lambda url, *_: seen.append(url) or (_ for _ in ()).throw(OSError("no net")))
    with pytest.raises(StoreError, match=r"connecting to its server \(OSError: no net\)"):
        open_store(StoreContext(path=tmp_path, url=url, options=options))
    assert seen == ["https://api.trychroma.com"]


def test_a_users_client_of_the_cloud_keeps_the_clouds_limits(client):
    client.get_settings().chroma_server_host = "api.trychroma.com"
    with served.the_users(client).call("looking") as collections:
        assert collections.most == served.CLOUD_LIMIT


@pytest.mark.parametrize("by_name", [False, True])
def test_a_client_that_was_given_is_never_closed(by_name, client, tmp_path):
    client.create_collection("theirs", embedding_function=None)
    context = StoreContext(path=tmp_path, options={"client": client} if by_name else {})
    store = registry.open_store("chroma" if by_name else client, context)
    store.upsert(HERE, entries(3))
    assert client.count_collections() == 2
    store.drop(HERE)
    store.close()
    assert [one.name for one in client.list_collections()] == ["theirs"]


async def test_an_async_client_lends_its_settings_and_works_from_any_loop(chroma_server, database, tmp_path):
    settings = Settings(anonymized_telemetry=False)
    theirs = await chromadb.AsyncHttpClient("127.0.0.1", chroma_server.port, database=database, settings=settings)
    store = registry.open_store(theirs, StoreContext(path=tmp_path))
    await store.aupsert(HERE, entries(3))
    hits = await asyncio.to_thread(lambda: asyncio.run(store.asearch(HERE, entries(1)[0].vector, 1)))
    assert hits[0][0] == "id-0"
    await store.aclose()
    assert await theirs.count_collections() == 1
    await theirs._server._cleanup()


def test_headers_reach_the_server_and_settings_are_the_users(opened):
    mine, headers = Settings(anonymized_telemetry=False, allow_reset=True), {"x-team": "refunds"}
    store = opened(headers=headers, settings=mine, timeout=5)
    with store._source.call("looking") as collections:
        [session, _] = served._sessions(collections.api)
        assert session.headers["x-team"] == "refunds"
        assert session.timeout.read == 5
        assert collections.api.get_settings().allow_reset
    assert headers == {"x-team": "refunds"}
    assert mine.chroma_server_host is None


def test_a_namespace_that_somebody_else_dropped_is_one_error_and_then_made_anew(opened, client):
    store = opened()
    store.upsert(HERE, entries(3))
    client.delete_collection(collection_name(HERE))
    with pytest.raises(StoreError, match="NotFoundError"):
        store.search(HERE, vectors(1)[0], 1)
    store.upsert(HERE, entries(2))
    assert store.ids(HERE) == {"id-0", "id-1"}


def test_a_closed_store_says_so(opened):
    store = opened()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.ids(HERE)


def test_a_server_that_never_answers_is_a_store_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(StoreError, match=r"ReadTimeout.*server runs"):
        open_store(
            StoreContext(path=tmp_path, url=f"chroma://127.0.0.1:{deaf.getsockname()[1]}", options={"timeout": 0.2})
        )


def test_a_server_that_falls_silent_is_a_store_error(opened):
    store = opened(timeout=0.3)
    store.upsert(HERE, entries(3))
    with store._source.call("looking") as collections, socket.create_server(("127.0.0.1", 0)) as deaf:
        collections.api._server._api_url = f"http://127.0.0.1:{deaf.getsockname()[1]}/api/v2"
        with pytest.raises(StoreError, match="ReadTimeout"):
            store.search(HERE, vectors(1)[0], 1)


@pytest.mark.parametrize("url", ["chroma://127.0.0.1:1", "chroma+https://127.0.0.1:1"])
def test_a_server_that_is_away_is_a_store_error(tmp_path, url):
    with pytest.raises(StoreError, match=r"ConnectError.*check that the server runs") as caught:
        open_store(StoreContext(path=tmp_path, url=url))
    assert caught.value.__cause__ is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Chroma's own client is left open
def test_a_database_that_is_not_there_is_a_store_error(opened):
    with pytest.raises(StoreError, match=r"Database \[nowhere\] not found"):
        opened(database="nowhere")
    gc.collect()


@pytest.mark.parametrize(
    ("url", "ssl", "expected"),
    [
        ("chroma://host:9000", None, ("host", 9000, False)),
        ("chroma://host/", None, ("host", 8000, False)),
        ("chroma://host", True, ("host", 443, True)),
        ("chroma+https://host", None, ("host", 443, True)),
        ("chroma+https://host:8443", False, ("host", 8443, False)),
        ("chroma://[::1]:8000", None, ("[::1]", 8000, False)),
    ],
)
def test_a_url_says_how_to_reach_the_server(url, ssl, expected):
    assert served._address(url, ssl) == expected


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"url": "chroma://"}, "URL is 'chroma://'; allowed: chroma://host:8000"),
        ({"url": "chroma://host:many"}, "URL is 'chroma://host:many'"),
        ({"url": "chroma://host/base"}, "URL is 'chroma://host/base'"),
        ({"url": "chroma+http2://host"}, r"URL is 'chroma\+http2://host'"),
        ({"url": "chroma://me:pass@host"}, r"not shown.*store_options={'headers'}"),
        ({"url": "chroma://host", "options": {"hedaers": {}}}, "hedaers.*allowed: client, ssl, headers, tenant"),
        ({"url": "chroma://cloud", "options": {"api-key": "k"}}, "api-key.*allowed: client, api_key"),
        ({"url": "chroma://cloud"}, "api_key is None; allowed: .*CHROMA_API_KEY"),
        ({"options": {"database": "d"}}, "database.*a server more, with its URL"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, monkeypatch, given, match):
    monkeypatch.delenv("CHROMA_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=match):
        open_store(StoreContext(path=tmp_path, **given))


def test_a_forked_child_opens_a_client_of_its_own_and_leaves_an_embedded_one_alone(opened, client, monkeypatch):
    store, embedded = opened("", client), ChromaClientStore(served.the_users(chromadb.EphemeralClient()))
    store.upsert(HERE, entries(3))
    parent = os.getpid()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: parent + 1)
        assert len(store.ids(HERE)) == 3
        with store._source.call("looking") as collections:
            assert collections.api is not client
            assert collections.api.database == client.database
        with pytest.raises(StoreLockedError, match=f"given to process {parent}"):
            embedded.ids(HERE)
        store.close()
    assert client.heartbeat()
    embedded.close()


def test_a_server_that_names_no_limit_gets_small_batches(client, monkeypatch):
    monkeypatch.setattr(type(client), "get_max_batch_size", lambda _: -1)
    assert Collections(client).batch == 100
    assert Collections(client, most=7).batch == 7


@pytest.mark.parametrize("given", [False, True])
def test_runs_go_on_while_the_server_is_away_and_find_it_again(chroma_server, database, client, tmp_path, given):
    """The loop over a real server: what a run gets is the same before, without it, and after."""
    how = {"store": client} if given else {"store": chroma_server.url, "store_options": {"database": database}}
    with Reflection(None, path=tmp_path, embeddings=HashingEmbeddings(), **how) as reflection:
        lesson = reflection.lessons.add(when="a refund is asked for", do="ask a manager above 200 EUR")
        index = reflection._core.parts.index

        def search():
            found = reflection.lessons.search("refund above 200 EUR")
            index.lane.wait_idle(None)
            return [one.lesson.id for one in found]

        assert [search() for _ in range(3)] == [[lesson.id]] * 3
        assert index.describe() == "the store"
        assert index.compare(("default",)).total == 0
        chroma_server.stop()
        try:
            assert [search() for _ in range(2)] == [[lesson.id]] * 2
            assert index.describe().startswith("the ledger's vectors")
        finally:
            chroma_server.start()
        index._not_before = 0.0  # the 30 s that a store that failed is left alone
        assert [search() for _ in range(2)] == [[lesson.id]] * 2
        assert index.describe() == "the store"
    assert client.count_collections() == 1
    assert not (tmp_path / "chroma").exists()


def test_a_purge_empties_the_folder_from_before_the_server(chroma_server, database, tmp_path):
    """It is no longer the store's own, so nothing else would ever empty it."""
    edit = {"op": "add", "episodes": ["E1"], "because": "refund 12", "when": "a refund is asked for", "do": "ask first"}
    made = {"path": tmp_path, "embeddings": HashingEmbeddings(), "every": 99, "run": "inline"}

    def searched(reflection):
        for _ in range(3):
            reflection.lessons.search("refund")
            reflection._core.parts.index.lane.wait_idle(None)

    with Reflection(ScriptedChatModel([json.dumps({"edits": [edit]})]), store="chroma", **made) as before:
        graph = before.wrap(one_call())
        with before.track() as track:
            graph.invoke({"messages": [("user", "refund 12")]})
        before.reflect()
        searched(before)
    assert list((tmp_path / "chroma").glob("*-*-*-*-*"))
    with Reflection(None, store=chroma_server.url, store_options={"database": database}, **made) as after:
        searched(after)
        report = after.episodes.purge(track.episode_ids)
    assert report.complete, report.left
    assert len(report.lessons) == 1
    assert not list((tmp_path / "chroma").glob("*-*-*-*-*"))


def one_call():
    """A graph with one model call."""
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [ScriptedChatModel(["done"]).invoke(state["messages"])]})
    return builder.add_edge(START, "model").compile()


def test_an_embedded_folder_is_still_what_the_name_alone_means(tmp_path):
    store = open_store(StoreContext(path=tmp_path / "chroma"))
    assert isinstance(store, ChromaStore)
    store.close()
