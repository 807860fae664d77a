"""Any LangGraph `BaseStore`: the lessons' vectors as items in the store an agent already has.

A `BaseStore` with an index embeds text by itself, and many have none, so the items are read and compared here: each
search reads all vectors of its namespace, in one call. That is exact, and costs one round trip and 4 bytes a dimension
and lesson (2 KB with 384 dimensions): for namespaces of up to some thousand lessons.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from langgraph.store.base import BaseStore, PutOp
from langgraph.store.memory import InMemoryStore

from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.exact import ExactStore
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, StoreContext, one_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from langgraph.store.base import SearchItem

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace

ROOT = "reflect_lessons"
"""The first part of every namespace of ours in the user's store."""
BATCH = 500
"""So many items are written in one call; drivers have limits on the parameters of a statement."""
AGAIN = 10
"""So often a search is made again that somebody else's write into the same dictionary broke."""
FIRST_LIMIT = 10_000
"""So many items a search asks for; where there are more, it asks again for four times as many."""


def open_store(context: StoreContext) -> LangGraphStore:
    """Entry point `langgraph`: over the user's own object, `Reflection(store=my_base_store)`."""
    if not isinstance(context.given, BaseStore):
        raise ConfigurationError(
            "store",
            context.given if context.given is not None else "langgraph",
            "an object of a LangGraph BaseStore class",
            "Give the object itself: Reflection(store=my_base_store).",
        )
    return LangGraphStore(context.given)


class LangGraphStore(BaseLessonStore):
    """Lessons' vectors as items of a `BaseStore`, which stays the user's: it is never set up, emptied or closed here.

    Items never expire, and are never indexed, whatever the store's defaults. A store that is bound to an event loop
    (`AsyncPostgresStore`) works while that loop runs: it is called from threads.

    Args:
        store: The user's store, open and set up.
    """

    def __init__(self, store: BaseStore) -> None:
        self._store = store
        self._turn = threading.Lock() if isinstance(store, InMemoryStore) else nullcontext()
        lasting = not isinstance(store, InMemoryStore)
        self.capabilities = Capabilities(exact=True, persistent=lasting, multi_process=lasting)

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id."""
        place = _place(namespace)
        last = {entry.id: entry for entry in entries}
        if not last:
            return
        with _wrapped("reading"):
            held = self._search(place, 1)
        one_size((entry.vector for entry in last.values()), len(_entry(held[0]).vector) if held else 0)
        self._write([PutOp(place, _key(one), _value(entry), index=False) for one, entry in last.items()])

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        place = _place(namespace)
        self._write([PutOp(place, _key(one), None) for one in dict.fromkeys(ids)])

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first. Reads the whole namespace."""
        return ExactStore(self._entries).search(namespace, vector, k) if k > 0 else []

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace. Reads the whole namespace."""
        return {item.value["id"] for item in self._items(namespace)}

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's items."""
        self.delete(namespace, self.ids(namespace))

    def close(self) -> None:
        """Nothing: the store is the user's."""

    def _entries(self, namespace: Namespace) -> list[Entry]:
        return [_entry(item) for item in self._items(namespace)]

    def _items(self, namespace: Namespace) -> list[SearchItem]:
        """All items, by one call, which sees one moment: pages would overlap where items share their time of change."""
        limit = FIRST_LIMIT
        with _wrapped("reading"):
            while len(found := self._search(_place(namespace), limit)) >= limit:
                limit *= 4
        return found

    def _search(self, place: tuple[str, str], limit: int) -> list[SearchItem]:
        """An `InMemoryStore` has no lock: we wait for our own writes, and search again after one of somebody else's."""
        with self._turn:
            for _ in range(AGAIN if isinstance(self._store, InMemoryStore) else 0):
                with suppress(RuntimeError):
                    return self._store.search(place, limit=limit, refresh_ttl=False)
            return self._store.search(place, limit=limit, refresh_ttl=False)

    def _write(self, puts: Sequence[PutOp]) -> None:
        with _wrapped("writing"), self._turn:
            for start in range(0, len(puts), BATCH):
                self._store.batch(puts[start : start + BATCH])


def _place(namespace: Namespace) -> tuple[str, str]:
    """A `BaseStore` refuses empty parts and dots, and many keep the whole in one limited text: so ours is hashed."""
    return ROOT, hashlib.sha256(json.dumps(namespace, ensure_ascii=True).encode()).hexdigest()


def _key(one: str) -> str:
    """A key that every store takes, whatever is in the id."""
    return hashlib.sha256(one.encode("utf-8", "surrogatepass")).hexdigest()


def _value(entry: Entry) -> dict[str, str]:
    """Text, because every store can keep that: a list of numbers as JSON takes five times the space."""
    return {"id": entry.id, "vector": base64.b64encode(entry.vector.astype("<f4").tobytes()).decode()}


def _entry(item: SearchItem) -> Entry:
    import numpy as np

    value = item.value
    return Entry(id=value["id"], vector=np.frombuffer(base64.b64decode(value["vector"]), dtype="<f4"))


@contextmanager
def _wrapped(doing: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"The LangGraph store failed at {doing} lessons' vectors ({type(error).__name__}: {error}). It must be "
            "open and set up; it is tried again by itself."
        ) from error
