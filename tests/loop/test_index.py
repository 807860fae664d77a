"""The store is a projection: it may be slow, stale, deleted or another one, and retrieval stays right."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.errors import StoreError
from reflect_middleware.store import BaseLessonStore

from .conftest import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from reflect_middleware import Reflection
    from reflect_middleware.store import Entry, Hit, Vector
    from reflect_middleware.types import Namespace


def found(reflection: Reflection, text: str = "refund order") -> list[str]:
    """What a search gives now, after all background work."""
    for _ in range(2):  # the second search of a process opens the store
        reflection.lessons.search(text)
    assert reflection.flush(60)
    return [item.lesson.do for item in reflection.lessons.search(text)]


def inner(reflection: Reflection) -> Any:
    """The index itself."""
    return reflection._core.parts.index


def test_chroma_answers_once_it_is_up_to_date(tmp_path: Path, make: Any) -> None:
    reflection = make(path=str(tmp_path), store="chroma")
    for number in range(3):
        reflection.lessons.add(when="refund order", do=f"way {number}")
    assert sorted(found(reflection)) == ["way 0", "way 1", "way 2"]
    assert inner(reflection).describe() == "the store"
    assert (tmp_path / "chroma").is_dir()
    assert [f.check for f in reflection.doctor() if not f.ok] == []


def test_a_stale_store_neither_hides_nor_revives(tmp_path: Path, make: Any) -> None:
    reflection = make(path=str(tmp_path), store="chroma")
    old = reflection.lessons.add(when="refund order", do="old")
    assert found(reflection) == ["old"]
    index = inner(reflection)
    index.sync_later = lambda _: None  # from here on the store hears of nothing
    reflection.lessons.add(when="refund order", do="new")
    assert sorted(item.lesson.do for item in reflection.lessons.search("refund order")) == ["new", "old"]
    reflection.lessons.retire(old.id)
    assert [item.lesson.do for item in reflection.lessons.search("refund order")] == ["new"]


def test_a_deleted_store_is_rebuilt_to_the_same_answers(tmp_path: Path, make: Any) -> None:
    first = make(path=str(tmp_path), store="chroma")
    for number in range(3):
        first.lessons.add(when=f"refund order {number}", do=f"way {number}")
    before = found(first, "refund order 1")
    first.close()
    shutil.rmtree(tmp_path / "chroma")
    second = make(path=str(tmp_path), store="chroma")
    after = found(second, "refund order 1")
    assert (after[0], sorted(after)) == (before[0], sorted(before))  # the other two are equally near
    assert inner(second).describe() == "the store"


def test_another_embedder_embeds_again(tmp_path: Path, make: Any) -> None:
    first = make(path=str(tmp_path), store="chroma")
    first.lessons.add(when="refund order", do="ask")
    assert found(first) == ["ask"]
    first.close()
    second = make(path=str(tmp_path), store="chroma", embeddings=testing.HashingEmbeddings(dimensions=64))
    assert found(second) == ["ask"]
    assert inner(second).describe() == "the store"


class Flaky(BaseLessonStore):
    """A store of the user's own, which breaks."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.closed = 0
        self.broken = False

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        self.entries |= {entry.id: entry for entry in entries}

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        for lesson_id in ids:
            self.entries.pop(lesson_id, None)

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        if self.broken:
            raise StoreError("the server went away")
        scored = [(entry.id, float(entry.vector @ vector)) for entry in self.entries.values()]
        return sorted(scored, key=lambda hit: -hit[1])[:k]

    def ids(self, namespace: Namespace) -> set[str]:
        return set(self.entries)

    def drop(self, namespace: Namespace) -> None:
        self.entries.clear()

    def close(self) -> None:
        self.closed += 1


def test_a_store_object_of_ones_own_that_breaks(make: Any) -> None:
    store, model = Flaky(), testing.ScriptedChatModel(lambda _: "ok")
    reflection = make(store=store)
    lesson = reflection.lessons.add(when="refund order", do="ask")
    assert found(reflection) == ["ask"]
    assert set(store.entries) == {lesson.id}
    store.broken = True
    reflection.wrap(agent(model)).invoke({"messages": "refund order 1"})
    assert [message.type for message in model.calls[0]] == ["system", "human"]
    assert any("the server went away" in f.message for f in reflection.doctor() if not f.ok)


class Interrupted(Flaky):
    """A store in whose writing something else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], Any]] = []

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        super().upsert(namespace, entries)
        if self.meanwhile:
            self.meanwhile.pop()()


def test_a_store_that_is_filled_while_a_search_notices_a_restore_is_right() -> None:
    store = Interrupted()
    with testing.reflection(store=store) as reflection:  # PostgreSQL has its own tools for backups
        kept = reflection.lessons.add(when="refund order", do="kept")
        reflection.backup()
        reflection.lessons.add(when="refund order", do="later")
        assert sorted(found(reflection)) == ["kept", "later"]
        reflection.restore()
        store.meanwhile.append(lambda: reflection.lessons.search("refund order"))
        index = inner(reflection)
        index.lane.submit(lambda: index.sync(("default",))).result(60)
        assert found(reflection) == ["kept"]
        assert set(store.entries) == {kept.id}


@pytest.mark.parametrize("store", ["exact", "chroma"])
def test_namespaces_never_meet(tmp_path: Path, make: Any, store: str) -> None:
    reflection = make(path=str(tmp_path), store=store, namespace=("shop",))
    reflection.lessons.add(when="refund order", do="for the shop")
    reflection.lessons.add(when="refund order", do="for ann", namespace=("shop", "ann"))
    assert found(reflection) == ["for the shop"]
    reflection.lessons.search("refund order", namespace=("shop", "ann"))
    reflection.flush(60)
    assert [x.lesson.do for x in reflection.lessons.search("refund order", namespace=("shop", "ann"))] == ["for ann"]
