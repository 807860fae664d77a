"""The command line, against real ledgers in temporary folders."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypedDict
from uuid import uuid4

import pytest
from langgraph.graph import END, START, StateGraph
from typer.testing import CliRunner

from reflect_middleware import ReflectError, Reflection
from reflect_middleware.cli import app
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = {"edits": [{"op": "add", "episodes": ["E1"], "because": "EUR", "when": "paying", "do": "name the currency"}]}


class State(TypedDict):
    task: str


def agent() -> Any:
    graph = StateGraph(State).add_node("work", lambda state: state)
    return graph.add_edge(START, "work").add_edge("work", END).compile(name="payer")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `.reflect` that holds one episode, one reflection and its lesson; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    model = ScriptedChatModel([json.dumps(ANSWER)])
    with Reflection(
        model, every=1, run="inline", reward=lambda _: 0.25, store="exact", embeddings=HashingEmbeddings()
    ) as made:
        made.wrap(agent()).invoke({"task": "pay 12 EUR"}, {"configurable": {"thread_id": "t1"}})
    return tmp_path


@pytest.fixture
def module(home: Path) -> str:
    """A user's module with a Reflection over that ledger, as `--app` takes it."""
    name = f"agent_{uuid4().hex}"
    (home / f"{name}.py").write_text(
        "from reflect_middleware import Reflection\n"
        "from reflect_middleware.testing import HashingEmbeddings\n"
        "reflection = Reflection(store='exact', embeddings=HashingEmbeddings())\n"
        "other = 3\n"
    )
    return name


def run(*arguments: str, code: int = 0, **environment: str) -> Any:
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200", **environment}).invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def data(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_lessons_lists_by_default(home: Path) -> None:
    header, row = run("lessons").stdout.splitlines()
    assert header.split("\t") == ["id", "status", "version", "shown", "when", "do"]
    assert row.split("\t")[1:] == ["active", "1", "0", "paying", "name the currency"]
    assert run("lessons", "list").stdout == run("lessons", "--path", ".reflect").stdout


def test_terminal_gets_a_table_and_pipe_gets_plain_text(home: Path) -> None:
    assert "\x1b" not in run("lessons").stdout
    shown = run("lessons", FORCE_COLOR="1", NO_COLOR="").stdout
    assert "name the currency" in shown
    assert "\t" not in shown


def test_lesson_is_added_edited_retired_and_approved(module: str) -> None:
    target = ("--app", f"{module}:reflection")
    added = data("lessons", "add", "--when", "writing dates", "--do", "use ISO", *target)
    assert (added["status"], added["version"]) == ("active", 1)
    short = added["id"][-8:]
    sys.modules.pop(module)
    assert data("lessons", "edit", short, "--do", "use ISO 8601", "--pinned", *target)["do"] == "use ISO 8601"
    assert data("lessons", "retire", short, "--path", ".reflect")["status"] == "retired"
    assert data("lessons", "approve", short)["status"] == "active"
    assert [version["version"] for version in data("lessons", "history", short)] == [1, 2, 3, 4]
    assert "use ISO 8601" in run("lessons", "history", short).stdout
    assert "pinned" in run("lessons", "show", short).stdout


def test_a_lesson_is_shown_to_every_run_until_it_is_not(module: str) -> None:
    added = data(
        "lessons", "add", "--when", "answering", "--do", "be kind", "--always", "--app", f"{module}:reflection"
    )
    sys.modules.pop(module)
    assert added["always"]
    assert "active always" in run("lessons").stdout
    assert data("lessons", "edit", added["id"], "--no-always", "--app", f"{module}:reflection")["always"] is False


def test_search_finds_the_nearest(module: str) -> None:
    [hit] = data("lessons", "search", "paying a bill in another currency", "--app", f"{module}:reflection")
    assert hit["lesson"]["do"] == "name the currency"


def test_rollback_undoes_what_came_after_a_reflection(module: str) -> None:
    added = data("lessons", "add", "--when", "writing dates", "--do", "use ISO", "--app", f"{module}:reflection")
    [reflection] = data("reflections")
    [changed] = data("lessons", "rollback", "--to", reflection["id"][-8:])
    assert (changed["id"], changed["status"]) == (added["id"], "retired")


def test_rollback_to_a_time(home: Path) -> None:
    [changed] = data("lessons", "rollback", "--to", "2020-01-01T00:00")
    assert changed["status"] == "retired"


def test_episodes(home: Path) -> None:
    [episode] = data("episodes")
    assert episode["rewards"][0]["value"] == 0.25
    assert data("episodes", "--thread", "elsewhere") == []
    assert data("episodes", "list", "--status", "failed") == []
    text = run("episodes", "show", episode["id"][-8:]).stdout
    assert "0.25 outcome/reward" in text
    assert "pay 12 EUR" in run("episodes", "show", episode["id"], FORCE_COLOR="1").stdout


def test_reflections(home: Path) -> None:
    [row] = run("reflections").stdout.splitlines()[1:]
    assert row.split("\t")[2:6] == ["done", "1", "1", "0"]
    text = run("reflections", "show", row.split("\t")[0]).stdout
    assert "accepted add" in text
    assert "pay 12 EUR" in text


