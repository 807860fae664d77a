"""The agents that are measured: real graphs with models that answer at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

FIRST_TOKEN_SECONDS = 0.05
"""A fifth of what hosted models need at best."""


class Answering(BaseChatModel):
    """Answers at once, or after a while, and remembers nothing."""

    answer: Callable[[list[BaseMessage]], AIMessage] = lambda _: AIMessage("filed")
    seconds: float = 0.0
    """How long it waits first: a simulated provider."""

    @property
    def _llm_type(self) -> str:
        return "answering"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if self.seconds:
            time.sleep(self.seconds)
        return self._answered(messages)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return self._answered(messages)

    def _answered(self, messages: list[BaseMessage]) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.answer(messages))])


class SlowToStart(Answering):
    """Streams three tokens; the first one takes its time. A simulated provider."""

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        time.sleep(FIRST_TOKEN_SECONDS)
        for text in ("fi", "le", "d"):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
            if run_manager is not None:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk


def one_call() -> Any:
    """One model call."""
    return _calling(Answering())


def six_and_five(seconds: float = 0.0) -> Any:
    """Six model calls and five tool calls in a loop; each model call takes so many seconds longer."""

    @tool
    def look(place: int) -> str:
        """Look somewhere."""
        return f"nothing at {place}"

    def answer(messages: list[BaseMessage]) -> AIMessage:
        looked = sum(message.type == "tool" for message in messages)
        call = {"name": "look", "args": {"place": looked}, "id": f"call-{looked}"}
        return AIMessage("", tool_calls=[call]) if looked < 5 else AIMessage("filed")  # noqa: PLR2004 - six and five

    builder = StateGraph(MessagesState)
    builder.add_node("model", _node(Answering(answer=answer, seconds=seconds)))
    builder.add_node("tools", ToolNode([look]))
    builder.add_edge(START, "model").add_conditional_edges("model", tools_condition).add_edge("tools", "model")
    return builder.compile()


def slow_to_start() -> Any:
    """One call of a model that streams."""
    return _calling(SlowToStart())


def waiting(runs: int) -> tuple[Any, asyncio.Event, asyncio.Event]:
    """A graph whose runs wait in their one node; events: all are there, and go on."""
    arrived, go = asyncio.Event(), asyncio.Event()
    left = iter(range(runs - 1, -1, -1))

    async def wait(_: Any) -> Any:
        if next(left) == 0:
            arrived.set()
        await go.wait()
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("wait", RunnableLambda(wait))
    return builder.add_edge(START, "wait").compile(), arrived, go


def _calling(model: Any) -> Any:
    return (
        StateGraph(MessagesState)
        .add_node("model", _node(model))
        .add_edge(START, "model")
        .add_edge("model", END)
        .compile()
    )


def _node(model: Any) -> Any:
    def call(state: Any) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def acall(state: Any) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return RunnableLambda(call, acall)
