"""From a name to a store or an embedder: installed packages announce theirs by entry point."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from reflect_middleware.embed import Embedder
from reflect_middleware.errors import (
    ConfigurationError,
    EmbedderError,
    MissingExtraError,
    ReflectError,
    StoreError,
    UnknownStoreError,
)
from reflect_middleware.store import LessonStore, StoreContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

    from langchain_core.embeddings import Embeddings

STORES = "reflect_middleware.stores"
"""Entry points of this group name a `StoreFactory`."""
WRAPPERS = "reflect_middleware.store_wrappers"
"""Entry points of this group name a `StoreFactory` too. Their own name is a class (`langgraph.store.base.BaseStore`):
the factory gets objects of that class, or of one derived from it, as the context's `given`."""
EMBEDDERS = "reflect_middleware.embedders"
"""Entry points of this group name a callable without arguments that gives a langchain `Embeddings`."""
SECRETS = ("pass", "key", "token", "secret")
"""What a parameter of a store's URL is named that neither the ledger nor a message may have."""
DEFAULT_EMBEDDERS = ("local", "chroma")
"""Tried in this order when no embedder is named."""


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name. Takes milliseconds: it reads the metadata of all installed packages."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def check_store(spec: object) -> None:
    """Refuse a store that cannot be opened, without opening it or importing its module.

    Raises:
        UnknownStoreError: no installed store has this name.
        ConfigurationError: neither a name nor a store, or its module is missing.
    """
    if isinstance(spec, str):
        _check_module("store", spec, _store_point(spec))
    elif (point := _wrapper(spec)) is not None:
        _check_module("store", spec, point)
    else:
        _as_store(spec)


def open_store(spec: object, context: StoreContext) -> LessonStore:
    """The store that `spec` names, or `spec` itself if it is one.

    Args:
        spec: an installed store's name (`chroma`), a URL whose scheme is one (`qdrant://host`), a `LessonStore`, or an
            object of a class that an installed adapter wraps (a LangGraph `BaseStore`).
        context: for the store's factory; its `url` and `given` are filled in here.

    Raises:
        UnknownStoreError: no installed store has this name.
        ConfigurationError: neither a name nor a store.
        StoreError: the store failed to open; `StoreLockedError` if another process has it.
    """
    if isinstance(spec, str):
        return _made(_store_point(spec), replace(context, url=spec if "://" in spec else ""))
    point = _wrapper(spec)
    return _as_store(spec) if point is None else _made(point, replace(context, given=spec))


def shown(spec: object) -> str:
    """A store as it may be shown: a name, a URL without its secrets, the class of an object."""
    if not isinstance(spec, str):
        return type(spec).__name__
    return spec if kept(spec) else f"{spec.partition('://')[0]}://{urlsplit(spec).hostname or ''}{urlsplit(spec).path}"


def kept(spec: object) -> bool:
    """Whether a store may be named in the ledger: by a name, or a URL without a password."""
    if not isinstance(spec, str):
        return False
    parts = urlsplit(spec)
    named = [key.lower() for key, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return parts.password is None and not any(secret in key for key in named for secret in SECRETS)


def _made(point: EntryPoint, context: StoreContext) -> LessonStore:
    try:
        store = point.load()(context)
    except ReflectError:
        raise
    except Exception as exc:
        raise StoreError(f"The store {point.name!r} ({point.value}) failed to open ({_short(exc)}).") from exc
    if not isinstance(store, LessonStore):
        raise StoreError(
            f"The store {point.name!r} ({point.value}) gave a {type(store).__name__}, which is no LessonStore. "
            "Its factory must give a subclass of reflect_middleware.store.BaseLessonStore."
        )
    return store


def check_embedder(spec: object) -> None:
    """Refuse an embedder that cannot be opened, without opening it or importing its module.

    Raises:
        ConfigurationError: neither None, a known name, a langchain model string nor a langchain `Embeddings`.
    """
    if isinstance(spec, str):
        points = installed(EMBEDDERS)
        if spec in points:
            _check_module("embeddings", spec, points[spec])
        elif ":" not in spec:
            raise ConfigurationError("embeddings", spec, _embedder_choices(points), _todo(points))
    elif spec is not None and not _is_embeddings(spec):
        raise ConfigurationError("embeddings", spec, _embedder_choices(installed(EMBEDDERS)))


def open_embedder(spec: Embeddings | str | None) -> Embedder:
    """An `Embedder` that builds its model on first use; nothing is loaded here.

    Args:
        spec: None for the first of `DEFAULT_EMBEDDERS` that works, an installed embedder's name, a string for
            langchain's `init_embeddings` (`openai:text-embedding-3-small`), or a langchain `Embeddings`.

    Raises:
        ConfigurationError: as `check_embedder`. On first use `EmbedderError` or `MissingExtraError`.
    """
    check_embedder(spec)
    if spec is None:
        return Embedder(_first_default)
    if isinstance(spec, str):
        name = spec
        return Embedder(lambda: _named_embedder(name))
    given = spec
    return Embedder(lambda: given)


def _store_point(spec: str) -> EntryPoint:
    points = installed(STORES)
    name = spec.partition("://")[0].partition("+")[0]
    if name not in points:
        raise UnknownStoreError(f"No installed store is named {name!r}; installed: {_names(points)}. {_todo(points)}")
    return points[name]


def _wrapper(spec: object) -> EntryPoint | None:
    """The adapter of the nearest class of an object that has one. Nothing is imported: classes are known by name."""
    if isinstance(spec, type | LessonStore):
        return None
    points = installed(WRAPPERS)
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(spec).__mro__)
    return next((points[name] for name in names if name in points), None)


