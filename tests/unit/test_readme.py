"""The README's code runs as printed, in its order, on stand-ins for what a reader has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore

from reflect_middleware.exact import ExactStore
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
REFLECTOR = '"openai:gpt-5-mini"'


class MyStore(ExactStore):
    """A store of the reader's."""

    def __init__(self) -> None:
        super().__init__(lambda _: [])


def graph() -> StateGraph[Any]:
    model = ScriptedChatModel(lambda _: AIMessage("Refunded"))
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    return builder.add_edge(START, "model").add_edge("model", END)


def given() -> Mapping[str, Any]:
    return {
        "agent": graph().compile(),
        "subgraph": graph().compile(),
        "builder": graph(),
        "model": ScriptedChatModel(lambda _: json.dumps({"edits": []})),
        "tools": [],
        "task": {"messages": "Refund order 1184"},
        "prompt": ChatPromptTemplate([("system", "{lessons}"), ("human", "{question}")]),
        "run_id": str(uuid4()),
        "my_agent": graph().compile(),
        "tasks": ["Refund order 7", "Refund order 8"],
        "MyStore": MyStore,
        "my_client": InMemoryStore(),
        "my_embeddings": HashingEmbeddings(),
    }


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    first, *others = BLOCKS
    assert first.count(REFLECTOR) == 1
    names = dict(given())
    execute(first.replace(REFLECTOR, "model, embeddings=my_embeddings"), names)
    with names["reflection"] as reflection:
        assert names["result"]["messages"][-1].text == "Refunded"
        assert [episode.reward for episode in reflection.episodes.list()] == [0.0]
        names["agent"].invoke({"messages": "Refund order 1183"}, {"configurable": {"thread_id": "42"}})
        for block in others:
            execute(block, names)
    assert names["reflection"] is not reflection
    assert len(names["report"].episodes) == 2
    assert (names["practised"].stopped, names["practised"].runs) == ("done", 8)
    names["reflection"].close()


def execute(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, "README.md", "exec"), names)
