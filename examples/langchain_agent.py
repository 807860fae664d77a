"""The middleware in a LangChain agent with a tool, async, offline: the model is scripted, everything else is real."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from reflect_middleware import Reflection, get_episode_id
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


@tool
def look_up(order: int) -> str:
    """Look an order up."""
    print("  the tool runs in episode", get_episode_id())
    return f"order {order}: 340 EUR, delivered"


def script(messages: list[BaseMessage]) -> AIMessage:
    """Look the order up, then say what the lessons allow."""
    if messages[-1].type == "tool":
        careful = "manager" in str(messages[0].content)
        return AIMessage("I ask a manager first." if careful else "Refunded.")
    return AIMessage("", tool_calls=[{"name": "look_up", "args": {"order": 1182}, "id": "call-1"}])


async def main() -> None:
    """A lesson written by hand is used at once, and the run is recorded with its tool call."""
    async with Reflection(embeddings=HashingEmbeddings(), min_similarity=0.0) as reflection:
        agent = create_agent(
            ScriptedChatModel(script),
            [look_up],
            system_prompt="You refund orders.",
            middleware=[reflection.middleware()],
        )
        for lesson in await reflection.lessons.alist(status="active"):
            await reflection.lessons.aretire(lesson.id)
        for _ in range(2):
            result = await agent.ainvoke({"messages": [("user", "refund order 1182")]})
            print("agent:", result["messages"][-1].content)
            await reflection.lessons.aadd(when="refund above 200 EUR", do="ask a manager")
        await reflection.areward(result, 1.0)
        await reflection.aflush(60)
        (episode, *_) = await reflection.episodes.alist()
        print("recorded:", [(step.kind, step.name) for step in episode.trajectory], "reward", episode.reward)


if __name__ == "__main__":
    asyncio.run(main())
