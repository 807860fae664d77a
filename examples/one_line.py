"""The whole loop around a hand-written graph, offline: the model is scripted, everything else is real.

Run it twice: the second time it starts with the lesson it learned the first time.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

RULE = "refunds above 200 EUR need a manager"


def agent_script(messages: list[BaseMessage]) -> str:
    """An agent that knows only what its system message says."""
    told = str(messages[0].content) if messages[0].type == "system" else ""
    return "I ask a manager first." if "manager" in told else "Refunded."


def reflector_script(_: list[BaseMessage]) -> str:
    """A reflector that turns the user's comment into a lesson."""
    edit = {"op": "add", "episodes": ["E1"], "because": RULE, "when": "refund above 200 EUR", "do": "ask a manager"}
    return json.dumps({"edits": [edit]})


def build_agent() -> Any:
    """A compiled graph, as you may have one."""
    model = ScriptedChatModel(agent_script)
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "answer")
    return builder.compile()


def main() -> None:
    """Run, reward, lesson, and a run that knows better."""
    with Reflection(
        ScriptedChatModel(reflector_script),
        every=1,
        embeddings=HashingEmbeddings(),
        on_reflection=lambda report: print("learned:", *(lesson.text for lesson in report.lessons)),
    ) as reflection:
        agent = reflection.wrap(build_agent())
        result = agent.invoke({"messages": "refund order 1182, 340 EUR"})
        print("first run:", result["messages"][-1].content)
        reflection.reward(result, 0.0, source="user", comment=RULE)
        reflection.flush(timeout=60)
        result = agent.invoke({"messages": "refund order 2001, 990 EUR"})
        print("second run:", result["messages"][-1].content)


if __name__ == "__main__":
    main()
