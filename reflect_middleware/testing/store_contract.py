"""The contract of a store, as tests. Subclass `StoreContract` in your own test suite and say how to open yours.

First, in `conftest.py`: `pytest.register_assert_rewrite("reflect_middleware.testing.store_contract")`. Then:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tmp_path)
"""

# A test suite: its names say what is shown, expected values stand in the assertion.
# ruff: noqa: D102, PLR2004, S101

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware.store import Capabilities, Entry, LessonStore

if TYPE_CHECKING:
    from reflect_middleware.store import Vector

OpenStore = Callable[[], LessonStore]
DIM = 64
HERE = ("contract",)
HOSTILE = [
    ("",),
    ("", ""),
    ("../x", "/etc/passwd"),
    ("a/b",),
    ("a", "b"),
    ("a,b",),
    ("long" * 2000,),
    ("emoji 🦜", "日本語", "e\u0301"),
    ("é",),
    ("'; drop table lessons; --", '"quoted"'),
    ("line\nbreak", "nul\0byte", "tab\t"),
    ("Case",),
    ("case",),
    (" space ",),
    ("{user_id}", "%s", "$where"),
]
"""Namespaces that must neither fail nor be mixed up."""


class StoreContract:
    """What every store must do. Override the fixture `open_store` and nothing else."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """A function that opens the store; within one test each call opens the same data."""
        pytest.fail("Override the fixture `open_store`: it returns a function that opens your store.")

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[LessonStore]:
        """An open, empty store, closed after the test."""
        store = open_store()
        yield store
        store.close()

    def test_no_test_of_the_contract_is_overridden(self) -> None:
        """Differences between stores are capabilities, never edited tests."""
        own = [name for name in dir(StoreContract) if name.startswith("test_")]
        changed = [name for name in own if getattr(type(self), name) is not getattr(StoreContract, name)]
        assert not changed, f"{type(self).__name__} changes tests of the contract: {changed}"

    def test_it_is_a_lesson_store_that_says_what_it_can(self, store: LessonStore) -> None:
        assert isinstance(store, LessonStore)
        assert isinstance(store.capabilities, Capabilities)

    def test_an_unknown_namespace_is_empty(self, store: LessonStore) -> None:
        assert store.search(HERE, vectors(1)[0], 5) == []
        assert store.ids(HERE) == set()
        store.delete(HERE, ["nobody"])
        store.drop(HERE)
        store.drop(HERE)
        assert store.ids(HERE) == set()

    def test_what_is_inserted_is_found(self, store: LessonStore) -> None:
        made = entries(20)
        store.upsert(HERE, made)
        assert store.ids(HERE) == {entry.id for entry in made}
        for entry in made:
            assert store.search(HERE, entry.vector, 1)[0][0] == entry.id

    def test_returned_types_are_plain(self, store: LessonStore) -> None:
        store.upsert(HERE, entries(3))
        hits = store.search(HERE, vectors(1)[0], 2)
        assert type(hits) is list
        assert [(type(hit), type(hit[0]), type(hit[1])) for hit in hits] == [(tuple, str, float)] * 2
        found = store.ids(HERE)
        assert type(found) is set
        assert {type(one) for one in found} == {str}

    def test_scores_are_cosines_best_first(self, store: LessonStore) -> None:
        made = entries(30)
        query = vectors(1, seed=7)[0]
        store.upsert(HERE, made)
        hits = store.search(HERE, query, 30)
        truth = {entry.id: float(entry.vector @ query) for entry in made}
        assert [one for one, _ in hits] == sorted(truth, key=lambda one: -truth[one])
        assert dict(hits) == pytest.approx(truth, abs=1e-4)
        assert all(-1.0 <= cosine <= 1.0 for _, cosine in hits)

    def test_same_and_opposite_vectors_score_one_and_minus_one(self, store: LessonStore) -> None:
        vector = vectors(1)[0]
        store.upsert(HERE, [Entry(id="same", vector=vector), Entry(id="opposite", vector=-vector)])
        hits = store.search(HERE, vector, 2)
        assert [one for one, _ in hits] == ["same", "opposite"]
        assert [cosine for _, cosine in hits] == pytest.approx([1.0, -1.0], abs=1e-4)

    @pytest.mark.parametrize("k", [0, 1, 5, 10, 11, 500])
    def test_k_is_an_upper_bound(self, store: LessonStore, k: int) -> None:
        store.upsert(HERE, entries(10))
        assert len(store.search(HERE, vectors(1)[0], k)) == min(k, 10)

    def test_upsert_replaces(self, store: LessonStore) -> None:
        first, second = vectors(2)
        store.upsert(HERE, [Entry(id="one", vector=first), Entry(id="two", vector=first)])
        store.upsert(HERE, [Entry(id="one", vector=second)])
        assert store.ids(HERE) == {"one", "two"}
        assert dict(store.search(HERE, second, 1)) == pytest.approx({"one": 1.0}, abs=1e-4)

    def test_of_equal_ids_in_one_call_the_last_wins(self, store: LessonStore) -> None:
        first, second = vectors(2)
        store.upsert(HERE, [Entry(id="one", vector=first), Entry(id="one", vector=second)])
        assert dict(store.search(HERE, second, 5)) == pytest.approx({"one": 1.0}, abs=1e-4)

    def test_delete_removes_only_what_is_named(self, store: LessonStore) -> None:
        made = entries(10)
        store.upsert(HERE, made)
        store.delete(HERE, (one for one in ["id-0", "id-3", "nobody", "id-0"]))
        left = {entry.id for entry in made} - {"id-0", "id-3"}
        assert store.ids(HERE) == left
        assert {one for one, _ in store.search(HERE, made[0].vector, 50)} == left

    def test_deleted_entries_can_come_back(self, store: LessonStore) -> None:
        made = entries(3)
        store.upsert(HERE, made)
        store.delete(HERE, [entry.id for entry in made])
        assert store.ids(HERE) == set()
        assert store.search(HERE, made[0].vector, 3) == []
        store.upsert(HERE, made)
        assert store.search(HERE, made[1].vector, 1)[0][0] == made[1].id

    def test_nothing_to_do_does_nothing(self, store: LessonStore) -> None:
        store.upsert(HERE, [])
        store.delete(HERE, [])
        assert store.ids(HERE) == set()

    def test_no_namespace_sees_another(self, store: LessonStore) -> None:
        made = entries(len(HOSTILE))
        for namespace, entry in zip(HOSTILE, made, strict=True):
            store.upsert(namespace, [Entry(id="shared", vector=entry.vector), entry])
        for namespace, entry in zip(HOSTILE, made, strict=True):
            assert store.ids(namespace) == {"shared", entry.id}
            assert {one for one, _ in store.search(namespace, entry.vector, 50)} == {"shared", entry.id}
        store.drop(HOSTILE[0])
        store.delete(HOSTILE[1], ["shared"])
        assert store.ids(HOSTILE[0]) == set()
        assert [len(store.ids(namespace)) for namespace in HOSTILE[1:]] == [1, *[2] * (len(HOSTILE) - 2)]

    @pytest.mark.parametrize("one", ["a b", "ünï-🦜", "../x", "'; --", '"', "x" * 500, "0"])
    def test_ids_are_any_text(self, store: LessonStore, one: str) -> None:
        vector = vectors(1)[0]
        store.upsert(HERE, [Entry(id=one, vector=vector)])
        assert store.ids(HERE) == {one}
        assert store.search(HERE, vector, 1)[0][0] == one
        store.delete(HERE, [one])
        assert store.ids(HERE) == set()

    def test_a_dropped_namespace_is_empty_and_usable(self, store: LessonStore) -> None:
        store.upsert(HERE, entries(5))
        store.drop(HERE)
        assert store.ids(HERE) == set()
        assert store.search(HERE, vectors(1)[0], 5) == []
        store.upsert(HERE, entries(2))
        assert store.ids(HERE) == {"id-0", "id-1"}

    def test_a_dropped_namespace_may_change_its_vector_size(self, store: LessonStore) -> None:
        store.upsert(HERE, entries(3))
        store.drop(HERE)
        longer = vectors(2, dim=DIM * 2)
        store.upsert(HERE, [Entry(id="new", vector=longer[0])])
        assert store.search(HERE, longer[0], 1)[0][0] == "new"

    @pytest.mark.parametrize("count", [1000, 2000])
    def test_the_ten_nearest_are_found(self, store: LessonStore, count: int) -> None:
        made = entries(count, seed=3)
        store.upsert(HERE, made)
        found = sum(len(nearest(made, query, 10) & set(dict(store.search(HERE, query, 10)))) for query in vectors(40))
        assert found / 400 >= (1.0 if store.capabilities.exact else 0.99)

    def test_one_call_takes_more_entries_than_any_batch_limit(self, store: LessonStore) -> None:
        made = entries(6001, dim=8)
        store.upsert(HERE, made)
        assert len(store.ids(HERE)) == 6001
        store.delete(HERE, [entry.id for entry in made[1:]])
        assert store.ids(HERE) == {"id-0"}

    def test_ten_threads_at_once(self, store: LessonStore) -> None:
        made = entries(200)
        start = threading.Barrier(10)

        def work(number: int) -> None:
            start.wait(timeout=30)
            mine = made[number * 20 : (number + 1) * 20]
            for entry in mine:
                store.upsert(HERE, [entry])
                assert store.search(HERE, entry.vector, 1)[0][0] == entry.id
            store.delete(HERE, [mine[0].id])

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(work, range(10)))
        assert store.ids(HERE) == {entry.id for number, entry in enumerate(made) if number % 20}

    def test_the_async_twins_do_the_same(self, store: LessonStore) -> None:
        made = entries(5)

        async def twins() -> list[Any]:
            await store.aupsert(HERE, made)
            await store.adelete(HERE, [made[4].id])
            seen = [await store.aids(HERE), await store.asearch(HERE, made[1].vector, 2)]
            await store.adrop(HERE)
            return [*seen, await store.aids(HERE)]

        ids, hits, after = asyncio.run(twins())
        assert ids == {entry.id for entry in made[:4]}
        assert hits[0] == (made[1].id, pytest.approx(1.0, abs=1e-4))
        assert after == set()

    def test_reopening_keeps_what_the_capabilities_promise(self, open_store: OpenStore) -> None:
        made = entries(50)
        first = open_store()
        first.upsert(HERE, made)
        first.delete(HERE, [made[0].id])
        first.close()
        second = open_store()
        try:
            kept = {entry.id for entry in made[1:]} if second.capabilities.persistent else set()
            assert second.ids(HERE) == kept
            assert [one for one, _ in second.search(HERE, made[1].vector, 1)] == ([made[1].id] if kept else [])
            second.upsert(HERE, made)
            assert second.ids(HERE) == {entry.id for entry in made}
        finally:
            second.close()

    def test_closing_twice_is_fine(self, open_store: OpenStore) -> None:
        store = open_store()
        store.upsert(HERE, entries(1))
        store.close()
        store.close()
        asyncio.run(store.aclose())


def vectors(count: int, *, dim: int = DIM, seed: int = 0) -> list[Vector]:
    """Random unit vectors, the same for the same seed."""
    import numpy as np

    drawn = np.random.default_rng(seed).normal(size=(count, dim))
    return list((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32))


def entries(count: int, *, dim: int = DIM, seed: int = 1) -> list[Entry]:
    """Entries `id-0`, `id-1`, … with random vectors."""
    return [Entry(id=f"id-{number}", vector=vector) for number, vector in enumerate(vectors(count, dim=dim, seed=seed))]


def nearest(made: list[Entry], query: Vector, k: int) -> set[str]:
    """The oracle: the true k nearest by cosine."""
    import numpy as np

    cosines = np.stack([entry.vector for entry in made]) @ query
    return {made[row].id for row in np.argsort(-cosines)[:k]}
