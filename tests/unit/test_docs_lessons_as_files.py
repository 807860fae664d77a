"""The code and the commands of docs/lessons-as-files.md run as printed, in their order."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from typer.testing import CliRunner

from reflect_middleware import Reflection, cli, lesson_file, registry
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

TEXT = (Path(__file__).parents[2] / "docs" / "lessons-as-files.md").read_text()
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", TEXT, flags=re.DOTALL)
REFLECTION = 'Reflection.frozen("lessons.jsonl")'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's working directory, with a ledger of three lessons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    monkeypatch.setattr(registry, "DEFAULT_EMBEDDERS", ("hashing",))
    with Reflection(store="exact", embeddings=HashingEmbeddings()) as reflection:
        for number in range(3):
            reflection.lessons.add(when=f"refunding order {number}", do="ask a manager")
    (tmp_path / "patch.txt").write_text("Never guess.")
    return tmp_path


def test_page(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedChatModel(lambda _: "done")
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph = builder.add_edge(START, "model").compile()
    frozen = REFLECTION.replace(")", ", embeddings=HashingEmbeddings(), min_similarity=-1)")
    assert TEXT.count(REFLECTION) == 1
    with Reflection(store="exact", embeddings=HashingEmbeddings()) as reflection:
        names: dict[str, Any] = {"reflection": reflection, "graph": graph, "Path": Path, "Reflection": Reflection}
        names |= {"datetime": datetime, "UTC": UTC, "HashingEmbeddings": HashingEmbeddings}
        for kind, block in BLOCKS:
            if kind == "python":
                exec(compile(block.replace(REFLECTION, frozen), "docs/lessons-as-files.md", "exec"), names)
                continue
            for command in block.splitlines():
                _, *arguments = shlex.split(command)
                done = CliRunner(env={"NO_COLOR": "1"}).invoke(cli.app, arguments)
                assert done.exit_code == 0, (command, done.output)
        assert "ask a manager" in str(model.calls[0])
        assert [x.do for x in reflection.lessons.list() if x.pinned][-1] == "Never guess."
        names["frozen"].close()
        home_again = [x for x in reflection.lessons.list() if x.do == "add the customs form"]
        assert len(home_again) == 1
    said = capsys.readouterr().out
    for printed in re.findall(r"print\(.*\) *# (.*?)(?: …)?\n", TEXT):
        assert printed in said
    assert "- When refunding order 0: ask a manager" in (home / "AGENTS.md").read_text()
    assert "## refunding order 0" in (home / "LESSONS.md").read_text()


def test_table_of_keys() -> None:
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", TEXT, flags=re.MULTILINE)[:10]))
    assert set(named) == set(lesson_file.CHECKS)
    assert f"{lesson_file.MOST_BYTES // 1_000_000} MB" in TEXT
