"""The code and the commands of docs/practice.md run as printed, and so does the example whose report it shows."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from reflect_middleware import Reflection
from reflect_middleware.cli import app
from reflect_middleware.practice_report import PracticeReport
from reflect_middleware.testing import HashingEmbeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "practice.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SHOWN = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)[0]
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]
MODULE = """
import practice as example
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings
reward = example.reward
reflection = Reflection(reflector=lambda batch: [], store="exact", embeddings=HashingEmbeddings())
agent = reflection.wrap(example.build_agent())
bare = example.build_agent()
async def _answer(state):
    return {"messages": [("ai", "Refunded.")]}
from langgraph.graph import START, MessagesState, StateGraph
slow = StateGraph(MessagesState).add_node("answer", _answer).add_edge(START, "answer").compile()
broken = Reflection(reflector=lambda batch: 1 / 0, path="broken", store="exact", embeddings=HashingEmbeddings())
number = 7
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder: tasks, and a module with agent, reward and Reflection."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    (tmp_path / "my_agent.py").write_text(MODULE)
    (tmp_path / "tasks.jsonl").write_text('"Refund order 1, 340 EUR."\n{"input": "Refund order 2, 20 EUR."}\n')
    (tmp_path / "held_out.jsonl").write_text('"Refund order 3, 500 EUR."\n')
    yield tmp_path
    sys.modules.pop("my_agent", None)


def run(command: str, code: int = 0, **environment: str) -> Any:
    program, *arguments = shlex.split(command)
    assert program == "reflect"
    sys.modules.pop("my_agent", None)  # each command is a process of its own
    result = CliRunner(env={"NO_COLOR": "1", **environment}).invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def test_the_commands(home: Path) -> None:
    assert len(COMMANDS) == 3
    text, second, third = (run(command).stdout for command in COMMANDS)
    assert "2 tasks, 0 held out" in text
    assert "Practice 'refunds'" in second
    assert (home / "curve.png").is_file()
    report = PracticeReport.model_validate_json(third)
    assert (report.tasks, report.held_out, report.runs) == (2, 1, 2 * 2 + 2 * 2)


FAILING = [
    ("reflect practice my_agent:none tasks.jsonl", "agent is 'my_agent:none'"),
    ("reflect practice my_agent:bare tasks.jsonl", "--model is None"),
    ("reflect practice my_agent:agent tasks.jsonl --model openai:x", "nothing beside a Reflection of your own"),
    ("reflect practice my_agent:number tasks.jsonl --app my_agent:reflection", "wrap got a int"),
    ("reflect practice my_agent:agent none.jsonl", "Reading it failed"),
    ("reflect practice my_agent:agent tasks.jsonl --reward my_agent:number", "reward is 7"),
    ("reflect practice my_agent:agent tasks.jsonl --app my_agent:broken", "is wrapped by another Reflection"),
    ("reflect practice my_agent:agent tasks.jsonl --held-out 1.5", "held_out is 1.5"),
]


@pytest.mark.parametrize(("command", "words"), FAILING)
def test_errors_are_one_line_and_exit_code_1(home: Path, command: str, words: str) -> None:
    failed = run(command, code=1)
    assert words in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_failed_reflections_are_an_exit_code(home: Path) -> None:
    failed = run("reflect practice my_agent:bare tasks.jsonl --app my_agent:broken --rollouts 1", code=1)
    assert "ZeroDivisionError" in failed.stdout


def test_ctrl_c_is_an_exit_code(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reflect_middleware.practice import Course

    monkeypatch.setattr(Course, "rollout", lambda self, _: self.stop("interrupted"))
    assert "stopped by you" in run("reflect practice my_agent:agent tasks.jsonl", code=130).stdout


def test_a_model_by_name_and_a_loop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain import chat_models

    from reflect_middleware.testing import ScriptedChatModel

    monkeypatch.setattr(chat_models, "init_chat_model", lambda _: ScriptedChatModel(lambda _: '{"edits": []}'))
    command = "reflect practice my_agent:slow tasks.jsonl --model openai:gpt-5-mini --async --json --rollouts 1 "
    for place in ("--path here", f"--ledger sqlite:///{home}/there.db --namespace shop"):
        report = json.loads(run(command + place).stdout)
        assert (report["runs"], len(report["reflections"])) == (2, 2)
    with Reflection(path="here", store="exact") as reader:
        assert {episode.namespace for episode in reader.episodes.list()} == {("default",)}


async def test_the_code(home: Path) -> None:
    assert len(CODE) == 5
    import practice as example

    with Reflection(reflector=lambda _: [], store="exact", embeddings=HashingEmbeddings()) as reflection:
        names: dict[str, Any] = {
            "reflection": reflection,
            "agent": example.build_agent(),
            "tasks": ["Refund order 1, 340 EUR."],
            "held_out": [f"Refund order {n}, 340 EUR." for n in range(2, 5)],
            "reward": example.reward,
        }
        stopped = []
        for block in CODE:
            ran = eval(compile(block, "docs/practice.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.isawaitable(ran):
                await ran
            stopped.append(names["report"].stopped)
        assert set(stopped) == {"done"}
        assert names["report"].tasks == 3


def test_the_example_gives_the_report_that_is_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import practice as example

    example.main(str(home / "ledger"))
    figures = re.compile(r"Practice '\w+'|cost .*|time .*")
    assert figures.sub("", capsys.readouterr().out) == figures.sub("", SHOWN)
