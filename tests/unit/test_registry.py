from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.memory import InMemoryStore

from reflect_middleware import registry
from reflect_middleware.errors import (
    ConfigurationError,
    EmbedderError,
    MissingExtraError,
    StoreError,
    StoreLockedError,
    UnknownStoreError,
)
from reflect_middleware.exact import ExactStore
from reflect_middleware.store import StoreContext
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.testing.store_contract import entries


@pytest.fixture
def context(tmp_path):
    return StoreContext(path=tmp_path / "store")


@pytest.fixture
def plugins(monkeypatch):
    """Announce functions of a made-up module, and only them: {name: function} for stores or embedders."""
    module = ModuleType("made_up_plugin")
    module.__spec__ = importlib.machinery.ModuleSpec("made_up_plugin", None)
    monkeypatch.setitem(sys.modules, "made_up_plugin", module)
    announced = {registry.STORES: {}, registry.WRAPPERS: {}, registry.EMBEDDERS: {}}

    def announce(group, **functions):
        for name, function in functions.items():
            attribute = name.replace(".", "_")
            setattr(module, attribute, function)
            value = f"{'made_up_plugin' if function else 'missing_plugin.deep'}:{attribute}"
            announced[group][name] = importlib.metadata.EntryPoint(name, value, group)

    monkeypatch.setattr(registry, "installed", announced.__getitem__)
    return announce


def raising(error):
    def factory(*_):
        raise error

    return factory


def test_the_package_announces_its_stores_and_embedders():
    assert {"chroma", "exact"} <= set(registry.installed(registry.STORES))
    assert {"local", "chroma", "hashing"} <= set(registry.installed(registry.EMBEDDERS))


def test_a_name_opens_the_store(context):
    registry.check_store("exact")
    store = registry.open_store("exact", context)
    assert isinstance(store, ExactStore)
    assert not context.path.exists()


def test_the_exact_stores_option_and_vectors_come_from_the_context(context):
    reads = []
    asked = StoreContext(
        path=context.path, options={"max_namespaces": "1"}, vectors=lambda namespace: reads.append(namespace) or ()
    )
    store = registry.open_store("exact", asked)
    for name in ("a", "b", "a"):
        store.ids((name,))
    assert reads == [("a",), ("b",), ("a",)]


@pytest.mark.parametrize("url", ["far://host:6333", "far+tls://host"])
def test_a_url_opens_the_store_of_its_scheme(plugins, context, url):
    seen = []
    plugins(registry.STORES, far=lambda given: seen.append(given.url) or ExactStore())
    registry.check_store(url)
    registry.open_store(url, context)
    registry.open_store("far", context)
    assert seen == [url, ""]


def test_an_object_is_taken_as_it_is(context):
    store = ExactStore()
    registry.check_store(store)
    assert registry.open_store(store, context) is store


def test_an_object_that_an_adapter_wraps_is_given_to_it(context):
    given = InMemoryStore()
    registry.check_store(given)
    store = registry.open_store(given, context)
    store.upsert(("a",), entries(1))
    store.close()
    assert [item.value["id"] for item in given.search(())] == ["id-0"]


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("chromadb.api.ClientAPI", "chroma"),
        ("chromadb.api.async_api.AsyncClientAPI", "chroma"),
        ("langchain_core.vectorstores.base.VectorStore", "langchain"),
        ("langgraph.store.base.BaseStore", "langgraph"),
        ("qdrant_client.qdrant_client.QdrantClient", "qdrant"),
    ],
)
def test_the_classes_that_adapters_wrap_are_called_so_where_they_are_made(name, adapter):
    module, _, wanted = name.rpartition(".")
    cls = getattr(pytest.importorskip(module, reason="an extra is not installed"), wanted)
    assert f"{cls.__module__}.{cls.__qualname__}" == name
    assert registry.installed(registry.WRAPPERS)[name].module == f"reflect_adapters.{adapter}"


def test_an_object_is_wrapped_by_its_nearest_class(plugins, context):
    class Mine(InMemoryStore):
        """A class of the user's."""

    seen = []
    names = {"langgraph.store.base.BaseStore": None, "langgraph.store.memory.InMemoryStore": None}
    names["langgraph.store.memory.InMemoryStore"] = lambda context: seen.append(context.given) or ExactStore()
    plugins(registry.WRAPPERS, **names)
    given = Mine()
    assert isinstance(registry.open_store(given, context), ExactStore)
    assert seen == [given]


def test_a_wrapper_whose_module_is_missing_is_refused_early(plugins):
    plugins(registry.WRAPPERS, **{"langgraph.store.base.BaseStore": None})
    with pytest.raises(ConfigurationError, match=r"'missing_plugin\.deep' is missing"):
        registry.check_store(InMemoryStore())


@pytest.mark.parametrize("call", [registry.check_store, lambda spec: registry.open_store(spec, None)])
def test_an_unknown_name_lists_the_installed_ones(call):
    with pytest.raises(UnknownStoreError, match=r"'qdrnt'; installed: .*chroma, exact"):
        call("qdrnt")


