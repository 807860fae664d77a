"""The commands that take lessons out and in, back and elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reflect_middleware import Reflection
from reflect_middleware.cli import app
from reflect_middleware.testing import HashingEmbeddings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a ledger of two lessons, one of them retired, and a module of the reader's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"agent_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from reflect_middleware import Reflection\n"
        "from reflect_middleware.testing import HashingEmbeddings\n"
        "reflection = Reflection(store='exact', embeddings=HashingEmbeddings())\n"
    )
    with Reflection(store="exact", embeddings=HashingEmbeddings()) as made:
        made.lessons.add(when="refunding", do="ask")
        made.lessons.retire(made.lessons.add(when="paying", do="wait").id)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    given = [*arguments, "--app", f"agent_{Path.cwd().name}:reflection"]
    import sys

    sys.modules.pop(f"agent_{Path.cwd().name}", None)  # each command is a process of its own
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, given)
    assert result.exit_code == code, result.output
    return result.output


def data(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_export(home: Path) -> None:
    (line,) = run("export").splitlines()
    assert json.loads(line)["do"] == "ask"
    assert len(run("export", "--all").splitlines()) == 2
    assert json.loads(run("export", "--status", "retired"))["do"] == "wait"
    assert "shown" in run("export", "--details")
    assert run("export", "--format", "prompt").startswith("<lessons>\n")
    assert data("export", "out.jsonl") == {"file": "out.jsonl", "format": "jsonl"}
    assert (home / "out.jsonl").read_text() == f"{line}\n"
    assert "none beside --all" in run("export", "--all", "--status", "active", code=1)


def test_the_task_that_taught_a_lesson(home: Path) -> None:
    (home / "taught.jsonl").write_text('{"id": "one", "when": "a", "do": "b", "task": "refund order 7"}')
    run("import", "taught.jsonl")
    assert "task: refund order 7" in run("lessons", "show", "one")
    assert '"task": "refund order 7"' in run("export")
    assert "refund order 7" not in run("export", "--no-tasks")


def test_import(home: Path) -> None:
    run("export", "out.jsonl")
    assert run("import", "out.jsonl") == "0 added, 1 unchanged\n"
    (home / "out.jsonl").write_text((home / "out.jsonl").read_text().replace('"ask"', '"ask twice"'))
    assert data("import", "out.jsonl", "--dry-run")["changed"][0]["after"]["do"] == "ask twice"
    said = run("import", "out.jsonl")
    assert "- do: ask\n    + do: ask twice" in said
    (home / "out.jsonl").write_text('{"when": "a"}')
    assert "line 1: do is None; allowed: a text of 1 to 400" in run("import", "out.jsonl", code=1)
    (home / "out.jsonl").write_text('{"when": "a", "do": "b"}')
    assert data("import", "out.jsonl", "--status", "candidate")["added"][0]["status"] == "candidate"


def test_rollback_diff_and_fork(home: Path) -> None:
    run("export", "then.jsonl")
    (lesson,) = data("lessons", "--status", "active")
    at = lesson["updated_at"]
    run("lessons", "edit", lesson["id"], "--do", "ask twice")
    assert data("lessons", "diff", at)["changed"][0]["before"]["do"] == "ask"
    assert run("lessons", "diff", "then.jsonl").startswith("0 added, 0 removed, 1 changed\n")
    assert run("lessons", "diff", "now") == "No difference.\n"
    planned = data("lessons", "rollback", "--to", at, "--dry-run")
    assert planned[0]["do"] == "ask"
    assert data("lessons", "fork", "staging,a")[0]["namespace"] == ["staging", "a"]
    data("lessons", "rollback", "--to", at)
    assert "+ do: ask twice" in run("lessons", "diff", "now", "namespace:staging,a")
    assert "No reflection has the id 'x'" in run("lessons", "diff", "x", code=1)
