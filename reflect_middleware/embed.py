"""Text to unit vectors: any langchain `Embeddings`, built on first use, cached, checked."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from reflect_middleware.errors import EmbedderError, ReflectError
from reflect_middleware.forks import gate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.embeddings import Embeddings

    from reflect_middleware.store import Vector

Purpose = Literal["query", "document"]
Key = tuple[Purpose, str]
T = TypeVar("T")

CACHE_SIZE = 4096
"""Vectors kept; 6 MB at 384 dimensions."""
PROBE = "A lesson is what one would do otherwise the next time."
"""The sentence whose vector tells one model from another of the same name. Another one would make all models new."""
MODEL_ATTRIBUTES = ("model", "model_name", "model_id", "deployment", "repo_id")


class Embedder:
    """Unit-length float32 vectors from a langchain `Embeddings`.

    Args:
        build: makes the `Embeddings`, on first use. A failure is not remembered: the next call tries again.
        cache_size: vectors kept, by purpose and text; the least recently used one goes first.
        identify: from the model's name and its vector of `PROBE` to the id of its vectors, so that a silent change of
            the model is noticed. Asked once per process. None: the name is the id.

    Every method raises `EmbedderError` when the model fails or gives zero, NaN or vectors of another size, and what
    `build` raises, if that is a `ReflectError`. Safe for threads and forks; a text that several threads ask for at once
    is computed once.
    """

    def __init__(
        self,
        build: Callable[[], Embeddings],
        *,
        cache_size: int = CACHE_SIZE,
        identify: Callable[[str, Vector], str] | None = None,
    ) -> None:
        self._build = build
        self._cache_size = cache_size
        self.identify = identify
        self._id = ""  # as identified
        self._embeddings: Embeddings | None = None
        self._dim = 0
        self._cache: OrderedDict[Key, Vector] = OrderedDict()
        self._renew()

    @property
    def id(self) -> str:
        """A stable name of its vectors, e.g. `OpenAIEmbeddings:text-embedding-3-small`. Builds the model.

        With `identify` it embeds one sentence, once; a changed model of the same name has another id.
        """
        if self.identify is None:
            return self.name
        if not self._id:
            self._id = self.identify(self.name, self.embed_query(PROBE))
        return self._id

    @property
    def name(self) -> str:
        """The model's class and name. Builds the model."""
        return embedder_id(self._model())

    def forget_id(self) -> None:
        """Ask again who it is: the ledger that knew it is another one now."""
        self._id = ""

    @property
    def dim(self) -> int:
        """Length of its vectors. Embeds one word if nothing was embedded yet."""
        if not self._dim:
            self.embed_query("dimension")
        return self._dim

    def embed_query(self, text: str) -> Vector:
        """The vector of a task, shape (dim,), read-only."""
        return self._resolve("query", [text])[0]

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors of lessons, in the order of `texts`; the model is called once for all that are not cached."""
        return self._resolve("document", texts)

    async def aembed_query(self, text: str) -> Vector:
        """Async twin of `embed_query`: in a thread unless cached."""
        known = self.peek_query(text)
        return known if known is not None else await asyncio.to_thread(self.embed_query, text)

    async def aembed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """Async twin of `embed_documents`, in a thread."""
        return await asyncio.to_thread(self.embed_documents, texts)

    def peek_query(self, text: str) -> Vector | None:
        """The cached vector of a task, or None. Never computes, never waits for a computation."""
        self._check_process()
        with self._lock:
            return self._cached(("query", text))

    def _renew(self) -> None:
        """Locks and computations belong to one process: a forked child would wait for ever for its parent's."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._flights: dict[Key, Future[Vector]] = {}

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._renew()

    def _model(self) -> Embeddings:
        self._check_process()
        if self._embeddings is None:
            with gate.passing(), self._building:
                if self._embeddings is None:
                    self._embeddings = _guarded("build", self._build)
        return self._embeddings

    def _resolve(self, purpose: Purpose, texts: Sequence[str]) -> list[Vector]:
        """Take what is cached, compute what nobody computes yet, then wait for what others compute."""
        self._check_process()
        keys: list[Key] = [(purpose, text) for text in texts]
        found: dict[Key, Vector] = {}
        mine: dict[Key, Future[Vector]] = {}
        others: dict[Key, Future[Vector]] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                vector = self._cached(key)
                if vector is not None:
                    found[key] = vector
                elif key in self._flights:
                    others[key] = self._flights[key]
                else:
                    mine[key] = self._flights[key] = Future()
        if mine:
            found |= self._fly(purpose, mine)
        found |= {key: flight.result() for key, flight in others.items()}
        return [found[key] for key in keys]

    def _fly(self, purpose: Purpose, flights: dict[Key, Future[Vector]]) -> dict[Key, Vector]:
        try:
            vectors = dict(zip(flights, self._compute(purpose, [text for _, text in flights]), strict=True))
        except BaseException as exc:
            failed = exc if isinstance(exc, ReflectError) else EmbedderError(f"The embedding was broken off ({exc!r}).")
            self._land(flights)
            for flight in flights.values():
                flight.set_exception(failed)
            raise
        self._land(flights, vectors)
        for key, flight in flights.items():
            flight.set_result(vectors[key])
        return vectors

    def _land(self, flights: dict[Key, Future[Vector]], vectors: dict[Key, Vector] | None = None) -> None:
        with self._lock:
            for key in flights:
                self._flights.pop(key, None)
            self._cache.update(vectors or {})
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    def _cached(self, key: Key) -> Vector | None:
        vector = self._cache.get(key)
        if vector is not None:
            self._cache.move_to_end(key)
        return vector

    def _compute(self, purpose: Purpose, texts: list[str]) -> list[Vector]:
        model = self._model()
        if purpose == "query":
            raw: Any = _guarded("embed a query", lambda: [model.embed_query(text) for text in texts])
        else:
            raw = _guarded("embed lessons", lambda: model.embed_documents(texts))
        vectors = unit(raw, count=len(texts), dim=self._dim, model=embedder_id(model))
        self._dim = len(vectors[0])
        return vectors


