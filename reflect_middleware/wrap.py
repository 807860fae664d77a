"""The wrapped graph: the same graph, of a class that differs only in what drives a run."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import wraps
from typing import Any, TypeVar

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.pregel import Pregel

from reflect_middleware import boundary, remote
from reflect_middleware.boundary import active
from reflect_middleware.core import Core
from reflect_middleware.errors import WrapError
from reflect_middleware.hooks import merges_callbacks
from reflect_middleware.session import Session, Spec
from reflect_middleware.types import EpisodeStatus

G = TypeVar("G")
LINK = "_reflect_link"
BASE = "_reflect_base"
COORDINATES = ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map")
"""With one of these of its own a nested run addresses another checkpoint, and langgraph drops the inherited ones."""
_classes: dict[type, type] = {}


class Link:
    """What ties a wrapped graph to its Reflection."""

    def __init__(self, core: Core, spec: Spec) -> None:
        self.core = core
        self.spec = spec

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        return self  # a copied graph still reports to the same Reflection

    def begin(self, graph: Any, graph_input: Any, config: RunnableConfig | None, context: Any) -> Session | None:
        """The session for a run that starts now; None if it is to be left alone."""
        try:
            merged = effective(graph.config, config)
        except Exception as error:  # noqa: BLE001 - a config that langgraph will refuse in its own words
            self.core.failed("begin", error)
            return None
        session = self.core.begin(self.spec, graph_input, merged, context)
        if session is not None and (run_id := merged.get("run_id")):
            session.fallback_id = str(run_id)
        return session

    def adds_to(self, standing: Link, graph: Any) -> bool:
        """Whether this says anything that the link of a wrapped graph does not: another Reflection, name or rule."""
        if standing.core is not self.core:
            return True
        spec, options = self.spec, self.core.options
        plain = (agent_name(graph), options.rule, None, None, options.inject, options.read)
        return (
            spec != standing.spec and (spec.agent, spec.rule, spec.task, spec.reward, spec.inject, spec.read) != plain
        )


def wrap(graph: G, link: Link) -> G:
    """The wrapped form of a compiled graph, or of a RemoteGraph, whose runs are only recorded.

    A graph that is wrapped in the same way already is given back. Wrapped again with another name, rule or Reflection,
    the newer one counts: a run is recorded once.

    Raises:
        WrapError: If it is neither.
    """
    if not (isinstance(graph, Pregel) or remote.is_remote(graph)):
        raise WrapError(_not_a_graph(graph))
    standing = graph.__dict__.get(LINK)
    if standing is not None and not link.adds_to(standing, graph):
        return graph
    boundary.install()
    if standing is None and remote.is_remote(graph):
        remote.tell(link.spec.agent)
    wrapped = copy.copy(graph)
    wrapped.__class__ = _class_for(getattr(type(graph), BASE, type(graph)))
    wrapped.__dict__[LINK] = link
    return wrapped


def agent_name(graph: Any) -> str:
    """The name under which a graph's episodes are kept if `wrap` was told no other."""
    return str(getattr(graph, "name", "") or "LangGraph")


def effective(graph_config: RunnableConfig | None, config: RunnableConfig | None) -> dict[str, Any]:
    """What langgraph will make of the configs, as far as we read it: metadata and configurable."""
    ambient: Mapping[str, Any] = var_child_runnable_config.get() or {}
    own: dict[str, Any] = {**((graph_config or {}).get("configurable") or {})}
    own |= (config or {}).get("configurable") or {}
    inherited = {} if any(own.get(key) for key in COORDINATES) else ambient.get("configurable") or {}
    metadata: dict[str, Any] = {}
    for source in (ambient, graph_config or {}, config or {}):
        metadata |= source.get("metadata") or {}
    return {"configurable": {**inherited, **own}, "metadata": metadata, "run_id": (config or {}).get("run_id")}


def with_handler(
    graph_config: RunnableConfig | None, config: RunnableConfig | None, handler: BaseCallbackHandler
) -> RunnableConfig:
    """The run's config with our handler beside the callbacks that it would have had."""
    callbacks: Any = (config or {}).get("callbacks")
    if callbacks is None and not merges_callbacks():
        ambient: Mapping[str, Any] = var_child_runnable_config.get() or {}
        callbacks = (graph_config or {}).get("callbacks") or ambient.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        callbacks.add_handler(handler, inherit=True)
    elif callbacks is None or isinstance(callbacks, list):
        callbacks = [*(callbacks or ()), handler]
    else:
        return config or {}  # langgraph will refuse it in its own words
    merged: RunnableConfig = {**(config or {}), "callbacks": callbacks}
    return merged


