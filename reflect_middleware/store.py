"""The store seam: a vector index over the lessons, always rebuildable from the ledger.

Callers hold a `LessonStore`; implementers subclass `BaseLessonStore` and fill in six sync methods.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from reflect_middleware.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from reflect_middleware.types import Namespace

    Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One lesson's place in the index."""

    id: str
    """The lesson's id, not empty."""
    vector: Vector
    """float32, of unit length, shape (dim,)."""


Hit = tuple[str, float]
"""(lesson id, cosine in [-1, 1])."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store promises beyond the six methods. The contract suite tests what is claimed here."""

    exact: bool = False
    """True: a search compares with every vector. False: it may miss a near one (recall@10 of at least 0.99)."""
    persistent: bool = False
    """True: entries outlive `close` and the process. False: they are read again from the ledger."""
    multi_process: bool = False
    """True: several processes may hold it at once and see each other's writes."""
    reconnects: bool = False
    """True: it talks to a server. While that is away calls raise `StoreError`; once it is back they work again."""


@runtime_checkable
class LessonStore(Protocol):
    """What callers need of a vector index. Subclass `BaseLessonStore` to make one.

    Vectors are float32 of unit length and always ours; all calls may come from several threads at once.
    Driver errors are raised as `StoreError` with the driver's error as cause. So is a vector of another size than its
    namespace has, and nothing of that call is written. Which model made a vector a store need not know: whoever uses
    it gives each model's vectors a namespace of their own.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it promises; the same for its whole life."""

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id. Any number of entries; the last of equal ids wins; none does nothing."""

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k entries of this namespace nearest to `vector`, by cosine, best first; fewer if there are fewer."""

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace; empty for an unknown one."""

    def drop(self, namespace: Namespace) -> None:
        """Forget the whole namespace; an unknown one is ignored."""

    def close(self) -> None:
        """Release files, locks and connections that this store opened itself. May be called twice."""

    async def aupsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Async twin of `upsert`."""

    async def adelete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Async twin of `delete`."""

    async def asearch(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """Async twin of `search`."""

    async def aids(self, namespace: Namespace) -> set[str]:
        """Async twin of `ids`."""

    async def adrop(self, namespace: Namespace) -> None:
        """Async twin of `drop`."""

    async def aclose(self) -> None:
        """Async twin of `close`."""


class BaseLessonStore(ABC):
    """Parent of every store: six methods to fill in, described in `LessonStore`.

    The async twins run them in a thread; a store with a native async client overrides the twins.
    """

    capabilities: Capabilities = Capabilities()

    @abstractmethod
    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id."""

    @abstractmethod
    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""

    @abstractmethod
    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first."""

    @abstractmethod
    def ids(self, namespace: Namespace) -> set[str]:
        """All ids in this namespace."""

    @abstractmethod
    def drop(self, namespace: Namespace) -> None:
        """Forget the whole namespace."""

    @abstractmethod
    def close(self) -> None:
        """Release what this store opened itself. May be called twice."""

    async def aupsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Async twin of `upsert`."""
        await asyncio.to_thread(self.upsert, namespace, entries)

    async def adelete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Async twin of `delete`."""
        await asyncio.to_thread(self.delete, namespace, ids)

    async def asearch(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """Async twin of `search`."""
        return await asyncio.to_thread(self.search, namespace, vector, k)

    async def aids(self, namespace: Namespace) -> set[str]:
        """Async twin of `ids`."""
        return await asyncio.to_thread(self.ids, namespace)

    async def adrop(self, namespace: Namespace) -> None:
        """Async twin of `drop`."""
        await asyncio.to_thread(self.drop, namespace)

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await asyncio.to_thread(self.close)


def one_size(vectors: Iterable[Vector], held: int = 0) -> int:
    """The size of vectors that may share a namespace, for stores whose driver does not check it.

    Args:
        vectors: What is to be written; at least one.
        held: The size of those that are there; 0 if there are none, or none is known.

    Raises:
        StoreError: They differ. Nothing may be written then: vectors of two sizes would spoil each search.
    """
    sizes = {len(vector) for vector in vectors} | ({held} if held else set())
    if len(sizes) > 1:
        raise StoreError(
            f"Vectors of different sizes {sorted(sizes)} cannot share a namespace. After a change of the embedding "
            "model, drop the namespace and add all its lessons again."
        )
    return min(sizes)


def no_vectors(_: Namespace) -> Sequence[Entry]:
    """A ledger without lessons, for stores that are used on their own."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContext:
    """What a store factory gets: where it may live and where the truth is."""

    path: Path
    """A folder of its own, not yet created."""
    vectors: Callable[[Namespace], Sequence[Entry]] = no_vectors
    """The active lessons' vectors of a namespace, read from the ledger."""
    url: str = ""
    """The URL, if the store was named by one (`qdrant://host:6333`), else empty."""
    ledger_url: str = ""
    """Where the ledger is, as an SQLAlchemy URL with its password, for a store that lives beside it; else empty."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further settings from `store_options=`."""
    given: object = None
    """The user's own object, if the store was named by one that an adapter wraps. It is never closed by us."""


StoreFactory = Callable[[StoreContext], LessonStore]
"""What an entry point of the group `reflect_middleware.stores` names."""
