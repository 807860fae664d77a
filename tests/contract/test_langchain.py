"""The adapter `langchain` over three real vector stores: in memory, Chroma's and Qdrant's."""

from __future__ import annotations

import uuid

import chromadb
import pytest
from langchain_chroma import Chroma
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, FieldCondition, Filter, MatchValue, VectorParams

from reflect_adapters._chroma_collections import HNSW
from reflect_adapters.langchain import NAMESPACE, LangChainStore, LessonVectors, open_store
from reflect_middleware import Reflection
from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.store import StoreContext
from reflect_middleware.testing import HashingEmbeddings, StoreContract
from reflect_middleware.testing.store_contract import entries, vectors

FEWER = 2_000
"""With 10,000 the adapter is tested in test_stores.py; Chroma and Qdrant need 10 s for that behind LangChain."""


class TestInMemory(StoreContract):
    at_scale = FEWER

    @pytest.fixture
    def open_store(self):
        store = InMemoryVectorStore(LessonVectors())
        return lambda: LangChainStore(
            store, filter=lambda place: lambda document: document.metadata[NAMESPACE] == place
        )


class TestChroma(StoreContract):
    at_scale = FEWER

    @pytest.fixture
    def open_store(self):
        client = chromadb.EphemeralClient()
        store = Chroma(uuid.uuid4().hex, LessonVectors(128), client=client, collection_configuration={"hnsw": HNSW})
        yield lambda: LangChainStore(store, filter=lambda place: {NAMESPACE: place})
        store.delete_collection()


class TestQdrant(StoreContract):
    at_scale = FEWER

    @pytest.fixture
    def open_store(self):
        client = QdrantClient(":memory:")
        client.create_collection("lessons", VectorParams(size=128, distance=Distance.COSINE))
        store = qdrant(client, 128)
        yield lambda: LangChainStore(store, filter=only)
        client.close()


def qdrant(client, size):
    # The check of the collection would embed a text that is no vector.
    return QdrantVectorStore(client, "lessons", LessonVectors(size), validate_collection_config=False)


def only(place):
    return Filter(must=[FieldCondition(key=f"metadata.{NAMESPACE}", match=MatchValue(value=place))])


def test_without_a_filter_a_namespace_far_away_is_found_behind_others():
    store = LangChainStore(InMemoryVectorStore(LessonVectors()))
    query = vectors(1)[0]
    near = [type(one)(id=one.id, vector=query) for one in entries(1000)]
    store.upsert(("many",), near)
    [far] = [type(one)(id="far", vector=-query) for one in entries(1)]
    store.upsert(("few",), [far])
    assert store.search(("few",), query, 5) == [("far", pytest.approx(-1.0, abs=1e-4))]


def test_a_store_with_another_embedding_is_refused(tmp_path):
    given = InMemoryVectorStore(HashingEmbeddings())
    with pytest.raises(ConfigurationError, match="LessonVectors"):
        open_store(StoreContext(path=tmp_path, given=given))


def test_the_name_alone_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="Give the object itself"):
        open_store(StoreContext(path=tmp_path))


def test_a_vector_that_does_not_fit_is_refused():
    store = LangChainStore(InMemoryVectorStore(LessonVectors(8)))
    with pytest.raises(StoreError, match=r"64 numbers is too long for LessonVectors\(size=8\)"):
        store.upsert(("a",), entries(1))


def test_vectors_of_another_size_are_refused():
    store = LangChainStore(InMemoryVectorStore(LessonVectors(64)))
    store.upsert(("a",), entries(1))
    with pytest.raises(StoreError, match="shape"):
        store.search(("a",), vectors(1, dim=8)[0], 1)


def test_text_that_is_no_vector_is_refused():
    with pytest.raises(StoreError, match="'refund policy' is no lesson's vector"):
        LessonVectors().embed_query("refund policy")


def test_a_store_that_fails_is_a_store_error():
    client = QdrantClient(":memory:")
    client.create_collection("lessons", VectorParams(size=64, distance=Distance.COSINE))
    store = LangChainStore(qdrant(client, 64), filter=only)
    store.upsert(("a",), entries(1))
    client.delete_collection("lessons")
    with pytest.raises(StoreError, match="QdrantVectorStore failed at searching") as caught:
        store.search(("a",), vectors(1)[0], 1)
    assert caught.value.__cause__ is not None
    client.close()


def test_lessons_are_found_through_the_users_own_store(tmp_path):
    given = InMemoryVectorStore(LessonVectors())
    with Reflection(None, path=tmp_path, store=given, embeddings=HashingEmbeddings()) as reflection:
        lesson = reflection.lessons.add(when="a refund is asked for", do="ask a manager above 200 EUR")
        for _ in range(3):
            found = reflection.lessons.search("refund above 200 EUR")
            reflection.flush()
        assert [one.lesson.id for one in found] == [lesson.id]
    assert [one["metadata"]["id"] for one in given.store.values()] == [lesson.id]
