"""A frozen Reflection serves a file: the same prompts, no ledger, no writes, whatever is asked of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import blockbuster_ctx
from langchain_core.messages import SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from reflect_middleware import Reflection, get_lessons, testing
from reflect_middleware.errors import ConfigurationError, FrozenError, LessonFileError, LessonNotFoundError
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel
from tests.loop.conftest import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TASKS = ("refund order 7", "write the date", "refund order 8 and write the date")
SETTINGS: dict[str, Any] = {"embeddings": HashingEmbeddings(), "min_similarity": -1.0, "top_k": 2}


@pytest.fixture
def learned() -> Iterator[Reflection]:
    """A Reflection with three lessons."""
    with testing.reflection(top_k=2) as reflection:
        reflection.lessons.add(when="refunding an order", do="ask a manager", because="he said so")
        reflection.lessons.add(when="writing a date", do="use ISO 8601", pinned=True)
        reflection.lessons.add(when="sending a parcel", do="use paper")
        yield reflection


@pytest.fixture
def folder(learned: Reflection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the file and nothing else."""
    home = tmp_path / "production"
    home.mkdir()
    learned.lessons.export(home / "lessons.jsonl")
    monkeypatch.chdir(home)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    return home


@pytest.fixture
def frozen(folder: Path) -> Iterator[Reflection]:
    with Reflection.frozen("lessons.jsonl", **SETTINGS) as made:
        yield made
    assert [path.name for path in folder.iterdir()] == ["lessons.jsonl"]


def blocks(model: ScriptedChatModel) -> list[str]:
    """What the model was told beside the conversation, call by call."""
    return ["\n".join(str(m.content) for m in call if isinstance(m, SystemMessage)) for call in model.calls]


def model() -> ScriptedChatModel:
    return ScriptedChatModel(lambda _: "done")


async def test_runs_get_what_they_got_where_it_was_learned(
    learned: Reflection, frozen: Reflection, run: Callable[..., Any]
) -> None:
    told = []
    for reflection in (learned, frozen):
        said = model()
        graph = reflection.wrap(agent(said, checkpointer=InMemorySaver()))
        for number, task in enumerate(TASKS):
            await run(graph, task, config={"configurable": {"thread_id": f"{number}"}})
        for task in TASKS:  # in one conversation what was shown stays in front
            await run(graph, task, config={"configurable": {"thread_id": "t"}})
        told.append(blocks(said))
    assert told[0] == told[1]
    assert len(set(told[0])) > 1
    assert all("<lessons>" in block for block in told[0])
    for task in TASKS:
        given = {"messages": task}
        assert frozen.preview(given) == learned.preview(given).model_copy(
            update={"lessons": frozen.preview(given).lessons}
        )


def test_a_lesson_is_found_by_its_task(learned: Reflection, tmp_path: Path) -> None:
    learned.lessons.import_('{"when": "an animal", "do": "call the keeper", "task": "the parrot has escaped"}')
    given = {"messages": "the parrot has escaped"}
    found = {}
    for tasks in (True, False):
        learned.lessons.export(tmp_path / "some.jsonl", tasks=tasks)
        with Reflection.frozen(tmp_path / "some.jsonl", **SETTINGS) as frozen:
            found[tasks] = {hit.lesson.do: hit.similarity for hit in frozen.preview(given).lessons}["call the keeper"]
    here = {hit.lesson.do: hit.similarity for hit in learned.preview(given).lessons}["call the keeper"]
    assert found[True] == pytest.approx(here)
    assert found[True] > 0.5 > found[False] + 0.2


async def test_middleware_node_and_prompt_variable(frozen: Reflection) -> None:
    from langchain.agents import create_agent

    said = model()
    made = create_agent(said, [], middleware=[frozen.middleware()])
    made.invoke({"messages": "refund order 7"})
    await made.ainvoke({"messages": "refund order 7"})
    assert all("ask a manager" in block for block in blocks(said))
    texts = []
    builder = StateGraph(MessagesState)
    builder.add_node("read", lambda _: texts.append(get_lessons()))
    builder.add_node("reflect", frozen.node())
    graph = frozen.wrap(builder.add_edge(START, "read").add_edge("read", "reflect").compile())
    graph.invoke({"messages": "refund order 7"})
    await graph.ainvoke({"messages": "refund order 7"})
    assert all("ask a manager" in text for text in texts)
    assert frozen.flush()


