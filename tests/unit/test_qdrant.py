"""What Qdrant's store does beyond the contract: folders and processes, clients of the user's, errors, servers' URLs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from reflect_adapters import qdrant
from reflect_adapters.qdrant import QdrantFolderStore, QdrantStore, open_store
from reflect_middleware import Reflection, registry
from reflect_middleware.errors import ConfigurationError, MissingExtraError, StoreError, StoreLockedError
from reflect_middleware.store import StoreContext
from reflect_middleware.testing import HashingEmbeddings, StoreContract
from reflect_middleware.testing.store_contract import entries, nearest, vectors

qdrant_client = pytest.importorskip("qdrant_client", reason="needs pip install 'reflect-middleware[qdrant]'")
HERE = ("acme", "user-7")
ATTEMPT = """
import sys
from pathlib import Path
from reflect_adapters.qdrant import QdrantFolderStore
from reflect_middleware.errors import StoreLockedError
try:
    QdrantFolderStore(Path(sys.argv[1])).close()
except StoreLockedError as exc:
    print(exc)
else:
    print("opened")
"""


@pytest.fixture
def store(tmp_path):
    store = QdrantFolderStore(tmp_path / "qdrant")
    yield store
    store.close()


@pytest.fixture
def client():
    client = qdrant_client.QdrantClient(":memory:")
    yield client
    client.close()


class TestAClientOfTheUsers(StoreContract):
    @pytest.fixture
    def open_store(self):
        """Each store gets a client of its own, so nothing is promised to outlive it."""
        return lambda: QdrantStore(qdrant_client.QdrantClient(":memory:"))

    @pytest.fixture
    def break_driver(self):
        return lambda store: store._source._client.close()


def test_a_client_that_was_given_is_never_closed(client, tmp_path):
    client.create_collection("theirs", vectors_config=qdrant_client.models.VectorParams(size=4, distance="Dot"))
    named = open_store(StoreContext(path=tmp_path, options={"client": client}))
    given = registry.open_store(client, StoreContext(path=tmp_path, options={"exact": False}))
    for store in (QdrantStore(client), named, given):
        store.upsert(HERE, entries(3))
        store.drop(HERE)
        store.close()
    assert [one.name for one in client.get_collections().collections] == ["theirs"]
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_second_process_is_refused_until_the_first_closes(store, tmp_path):
    def attempt():
        command = [sys.executable, "-c", ATTEMPT, str(tmp_path / "qdrant")]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    assert f"Process {os.getpid()} holds the store" in attempt()
    store.close()
    assert attempt() == "opened\n"


@pytest.mark.filterwarnings("ignore:.*qdrant/.lock:pytest.PytestUnraisableExceptionWarning")  # left open by Qdrant
def test_a_folder_that_the_users_own_client_holds_is_locked(tmp_path):
    theirs = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    with pytest.raises(StoreLockedError, match=r"Another client of Qdrant.*QdrantStore\(client\)"):
        QdrantFolderStore(tmp_path / "qdrant")
    theirs.close()
    QdrantFolderStore(tmp_path / "qdrant").close()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_may_neither_use_nor_open_the_folder(store, tmp_path):
    store.upsert(HERE, entries(3))
    child = os.fork()
    if not child:
        code = 1
        try:
            refused = 0
            for call in (lambda: store.ids(HERE), lambda: QdrantFolderStore(tmp_path / "qdrant")):
                try:
                    call()
                except StoreLockedError:
                    refused += 1
            store.close()
            code = 0 if refused == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(store.ids(HERE)) == 3


def test_two_stores_of_a_process_share_the_folder(store, tmp_path):
    other = QdrantFolderStore(tmp_path / "qdrant")
    other.upsert(HERE, entries(2))
    other.close()
    assert len(store.ids(HERE)) == 2


def test_a_deleted_folder_is_an_error_once_and_then_a_new_one(store, tmp_path):
    store.upsert(HERE, entries(2))
    shutil.rmtree(tmp_path / "qdrant")
    with pytest.raises(StoreError, match="deleted or replaced"):
        store.ids(HERE)
    again = QdrantFolderStore(tmp_path / "qdrant")
    assert again.ids(HERE) == set()
    again.close()


def test_vectors_of_two_sizes_do_not_share_a_namespace(store):
    store.upsert(HERE, entries(3))
    with pytest.raises(StoreError, match=r"different sizes \[64, 128\].*drop the namespace"):
        store.upsert(HERE, entries(1, dim=128))
    with pytest.raises(StoreError, match="searching the namespace"):
        store.search(HERE, vectors(1, dim=128)[0], 3)
    assert len(store.ids(HERE)) == 3


def test_emptied_it_has_no_trace_on_disk(store, tmp_path):
    store.upsert(HERE, entries(3))
    store.upsert(("other",), entries(3))
    store.clear()
    assert store.ids(HERE) == store.ids(("other",)) == set()
    assert not list((tmp_path / "qdrant").rglob("*.sqlite"))


def test_the_order_is_the_oracles(client):
    store, made = QdrantStore(client), entries(3_000, dim=384)
    store.upsert(HERE, made)
    for query in vectors(10, dim=384):
        assert set(dict(store.search(HERE, query, 10))) == nearest(made, query, 10)


def test_lessons_are_found_through_it(tmp_path):
    made = {"path": tmp_path, "namespace": ("acme",), "embeddings": HashingEmbeddings()}
    with Reflection(store="qdrant", **made) as reflection:
        rule = reflection.lessons.add(when="refunding an order", do="ask a manager above 200 EUR")
        for _ in range(2):  # the first search does not wait for a store to open
            reflection.lessons.search("refunds")
        index = reflection._core.parts.index
        index.lane.wait_idle(None)
        assert index.describe() == "the store"
        assert [one.lesson.id for one in reflection.lessons.search("refunds")] == [rule.id]
        assert index.compare(("acme",)).total == 0


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("qdrant://host:6333", {}, "http://host:6333"),
        ("qdrant://host:6333", {"https": True}, "https://host:6333"),
        ("qdrant+https://host/base", {}, "https://host/base"),
        ("qdrant://host", {"api_key": "k"}, "https://host"),
        ("qdrant://host", {"api_key": "k", "https": False}, "http://host"),
    ],
)
def test_a_url_says_how_to_reach_the_server(url, options, expected):
    assert qdrant._http(url, options) == expected


def test_a_server_that_is_away_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match=r"while opening it .*Check that the server runs"):
        open_store(StoreContext(path=tmp_path, url="qdrant://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"url": "qdrant://"}, "URL is 'qdrant://'; allowed: qdrant://host:6333"),
        ({"url": "qdrant://host", "options": {"api-key": "k"}}, "api-key.*allowed: client, exact, https, api_key"),
        ({"options": {"api_key": "k"}}, "api_key.*allowed: client, exact"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, given, match):
    with pytest.raises(ConfigurationError, match=match):
        open_store(StoreContext(path=tmp_path, **given))


def test_without_the_package_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError, match=r"reflect-middleware\[qdrant\]"):
        open_store(StoreContext(path=tmp_path))
    assert not tmp_path.joinpath("store").exists()
