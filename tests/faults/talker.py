"""A process that does what it is told over a pipe: run an agent, learn something, say what its store is, fork."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SPACE = ("shop",)


class Talker:
    """One Reflection, and a graph whose model says what its prompt was."""

    def __init__(self, path: str, ledger: str | None, every: int) -> None:
        self.rule = ""
        self.reflection = Reflection(
            reflector=self.reflect,
            path=path,
            ledger=ledger,
            namespace=SPACE,
            every=every,
            embeddings=HashingEmbeddings(),
            min_similarity=-1.0,
            retrieve_timeout=30.0,
            top_k=20,
            token_budget=5_000,
        )
        model = ScriptedChatModel(lambda messages: messages[0].content if messages[0].type == "system" else "nothing")
        builder = StateGraph(MessagesState)
        builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
        builder.add_edge(START, "answer")
        self.graph = self.reflection.wrap(builder.compile())

    def reflect(self, batch: Any) -> list[dict[str, Any]]:
        """Learn the rule that was told."""
        words = {"because": "Refund order", "when": f"refunding {self.rule}", "do": self.rule}
        return [{"op": "add", "episodes": ["E1"], **words}] if self.rule else []

    def run(self, number: int) -> list[str]:
        """Run the agent so often; gives what its prompts said."""
        results = [self.graph.invoke({"messages": f"Refund order {n} of {os.getpid()}"}) for n in range(number)]
        return [result["messages"][-1].content for result in results]

    def learn(self, rule: str) -> None:
        """Commit a lesson by reflecting on a run."""
        self.rule = rule
        self.run(1)
        assert self.reflection.reflect().accepted
        self.rule = ""

    def store(self) -> str:
        """How searches go here, once all background work is done."""
        for _ in range(2):  # the second search of a process opens the store
            self.reflection.lessons.search("refund")
        self.reflection.flush(30)
        return self.reflection._core.parts.index.describe()

    def flush(self) -> bool:
        return self.reflection.flush(30)


def talk(pipe: Connection, forks: list[Connection], path: str, ledger: str | None, every: int) -> None:
    """Do what comes over the pipe, until nothing does; `fork` makes a child that does what comes over the next pipe."""
    os.environ.pop("REFLECT_PATH", None)
    talker, children = Talker(path, ledger, every), []
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            break
        if name == "fork":
            next_pipe = forks.pop()
            if (child := os.fork()) == 0:
                pipe, children = next_pipe, []
                continue
            children.append(child)
            next_pipe.close()
            pipe.send(child)
        elif name == "end":
            break
        else:
            pipe.send(getattr(talker, name)(*arguments))
    talker.reflection.close()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    pipe.send("ended")
    os._exit(0)
