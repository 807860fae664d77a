"""A chat model that answers from a script and remembers what it was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import PrivateAttr

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun

Answer = str | AIMessage | Exception | Callable[[list[BaseMessage]], str | AIMessage]
"""What one call gives: a text, a message, an error to raise, or a function of the messages that gives either."""


class _Script:
    """The answers, shared by every binding and copy of a model, one at a time."""

    def __init__(self, answers: Sequence[Answer] | Callable[[list[BaseMessage]], str | AIMessage]) -> None:
        self.lock = threading.Lock()
        self.every = answers if callable(answers) else None
        self.answers: list[Answer] = [] if callable(answers) else list(answers)
        self.calls: list[list[BaseMessage]] = []
        self.options: list[dict[str, Any]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Script:
        return self

    def next(self, messages: list[BaseMessage], options: dict[str, Any]) -> Answer:
        with self.lock:
            self.calls.append([message.model_copy(deep=True) for message in messages])
            self.options.append(options)
            if self.every is not None:
                return self.every
            if len(self.calls) > len(self.answers):
                raise IndexError(
                    f"ScriptedChatModel was called {len(self.calls)} times and has {len(self.answers)} answers. "
                    "Give it more, or one function for all calls."
                )
            return self.answers[len(self.calls) - 1]


class ScriptedChatModel(BaseChatModel):
    """Gives `answers` in order, or what the one function says, to `invoke`, `ainvoke`, `stream` and `astream`.

    Usage is counted in words, so that tests can foretell it. Tools are kept, and found again in `options`.

    Args:
        answers: a list, used up in order across threads and bindings, or one function of the messages for all calls.
        structured_output: True for `with_structured_output`, which reads the answer's text as JSON. By default the
            model has none, as many have not.
    """

    structured_output: bool = False
    _script: _Script = PrivateAttr()

    def __init__(
        self, answers: Sequence[Answer] | Callable[[list[BaseMessage]], str | AIMessage] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._script = _Script(answers)

    @property
    def calls(self) -> list[list[BaseMessage]]:
        """The messages of each call so far, as they were then."""
        return self._script.calls

    @property
    def options(self) -> list[dict[str, Any]]:
        """The other arguments of each call so far, such as `tools`."""
        return self._script.options

    @property
    def prompts(self) -> list[str]:
        """Each call's messages as one text, for `assert "…" in model.prompts[0]`."""
        return ["\n".join(str(message.text) for message in call) for call in self.calls]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Keep the tools; they change no answer."""
        return self.bind(tools=list(tools), **kwargs)

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Runnable[Any, Any]:
        """The answer's text as JSON, checked by `schema` where that is a pydantic class."""
        if not self.structured_output:
            raise NotImplementedError(
                "This ScriptedChatModel has no structured output: structured_output=True gives it."
            )
        return self | RunnableLambda(lambda message: _parsed(message, schema, include_raw=include_raw))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, kwargs)):
            if run_manager is not None:
                await run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
            yield chunk

    def _answer(self, messages: list[BaseMessage], options: dict[str, Any]) -> AIMessage:
        answer = self._script.next(messages, options)
        if isinstance(answer, Exception):
            raise answer
        given = answer(messages) if callable(answer) else answer
        message = AIMessage(given) if isinstance(given, str) else given.model_copy(deep=True)
        message.usage_metadata = message.usage_metadata or _usage(messages, message)
        return message


def _usage(messages: list[BaseMessage], answer: AIMessage) -> UsageMetadata:
    """One token a word."""
    read = sum(len(str(message.text).split()) for message in messages)
    written = len(str(answer.text).split())
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """Word by word; then the tool calls and the usage in one last chunk."""
    for word in re.findall(r"\s*\S+|\s+$", message.content) if isinstance(message.content, str) else []:
        yield ChatGenerationChunk(message=AIMessageChunk(content=word, id=message.id))
    calls = [
        tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
        for index, call in enumerate(message.tool_calls)
    ]
    last = AIMessageChunk(
        content="" if isinstance(message.content, str) else message.content,
        id=message.id,
        tool_call_chunks=calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)


def _parsed(message: AIMessage, schema: Any, *, include_raw: bool) -> Any:
    try:
        value = json.loads(str(message.text))
        parsed = schema.model_validate(value) if hasattr(schema, "model_validate") else value
    except ValueError as exc:
        if not include_raw:
            raise
        return {"raw": message, "parsed": None, "parsing_error": exc}
    return {"raw": message, "parsed": parsed, "parsing_error": None} if include_raw else parsed