def embedder_id(embeddings: Embeddings) -> str:
    """Class and model name, and the vector size where it is a setting: other vectors, another id."""
    inner = getattr(embeddings, "underlying_embeddings", None)
    if inner is not None:
        return embedder_id(inner)
    names = (getattr(embeddings, attribute, None) for attribute in MODEL_ATTRIBUTES)
    parts = [type(embeddings).__name__, *[name for name in names if isinstance(name, str) and name][:1]]
    size = getattr(embeddings, "dimensions", None)
    return ":".join([*parts, str(size)] if isinstance(size, int) else parts)


def unit(raw: Any, *, count: int, dim: int = 0, model: str = "the embedding model") -> list[Vector]:
    """Checked, scaled to length 1, float32, read-only.

    Args:
        raw: `count` vectors, as lists or arrays.
        count: how many there must be, at least 1.
        dim: the length that each must have; 0 if any will do.
        model: for messages.

    Raises:
        EmbedderError: wrong count or size, or a vector that is zero, NaN or infinite.
    """
    import numpy as np

    try:
        with np.errstate(over="ignore"):
            matrix = np.asarray(raw, dtype=np.float32)
    except (ValueError, TypeError) as exc:
        raise EmbedderError(f"{model} gave vectors that are not lists of numbers of one size ({exc}).") from exc
    if matrix.ndim != 2 or matrix.shape[0] != count or not matrix.shape[1] or (dim and matrix.shape[1] != dim):  # noqa: PLR2004
        raise EmbedderError(
            f"{model} gave vectors of shape {matrix.shape!r}; needed: ({count}, {dim or 'any size'}). "
            "One embedder must always give vectors of one size: make a new Reflection after a change of model."
        )
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise EmbedderError(
            f"{model} gave a vector that is zero, NaN or infinite, which has no direction. "
            "Check the model, and that it accepts empty and very long texts."
        )
    matrix = matrix / lengths
    matrix.setflags(write=False)
    return list(matrix)


def _guarded(doing: str, call: Callable[[], T]) -> T:
    """What the model's own code raises becomes an `EmbedderError`, once."""
    try:
        return call()
    except ReflectError:
        raise
    except Exception as exc:
        raise EmbedderError(
            f"The embedding model could not {doing} ({type(exc).__name__}: {exc}). "
            "Check its key, network and name, or give another one as `embeddings=`."
        ) from exc
