"""The commands and the code of docs/workers.md run as printed, on a ledger of the reader's."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from langchain import chat_models
from langgraph.graph import START, StateGraph
from typer.testing import CliRunner

from reflect_middleware import Reflection
from reflect_middleware.cli import app
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (Path(__file__).parents[2] / "docs" / "workers.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]  # fmt: skip
STARTED = re.findall(
    r"reflect worker [^\n`]*", "".join(re.findall(r"```(?:ini|cron)\n(.*?)```", TEXT, flags=re.DOTALL))
)


class State(TypedDict):
    task: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a recorded run and the reader's own module; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    monkeypatch.setattr(chat_models, "init_chat_model", lambda _: ScriptedChatModel(lambda _: '{"edits": []}'))
    with Reflection(run="external", namespace=("acme", "ann"), store="exact") as recorder:
        graph = StateGraph(State).add_node("work", lambda state: state).add_edge(START, "work").compile()
        recorder.wrap(graph).invoke({"task": "pay 12 EUR"})
    (tmp_path / "my_agent.py").write_text(
        "from reflect_middleware import Reflection\n"
        "reflection = Reflection(reflector=lambda batch: [], run='external', namespace=('acme', 'a'), store='exact')\n"
    )
    yield tmp_path
    import sys

    sys.modules.pop("my_agent", None)


@pytest.mark.parametrize("command", [*COMMANDS, *STARTED])
def test_commands(home: Path, command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "reflect"
    if arguments[0] == "worker" and "--once" not in arguments:
        arguments.append("--once")
    if "1f0c9a3e" in arguments:
        with Reflection(store="exact") as reader:
            arguments[arguments.index("1f0c9a3e")] = reader.episodes.list()[0].id[-8:]
            sql = "UPDATE episodes SET dead_letter = 'a reason', tries = 3"
            with reader._core.parts.ledger.database.write() as connection:
                connection.exec_driver_sql(sql)
    result = CliRunner(env={"NO_COLOR": "1"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output


async def test_code(home: Path) -> None:
    assert len(CODE) == 4
    with Reflection(reflector=lambda _: [], every=1, store="exact", embeddings=HashingEmbeddings()) as reflection:
        names: dict[str, Any] = {"reflection": reflection, "asynccontextmanager": asynccontextmanager}
        for block in CODE:
            ran = eval(compile(block, "docs/workers.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.isawaitable(ran):
                await ran
        assert await names["graph"].ainvoke({}) == {"read": 0}
        async with names["lifespan"](None):
            assert not reflection._core.closed
        assert reflection._core.closed
