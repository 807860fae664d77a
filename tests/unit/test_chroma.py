"""Embedded Chroma: who may hold the folder, and what happens when it is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import chromadb
import pytest

from reflect_adapters import _chroma_client as clients
from reflect_adapters import _chroma_collections as collections
from reflect_adapters import _lock
from reflect_adapters.chroma import ChromaStore, open_store
from reflect_middleware.errors import StoreError, StoreLockedError
from reflect_middleware.store import StoreContext
from reflect_middleware.testing.store_contract import entries, vectors

HERE = ("acme", "user-7")
PRELUDE = """
import os, sys
from pathlib import Path
from reflect_adapters.chroma import ChromaStore
from reflect_middleware.errors import StoreError, StoreLockedError
from reflect_middleware.testing.store_contract import entries, vectors
path, HERE = Path(sys.argv[1]), ("acme", "user-7")
"""


def script(code):
    return [sys.executable, "-c", PRELUDE + code]


def run(code, path):
    done = subprocess.run([*script(code), str(path)], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chroma"


@pytest.fixture
def store(path):
    store = ChromaStore(path)
    yield store
    store.close()


@pytest.mark.process
def test_a_second_process_is_refused_until_the_first_closes(path, store):
    attempt = """
try:
    ChromaStore(path).close()
except StoreLockedError as exc:
    print(exc)
else:
    print("opened")
"""
    refused = run(attempt, path)
    assert f"Process {os.getpid()} holds the store" in refused
    assert "ledger's vectors" in refused
    store.close()
    assert run(attempt, path) == "opened\n"


@pytest.mark.process
def test_a_forked_child_neither_uses_nor_breaks_its_parents_store(path):
    told = run(
        """
store = ChromaStore(path)
store.upsert(HERE, entries(5))
def child(act):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            print(act())
        except StoreLockedError as exc:
            print("refused:", str(exc)[:19])
        store.close()
        sys.exit(0)  # the whole way out: Chroma's own threads must not hold it up
    assert os.waitpid(pid, 0)[1] == 0
child(lambda: store.ids(HERE))
child(lambda: ChromaStore(path))
print(len(store.ids(HERE)))
store.upsert(HERE, entries(6))
try:
    lock = open(path / "reflect.lock", "r+")
finally:
    store.close()
child(lambda: ChromaStore(path))
""",
        path,
    )
    assert told == "refused: Chroma was opened i\n" * 2 + "5\n" + "refused: Chroma was opened i\n"


def test_a_child_of_a_process_that_opened_chroma_is_told_what_to_do(path, store, monkeypatch):
    child = clients.Shared()
    child._opened = True
    kept = []
    monkeypatch.setattr(clients.Client, "keep_for_ever", lambda client: kept.append(client.path))
    child._clients[path.resolve()] = clients.SHARED._clients[path.resolve()]
    child.after_fork()
    assert kept == [path.resolve()]
    with pytest.raises(StoreLockedError, match=r"forked from it.*fork \(or preload\) before the first run"):
        child.acquire(path.resolve())


@pytest.mark.process
def test_a_child_forked_before_chroma_was_opened_may_hold_it(path):
    told = run(
        """
pid = os.fork()
if pid == 0:
    store = ChromaStore(path)
    store.upsert(HERE, entries(5))
    print(len(store.ids(HERE)))
    store.close()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
store = ChromaStore(path)
print(sorted(store.ids(HERE))[0])
store.close()
""",
        path,
    )
    assert told == "5\nid-0\n"


@pytest.mark.process
def test_what_was_acknowledged_survives_kill_9(path):
    writing = """
store = ChromaStore(path)
for entry in entries(10_000):
    store.upsert(HERE, [entry])
    print(entry.id, flush=True)
