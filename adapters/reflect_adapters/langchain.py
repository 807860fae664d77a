"""Any LangChain `VectorStore`, in a collection of its own, made with `LessonVectors` as its embedding.

A `VectorStore` takes text and embeds it by itself. Ours are vectors already, so the text of a document is the vector,
written down, and `LessonVectors` reads it back. Stores differ in what a score means, so none is read: the store
proposes candidates, and the cosines are computed here from their texts.

A `VectorStore` cannot list what it holds, so the ids are kept in memory and come from the ledger in each process.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.exact import ExactStore
from reflect_middleware.store import BaseLessonStore, Capabilities, Entry, Hit, StoreContext, one_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from reflect_middleware.store import Vector
    from reflect_middleware.types import Namespace

BATCH = 500
"""So many documents are written in one call; some stores refuse more than a few thousand."""
LEAST = 100
"""A search asks for at least so many candidates: other namespaces may lie nearer, and a wide search finds better."""
NAMESPACE = "reflect_namespace"
"""The key in a document's metadata under which its namespace's hash lies."""


class LessonVectors(Embeddings):
    """The embedding of a `VectorStore` for lessons: reads back the vector that a text is.

    Args:
        size: The collection's vector size, where it is fixed or several embedding models' vectors share it; at least
            the largest of them. Shorter vectors are filled up with zeros, which changes no cosine. 0: every vector as
            it is.
    """

    def __init__(self, size: int = 0) -> None:
        self._size = size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors that these texts are."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The vector that this text is.

        Raises:
            StoreError: If it is none, or longer than `size`. A question of a store's set-up ("dummy") has no vector.
        """
        vector: list[float] = _read(text).tolist()
        if self._size and len(vector) > self._size:
            raise StoreError(f"A vector of {len(vector)} numbers is too long for LessonVectors(size={self._size}).")
        return vector + [0.0] * (self._size - len(vector))


def open_store(context: StoreContext) -> LangChainStore:
    """Entry point `langchain`: over the user's own object. Option `filter`: see `LangChainStore`."""
    if not isinstance(context.given, VectorStore):
        raise ConfigurationError(
            "store",
            context.given if context.given is not None else "langchain",
            "an object of a LangChain VectorStore class",
            "Give the object itself: Reflection(store=my_vector_store).",
        )
    return LangChainStore(context.given, filter=context.options.get("filter"))


class LangChainStore(BaseLessonStore):
    """Lessons' vectors as documents of a `VectorStore`, which stays the user's: it is never made or closed here.

    One call at a time: many a `VectorStore` in memory does not bear threads.

    Args:
        store: Made with `LessonVectors` as its embedding, and able to `delete` by id.
        filter: From a namespace's hash to what the store takes as `filter=`, if it filters before it searches. Without
            it, more and more candidates are asked for until enough are of the namespace; nothing crosses it either way.

    Raises:
        ConfigurationError: The store has another embedding.
    """

    capabilities = Capabilities()

    def __init__(self, store: VectorStore, *, filter: Callable[[str], Any] | None = None) -> None:
        if not isinstance(store.embeddings, LessonVectors):
            raise ConfigurationError(
                "store",
                store,
                "a VectorStore whose embedding is a reflect_adapters.langchain.LessonVectors",
                "Make one more collection for lessons: they would be found among your documents otherwise.",
            )
        self._store = store
        self._filter = filter
        self._ids: dict[Namespace, set[str]] = {}
        self._sizes: dict[Namespace, int] = {}
        """Of the vectors written to a namespace."""
        self._lock = threading.RLock()

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        """Insert or replace entries by id."""
        place = _place(namespace)
        last = list({entry.id: entry for entry in entries}.values())
        if not last:
            return
        with self._using("writing"):
            held = self._sizes.get(namespace, 0) if self._ids.get(namespace) else 0
            self._sizes[namespace] = one_size((entry.vector for entry in last), held)
            for start in range(0, len(last), BATCH):
                self._write(namespace, place, last[start : start + BATCH])

    def delete(self, namespace: Namespace, ids: Iterable[str]) -> None:
        """Remove entries by id; unknown ids are ignored."""
        place = _place(namespace)
        with self._using("deleting"):
            known = self._ids.get(namespace, set())
            gone = [one for one in dict.fromkeys(ids) if one in known]
            for start in range(0, len(gone), BATCH):
                some = gone[start : start + BATCH]
                self._store.delete([_key(place, one) for one in some])
                known.difference_update(some)

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        """The k nearest entries by cosine, best first, of the candidates that the store proposes."""
        with self._using("searching"):
            wanted = min(k, len(self._ids.get(namespace, ())))
            found = self._candidates(namespace, vector, wanted) if wanted > 0 else []
        return ExactStore(lambda _: found).search(namespace, vector, k) if found else []

    def ids(self, namespace: Namespace) -> set[str]:
        """All ids that were written to this namespace since the store was opened."""
        with self._lock:
            return set(self._ids.get(namespace, ()))

    def drop(self, namespace: Namespace) -> None:
        """Delete the namespace's documents."""
        self.delete(namespace, self.ids(namespace))

    def close(self) -> None:
        """Nothing: the store is the user's."""

    def _write(self, namespace: Namespace, place: str, entries: Sequence[Entry]) -> None:
        known = self._ids.setdefault(namespace, set())
        # Not every store replaces a document of the same id: some refuse it, some keep both.
        self.delete(namespace, [entry.id for entry in entries])
        documents = [_document(place, entry) for entry in entries]
        self._store.add_documents(documents, ids=[_key(place, entry.id) for entry in entries])
        known.update(entry.id for entry in entries)

    def _candidates(self, namespace: Namespace, vector: Vector, wanted: int) -> list[Entry]:
        """At least `wanted` entries of the namespace near to the vector, if the store gives so many."""
        place, known, text = _place(namespace), self._ids[namespace], _text(vector)
        scope = {} if self._filter is None else {"filter": self._filter(place)}
        count = max(4 * wanted, LEAST)
        while True:
            found = self._store.similarity_search(text, k=count, **scope)
            own = [one for one in found if one.metadata.get(NAMESPACE) == place and one.metadata["id"] in known]
            if len(own) >= wanted or len(found) < count:
                return [Entry(id=one.metadata["id"], vector=_read(one.page_content)) for one in own]
            count *= 4

    @contextmanager
    def _using(self, doing: str) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"The LangChain store {type(self._store).__name__} failed at {doing} lessons' vectors "
                f"({type(error).__name__}: {error}). It must be open and able to delete by id; "
                "it is tried again by itself."
            ) from error


def _place(namespace: Namespace) -> str:
    """A namespace as metadata that every store takes."""
    return hashlib.sha256(json.dumps(namespace, ensure_ascii=True).encode()).hexdigest()


def _key(place: str, one: str) -> str:
    """A document's id: a UUID, because some stores take nothing else."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{place} {one}"))


def _document(place: str, entry: Entry) -> Document:
    metadata = {NAMESPACE: place, "id": entry.id}
    return Document(id=_key(place, entry.id), page_content=_text(entry.vector), metadata=metadata)


def _text(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _read(text: str) -> Vector:
    import numpy as np

    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except (binascii.Error, ValueError) as error:
        raise StoreError(
            f"The text {text[:40]!r} is no lesson's vector. A VectorStore with LessonVectors is for lessons alone."
        ) from error
