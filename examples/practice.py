"""An agent practises: it finds a hidden rule from rewards, and held-out tasks show what that is worth.

Offline and in seconds: agent and reflector are scripted, so what is learned here is simulated. The practice itself is
real: rollouts at once, a reflection on those of each task, the measurement, the ledger. Run it again with the same
folder and it says at once what it has done already.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import Episode, Reflection, Reward
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

RULE = "refunds above 200 EUR need a manager"
TASKS = [f"Refund order {1180 + n}, {amount} EUR." for n, amount in enumerate(range(40, 640, 40))]


def agent_script(messages: list[BaseMessage]) -> str:
    """The simulated agent: it refunds everything, unless a lesson says otherwise and the amount is high."""
    told = messages[0].type == "system" and "manager" in messages[0].text
    return "I ask a manager." if told and amount_in(messages[-1].text) > 200 else "Refunded."  # noqa: PLR2004 - the rule


def reflector_script(messages: list[BaseMessage]) -> str:
    """The simulated reflector: it turns a comment of the reward into a lesson, once."""
    text = "\n".join(message.text for message in messages)
    if RULE not in text or "ask a manager first" in text:
        return json.dumps({"edits": []})
    edit = {
        "op": "add",
        "episodes": ["E1"],
        "because": RULE,
        "when": "refund above 200 EUR",
        "do": "ask a manager first",
    }
    return json.dumps({"edits": [edit]})


def reward(episode: Episode) -> Reward:
    """Whether the hidden rule was followed; the comment says what was wrong."""
    should_ask = amount_in(episode.task) > 200  # noqa: PLR2004 - the rule
    good = should_ask == ("manager" in episode.output)
    return Reward(value=float(good), comment="" if good else RULE)


def amount_in(text: str) -> int:
    """The amount of a refund."""
    found = re.search(r"(\d+) EUR", text)
    return int(found[1]) if found else 0


def build_agent() -> Any:
    """A compiled graph, as you may have one."""
    model = ScriptedChatModel(agent_script)
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "answer")
    return builder.compile(name="refunds")


def main(path: str = ".reflect") -> None:
    """Practise and say what came of it."""
    model = ScriptedChatModel(reflector_script)
    with Reflection(model, path=path, embeddings=HashingEmbeddings(), min_similarity=-1.0) as reflection:
        print(reflection.practice(build_agent(), TASKS, reward=reward, rollouts=2, held_out=0.4, name="refunds"))


if __name__ == "__main__":
    main(*sys.argv[1:])