"""
    with subprocess.Popen([*script(writing), str(path)], stdout=subprocess.PIPE, text=True) as process:
        told = [process.stdout.readline().strip() for _ in range(60)]
        process.send_signal(signal.SIGKILL)
    store = ChromaStore(path)
    try:
        assert set(told) <= store.ids(HERE)
        assert store.search(HERE, entries(1)[0].vector, 1)[0][0] == "id-0"
        store.upsert(HERE, entries(3))
    finally:
        store.close()


def test_two_stores_of_one_process_share_a_client(path, store):
    other = ChromaStore(path / ".." / path.name)
    store.upsert(HERE, entries(3))
    assert len(other.ids(HERE)) == 3
    other.close()
    other.close()
    assert len(store.ids(HERE)) == 3


def test_the_last_close_frees_the_folder(path):
    first, second = ChromaStore(path), ChromaStore(path)
    first.close()
    second.close()
    assert clients.SHARED._clients == {}
    _lock.ProcessLock(path / clients.LOCK_FILE).release()


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.ids(HERE)


def test_a_deleted_folder_is_an_error_and_reopening_works(path, store, tmp_path):
    store.upsert(HERE, entries(3))
    path.rename(tmp_path / "moved")
    for act in (
        lambda: store.ids(HERE),
        lambda: store.search(HERE, vectors(1)[0], 1),
        lambda: store.upsert(HERE, entries(1)),
        lambda: store.delete(HERE, ["id-0"]),
        lambda: store.drop(HERE),
    ):
        with pytest.raises(StoreError, match=r"deleted or replaced.*filled from the ledger"):
            act()
    again = ChromaStore(path)
    try:
        assert again.ids(HERE) == set()
        again.upsert(HERE, entries(2))
        with pytest.raises(StoreError, match="deleted or replaced"):
            store.ids(HERE)
        store.close()
        assert len(again.ids(HERE)) == 2
    finally:
        again.close()


def test_a_deleted_collection_is_one_error_and_then_made_anew(path, store):
    store.upsert(HERE, entries(3))
    client = clients.SHARED._clients[path.resolve()]
    client._api.delete_collection(collections.collection_name(HERE))
    with pytest.raises(StoreError, match=r"NotFoundError.*fills it again"):
        store.ids(HERE)
    assert store.ids(HERE) == set()
    store.upsert(HERE, entries(2))
    assert len(store.ids(HERE)) == 2


def test_a_lock_lost_to_an_innocent_close_is_taken_again(path, store, monkeypatch):
    (path / clients.LOCK_FILE).read_text()
    store.upsert(HERE, entries(1))
    monkeypatch.setattr(_lock, "_take", _raise(BlockingIOError))
    with pytest.raises(StoreLockedError, match="holds the store"):
        store.ids(HERE)


def _raise(error):
    def act(*_, **__):
        raise error

    return act


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [("_take", OSError("no locks here"), "local disk"), ("_sign", OSError("disk full"), "disk full")],
)
def test_a_folder_that_cannot_be_locked_is_refused(path, monkeypatch, name, error, expected):
    monkeypatch.setattr(_lock, name, _raise(error))
    with pytest.raises(StoreError, match=expected):
        ChromaStore(path)
    monkeypatch.undo()
    ChromaStore(path).close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be made or written.*path="):
        ChromaStore(tmp_path / "file" / "chroma")


def test_without_a_readable_pid_the_message_still_stands(tmp_path):
    (tmp_path / "empty").write_text("")
    assert _lock._holder(tmp_path / "empty") == _lock._holder(tmp_path / "none") == "(unknown)"


def test_a_failed_opening_gives_the_lock_back(path, monkeypatch):
    monkeypatch.setattr(chromadb, "PersistentClient", _raise(ValueError("damaged")))
    with pytest.raises(StoreError, match=r"opening Chroma.*damaged"):
        ChromaStore(path)
    monkeypatch.undo()
    ChromaStore(path).close()


def test_without_chromadb_the_error_names_the_choices(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "chromadb", None)
    with pytest.raises(StoreError, match=r"pip install chromadb.*store='exact'"):
        ChromaStore(path)


class PanicException(BaseException):
    """Named as what Chroma's Rust code raises; not an Exception either."""


def test_a_panic_is_wrapped_and_a_cancellation_is_not():
    with pytest.raises(StoreError, match="PanicException"), collections.wrapped("testing", "try again"):
        raise PanicException
    with pytest.raises(KeyboardInterrupt), collections.wrapped("testing", "try again"):
        raise KeyboardInterrupt


def test_another_vector_size_is_an_error_that_says_what_to_do(store):
    store.upsert(HERE, entries(2))
    with pytest.raises(StoreError, match="fills it again") as caught:
        store.upsert(HERE, entries(1, dim=8))
    assert caught.value.__cause__ is not None


def test_collections_are_cosine_named_by_hash_and_carry_the_readable_namespace(path, store):
    namespace = ("acme", "Zoë")
    store.upsert(namespace, entries(1))
    collection = clients.SHARED._clients[path.resolve()]._api.list_collections()[0]
    assert collection.name == collections.collection_name(namespace)
    assert collection.metadata == {"namespace": '["acme", "Zo\\u00eb"]'}
    assert collection.configuration_json["hnsw"]["space"] == "cosine"


def test_collection_names_tell_namespaces_apart():
    namespaces = [("a", "b"), ("a,b",), ('a", "b',), ("ab",), ("a", "b", "")]
    assert len({collections.collection_name(namespace) for namespace in namespaces}) == len(namespaces)


def test_reading_makes_no_collection(path, store):
    store.search(HERE, vectors(1)[0], 3)
    store.ids(HERE)
    store.delete(HERE, ["id-0"])
    assert clients.SHARED._clients[path.resolve()]._api.count_collections() == 0


def test_forgotten_collections_are_found_again(store, monkeypatch):
    monkeypatch.setattr(collections, "MAX_COLLECTIONS", 2)
    for name in "abcd":
        store.upsert((name,), entries(2))
    assert [len(store.ids((name,))) for name in "abcd"] == [2] * 4


def test_early_chroma_without_close_is_stopped_through_its_cache(path):
    with contextlib.closing(ChromaStore(path)):
        api = clients.SHARED._clients[path.resolve()]._api

        class WithoutClose:
            get_max_batch_size = api.get_max_batch_size

        clients._stop(WithoutClose(), path.resolve())
    reopened = ChromaStore(path)
    assert reopened.ids(HERE) == set()
    reopened.close()


def test_the_entry_point_uses_the_contexts_folder(path):
    store = open_store(StoreContext(path=path))
    assert (path / "chroma.sqlite3").exists()
    store.close()