def _as_store(spec: object) -> LessonStore:
    if isinstance(spec, LessonStore) and not isinstance(spec, type):
        return spec
    allowed = (
        f"an installed store's name or URL ({_names(installed(STORES))}), an object of a LessonStore class, or of one "
        f"that an adapter wraps ({_names(installed(WRAPPERS))})"
    )
    todo = "Subclass reflect_middleware.store.BaseLessonStore, and give an object of it, not the class."
    raise ConfigurationError("store", spec, allowed, todo)


def _is_a(value: object, module: str, name: str) -> bool:
    """Is it an object of that class? Where the class's module was never imported, nothing can be."""
    parent = getattr(sys.modules.get(module), name, None)
    return parent is not None and isinstance(value, parent)


def _is_embeddings(value: object) -> bool:
    return not isinstance(value, type) and _is_a(value, "langchain_core.embeddings", "Embeddings")


def _check_module(what: str, spec: object, point: EntryPoint) -> None:
    try:
        found = importlib.util.find_spec(point.module) is not None
    except ImportError:
        found = False
    if not found:
        allowed = f"a name whose package is complete, but the module {point.module!r} is missing"
        raise ConfigurationError(what, spec, allowed, "Install the package that registers it again.")


def _first_default() -> Embeddings:
    """The first default embedder that works, tried in order."""
    failures: list[str] = []
    for name in DEFAULT_EMBEDDERS:
        try:
            return _named_embedder(name)
        except (EmbedderError, MissingExtraError) as exc:
            failures.append(f"{name}: {exc}")
    raise EmbedderError(
        "No default embedder works, so lessons can be neither found nor added. " + " ".join(failures) + " Choices: "
        "pip install 'reflect-middleware[local]' (22 MB, no network), or embeddings=<any langchain Embeddings>."
    )


def _named_embedder(name: str) -> Embeddings:
    points = installed(EMBEDDERS)
    build: Callable[[], Any] = (lambda: _init_embeddings(name)) if name not in points else points[name].load()
    try:
        embeddings = build()
    except ReflectError:
        raise
    except Exception as exc:
        raise EmbedderError(f"The embedder {name!r} failed to open ({_short(exc)}).") from exc
    if not _is_embeddings(embeddings):
        raise EmbedderError(f"The embedder {name!r} gave a {type(embeddings).__name__}; it must be an Embeddings.")
    result: Embeddings = embeddings
    return result


def _init_embeddings(spec: str) -> Any:
    if ":" not in spec:
        points = installed(EMBEDDERS)
        raise EmbedderError(f"No installed embedder is named {spec!r}; installed: {_names(points)}. {_todo(points)}")
    try:
        from langchain.embeddings import init_embeddings
    except ImportError as exc:
        raise MissingExtraError(f"The embedder {spec!r}", "langchain") from exc
    return init_embeddings(spec)


def _embedder_choices(points: dict[str, EntryPoint]) -> str:
    return f"None, an installed name ({_names(points)}), 'provider:model', or an object of a langchain Embeddings class"


def _names(points: dict[str, EntryPoint]) -> str:
    return ", ".join(sorted(points)) or "none"


def _todo(points: dict[str, EntryPoint]) -> str:
    if points:
        return "Install the package that brings it, or use an installed one."
    return "They are found by entry point, so the package must be installed: pip install -e . in a source tree."


def _short(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
