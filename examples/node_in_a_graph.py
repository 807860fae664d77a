"""A wrapped agent as one node of a graph that is already there, and a visible node that starts what is due."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, MessagesState, StateGraph

from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel


def build_agent() -> Any:
    """The agent that learns."""
    model = ScriptedChatModel(lambda messages: f"done: {messages[-1].content}")
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "answer")
    return builder.compile(name="desk")


def main() -> None:
    """Two runs are due after two runs; the node starts their reflection."""
    reflector = ScriptedChatModel(lambda _: '{"edits": []}')
    with Reflection(
        reflector, every=2, run="inline", namespace=("shop", "{agent}"), embeddings=HashingEmbeddings()
    ) as reflection:
        builder = StateGraph(MessagesState)
        builder.add_node("agent", reflection.wrap(build_agent()))
        builder.add_node("reflect", reflection.node())
        builder.add_edge(START, "agent")
        builder.add_edge("agent", "reflect")
        builder.add_edge("reflect", END)
        graph = builder.compile()
        for task in ("pack a parcel", "send a parcel"):
            print(graph.invoke({"messages": task})["messages"][-1].content)
        for record in reflection.reflections.list():
            print("one reflection over", len(record.episodes), "runs of", "/".join(record.namespace))


if __name__ == "__main__":
    main()
