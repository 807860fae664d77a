"""A chat page with thumbs: each answer can be judged, now or days later, and the agent learns from it.

Offline by default: the models are scripted, everything else is real. `--model openai:gpt-5-mini` answers and reflects
with a real one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse
from langchain_core.messages import AIMessageChunk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel, Field

from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage

PAGE = Path(__file__).with_name("page.html")


class Question(BaseModel):
    """What the user writes."""

    thread: str = Field(min_length=1, max_length=100)
    text: str = Field(min_length=1, max_length=10_000)


class Thumb(BaseModel):
    """What the user thinks of an answer."""

    message_id: str = Field(min_length=1, max_length=200)
    up: bool
    comment: str = Field(default="", max_length=2_000)


def clerk_script(messages: list[BaseMessage]) -> str:
    """A clerk who knows only what its system message says."""
    told = str(messages[0].text) if messages[0].type == "system" else ""
    advice = re.findall(r"ask a manager[\w ]*\w", told)
    return f"I will {advice[0]}, and then refund it." if advice else "Sure, I have refunded it."


def reflector_script(messages: list[BaseMessage]) -> str:
    """A reflector that takes a user's complaint as the lesson."""
    said = re.search(r"reward by user for thumb: 0 \((.+)\)", str(messages[-1].text))
    if said is None:
        return '{"edits": []}'
    edit = {"op": "add", "episodes": ["E1"], "because": said[1], "when": "refund an order", "do": said[1]}
    return json.dumps({"edits": [edit]})


def build_agent(model: BaseChatModel) -> Any:
    """A compiled graph, as you may have one. Its checkpointer keeps the conversation."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=InMemorySaver(), name="clerk")


def build_app(model: BaseChatModel | None = None) -> FastAPI:
    """The page, the chat and the thumbs; with scripted models unless given one."""
    reflection = Reflection(
        model or ScriptedChatModel(reflector_script),
        every=1,
        reward_wait=3_600,  # an answer waits up to an hour for its thumb before it is learned from without one
        embeddings=HashingEmbeddings() if model is None else None,
    )
    agent = reflection.wrap(build_agent(model or ScriptedChatModel(clerk_script)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with reflection:
            yield

    app = FastAPI(title="Feedback page", lifespan=lifespan)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.post("/chat")
    async def chat(question: Question) -> StreamingResponse:
        return StreamingResponse(answers(agent, question), media_type="application/x-ndjson")

    @app.post("/feedback", status_code=204)
    async def feedback(thumb: Thumb) -> None:
        await reflection.areward(thumb.message_id, thumb.up, source="user", key="thumb", comment=thumb.comment)

    @app.get("/lessons")
    async def lessons() -> list[str]:
        return [f"When {lesson.when}: {lesson.do}" for lesson in await reflection.lessons.alist(status="active")]

    return app


async def answers(agent: Any, question: Question) -> AsyncIterator[str]:
    """The answer as it is written, a JSON object a line; each has the id of the message, which the thumb will name."""
    chunks = agent.astream(
        {"messages": question.text}, {"configurable": {"thread_id": question.thread}}, stream_mode="messages"
    )
    async for chunk, _ in chunks:
        if isinstance(chunk, AIMessageChunk) and chunk.text:
            yield json.dumps({"message_id": chunk.id, "text": str(chunk.text)}) + "\n"


def main() -> None:
    """Serve the page on this machine only."""
    parser = argparse.ArgumentParser(description="A chat page with thumbs, on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="such as openai:gpt-5-mini; a scripted one by default")
    given = parser.parse_args()
    model = None
    if given.model:
        from langchain.chat_models import init_chat_model

        model = init_chat_model(given.model)
    uvicorn.run(build_app(model), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
