"""Asking a chat model for JSON in the best way that it has: found out by trying, and then remembered."""

from __future__ import annotations

import inspect
import json
import re
import threading
from typing import TYPE_CHECKING, Any, Final, cast

from reflect_middleware.due import blameless

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

METHODS: Final = ("json_schema", "function_calling", "json_mode")
"""What `with_structured_output` of the providers' packages calls its methods; the strictest first."""
TOOLS: Final = "tools"
"""Structured output of a class that does not let one choose how, which makes it of tool calls."""
TEXT: Final = "text"
ONE_MESSAGE: Final = "one message"
"""All in one user message, for models that have no system role or take no answers of others."""
UNREAD: Final = 2
"""After so many answers in a row that could not be read, a structured way gives way to the next one."""
SEEDS: Final = ("seed", "random_seed")
"""What chat model classes call the field for a seed."""

_CUT = ("length", "max_tokens", "max_output_tokens", "model_length")
_SERVERS_FAULT = 500
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|maximum context|too many tokens|prompt is too", re.IGNORECASE
)


def ways(model: Any) -> tuple[str, ...]:
    """How this model can be asked, in the order in which it is tried.

    First the method that its own package prefers, then the others that it names, then plain text.
    """
    try:
        structured = getattr(model, "with_structured_output", None)
        method = inspect.signature(structured).parameters.get("method") if callable(structured) else None
    except Exception:  # noqa: BLE001 - langchain's chains of models look at type hints that need not be there
        structured = method = None
    if method is None:
        return (*([TOOLS] if callable(structured) else []), TEXT, ONE_MESSAGE)
    named = re.findall(r"['\"](\w+)['\"]", str(method.annotation)) or METHODS
    first = method.default if isinstance(method.default, str) else METHODS[1]
    return (*dict.fromkeys([first, *(name for name in METHODS if name in named)]), TEXT, ONE_MESSAGE)


class Asking:
    """One chat model and what works with it. Threads may share it."""

    def __init__(self, model: BaseChatModel, seed: int | None = None) -> None:
        self._plain = model
        self._model = seeded(model, seed)
        self.ways = ways(model)
        """What has not failed yet, the next to be tried first."""
        self._unread = 0
        self._lock = threading.Lock()

    def ask(self, messages: Sequence[BaseMessage], schema: dict[str, Any] | None) -> tuple[BaseMessage, str]:
        """The reply, and the way in which it was got; without a schema in plain text.

        A way that fails while a later one works is not tried again. A busy or absent provider is no matter of ways.
        """
        refused: list[str] = []
        standing = self.ways if schema is not None else self.ways[self.ways.index(TEXT) :] if TEXT in self.ways else ()
        for way in standing or (ONE_MESSAGE,):
            try:
                reply = self._try(way, messages, schema)
            except Exception as error:
                if (begun := begun_in(error)) is not None:
                    return begun, way
                if way == ONE_MESSAGE or _is_no_matter_of_ways(error):
                    raise
                refused += [] if _status(error) == _SERVERS_FAULT else [way]
            else:
                self._forget(refused)
                return reply, way
        raise AssertionError("unreachable: the last way returns or raises")  # pragma: no cover

    def note(self, way: str, *, readable: bool) -> None:
        """Whether the answer got in this way could be read: a structured way that gives nothing is given up."""
        if way in (TEXT, ONE_MESSAGE):
            return
        self._unread = 0 if readable else self._unread + 1
        if self._unread >= UNREAD:
            self._unread = 0
            self._forget([way])

    def _forget(self, refused: Sequence[str]) -> None:
        with self._lock:
            self.ways = tuple(way for way in self.ways if way not in refused)

    def _try(self, way: str, messages: Sequence[BaseMessage], schema: dict[str, Any] | None) -> BaseMessage:
        try:
            return _asked(self._model, way, messages, schema)
        except Exception as error:
            if self._model is self._plain or not any(seed in str(error).lower() for seed in SEEDS):
                raise
            self._model = self._plain  # a server that takes no seed
            return _asked(self._model, way, messages, schema)


