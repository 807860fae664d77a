from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from reflect_middleware.embed import Embedder, embedder_id, unit
from reflect_middleware.errors import EmbedderError, MissingExtraError
from reflect_middleware.testing import HashingEmbeddings


class Counting(Embeddings):
    """Remembers every call; the vector is set from outside."""

    model = "counting-1"

    def __init__(self, vector=(3.0, 4.0)):
        self.vector = list(vector)
        self.queries, self.documents = [], []

    def embed_query(self, text):
        self.queries.append(text)
        return self.vector

    def embed_documents(self, texts):
        self.documents.append(texts)
        return [self.vector for _ in texts]


def test_vectors_are_unit_length_float32_and_read_only():
    vector = Embedder(Counting).embed_query("task")
    assert vector.dtype == np.float32
    assert vector.tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


def test_nothing_is_built_before_the_first_use():
    built = []
    embedder = Embedder(lambda: built.append(1) or Counting())
    assert embedder.peek_query("task") is None
    assert built == []
    assert (embedder.id, embedder.dim, embedder.dim) == ("Counting:counting-1", 2, 2)
    assert built == [1]


def test_a_text_is_computed_once_per_purpose():
    model = Counting()
    embedder = Embedder(lambda: model)
    first = embedder.embed_query("a")
    assert embedder.embed_query("a") is first
    assert embedder.peek_query("a") is first
    embedder.embed_documents(["a", "b", "a"])
    embedder.embed_documents(["b", "c"])
    assert embedder.peek_query("b") is None
    assert model.queries == ["a"]
    assert model.documents == [["a", "b"], ["c"]]


def test_documents_keep_their_order():
    embedder = Embedder(HashingEmbeddings)
    texts = ["one", "two", "one", "three"]
    embedder.embed_documents(["three"])
    got = embedder.embed_documents(texts)
    assert np.allclose(got, HashingEmbeddings().embed_documents(texts), atol=1e-6)
    assert embedder.embed_documents([]) == []


def test_the_least_recently_used_vector_goes_first():
    model = Counting()
    embedder = Embedder(lambda: model, cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        embedder.embed_query(text)
    assert model.queries == ["a", "b", "c", "b"]


class Slow(Counting):
    """Holds the first call until told to go on."""

    def __init__(self):
        super().__init__()
        self.started, self.go = threading.Event(), threading.Event()
        self.failure = None

    def embed_query(self, text):
        self.queries.append(text)
        self.started.set()
        assert self.go.wait(30)
        if self.failure:
            raise self.failure
        return self.vector


@pytest.mark.parametrize("failure", [None, OSError("gone")])
def test_concurrent_callers_share_one_computation(failure):
    model = Slow()
    model.failure = failure
    embedder = Embedder(lambda: model)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(embedder.embed_query, "a")
        assert model.started.wait(30)
        assert embedder.peek_query("a") is None
        rest = [pool.submit(embedder.embed_query, "a") for _ in range(3)]
        model.go.set()
        if failure is None:
            assert {id(future.result()) for future in [first, *rest]} == {id(embedder.embed_query("a"))}
            assert model.queries == ["a"]
        else:
            assert {type(future.exception()) for future in [first, *rest]} == {EmbedderError}


def test_a_broken_off_computation_frees_those_who_wait_and_the_next_try_works():
    class BrokenOff(Slow):
        def embed_query(self, text):
            super().embed_query(text)
            if len(self.queries) == 1:
                raise KeyboardInterrupt
            return self.vector

    model = BrokenOff()
    embedder = Embedder(lambda: model)
    caught = []

    def first():
        try:
            embedder.embed_query("a")
        except KeyboardInterrupt as exc:
            caught.append(exc)

    thread = threading.Thread(target=first)
    thread.start()
    assert model.started.wait(30)
    flight = embedder._flights["query", "a"]
    model.go.set()
    thread.join()
    assert len(caught) == 1
    with pytest.raises(EmbedderError, match="broken off"):
        flight.result()
    assert embedder.embed_query("a").tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ((0.0, 0.0), "zero, NaN or infinite"),
        ((float("nan"), 1.0), "zero, NaN or infinite"),
        ((float("inf"), 1.0), "zero, NaN or infinite"),
        ((1e300, 1.0), "zero, NaN or infinite"),
        ((), "shape"),
        (("a", "b"), "lists of numbers"),
    ],
)
def test_vectors_without_a_direction_are_refused(vector, message):
    with pytest.raises(EmbedderError, match=message):
        Embedder(lambda: Counting(vector)).embed_query("task")


def test_a_change_of_size_is_refused():
    model = Counting()
    embedder = Embedder(lambda: model)
    embedder.embed_query("a")
    model.vector = [1.0, 2.0, 3.0]
    with pytest.raises(EmbedderError, match=r"shape \(1, 3\); needed: \(1, 2\)"):
        embedder.embed_documents(["b"])


def test_a_wrong_count_is_refused():
    with pytest.raises(EmbedderError, match="needed: \\(2, any size\\)"):
        unit([[1.0, 2.0]], count=2)


def test_failures_are_wrapped_and_not_remembered():
    answers = [OSError("no network"), MissingExtraError("The embedder 'local'", "local"), Counting()]

    def build():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    embedder = Embedder(build)
    with pytest.raises(EmbedderError, match="no network") as caught:
        embedder.embed_query("a")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(MissingExtraError, match=r"reflect-middleware\[local\]"):
        embedder.embed_query("a")
    assert embedder.embed_query("a") is not None


def test_async_twins_give_the_same_and_use_the_cache():
    model = Counting()
    embedder = Embedder(lambda: model)

    async def twins():
        return (
            await embedder.aembed_query("a"),
            await embedder.aembed_query("a"),
            await embedder.aembed_documents(["b"]),
        )

    first, second, documents = asyncio.run(twins())
    assert first is second
    assert documents[0].tolist() == pytest.approx([0.6, 0.8])
    assert model.queries == ["a"]


def test_a_forked_child_does_not_wait_for_its_parents_computation(monkeypatch):
    model = Slow()
    embedder = Embedder(lambda: model)
    with ThreadPoolExecutor(1) as pool:
        parent = pool.submit(embedder.embed_query, "a")
        assert model.started.wait(30)
        pid = os.getpid()
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: pid + 1)
            embedder._check_process()
            assert embedder._flights == {}
        model.go.set()
        assert parent.result() is not None
    assert embedder.embed_query("b") is not None


class Named(Counting):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({}, "Named:counting-1"),
        ({"model": object(), "model_name": "m2"}, "Named:m2"),
        ({"model": "m", "dimensions": 256}, "Named:m:256"),
        ({"model": None}, "Named"),
        ({"underlying_embeddings": Counting()}, "Counting:counting-1"),
    ],
)
def test_the_id_names_class_model_and_size(attributes, name):
    assert embedder_id(Named(**attributes)) == name
