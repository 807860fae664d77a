"""Several processes on one path: they share the ledger, and nothing is lost when one is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing

from .conftest import RULE, adding, agent

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

CHILD = """
import json, sys, time
from langgraph.graph import START, MessagesState, StateGraph
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

path, what, number, place = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
model = ScriptedChatModel(lambda messages: messages[0].content if messages[0].type == "system" else "refunded")
reflection = Reflection(path=path, embeddings=HashingEmbeddings(), min_similarity=-1.0, run="external",
                        retrieve_timeout=30.0, store=what.partition(":")[2] or "exact", **place)
builder = StateGraph(MessagesState)
builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
builder.add_edge(START, "answer")
graph = reflection.wrap(builder.compile())
if what.startswith("run"):
    for n in range(number):
        result = graph.invoke({"messages": f"Refund order {n}"})
        print(result["messages"][-1].content.replace("\\n", " "), flush=True)
elif what == "run-for-ever":
    pass
if what.startswith("wait"):
    print("ready", flush=True)
    for line in sys.stdin:
        result = graph.invoke({"messages": "Refund order 9"})
        print(result["messages"][-1].content.replace("\\n", " "), flush=True)
if what.startswith("hang"):
    for n in range(number):
        graph.invoke({"messages": f"Refund order {n}"})
    print("acknowledged", flush=True)
    time.sleep(600)
reflection.close()
"""


def child(make: Any, path: Path, what: str, number: int = 0) -> subprocess.Popen[str]:
    """A process of its own with a Reflection on this path."""
    place = json.dumps(make.place(path))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path), what, str(number), place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out


def test_k_counts_across_processes_and_restarts(tmp_path: Path, make: Any) -> None:
    for process in [child(make, tmp_path, "run", 2), child(make, tmp_path, "run", 2)]:
        finished(process)
    reflector = testing.ScriptedChatModel(lambda _: adding("Refund order"))
    reflection = make(reflector, every=5, path=str(tmp_path))
    reflection.wrap(agent()).invoke({"messages": "Refund order 5"})
    assert len(reflector.calls) == 1
    assert len(reflection.reflections.list()[0].episodes) == 5


@pytest.mark.parametrize("store", ["exact", "chroma"])
def test_a_running_process_sees_what_another_learns(tmp_path: Path, make: Any, store: str) -> None:
    reflection = make(path=str(tmp_path), store=store)
    reflection.lessons.add(when="packing a parcel", do="use paper")
    reflection.flush()
    with child(make, tmp_path, f"wait:{store}") as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        lesson = reflection.lessons.add(when="refunding an order", do=RULE)
        other.stdin.write("go\n")
        other.stdin.flush()
        assert RULE in other.stdout.readline()
        reflection.lessons.retire(lesson.id)
        other.stdin.write("go\n")
        other.stdin.flush()
        assert RULE not in other.stdout.readline()
        other.stdin.close()
        assert other.wait(timeout=60) == 0


def test_killed_after_the_run_returned_loses_nothing(tmp_path: Path, make: Any) -> None:
    with child(make, tmp_path, "hang", 3) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "acknowledged\n"
        process.send_signal(signal.SIGKILL)
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=3, path=str(tmp_path))
    assert len(reflection.episodes.list()) == 3
    report = reflection.reflect()
    assert len(report.episodes) == 3


def test_a_claim_whose_owner_died_is_taken_over(tmp_path: Path, make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=9, path=str(tmp_path))
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    table = reflection._core.parts.ledger.reflections
    claim = table.claim(("default",), "somebody who died", at_least=1, at_most=9, lease=-1.0)
    assert claim is not None
    report = reflection.reflect()
    assert report.episodes == claim.episodes
    assert {record.id: record.status for record in reflection.reflections.list()}[claim.id] == "released"


def test_a_lost_claim_commits_nothing(make: Any) -> None:
    stolen: list[Any] = []

    def slow(batch: Any) -> list[Any]:
        table = reflection._core.parts.ledger.reflections
        (running,) = [record for record in table.find() if record.status == "running"]
        with table.db.write() as connection:
            connection.exec_driver_sql("UPDATE reflections SET lease_until = 0")
        stolen.append(table.claim(batch.namespace, "a faster one", at_least=1, at_most=9, lease=30.0))
        return [{"op": "add", "episodes": ["E1"], "because": "Refund order", "when": "refunding", "do": running.id}]

    reflection = make(reflector=slow, every=9)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    report = reflection.reflect()
    assert "lease ended" in report.error
    assert reflection.lessons.list() == ()
    assert stolen[0].episodes == (reflection.episodes.list()[0].id,)


def test_close_releases_an_unfinished_reflection(make: Any) -> None:
    import threading

    started, go = threading.Event(), threading.Event()

    def stuck(_: Any) -> list[Any]:
        started.set()
        go.wait(60)
        return []

    reflection = make(reflector=stuck, every=1, run="background", exit_timeout=0.0)
    path = str(reflection._options.path)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    assert started.wait(30)
    at = time.monotonic()
    reflection._core.close()
    assert time.monotonic() - at < 20
    other = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1, path=path)
    assert len(other.reflect().episodes) == 1
    go.set()
