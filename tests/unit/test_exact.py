from __future__ import annotations

import threading

import numpy as np
import pytest

from reflect_middleware.errors import LedgerError, StoreError
from reflect_middleware.exact import ExactStore
from reflect_middleware.store import Entry


def axis(number, dim=8):
    return np.eye(dim, dtype=np.float32)[number]


def entry(number, dim=8):
    return Entry(id=f"id-{number}", vector=axis(number, dim))


class Ledger:
    """The truth that the store reads: a namespace has one entry, by its first part."""

    def __init__(self):
        self.reads = []

    def __call__(self, namespace):
        self.reads.append(namespace)
        return [entry(int(namespace[0]))]


def test_a_namespace_is_read_once_when_it_is_first_asked_for():
    ledger = Ledger()
    store = ExactStore(ledger)
    assert ledger.reads == []
    assert store.search(("3",), axis(3), 1) == [("id-3", 1.0)]
    assert store.ids(("3",)) == {"id-3"}
    assert ledger.reads == [("3",)]


def test_writes_go_on_top_of_what_the_ledger_has():
    store = ExactStore(Ledger())
    store.upsert(("1",), [entry(2)])
    assert store.ids(("1",)) == {"id-1", "id-2"}
    store.delete(("4",), ["id-4"])
    assert store.ids(("4",)) == set()


def test_the_least_recently_used_namespace_is_evicted_and_read_again():
    ledger = Ledger()
    store = ExactStore(ledger, max_namespaces=2)
    for name in ("1", "2", "1", "3", "1", "2"):
        store.ids((name,))
    assert ledger.reads == [("1",), ("2",), ("3",), ("2",)]


def test_without_a_ledger_nothing_is_evicted():
    store = ExactStore(max_namespaces=1)
    for name in "abc":
        store.upsert((name,), [entry(1)])
    assert [store.ids((name,)) for name in "abc"] == [{"id-1"}] * 3


def test_refresh_reads_again():
    ledger = Ledger()
    store = ExactStore(ledger)
    for name in ("1", "2"):
        store.drop((name,))
        assert store.ids((name,)) == set()
    store.refresh(("1",))
    assert [store.ids(("1",)), store.ids(("2",))] == [{"id-1"}, set()]
    store.refresh()
    assert store.ids(("2",)) == {"id-2"}


def test_errors_of_the_ledger_pass_through_and_are_not_remembered():
    answers = [LedgerError("disk full"), [entry(1)]]

    def vectors(_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    store = ExactStore(vectors)
    with pytest.raises(LedgerError, match="disk full"):
        store.ids(("a",))
    assert store.ids(("a",)) == {"id-1"}


def test_a_slow_read_of_one_namespace_does_not_hold_up_another():
    started, go = threading.Event(), threading.Event()

    def vectors(namespace):
        if namespace == ("slow",):
            started.set()
            assert go.wait(30)
        return [entry(1)]

    store = ExactStore(vectors)
    store.ids(("quick",))
    reader = threading.Thread(target=store.ids, args=(("slow",),))
    reader.start()
    assert started.wait(30)
    assert store.search(("quick",), axis(1), 1) == [("id-1", 1.0)]
    go.set()
    reader.join()


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4)])
def test_vectors_of_two_sizes_are_refused(sizes):
    store = ExactStore()
    with pytest.raises(StoreError, match=r"\[4, 8\].*all its entries again"):
        store.upsert(("a",), [entry(number, dim) for number, dim in enumerate(sizes)])
    store.upsert(("a",), [entry(0, sizes[0])])
    with pytest.raises(StoreError, match=r"\[4, 8\].*all its entries again"):
        store.upsert(("a",), [entry(1, sizes[1])])
    with pytest.raises(StoreError, match="all its entries again"):
        store.search(("a",), axis(0, sizes[1]), 1)
    assert store.ids(("a",)) == {"id-0"}