def test_without_any_entry_point_the_error_says_to_install(plugins):
    with pytest.raises(UnknownStoreError, match=r"installed: none\..*pip install -e \."):
        registry.check_store("chroma")


@pytest.mark.parametrize(
    ("spec", "todo"),
    [
        (InMemoryStore, "not the class"),
        (InMemoryVectorStore, "not the class"),
        (object(), "BaseLessonStore"),
        (ExactStore, "not the class"),
        (None, "BaseLessonStore"),
    ],
)
@pytest.mark.parametrize("call", [registry.check_store, lambda spec: registry.open_store(spec, None)])
def test_other_objects_are_refused_with_what_is_allowed(call, spec, todo):
    with pytest.raises(ConfigurationError, match="chroma, exact") as caught:
        call(spec)
    assert todo in str(caught.value)


def test_a_store_whose_module_is_missing_is_refused_early(plugins):
    plugins(registry.STORES, gone=None)
    with pytest.raises(ConfigurationError, match=r"'missing_plugin\.deep' is missing"):
        registry.check_store("gone")


def test_checking_does_not_import_the_stores_module():
    sys.modules.pop("reflect_adapters.exact", None)
    registry.check_store("exact")
    assert "reflect_adapters.exact" not in sys.modules


def test_errors_of_a_factory_are_wrapped_and_ours_pass(plugins, context):
    plugins(registry.STORES, broken=raising(OSError("boom")), locked=raising(StoreLockedError("held")), wrong=dict)
    with pytest.raises(StoreError, match=r"'broken'.*OSError: boom") as caught:
        registry.open_store("broken", context)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StoreLockedError, match="held"):
        registry.open_store("locked", context)


def test_a_factory_must_give_a_store(plugins, context):
    plugins(registry.STORES, wrong=lambda _: InMemoryStore())
    with pytest.raises(StoreError, match="gave a InMemoryStore, which is no LessonStore"):
        registry.open_store("wrong", context)


def test_a_named_embedder_is_built_on_first_use(plugins):
    built = []
    plugins(registry.EMBEDDERS, mine=lambda: built.append(1) or HashingEmbeddings(16))
    embedder = registry.open_embedder("mine")
    assert built == []
    assert embedder.dim == 16
    assert built == [1]


def test_an_embeddings_object_is_taken_as_it_is():
    assert registry.open_embedder(HashingEmbeddings(32)).dim == 32
    assert registry.open_embedder("hashing").id == "HashingEmbeddings:hashing:256"


def test_the_default_is_the_first_that_works(plugins):
    missing = raising(MissingExtraError("The embedder 'local'", "local"))
    plugins(registry.EMBEDDERS, local=missing, chroma=lambda: HashingEmbeddings(8))
    assert registry.open_embedder(None).dim == 8


def test_when_no_default_works_the_error_names_the_choices(plugins):
    plugins(registry.EMBEDDERS, local=raising(MissingExtraError("The embedder 'local'", "local")))
    with pytest.raises(EmbedderError, match=r"local: .*chroma: .*embeddings=<any langchain Embeddings>"):
        registry.open_embedder(None).embed_query("task")


@pytest.mark.parametrize("spec", ["hashng", 7, HashingEmbeddings])
def test_other_embedders_are_refused_with_what_is_allowed(spec):
    with pytest.raises(ConfigurationError, match=r"embeddings is .*chroma, hashing, local"):
        registry.open_embedder(spec)


def test_an_embedder_whose_module_is_missing_is_refused_early(plugins):
    plugins(registry.EMBEDDERS, gone=None)
    with pytest.raises(ConfigurationError, match=r"'missing_plugin\.deep' is missing"):
        registry.check_embedder("gone")


def test_errors_of_an_embedders_factory_are_wrapped(plugins):
    plugins(registry.EMBEDDERS, broken=raising(OSError("boom")), wrong=dict)
    with pytest.raises(EmbedderError, match=r"'broken'.*OSError: boom"):
        registry.open_embedder("broken").embed_query("task")
    with pytest.raises(EmbedderError, match="gave a dict"):
        registry.open_embedder("wrong").embed_query("task")


def test_a_provider_string_goes_to_langchain(monkeypatch):
    module = ModuleType("langchain.embeddings")
    module.init_embeddings = lambda spec: HashingEmbeddings(len(spec))
    monkeypatch.setitem(sys.modules, "langchain.embeddings", module)
    assert registry.open_embedder("made-up:model").dim == len("made-up:model")
    monkeypatch.setitem(sys.modules, "langchain.embeddings", None)
    with pytest.raises(MissingExtraError, match=r"reflect-middleware\[langchain\]"):
        registry.open_embedder("made-up:model").embed_query("task")


def test_embeddings_is_what_langchain_calls_embeddings():
    assert issubclass(HashingEmbeddings, Embeddings)
