"""The adapter that docs/stores.md shows is whole: it passes the shipped contract, and its entry point is found."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.base.batch import AsyncBatchedBaseStore
from langgraph.store.memory import InMemoryStore

from reflect_middleware import Reflection
from reflect_middleware.errors import StoreError
from reflect_middleware.registry import STORES, installed
from reflect_middleware.store import StoreContext
from reflect_middleware.testing import HashingEmbeddings, StoreContract
from reflect_middleware.testing.store_contract import entries, vectors

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
OWN = TEXT.partition("## Write your own adapter in 40 lines")[2]
[SERVER] = re.findall(r"```python\n(from langgraph_sdk.runtime .*?)```", TEXT, flags=re.DOTALL)
ADAPTER, SUITE = re.findall(r"```python\n(.*?)```", OWN, flags=re.DOTALL)
PACKAGING = tomllib.loads("".join(re.findall(r"```toml\n(.*?)```", OWN, flags=re.DOTALL)))
names: dict[str, Any] = {"pytest": pytest, "StoreContract": StoreContract, "StoreContext": StoreContext}
for block in (ADAPTER, SUITE):
    exec(compile(block, "docs/stores.md", "exec", dont_inherit=True), names)

TestSqliteLessons = names["TestSqliteLessons"]
"""The page's own test: the whole contract."""


def lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


def test_it_has_the_length_that_the_page_says() -> None:
    assert len(lines(ADAPTER)) <= 40
    assert len(lines(SUITE)) == 5
    assert max(map(len, ADAPTER.splitlines())) <= 120


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The adapter in an installed package with the page's entry point; gives the store's name."""
    [(name, value)] = PACKAGING["project"]["entry-points"][STORES].items()
    package, _, module = value.partition(":")[0].partition(".")
    site = tmp_path / "site"
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").touch()
    (site / package / f"{module}.py").write_text(ADAPTER)
    told = site / "my_package-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(f"[{STORES}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(site))
    yield name
    for loaded in [one for one in sys.modules if one.partition(".")[0] == package]:
        del sys.modules[loaded]


def test_users_name_it(packaged: str, tmp_path: Path) -> None:
    assert packaged in installed(STORES)
    with Reflection(None, path=tmp_path / "home", store=packaged, embeddings=HashingEmbeddings()) as reflection:
        lesson = reflection.lessons.add(when="a refund is asked for", do="ask a manager above 200 EUR")
        for _ in range(3):  # the first search does not open a store yet
            found = reflection.lessons.search("refund above 200 EUR")
            reflection.flush()
        assert [one.lesson.id for one in found] == [lesson.id]
        assert reflection._core.parts.index.is_open
    with contextlib.closing(sqlite3.connect(tmp_path / "home" / packaged / "lessons.db")) as db:
        assert db.execute("SELECT id FROM vectors").fetchall() == [(lesson.id,)]


def test_a_damaged_file_is_a_store_error_and_a_deleted_one_is_empty(tmp_path: Path) -> None:
    store = names["SqliteLessons"](StoreContext(path=tmp_path))
    store.upsert(("a",), entries(3))
    (tmp_path / "lessons.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(StoreError, match="not a database") as caught:
        store.search(("a",), vectors(1)[0], 1)
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    (tmp_path / "lessons.db").unlink()
    assert store.ids(("a",)) == set()


def test_a_vector_of_another_size_spoils_nothing(tmp_path: Path) -> None:
    store = names["SqliteLessons"](StoreContext(path=tmp_path))
    store.upsert(("a",), entries(3))
    with pytest.raises(StoreError, match="different sizes"):
        store.upsert(("a",), entries(2, dim=8))
    assert len(store.search(("a",), vectors(1)[0], 9)) == 3


class Batched(AsyncBatchedBaseStore):
    """As the LangGraph server's own store: its calls go through the loop on which it was made."""

    def __init__(self, inner: InMemoryStore) -> None:
        super().__init__()
        self.inner = inner

    async def abatch(self, ops: Any) -> Any:
        return await self.inner.abatch(ops)

    def batch(self, ops: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self.abatch(ops), self._loop).result()


async def test_the_servers_own_store_is_used_through_the_graphs_factory(tmp_path: Path) -> None:
    pytest.importorskip("langgraph_sdk.runtime", reason="older versions of langgraph-sdk have no ServerRuntime")
    builder = StateGraph(MessagesState).add_node("work", lambda state: {"messages": "done"}).add_edge(START, "work")
    given = {"path": tmp_path, "embeddings": HashingEmbeddings(), "reflector": lambda batch: []}
    page: dict[str, Any] = {"builder": builder, "Reflection": lambda model, store: Reflection(store=store, **given)}
    exec(compile(SERVER, "docs/stores.md", "exec", dont_inherit=True), page)
    kept = InMemoryStore()
    graph = page["graph"](SimpleNamespace(store=Batched(kept)))
    async with page["reflections"][0] as reflection:
        await reflection.lessons.aadd(when="a refund is asked for", do="ask a manager above 200 EUR")
        for _ in range(3):  # the first search does not open a store yet
            await graph.ainvoke({"messages": "a refund of 300 EUR"})
            await asyncio.to_thread(reflection.flush)
            await asyncio.to_thread(reflection._core.parts.index.lane.wait_idle, None)
        assert reflection._core.parts.index.is_open
        assert [lesson.shown for lesson in (await reflection.apreview({"messages": "a refund"})).lessons] == [True]
    assert len(kept.search(("reflect_lessons",))) == 1
