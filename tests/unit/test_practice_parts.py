"""What a practice is made of: tasks, their split, budgets, the paired test, the report."""

from __future__ import annotations

import itertools
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_middleware import Task
from reflect_middleware.errors import ConfigurationError, MissingExtraError
from reflect_middleware.paired import EXACT, compare
from reflect_middleware.practice_bar import described, told
from reflect_middleware.practice_plan import Budget, Plan, Used, split
from reflect_middleware.practice_report import Point, PracticeProgress, PracticeReport
from reflect_middleware.practice_tasks import read_tasks

if TYPE_CHECKING:
    from pathlib import Path

UNIT = st.floats(0, 1).map(lambda value: round(value, 3))
KEYS = st.lists(st.text(min_size=1), unique=True, max_size=60)


def tasks(count: int) -> list[Task]:
    return [Task(input={"n": n}, key=f"k{n}") for n in range(count)]


def test_tasks_of_all_forms() -> None:
    given = ["text", Task(input={"a": 1}, key="mine"), {"input": "q", "reference": 4}, {"messages": "m"}]
    found = read_tasks(given, texts=True)
    assert [task.input for task in found] == [{"messages": "text"}, {"a": 1}, {"messages": "q"}, {"messages": "m"}]
    assert (found[1].key, found[2].reference) == ("mine", 4)
    assert len({task.key for task in found}) == 4
    assert read_tasks(iter(given), texts=True) == found
    assert read_tasks(["text"], texts=False)[0].input == "text"


def test_a_file_of_tasks(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('"one"\n\n{"input": "two", "reference": [1], "key": "k"}\n{"messages": "three"}\n')
    assert [task.input["messages"] for task in read_tasks(str(file), texts=True)] == ["one", "two", "three"]


def test_bad_tasks_are_all_named_with_number_value_and_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('"fine"\n{"input": \n7\n\n{"input": "x", "key": 3}\n" "\n"fine"\nnull\n')
    with pytest.raises(ConfigurationError) as raised:
        read_tasks(file, texts=True)
    message = str(raised.value)
    for part in ("line 2 is {", "which is no JSON", "line 3 is 7", "line 5 is {'input': 'x', 'key': 3}", "line 6 is  "):
        assert part in message
    assert "line 7 has the key" in message
    assert "of line 1: give one of them a key of its own … and 1 more" in message
    assert "a text, Task(input=…" in message
    assert "Nothing was run" in message


@pytest.mark.parametrize("bad", [None, 7, {"input": "one task"}, Task(input="one"), [], "no such file", [[]], [""]])
def test_what_holds_no_tasks(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="tasks is"):
        read_tasks(bad, texts=True)


@settings(max_examples=30, deadline=None)
@given(KEYS, st.floats(0, 0.99))
def test_a_split_is_whole_stable_and_of_the_share(keys: list[str], share: float) -> None:
    all_tasks = [Task(input=key, key=key) for key in keys]
    train, out = split(all_tasks, share)
    assert sorted([*train, *out], key=str) == sorted(all_tasks, key=str)
    again = split(all_tasks[::-1], share)
    assert {task.key for task in again[1]} == {task.key for task in out}
    if len(keys) < 10 or share == 0:
        assert out == ()
    else:
        assert abs(len(out) - share * len(keys)) <= 1
        assert train
        assert out


def test_a_plan_names_each_rollout_once() -> None:
    plan = Plan(name="n", agent="a", train=tuple(tasks(3)), held_out=tuple(tasks(5)[3:]), rollouts=2, epochs=2, every=2)
    rounds = [*plan.teaching(), plan.last(1), plan.last(2)]
    names = [place.name for found in rounds if found for place in found.places]
    assert len(names) == len(set(names)) == 2 * 2 + 2 * 3 * 2 + 2 * 2 * 2
    assert [len(found.places) for found in plan.teaching()] == [4, 4, 2, 4, 2]


def test_budgets() -> None:
    used = Used(episodes=6, tokens=600, seconds=60)
    assert Budget().ended(used, used) == ""
    assert Budget(episodes=7).ended(used, Used()) == ""
    assert Budget(episodes=7).ended(used, Used(episodes=1)) == "max_episodes"
    assert Budget(tokens=600).ended(used, Used()) == "max_tokens"
    assert Budget(minutes=1.1).ended(used, Used(seconds=6)) == "max_minutes"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=9))
