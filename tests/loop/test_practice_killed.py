"""A practice whose process is killed goes on in the next one: nothing that was done is done again."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

CHILD = """
import json, sys, time
from langgraph.graph import START, MessagesState, StateGraph
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings

path, hangs_at, log = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "a")
runs = []

def answer(state):
    runs.append(1)
    if len(runs) > hangs_at:
        print("hangs", flush=True)
        time.sleep(600)
    print(state["messages"][0].text, file=log, flush=True)
    return {"messages": [("ai", "done")]}

graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
with Reflection(reflector=lambda batch: [], path=path, embeddings=HashingEmbeddings(), store="exact") as reflection:
    tasks = [f"task {n}" for n in range(4)]
    report = reflection.practice(graph, tasks, rollouts=2, concurrency=1, reward=lambda episode: 1.0, name="killed",
                                 held_out=["unseen"], progress=False)
    print(report.model_dump_json(), flush=True)
"""


def start(folder: Path, hangs_at: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(folder / "ledger"), str(hangs_at), str(folder / "log")]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_a_killed_practice_goes_on(tmp_path: Path) -> None:
    from reflect_middleware.practice_report import PracticeReport

    with start(tmp_path, 7) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "hangs\n"
        first.kill()
    with start(tmp_path, 99) as second:
        assert second.stdout is not None
        report = PracticeReport.model_validate_json(second.stdout.read())
    assert (report.stopped, report.runs, report.resumed, len(report.reflections)) == ("done", 12, 7, 4)
    ran = (tmp_path / "log").read_text().splitlines()
    expected: dict[str, Any] = {"unseen": 4} | {f"task {n}": 2 for n in range(4)}
    assert {task: ran.count(task) for task in ran} == expected