def test_a_resumed_run_keeps_its_lessons(learned: Reflection, frozen: Reflection) -> None:
    told = []
    for reflection in (learned, frozen):
        said = model()

        def ask(state: MessagesState, said: ScriptedChatModel = said) -> dict[str, Any]:
            said.invoke("before")
            interrupt("go on?")
            return {"messages": [said.invoke("after")]}

        builder = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask")
        graph = reflection.wrap(builder.compile(checkpointer=InMemorySaver()))
        config: Any = {"configurable": {"thread_id": "t"}}
        graph.invoke({"messages": "refund order 7"}, config)
        graph.invoke(Command(resume="yes"), config)
        told.append(blocks(said))
    assert told[0] == told[1]
    assert [block.count("ask a manager") for block in told[1]] == [1, 1, 1]
    assert frozen._core.parts.ledger.episodes.interrupted("LangGraph", "t", "") is None


async def test_nothing_blocks_a_loop_and_vectors_are_made_once(folder: Path) -> None:
    class Slow(HashingEmbeddings):
        times = 0

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            Slow.times += 1
            time.sleep(0.01)
            return super().embed_documents(texts)

    made = await Reflection.afrozen("lessons.jsonl", **SETTINGS | {"embeddings": Slow(), "retrieve_timeout": 5.0})
    said = model()
    graph = made.wrap(agent(said))
    with blockbuster_ctx("reflect_middleware"):
        for task in TASKS:
            await graph.ainvoke({"messages": [("user", task)]})
        await made.aclose()
    assert all(blocks(said))
    assert Slow.times == 1


def test_rewards_are_ignored_with_one_warning(frozen: Reflection, caplog: pytest.LogCaptureFixture) -> None:
    result = frozen.wrap(agent()).invoke({"messages": "refund order 7"})
    with caplog.at_level(logging.WARNING):
        frozen.reward(result, 1.0)
        frozen.feedback("no such run", key="tone", score=1)
        frozen.reward(thread_id="none", value=False)
    assert [record.message for record in caplog.records] == [
        f"reflect: rewards are ignored: {Path.cwd()}/lessons.jsonl is served frozen, and nothing is recorded"
    ]


async def test_what_would_learn_or_change_is_refused(frozen: Reflection) -> None:
    (lesson, *_) = frozen.lessons.list()
    calls = [
        frozen.reflect,
        frozen.work,
        frozen.pause,
        frozen.resume,
        frozen.audit,
        frozen.backup,
        frozen.restore,
        lambda: frozen.lessons.add(when="a", do="b"),
        lambda: frozen.lessons.edit(lesson.id, do="b"),
        lambda: frozen.lessons.retire(lesson.id),
        lambda: frozen.lessons.import_('{"when": "a", "do": "b"}'),
        lambda: frozen.lessons.fork(("other",)),
        lambda: frozen.lessons.rollback(to="x"),
        frozen.episodes.list,
        lambda: frozen.episodes.purge("x"),
        frozen.reflections.list,
    ]
    for call in calls:
        with pytest.raises(FrozenError, match=r"frozen: it serves .*lessons\.jsonl and has no ledger"):
            call()
    with pytest.raises(FrozenError):
        await frozen.areflect()


async def test_what_reads_lessons_works(learned: Reflection, frozen: Reflection, folder: Path) -> None:
    ids = [lesson.id for lesson in learned.lessons.list()]
    assert [lesson.id for lesson in frozen.lessons.list()] == ids
    assert frozen.lessons.list("retired") == ()
    assert (await frozen.lessons.aget(ids[1])).pinned
    assert frozen.lessons.history(ids[0]) == (frozen.lessons.get(ids[0]),)
    assert frozen.lessons.search("writing a date: use", k=1)[0].lesson.id == ids[1]
    assert frozen.lessons.search("date", namespace=("other",)) == ()
    assert frozen.lessons.export() == (folder / "lessons.jsonl").read_text()
    assert frozen.lessons.diff(folder / "lessons.jsonl").empty
    with pytest.raises(LessonNotFoundError):
        frozen.lessons.get("x")
    lessons, embedder = frozen.doctor()
    assert (lessons.ok, lessons.facts) == (True, {"active": 3, "namespaces": 1})
    assert embedder.facts["id"].startswith("HashingEmbeddings")


