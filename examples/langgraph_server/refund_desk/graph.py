"""The graph that the server loads: a wrapped one. Offline, so the models are scripted; everything else is real."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

MANAGER = "I ask a manager first."


def clerk_script(messages: list[BaseMessage]) -> str:
    """A clerk who knows only what its system message says."""
    told = str(messages[0].text) if messages[0].type == "system" else ""
    return MANAGER if "manager" in told else "Refunded."


def reflector_script(messages: list[BaseMessage]) -> str:
    """A reflector that turns a user's complaint about managers into a lesson."""
    said = re.search(r"refunds above 200 EUR need a manager", str(messages[-1].text))
    if said is None:
        return '{"edits": []}'
    edit = {"op": "add", "episodes": ["E1"], "because": said[0], "when": "refund an order", "do": "ask a manager"}
    return json.dumps({"edits": [edit]})


reflection = Reflection(
    ScriptedChatModel(reflector_script),
    every=1,
    namespace=("refund-desk", "{langgraph_auth_user_id}"),  # the user that auth.py has verified
    run_overrides=False,  # what clients write under configurable["reflect"] is ignored
    embeddings=HashingEmbeddings(),
)


async def answer(state: MessagesState) -> dict[str, Any]:
    """Ask the model."""
    return {"messages": [await clerk.ainvoke(state["messages"])]}


def ask_manager(state: MessagesState) -> dict[str, Any]:
    """Wait until a manager has decided; the server's client resumes the run with the decision."""
    decision = interrupt({"question": "Refund this order?", "order": str(state["messages"][0].text)})
    return {"messages": [AIMessage(f"The manager says: {decision}")]}


def next_step(state: MessagesState) -> str:
    """To the manager, if the model wants that."""
    return "ask_manager" if state["messages"][-1].text == MANAGER else END


clerk = ScriptedChatModel(clerk_script)
builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_node("ask_manager", ask_manager)
builder.add_edge(START, "answer")
builder.add_conditional_edges("answer", next_step, ["ask_manager", END])
# No checkpointer: the server brings its own.
graph = reflection.wrap(builder.compile(name="refund-desk"))
