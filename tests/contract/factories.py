"""How the contract suite opens each registered store: one line per store."""

from __future__ import annotations

from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.memory import InMemoryStore

from reflect_adapters.chroma import ChromaStore
from reflect_adapters.langchain import LangChainStore, LessonVectors
from reflect_adapters.langgraph import LangGraphStore
from reflect_adapters.pgvector import PgvectorStore
from reflect_adapters.qdrant import QdrantFolderStore
from reflect_middleware.exact import ExactStore

FACTORIES = {
    "chroma": lambda path: ChromaStore(path / "chroma"),
    "exact": lambda path: ExactStore(),
    "qdrant": lambda path: QdrantFolderStore(path / "qdrant"),
    "langchain": lambda path: LangChainStore(InMemoryVectorStore(LessonVectors(128))),
    "langgraph": lambda path: LangGraphStore(InMemoryStore()),
}
"""Entry point name -> a function of the test's own folder that opens the store; each call opens the same data."""
ON_POSTGRES = {
    "pgvector": PgvectorStore,
}
"""The same for stores in PostgreSQL: functions of the URL of the test's own database."""
BREAK = {
    "chroma": lambda store: setattr(store._client().collections.api._server, "bindings", None),
    "langchain": lambda store: setattr(store._store, "store", None),
    "langgraph": lambda store: setattr(store._store, "_data", None),
    "qdrant": lambda store: store._source._held.client.close(),
}
"""How to make what lies under an open store fail. Not `exact`: nothing lies under it. Those on a server lose it."""
