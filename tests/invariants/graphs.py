"""Real graphs that answer the same every time, and a way to compare what two of them gave."""

from __future__ import annotations

import operator
import re
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from reflect_middleware.testing import ScriptedChatModel

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


@tool
def weigh(item: str) -> str:
    """Weigh an item."""
    return f"{item} weighs 3 kg"


@tool
def broken(item: str) -> str:
    """Always fails."""
    raise ValueError(f"no scale for {item}")


def said(text: str = "done") -> AIMessage:
    """An answer whose usage does not depend on the prompt."""
    return AIMessage(text, usage_metadata=USAGE)


def calling(name: str = "weigh", call_id: str = "call-1", **args: Any) -> AIMessage:
    """An answer that calls one tool."""
    call = {"name": name, "args": args or {"item": "apple"}, "id": call_id, "type": "tool_call"}
    return AIMessage("", tool_calls=[call], usage_metadata=USAGE)


def once(call: AIMessage | None = None, text: str = "done") -> ScriptedChatModel:
    """A model that calls a tool, and answers when it has the result."""
    asked = call or calling()

    def answer(messages: list[BaseMessage]) -> AIMessage:
        return said(text) if isinstance(messages[-1], ToolMessage) else asked

    return ScriptedChatModel(answer)


def node(model: Any, *, key: str = "messages") -> RunnableLambda[Any, Any]:
    """A node with one model call, in sync and in async graphs."""

    def call(state: Any) -> Any:
        return {key: [model.invoke(state["messages"])]}

    async def acall(state: Any) -> Any:
        return {key: [await model.ainvoke(state["messages"])]}

    return RunnableLambda(call, acall)


def chat(model: Any | None = None, **options: Any) -> Any:
    """One model call."""
    builder = StateGraph(MessagesState).add_node("model", node(model or ScriptedChatModel(lambda _: said())))
    return builder.add_edge(START, "model").compile(**options)


def looping(model: Any | None = None, tools: Any = (weigh,), **options: Any) -> Any:
    """Model and tools in a hand-written loop."""
    builder = StateGraph(MessagesState)
    builder.add_node("model", node(model or once()))
    builder.add_node("tools", ToolNode(list(tools), handle_tool_errors=True))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile(**options)


def nested(inner: Any | None = None, **options: Any) -> Any:
    """A graph whose second node is a graph."""

    def before(state: Any) -> Any:
        get_stream_writer()({"before": len(state["messages"])})
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("before", before)
    builder.add_node("agent", inner or looping())
    builder.add_edge(START, "before")
    builder.add_edge("before", "agent")
    return builder.compile(**options)


class Sums(TypedDict):
    """A state without messages."""

    numbers: list[int]
    seen: Annotated[list[str], operator.add]


def fanning(model: Any | None = None, **options: Any) -> Any:
    """Three parallel tasks by Send, then one that gathers; no messages in the state."""
    asked = model or ScriptedChatModel(lambda messages: said(f"saw {messages[-1].text}"))

    def split(state: Sums) -> list[Send]:
        return [Send("look", {"number": number}) for number in state["numbers"]]

    def look(task: Any) -> Any:
        return {"seen": [str(asked.invoke(f"number {task['number']}").text)]}

    async def alook(task: Any) -> Any:
        return {"seen": [str((await asked.ainvoke(f"number {task['number']}")).text)]}

    builder = StateGraph(Sums)
    builder.add_node("look", RunnableLambda(look, alook))
    builder.add_node("gather", lambda state: {"seen": [str(len(state["seen"]))]})
    builder.add_conditional_edges(START, split, ["look"])
    builder.add_edge("look", "gather")
    builder.add_edge("gather", END)
    return builder.compile(**options)


class Asking(TypedDict, total=False):
    """The state of a graph that asks a person."""

    question: str
    answer: str


def asking(**options: Any) -> Any:
    """Pauses once for an answer."""

    def ask(state: Asking) -> Asking:
        return {"answer": interrupt({"please": state["question"]})}

    builder = StateGraph(Asking).add_node("ask", ask).add_node("end", lambda _: {})
    return builder.add_edge(START, "ask").add_edge("ask", "end").compile(**options)


_VOLATILE = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<hash>"),
    (re.compile(r"0x[0-9a-f]+"), "<address>"),
)


def same(value: Any) -> str:
    """The value as text, without what differs between any two runs."""
    text = repr(value)
    for pattern, name in _VOLATILE:
        text = pattern.sub(name, text)
    return text


def asked(text: str = "how heavy is an apple") -> dict[str, Any]:
    """An input of one message."""
    return {"messages": [("user", text)]}