def test_pause_and_resume(home: Path) -> None:
    assert "reflect resume" in run("pause").stdout
    assert data("resume") == {"paused": False}


def test_doctor_prints_every_check_and_fails_when_one_does(module: str) -> None:
    findings = data("doctor", "--app", f"{module}:reflection")
    assert {"check", "ok", "message"} <= set(findings[0])
    place = f"sqlite:///{sys.modules[module].__file__}/ledger.db"  # below a file, where no folder can be
    sys.modules[module].reflection = Reflection(ledger=place, namespace=("a",), embeddings="hashing", store="exact")
    assert "PROBLEM" in run("doctor", "--app", f"{module}:reflection", code=1).stdout


def test_purge_asks_erases_and_leaves_an_entry(home: Path) -> None:
    [episode] = data("episodes")
    dry = data("episodes", "purge", "--thread", "t1", "--dry-run")
    assert (dry["dry_run"], dry["episodes"], len(dry["lessons"])) == (True, 1, 1)
    assert "Erase 1 episodes and 1 lessons" in run("episodes", "purge", "--thread", "t1", code=1).stdout
    report = data("episodes", "purge", "--id", episode["id"], "--before", "2100-01-01", "--yes")
    assert (report["episodes"], report["left"], len(report["lessons"])) == (1, [], 1)
    assert data("lessons") == data("episodes") == data("reflections") == []
    [entry] = data("audit")
    assert (entry["action"], entry["details"]["by"]) == ("purge", ["ids", "before"])
    assert "purge" in run("audit").stdout


def test_backup_and_restore(home: Path) -> None:
    made = data("backup", "--keep", "1")["file"]
    data("lessons", "retire", data("lessons")[0]["id"])
    assert "What came later is lost" in run("restore", code=1).stdout
    assert data("restore", "--yes")["file"] == made
    assert data("lessons")[0]["status"] == "active"
    (home / ".reflect" / "ledger.db").write_bytes(b"nonsense" * 4096)
    assert "error" in run("lessons", code=1).stderr
    assert "lost" not in run("restore", made, "--yes").stdout
    assert data("lessons")[0]["status"] == "active"


def test_namespace_is_kept_apart(home: Path) -> None:
    assert data("lessons", "--namespace", "acme, user-7") == []
    assert data("episodes", "--namespace", "acme,user-7") == []


def test_empty_lists_say_so_on_a_terminal(home: Path) -> None:
    assert "No lessons." in run("lessons", "--namespace", "acme", FORCE_COLOR="1").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lessons", "show", "nope"), "No lesson has the id 'nope'"),
        (("episodes", "show", "nope"), "No episode has the id 'nope'"),
        (("reflections", "show", "nope"), "No reflection has the id 'nope'"),
        (("lessons", "--path", "elsewhere"), "ledger.db"),
        (("lessons", "--ledger", "sqlite://"), "--namespace"),
        (("lessons", "--app", "json"), "module:name"),
        (("lessons", "--app", "no_such_module:x"), "ModuleNotFoundError"),
        (("lessons", "--app", "json:dumps"), "function"),
        (("lessons", "add", "--when", " ", "--do", "x"), "when has 0 characters"),
        (("episodes", "purge", "--yes"), "principal="),
        (("episodes", "purge", "--before", "soon", "--yes"), "a time such as"),
        (("restore", "--yes"), "reflect backup"),
        (("backup", "ledger.db", "--path", "nowhere"), "ledger.db"),
    ],
)
def test_errors_are_one_line_on_stderr(home: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert not (home / "elsewhere").exists()


def test_short_id_must_name_one(module: str) -> None:
    target = ("--app", f"{module}:reflection")
    for number in range(20):
        sys.modules.pop(module, None)
        run("lessons", "add", "--when", f"case {number}", "--do", f"act {number}", *target)
    ids = [lesson["id"] for lesson in data("lessons")]
    [twice, *_] = [one[-1] for one in ids if sum(other[-1] == one[-1] for other in ids) > 1]
    assert "more of its characters" in run("lessons", "show", twice, code=1).stderr


def test_reflect_path_and_path_must_agree(home: Path) -> None:
    assert "REFLECT_PATH" in run("lessons", "--path", "other", REFLECT_PATH=str(home / ".reflect"), code=1).stderr
    assert run("lessons", REFLECT_PATH=str(home / ".reflect")).stdout == run("lessons").stdout


def test_demo_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    fake = type(sys)("expense_desk.demo")
    fake.main = lambda arguments: seen.append(arguments) or 3  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "expense_desk.demo", fake)
    run("demo", "--scripted", "--help", "--seed", "2", code=3)
    assert seen == [["--scripted", "--help", "--seed", "2"]]


def test_demo_without_a_checkout_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import reflect_middleware

    monkeypatch.setattr(reflect_middleware, "__file__", str(tmp_path / "reflect_middleware" / "__init__.py"))
    assert "make demo" in run("demo", code=1).stderr


def test_errors_of_the_command_line_are_ours() -> None:
    from reflect_middleware.cli import DemoNotFoundError

    assert issubclass(DemoNotFoundError, ReflectError)