def line(*namespace: str, **given: Any) -> str:
    words = {"when": "refunding", "do": f"as in {'/'.join(namespace)}", **given}
    return json.dumps(words | ({"namespace": namespace} if namespace else {}))


def test_namespaces_stay_apart(folder: Path) -> None:
    file = folder / "many.jsonl"
    file.write_text("\n".join([line("acme", "ann"), line("acme", "bob"), line("acme", "eve", status="retired")]))
    with Reflection.frozen(file, namespace=("acme", "{user_id}"), **SETTINGS) as made:
        said = model()
        graph = made.wrap(agent(said))
        for user in ("ann", "bob", "eve", "nobody"):
            graph.invoke({"messages": [("user", "refund")]}, {"configurable": {"user_id": user}})
        assert ["acme/ann" in x for x in blocks(said)] == [True, False, False, False]
        assert ["acme/bob" in x for x in blocks(said)] == [False, True, False, False]
        assert blocks(said)[2:] == ["", ""]
    file.write_text(line("a{b}"))
    with Reflection.frozen(file, **SETTINGS) as made:
        assert made.lessons.list(namespace=("a{{b}}",)) == made.lessons.list()
        assert made.lessons.list()[0].namespace == ("a{b}",)
    file.unlink()


def test_a_wrong_file_fails_when_it_is_built(folder: Path) -> None:
    file = folder / "wrong.jsonl"
    file.write_text(f"{line('a')}\n{line('b', when='')}\n{{}}\n")
    with pytest.raises(LessonFileError, match=r"(?s)line 2: when of 0.*line 3: when is None"):
        Reflection.frozen(file)
    with pytest.raises(LessonFileError, match="an existing file"):
        Reflection.frozen(folder / "missing.jsonl")
    file.write_text(f"{line('a')}\n{line('b')}\n")
    with pytest.raises(ConfigurationError, match=r"namespace is \('default',\); allowed: one of which there are.*'a',"):
        Reflection.frozen(file)
    with pytest.raises(ConfigurationError, match=r"namespace is \('c',\)"):
        Reflection.frozen(file, namespace=("c",))
    file.write_text(line())
    with pytest.raises(LessonFileError, match="line 1: namespace is None; allowed: a list of texts, since"):
        Reflection.frozen(file, namespace=("{user_id}",))
    with pytest.raises(ConfigurationError, match=r"setting of a frozen Reflection is 'every'; allowed: embeddings"):
        Reflection.frozen(file, every=5)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="top_k is -1"):
        Reflection.frozen(file, top_k=-1)
    file.write_text("")
    with Reflection.frozen(file, **SETTINGS) as made:
        assert made.preview({"messages": "refund"}).block == ""
        assert made.lessons.search("refund") == ()
    file.unlink()


def test_an_embedder_that_fails_costs_the_lessons_and_no_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HashingEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise OSError("no model today")

    with Reflection.frozen("lessons.jsonl", **SETTINGS | {"embeddings": Broken()}) as made:
        said = model()
        made.wrap(agent(said)).invoke({"messages": [("user", "refund")]})
        assert blocks(said) == [""]
        assert "retrieve failed, the run goes on without it" in caplog.text
        assert made.doctor()[1].ok


READ_ONLY = """
import sys
from langgraph.graph import START, MessagesState, StateGraph
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

opened = []
def audit(name, given):
    if name == "open" and set(str(given[1])) & set("wax+"):
        opened.append(given)
sys.addaudithook(audit)
reflection = Reflection.frozen("lessons.jsonl", embeddings=HashingEmbeddings(), min_similarity=-1)
model = ScriptedChatModel(lambda _: "done")
builder = StateGraph(MessagesState)
builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
graph = reflection.wrap(builder.add_edge(START, "answer").compile())
for _ in range(2):
    result = graph.invoke({"messages": "refund order 7"})
reflection.reward(result, 1.0)
assert "ask a manager" in str(model.calls[1]), model.calls
reflection.close()
print([given for given in opened if "pyc" not in str(given[0])])
"""


@pytest.mark.process
def test_no_file_is_written_anywhere(folder: Path) -> None:
    folder.chmod(0o555)  # for people; for root the audit of `open` counts
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY], capture_output=True, text=True, check=False, timeout=120, cwd=folder
        )
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert [path.name for path in folder.iterdir()] == ["lessons.jsonl"]
