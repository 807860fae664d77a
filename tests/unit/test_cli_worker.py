"""`reflect worker` and `reflect episodes retry`, against real ledgers in temporary folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypedDict
from uuid import uuid4

import pytest
from langgraph.graph import START, StateGraph
from typer.testing import CliRunner

from reflect_middleware import Reflection, testing
from reflect_middleware.cli import app
from reflect_middleware.desk import Change
from reflect_middleware.types import Lesson

if TYPE_CHECKING:
    from pathlib import Path


class State(TypedDict):
    task: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `.reflect` that holds two runs nobody has reflected on; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    with Reflection(run="external", namespace=("shop", "{user}"), store="exact") as recorder:
        graph = recorder.wrap(StateGraph(State).add_node("pay", lambda state: state).add_edge(START, "pay").compile())
        for user in ("ann", "bob"):
            graph.invoke({"task": f"pay {user}"}, {"configurable": {"user": user}})
    return tmp_path


def module(home: Path, reflector: str) -> str:
    """A user's module with a Reflection, as `--app` takes it."""
    name = f"agent_{uuid4().hex}"
    (home / f"{name}.py").write_text(
        "from reflect_middleware import Reflection\n"
        f"reflection = Reflection(reflector={reflector}, every=1, store='exact', run='external', tries=1,\n"
        "                        namespace=('shop', '{user}'))\n"
    )
    return f"{name}:reflection"


def run(*arguments: str, code: int = 0, **environment: str) -> Any:
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200", **environment}).invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_once_does_all_that_is_due(home: Path) -> None:
    target = module(home, "lambda batch: []")
    reports = json.loads(run("worker", "--once", "--app", target, "--json").stdout)
    assert sorted(tuple(report["namespace"]) for report in reports) == [("shop", "ann"), ("shop", "bob")]
    assert json.loads(run("worker", "--once", "--app", module(home, "lambda batch: []"), "--json").stdout) == []


def test_one_namespace_by_a_pattern(home: Path) -> None:
    target = module(home, "lambda batch: []")
    _, row = run("worker", "--once", "--app", target, "--namespace", "*,bob").stdout.splitlines()
    assert row.split("\t")[:2] == ["shop,bob", "1"]


def test_a_failed_reflection_is_an_exit_code_and_can_be_retried(home: Path) -> None:
    broken = module(home, "lambda batch: 1 / 0")
    failed = run("worker", "--once", "--parallel", "2", "--app", broken, code=1)
    assert failed.stdout.count("ZeroDivisionError") == 2
    dead = json.loads(run("episodes", "--dead", "--json").stdout)
    assert [episode["dead_letter"] for episode in dead] == ["ZeroDivisionError: division by zero"] * 2
    assert "some ids, or --all" in run("episodes", "retry", code=1).stderr
    assert json.loads(run("episodes", "retry", dead[0]["id"][-12:], "--json").stdout)["retried"] == [dead[0]["id"]]
    assert "1 episodes wait" in run("episodes", "retry", "--all").stdout
    assert json.loads(run("episodes", "--dead", "--json").stdout) == []
    run("worker", "--once", "--app", module(home, "lambda batch: []"))


def test_without_an_app_it_needs_a_model(home: Path) -> None:
    assert "--model is None" in run("worker", "--once", code=1).stderr
    assert "beside --app" in run("worker", "--once", "--app", module(home, "print"), "--every", "3", code=1).stderr
    assert "a folder with a ledger.db" in run("worker", "--model", "x", "--path", "nowhere", code=1).stderr


def test_a_model_by_name_works_on_a_ledger_by_its_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain import chat_models

    from reflect_middleware.testing import ScriptedChatModel

    monkeypatch.setattr(chat_models, "init_chat_model", lambda _: ScriptedChatModel(lambda _: '{"edits": []}'))
    for place in (("--path", ".reflect"), ("--ledger", f"sqlite:///{home / '.reflect' / 'ledger.db'}")):
        found = run("worker", "--once", "--model", "openai:gpt-5-mini", *place, "--namespace", "shop,*", "--every", "2")
        assert found.stdout.splitlines()[1:] == [], "two namespaces with one run each: nothing is due"
    done = run("worker", "--once", "--model", "openai:gpt-5-mini", "--every", "1")
    assert len(done.stdout.splitlines()) == 3


def test_switched_off_it_does_nothing(home: Path) -> None:
    assert "nothing is done" in run("worker", "--app", module(home, "lambda batch: []"), REFLECT="off").stdout


def merging(home: Path) -> str:
    """A user's module with a Reflection whose model merges the first two lessons."""
    edit = {"op": "merge", "lessons": ["L1", "L2"], "when": "moving a red or blue box", "do": "grip the box hard"}
    name = f"agent_{uuid4().hex}"
    (home / f"{name}.py").write_text(
        "from reflect_middleware import Reflection, testing\n"
        f"model = testing.ScriptedChatModel(lambda _: {json.dumps({'edits': [edit]})!r})\n"
        "reflection = Reflection(model, store='exact', run='external', namespace=('shop',), min_similarity=-1,\n"
        "                        embeddings=testing.HashingEmbeddings())\n"
    )
    return f"{name}:reflection"


def test_consolidating_by_hand(home: Path) -> None:
    assert "Nothing to merge" in run("lessons", "consolidate", "--app", merging(home)).stdout
    texts = [(f"moving a {colour} box", f"grip the {colour} box hard") for colour in ("red", "blue")]
    with Reflection(store="exact", namespace=("shop",), embeddings=testing.HashingEmbeddings()) as own:
        embedder, table = own._core.parts.embedder, own._core.parts.ledger.lessons
        lessons = [Lesson(namespace=("shop",), when=w, do=d, because="error: grip", created_by="r1") for w, d in texts]
        vectors = embedder.embed_documents([lesson.text for lesson in lessons])
        pairs = zip(lessons, vectors, strict=True)
        table.save_all([Change(lesson=x, vector=v, expected_version=0) for x, v in pairs], embedder.id)
    said = run("lessons", "consolidate", "--app", merging(home)).stdout
    assert "2 lessons of" in said
    assert "became 1 of" in said
    shown = run("reflections", "show", said.split()[-1], "--namespace", "shop").stdout
    assert "before: lessons=2" in shown
    assert "--model" in run("lessons", "consolidate", code=1).stderr