def status_of(error: BaseException | None, session: Session) -> EpisodeStatus:
    """How a run ended, from what came out of its generator."""
    recorder = session.recorder
    if isinstance(error, GraphInterrupt):
        return "interrupted"
    if error is None or isinstance(error, GraphBubbleUp):
        return "interrupted" if recorder.interrupted else "completed"
    if isinstance(error, GeneratorExit):  # a consumer may leave as soon as it is told of the interrupt
        return "interrupted" if recorder.interrupted or recorder.paused else "abandoned"
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
        return "cancelled"
    return "failed"


def _drive(session: Session, start: Callable[[], Any]) -> Iterator[Any]:
    """Pass chunks on; our context variable is set only while the graph itself runs, in the caller's own context."""
    error: BaseException | None = None
    thrown: BaseException | None = None
    try:
        session.prepare()
        chunks = start()
        while True:
            token = active.set(session)
            try:
                chunk = next(chunks) if thrown is None else chunks.throw(thrown)
            except StopIteration:
                break
            finally:
                boundary.leave(token)
            session.passed(chunk)
            thrown = None
            try:
                yield chunk
            except GeneratorExit:
                chunks.close()
                raise
            except BaseException as given:  # noqa: BLE001 - the consumer's `throw`, passed on
                thrown = given
    except BaseException as raised:
        error = raised
        raise
    finally:
        done = session.finish(status_of(error, session), error)
        if error is None or isinstance(error, Exception):
            session.wait(done)
        error = thrown = None  # an error whose traceback holds this frame would keep both alive


def _class_for(base: type) -> type:
    """The wrapped class of a graph class: same name, same module, three methods of its own."""
    if base not in _classes:
        members = {
            "stream": _stream(base),
            "astream": _astream(base),
            "copy": _copy(base),
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            BASE: base,
        }
        _classes[base] = type(base.__name__, (base,), members)
    return _classes[base]


def _attach(graph: Any, session: Session, config: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(graph, Pregel):
        return remote.attach(graph, session, config, kwargs)
    return with_handler(graph.config, config, session.recorder), kwargs


def _stream(base: Any) -> Callable[..., Iterator[Any]]:
    @wraps(base.stream)
    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        session = self.__dict__[LINK].begin(self, input, config, kwargs.get("context"))
        if session is None:
            yield from base.stream(self, input, config, **kwargs)
        else:
            config, kwargs = _attach(self, session, config, kwargs)
            yield from _drive(session, lambda: base.stream(self, input, config, **kwargs))

    return stream


def _astream(base: Any) -> Callable[..., AsyncIterator[Any]]:  # noqa: C901 - an async generator cannot delegate
    @wraps(base.astream)
    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        session = self.__dict__[LINK].begin(self, input, config, kwargs.get("context"))
        error: BaseException | None = None
        try:
            if session is not None:
                config, kwargs = _attach(self, session, config, kwargs)
                await session.aprepare()
            chunks = base.astream(self, input, config, **kwargs)
            step = _first(chunks)
            # The same steps as in `_drive`. An async generator cannot delegate, so they stand here, in the one
            # generator that the consumer closes, cancels or throws into.
            while True:
                token = active.set(session) if session else None
                try:
                    chunk = await step
                except StopAsyncIteration:
                    break
                finally:
                    boundary.leave(token)
                if session:
                    session.passed(chunk)
                try:
                    yield chunk
                    step = anext(chunks)
                except GeneratorExit:
                    await chunks.aclose()
                    raise
                except BaseException as given:  # noqa: BLE001 - the consumer's `athrow`, passed on
                    step = chunks.athrow(given)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if session:
                done = session.finish(status_of(error, session), error)
                if error is None or isinstance(error, Exception):
                    await session.await_(done)
            error = None

    return astream


def _first(chunks: Any) -> Any:
    """The first step of an async generator that is ours to close.

    An event loop that ends closes the generators that it knows of, all at once: one that another is closing would fail.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return anext(chunks)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _copy(base: Any) -> Callable[..., Any]:
    @wraps(base.copy)
    def copy_(self: Any, update: dict[str, Any] | None = None) -> Any:
        bare = copy.copy(self)
        bare.__class__ = base
        link = bare.__dict__.pop(LINK)
        copied = base.copy(bare, update)
        copied.__class__ = type(self)
        copied.__dict__[LINK] = link
        return copied

    return copy_


def _not_a_graph(given: Any) -> str:
    kind = type(given).__name__
    if hasattr(given, "compile"):
        return f"wrap got a {kind} that is not compiled; allowed: a compiled graph. Write wrap(builder.compile())."
    return (
        f"wrap got a {kind}: {given!r:.80}; allowed: a compiled LangGraph graph (what .compile(), create_agent or"
        " @entrypoint gives). For another runnable, make it a node of a graph first."
    )
