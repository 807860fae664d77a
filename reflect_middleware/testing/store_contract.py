"""The contract of a store, as tests. Subclass `StoreContract` in your own test suite and say how to open yours.

First, in `conftest.py`: `pytest.register_assert_rewrite("reflect_middleware.testing.store_contract")`. Then:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tmp_path)

What a store claims in its `Capabilities` is tested, and nothing is skipped. Two more fixtures may be overridden:
`server` by a store that `reconnects`, `break_driver` by one whose driver can be made to fail. The test at scale leaves
the property `recall@10` in pytest's report.
"""

# A test suite: its names say what is shown, expected values stand in the assertion.
# ruff: noqa: D102, PLR2004, S101

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from reflect_middleware.errors import ReflectError, StoreError
from reflect_middleware.store import Capabilities, Entry, LessonStore

if TYPE_CHECKING:
    from reflect_middleware.store import Vector

OpenStore = Callable[[], LessonStore]
DIM = 64
AT_SCALE = 10_000
"""More than any backend known to us takes in one call."""
SITUATIONS = 500
"""Around so many points its vectors lie, as lessons do: most are about something that others are about, too."""
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


class Server(Protocol):
    """How a test takes a store's server away and brings it back."""

    def stop(self) -> object:
        """From now on the server does not answer. Returns when that is so."""

    def start(self) -> object:
        """It answers again, with the data that it had. Returns when that is so; does nothing if it never stopped."""