def test_the_paired_test_is_exact_and_symmetric(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    found, turned = compare(before, after), compare(after, before)
    assert found is not None
    assert turned is not None
    gaps = [b - a for a, b in pairs]
    flips = [
        abs(sum(s * g for s, g in zip(signs, gaps, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gaps))
    ]
    exact = sum(flip >= abs(sum(gaps)) - 1e-9 for flip in flips) / len(flips)
    assert found.p_value == turned.p_value == pytest.approx(exact)
    assert found.difference == pytest.approx(-turned.difference)
    if found.interval is not None:
        low, high = found.interval
        assert min(gaps) - 1e-9 <= low <= high <= max(gaps) + 1e-9


def test_the_paired_test_by_hand() -> None:
    five, six = compare([0] * 5, [1] * 5), compare([0] * 6, [1] * 6)
    assert five is not None
    assert six is not None
    assert (five.p_value, six.p_value) == (2 / 32, 2 / 64)
    assert five.interval == (1, 1)
    assert compare([], []) is None
    same = compare([0.5], [0.5])
    assert same is not None
    assert (same.p_value, same.interval) == (1, None)


def test_many_pairs_are_drawn_and_agree_with_the_exact_test() -> None:
    before = [0.0, 1.0, 0.0, 0.0, 1.0] * 3
    after = [1.0, 0.0, 0.0, 1.0, 1.0] * 3
    few = compare(before, after)
    assert few is not None
    assert few.p_value == pytest.approx(0.5078125)  # 3 of 9 down and 6 up: the two-sided sign test
    padded = compare([*before, *[0.0, 1.0] * 30], [*after, *[1.0, 0.0] * 30])
    assert padded is not None
    assert padded.p_value == pytest.approx(0.81, abs=0.03)  # 36 up, 33 down: 2 * P(X >= 36) of 69 fair coins
    assert padded.pairs > EXACT
    certain = compare([0.0] * 40, [1.0] * 40)
    assert certain is not None
    assert 0 < certain.p_value < 0.001


def report(**changed: Any) -> PracticeReport:
    point = Point(phase="train", epoch=1, round=1, runs=2, judged=2, reward=0.5, success=0.5)
    later = point.model_copy(update={"epoch": 2, "round": 2, "reward": 1.0})
    known: dict[str, Any] = {
        "name": "n", "agent": "a", "stopped": "done", "tasks": 2, "held_out": 1, "rollouts": 2, "runs": 4, "resumed": 0,
        "runs_failed": 0, "runs_interrupted": 0, "runs_unjudged": 0, "epochs": (point, later), "rounds": (point, later),
        "before": point, "after": later, "measured": compare([0.5], [1.0]), "useful": ("x",), "agent_tokens": 90,
        "reflector_tokens": 10,
    }  # fmt: skip
    return PracticeReport(**known | changed)


def test_a_report_as_text_json_and_picture(tmp_path: Path) -> None:
    found = report()
    text = str(found)
    assert "success       50 % in epoch 1, 50 % in epoch 2" in text
    assert "reward 0.50 before, 1.00 after: +50 points, p = 1, 1 task" in text
    assert "100 tokens a lesson used" in text
    assert json.loads(found.model_dump_json())["tokens_per_useful_lesson"] == 100
    assert PracticeReport.model_validate_json(found.model_dump_json()) == found
    assert found.save(tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    bare = report(before=None, after=None, measured=None, held_out=0, rounds=(), epochs=(), useful=())
    assert "a share takes 10 tasks" in str(bare)
    assert bare.save(str(tmp_path / "bare.png")).is_file()


def test_the_picture_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="charts"):
        report().save(tmp_path / "curve.png")


def test_the_bar_shows_success_and_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, Any] = {"name": "n", "done": 3, "total": 4, "reflections": 1, "lessons": 2, "tokens": 1_234}
    progress = PracticeProgress(phase="train", epoch=2, success=0.5, **known)
    assert described(progress) == "epoch 2, success 50 %, 2 lessons, 1,234 tokens"
    silent = PracticeProgress(phase="before", epoch=0, success=None, **known)
    assert described(silent) == "measuring before, no rewards yet, 2 lessons, 1,234 tokens"
    with told(None) as nobody:
        assert nobody is None
    with told(progress=True) as tell:
        assert tell is not None
        tell(progress)
    assert "3/4" in capsys.readouterr().err
    with told(print) as own:
        assert own is print
