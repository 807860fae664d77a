"""Reaching into LangChain and LangGraph where they offer no hook; what it leans on is listed in `private.py`."""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import wraps
from types import FrameType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables.config import var_child_runnable_config

from reflect_middleware.private import CONVERT, ENTERING, INSIDE

logger = logging.getLogger(__name__)

Change = Callable[[PromptValue, Mapping[str, Any]], PromptValue]
"""What a model is called with, and the call's config; gives what it is to be called with."""
_MARK = "reflect_hook"
_CORE_FILE = sys.modules[BaseChatModel.__module__].__file__
_merges: bool | None = None


def at_every_model_call(wanted: Callable[[], bool], change: Change) -> None:
    """Let `change` see each call of a chat model in this process while `wanted`; once, however often this is called."""
    if hasattr(BaseChatModel, CONVERT):
        _hook_conversion(wanted, change)
    elif not hasattr(BaseChatModel.invoke, _MARK):
        logger.warning("reflect: this langchain-core has no BaseChatModel.%s; hooking its public methods", CONVERT)
        _hook_methods(wanted, change)


def merges_callbacks() -> bool:
    """Whether this langgraph adds a run's callbacks to those around it (newer) or lets them replace those (older)."""
    global _merges  # noqa: PLW0603 - found out once
    if _merges is None:
        try:
            from langgraph._internal._config import ensure_config

            one, two = BaseCallbackHandler(), BaseCallbackHandler()
            found = ensure_config({"callbacks": [one]}, {"callbacks": [two]}).get("callbacks")
            _merges = isinstance(found, list) and one in found and two in found
        except Exception as error:  # noqa: BLE001 - gone or changed
            logger.warning("reflect: this langgraph has no ensure_config (%r); running a graph to see", error)
            _merges = contextvars.Context().run(_seen_to_merge)
    return _merges


def in_a_run_that_starts() -> bool:
    """Whether a channel is read here because a run starts, and not because somebody looks at a graph's state."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing else tells the two apart
    for _ in range(6):
        if frame is None:
            return False
        if frame.f_code.co_name in ENTERING and str(frame.f_globals.get("__name__")).startswith("langgraph."):
            return True
        frame = frame.f_back
    return False


def _hook_conversion(wanted: Callable[[], bool], change: Change) -> None:
    original = getattr(BaseChatModel, CONVERT)
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def convert(self: BaseChatModel, model_input: Any) -> PromptValue:
        value: PromptValue = original(self, model_input)
        if not wanted():
            return value
        caller = sys._getframe(1)  # noqa: SLF001 - who converts, and with which config, is told by nothing else
        return change(value, _config_of(caller)) if _opens_a_call(caller) else value

    setattr(convert, _MARK, True)
    setattr(BaseChatModel, CONVERT, convert)


def _hook_methods(wanted: Callable[[], bool], change: Change) -> None:
    """A method that another one of these calls sees the lessons stand already."""

    def changed(given: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not wanted():
            return given
        config = (args[0] if args else kwargs.get("config")) or var_child_runnable_config.get() or {}
        value = given if isinstance(given, PromptValue) else ChatPromptValue(messages=_messages(given))
        return change(value, config)

    invoke, ainvoke, stream, astream = (getattr(BaseChatModel, n) for n in ("invoke", "ainvoke", "stream", "astream"))

    @wraps(invoke)
    def invoke_(self: BaseChatModel, input: Any, *args: Any, **kwargs: Any) -> Any:
        return invoke(self, changed(input, args, kwargs), *args, **kwargs)

    @wraps(ainvoke)
    async def ainvoke_(self: BaseChatModel, input: Any, *args: Any, **kwargs: Any) -> Any:
        return await ainvoke(self, changed(input, args, kwargs), *args, **kwargs)

    @wraps(stream)
    def stream_(self: BaseChatModel, input: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from stream(self, changed(input, args, kwargs), *args, **kwargs)

    @wraps(astream)
    async def astream_(self: BaseChatModel, input: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for chunk in astream(self, changed(input, args, kwargs), *args, **kwargs):
            yield chunk

    setattr(invoke_, _MARK, True)
    for hooked in (invoke_, ainvoke_, stream_, astream_):
        setattr(BaseChatModel, hooked.__name__, hooked)


def _messages(given: Any) -> Any:
    return convert_to_messages([("human", given)] if isinstance(given, str) else given)


def _config_of(caller: FrameType) -> Mapping[str, Any]:
    """The config of the model call: its callbacks and metadata name the run and, maybe, the purpose it is made for."""
    config = caller.f_locals.get("config") if caller.f_code.co_filename == _CORE_FILE else None
    return config if isinstance(config, Mapping) else var_child_runnable_config.get() or {}


def _opens_a_call(frame: FrameType | None) -> bool:
    """Whether this conversion opens a model call.

    Provider classes convert again while they build the request, some after taking the system text out of the messages:
    those conversions come from inside `_generate` and its kin, and must not get the lessons a second time.
    """
    for _ in range(12):
        if frame is None:
            return True
        if frame.f_code.co_name in INSIDE:
            return False
        if frame.f_code.co_filename == _CORE_FILE:
            return True
        frame = frame.f_back
    return True


def _seen_to_merge() -> bool:
    from langgraph.graph import START, StateGraph

    class Hears(BaseCallbackHandler):
        heard = False

        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            self.heard = True

    one, two = Hears(), Hears()
    graph: Any = StateGraph(dict)
    graph.add_node("node", lambda _: {})
    graph.add_edge(START, "node").compile().with_config(callbacks=[one]).invoke({}, {"callbacks": [two]})
    return one.heard