class StoreContract:
    """What every store must do. Override the fixture `open_store`, where they apply the two below it, nothing else."""

    at_scale = AT_SCALE
    """So many entries the test at scale writes in one call. A store that needs minutes for that may take fewer."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """A function that opens the store; within one test each call opens the same data."""
        pytest.fail("Override the fixture `open_store`: it returns a function that opens your store.")

    @pytest.fixture
    def server(self) -> Server | None:
        """How to stop and start the store's server. Override it if your store's capabilities say `reconnects`."""
        return None

    @pytest.fixture
    def break_driver(self, server: Server | None) -> Iterator[Callable[[LessonStore], object] | None]:
        """A function that makes what lies under an open store fail from now on, whatever is asked of it.

        By default its server is stopped. Override it to close a file, a connection or the driver's own client behind
        the store's back. None for a store that cannot fail, such as one in memory.
        """
        yield None if server is None else lambda _: server.stop()
        if server is not None:
            server.start()

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

    def test_vectors_of_another_size_are_refused_and_spoil_nothing(self, store: LessonStore) -> None:
        """`StoreError`, and nothing of that call is written."""
        made, longer = entries(3), entries(2, dim=DIM * 2, seed=5)
        store.upsert(HERE, made)
        with pytest.raises(StoreError):
            store.upsert(HERE, [Entry(id="longer", vector=longer[0].vector)])
        with pytest.raises(StoreError):
            store.upsert(HERE, [Entry(id="fits", vector=made[0].vector), Entry(id="longer", vector=longer[0].vector)])
        with pytest.raises(StoreError):
            store.upsert(("new",), [made[0], longer[1]])
        with pytest.raises(StoreError):
            store.search(HERE, longer[0].vector, 1)
        assert store.ids(("new",)) == set()
        assert store.ids(HERE) == {entry.id for entry in made}
        assert store.search(HERE, made[1].vector, 1)[0][0] == made[1].id

    def test_two_embedding_models_lie_side_by_side(self, store: LessonStore) -> None:
        """Each model's vectors have a namespace of their own, whatever their size: so a model may be changed."""
        models = {(*HERE, "small"): entries(5), (*HERE, "large"): entries(5, dim=DIM * 2, seed=5)}
        for namespace, made in models.items():
            store.upsert(namespace, made)
        for namespace, made in models.items():
            hits = store.search(namespace, made[2].vector, 5)
            assert (hits[0][0], len(hits)) == ("id-2", 5)
            assert hits[0][1] == pytest.approx(1.0, abs=1e-4)
        store.drop((*HERE, "small"))
        assert store.ids((*HERE, "small")) == set()
        assert len(store.ids((*HERE, "large"))) == 5

    def test_many_in_one_call_and_the_ten_nearest_of_them(
        self, store: LessonStore, record_property: Callable[[str, object], None]
    ) -> None:
        """Recall@10 against the oracle; and no limit of a backend on what one call takes is the caller's concern."""
        made = lessons(self.at_scale)
        store.upsert(HERE, made)
        queries = [entry.vector for entry in lessons(10 if store.capabilities.exact else 25, seed=2)]
        found = sum(len(truth & set(dict(store.search(HERE, query, 10)))) for query, truth in oracle(made, queries, 10))
        recall = found / (10 * len(queries))
        record_property("recall@10", recall)
        assert recall >= (1.0 if store.capabilities.exact else 0.99)
        assert len(store.ids(HERE)) == self.at_scale
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

    def test_ten_tasks_at_once(self, store: LessonStore) -> None:
        async def work(entry: Entry) -> tuple[str, float]:
            await store.aupsert(HERE, [entry])
            return (await store.asearch(HERE, entry.vector, 1))[0]

        async def all_of_them() -> list[tuple[str, float]]:
            return await asyncio.gather(*map(work, made))

        made = entries(10)
        assert [one for one, _ in asyncio.run(all_of_them())] == [entry.id for entry in made]
        assert len(store.ids(HERE)) == 10

    def test_two_open_stores_see_each_others_writes(self, store: LessonStore, open_store: OpenStore) -> None:
        """Of a store for one process this shows that a namespace is read again after each write."""
        other = open_store() if store.capabilities.multi_process else store
        made = entries(4)
        store.upsert(HERE, made[:2])
        assert other.ids(HERE) == {"id-0", "id-1"}
        other.upsert(HERE, [Entry(id="id-0", vector=made[3].vector), made[2]])
        assert store.ids(HERE) == {"id-0", "id-1", "id-2"}
        assert dict(store.search(HERE, made[3].vector, 1)) == pytest.approx({"id-0": 1.0}, abs=1e-4)
        store.delete(HERE, ["id-0"])
        assert {one for one, _ in other.search(HERE, made[3].vector, 9)} == {"id-1", "id-2"}
        other.close()

    def test_it_works_again_once_its_server_is_back(self, store: LessonStore, server: Server | None) -> None:
        """The same open store; of a store that has no server this shows that it says so."""
        assert store.capabilities.reconnects == (server is not None), "override the fixture `server`, or claim nothing"
        made = entries(5)
        store.upsert(HERE, made)
        if server is not None:
            server.stop()
            try:
                with pytest.raises(StoreError):
                    store.search(HERE, made[0].vector, 1)
                with pytest.raises(StoreError):
                    asyncio.run(store.asearch(HERE, made[0].vector, 1))
            finally:
                server.start()
        assert store.search(HERE, made[1].vector, 1)[0][0] == "id-1"
        store.delete(HERE, ["id-0"])
        store.upsert(HERE, entries(6)[5:])
        assert store.ids(HERE) == {"id-1", "id-2", "id-3", "id-4", "id-5"}

    def test_what_the_driver_raises_is_a_store_error(
        self, open_store: OpenStore, break_driver: Callable[[LessonStore], object] | None
    ) -> None:
        """With the driver's error as cause. A store without a driver that can fail refuses at least a wrong vector."""
        store, made = open_store(), entries(3)
        store.upsert(HERE, made)
        try:
            if break_driver is None:
                with pytest.raises(StoreError):
                    store.search(HERE, vectors(1, dim=3)[0], 1)
                return
            break_driver(store)
            for call in (lambda: store.search(HERE, made[0].vector, 1), lambda: store.upsert(HERE, made)):
                with pytest.raises(StoreError) as caught:
                    call()
                cause = caught.value.__cause__
                assert cause is not None, "raise it `from` the driver's error"
                assert not isinstance(cause, ReflectError), "wrap once: the cause is the driver's own error"
            with contextlib.suppress(StoreError):  # these may know the answer without asking the driver
                store.ids(HERE)
                store.delete(HERE, ["id-0"])
                store.drop(HERE)
        finally:
            with contextlib.suppress(StoreError):
                store.close()

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


def lessons(count: int, *, dim: int = 32, seed: int = 1) -> list[Entry]:
    """Entries as lessons are: clustered, each near some twenty others of ten thousand (cosine 0.8)."""
    import numpy as np

    centres = np.random.default_rng(0).normal(size=(SITUATIONS, dim))
    draw = np.random.default_rng(seed)
    drawn = centres[draw.integers(SITUATIONS, size=count)] + 0.5 * draw.normal(size=(count, dim))
    unit = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return [Entry(id=f"id-{number}", vector=vector) for number, vector in enumerate(unit)]


def nearest(made: list[Entry], query: Vector, k: int) -> set[str]:
    """The oracle: the true k nearest by cosine."""
    [(_, found)] = oracle(made, [query], k)
    return found


def oracle(made: list[Entry], queries: list[Vector], k: int) -> Iterator[tuple[Vector, set[str]]]:
    """Each query with its true k nearest by cosine."""
    import numpy as np

    matrix = np.stack([entry.vector for entry in made])
    for query in queries:
        yield query, {made[row].id for row in np.argsort(-(matrix @ query))[:k]}