def _asked(model: Any, way: str, messages: Sequence[BaseMessage], schema: dict[str, Any] | None) -> BaseMessage:
    """One call."""
    if way == TEXT:
        return cast("BaseMessage", model.invoke(list(messages), config=config()))
    if way == ONE_MESSAGE:
        from langchain_core.messages import HumanMessage

        whole = "\n\n".join(str(message.text) for message in messages)
        return cast("BaseMessage", model.invoke([HumanMessage(whole)], config=config()))
    chosen = {} if way == TOOLS else {"method": way}
    result = model.with_structured_output(schema, include_raw=True, **chosen).invoke(list(messages), config=config())
    return cast("BaseMessage", result["raw"])


def seeded(model: Any, seed: int | None) -> Any:
    """The model with the seed, where its class has a field for one that is still free; else the model itself.

    Its temperature is the user's and stays as it is.
    """
    fields = getattr(type(model), "model_fields", {})
    name = next((name for name in SEEDS if name in fields and getattr(model, name, 0) is None), None)
    return model if seed is None or name is None else model.model_copy(update={name: seed})


def config() -> RunnableConfig:
    """No parent's callbacks: the reflector's tokens must never enter the user's stream."""
    return {"callbacks": [], "run_name": "reflect", "tags": ["reflect"], "metadata": {}}


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_no_matter_of_ways(error: Exception) -> bool:
    """A provider that is away, busy, or refuses the account, the length or the content would do so in every way.

    Except 500, which some servers answer to a schema or a role that they cannot handle.
    """
    if _status(error) == _SERVERS_FAULT:
        return False
    return blameless(error) or "ContentFilter" in type(error).__name__ or bool(_TOO_LONG.search(str(error)))


def begun_in(error: BaseException) -> BaseMessage | None:
    """What the model had said when its answer was cut: openai's client raises it instead of giving it."""
    from langchain_core.messages import AIMessage

    completion = getattr(error, "completion", None)
    try:
        choice = completion.choices[0]  # type: ignore[union-attr]
        usage = completion.usage  # type: ignore[union-attr]
        if not choice.message.content:
            return None
        read, written = int(usage.prompt_tokens), int(usage.completion_tokens)
    except (AttributeError, IndexError, TypeError):
        return None
    return AIMessage(
        str(choice.message.content),
        response_metadata={"finish_reason": "length"},
        usage_metadata={"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
    )


def said(message: BaseMessage) -> list[str]:
    """The texts of a reply that may hold the answer, the likeliest first: arguments of calls, also broken ones, words.

    Thoughts, which come as blocks of their own, are no words of the answer.
    """
    calls = (json.dumps(call["args"], ensure_ascii=False) for call in getattr(message, "tool_calls", None) or [])
    broken = (str(call.get("args") or "") for call in getattr(message, "invalid_tool_calls", None) or [])
    texts = (*calls, *broken, str(message.text).strip(), *_refusals(message))
    return list(dict.fromkeys(text for text in texts if text and text != "{}"))


def _refusals(message: BaseMessage) -> Iterator[str]:
    """What a model said when it refused, where its provider keeps that apart."""
    yield str(message.additional_kwargs.get("refusal") or "")
    for block in message.content if isinstance(message.content, list) else []:
        if isinstance(block, dict) and block.get("type") == "refusal":
            yield str(block.get("refusal") or "")


def was_cut(message: BaseMessage) -> bool:
    """Whether the model had to stop at its limit of tokens."""
    about = getattr(message, "response_metadata", None) or {}
    incomplete = about.get("incomplete_details")
    reasons = [about.get("finish_reason"), about.get("stop_reason"), about.get("done_reason")]
    reasons += [incomplete.get("reason")] if isinstance(incomplete, dict) else []
    return any(str(reason).lower() in _CUT for reason in reasons if reason)
