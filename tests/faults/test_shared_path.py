"""Any number of processes, spawned or forked from one that was in use, share one path and one truth."""

from __future__ import annotations

import json
import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import judge
from tests.faults.judge import Acknowledged
from tests.faults.talker import talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork"),
]
K = 4
WAIT = 60.0
RULES = ("greet by name", "never promise a date", "check the stock first", "write short sentences")


class Crowd:
    """Processes over one ledger, by name."""

    def __init__(self, path: Path, ledger: str | None) -> None:
        self.path, self.ledger = path, ledger
        self.every = 1_000
        self.url = ledger or f"sqlite:///{path / 'ledger.db'}"
        self.pipes: dict[str, Any] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.talker"])
        self._processes: list[Any] = []

    def spawn(self, name: str, *forks: str) -> None:
        """A process that may fork so many times, and the names of its children."""
        mine, theirs = self._context.Pipe()
        pairs = {fork: self._context.Pipe() for fork in forks}
        inherited = [pair[1] for pair in reversed(pairs.values())]
        arguments = (theirs, inherited, str(self.path), self.ledger, self.every)
        process = self._context.Process(target=talk, args=arguments, daemon=True)
        process.start()
        theirs.close()
        for end in inherited:
            end.close()
        self._processes.append(process)
        self.pipes |= {name: mine} | {fork: pair[0] for fork, pair in pairs.items()}

    def say(self, name: str, *order: Any) -> None:
        """Tell a process to do something."""
        self.pipes[name].send(order)

    def hear(self, name: str) -> Any:
        """What it answers."""
        assert self.pipes[name].poll(WAIT), f"{name} says nothing"
        return self.pipes[name].recv()

    def ask(self, name: str, *order: Any) -> Any:
        """Both."""
        self.say(name, *order)
        return self.hear(name)

    def end(self, *names: str) -> None:
        """Let processes end, children before their parent."""
        for name in names:
            assert self.ask(name, "end") == "ended"

    def kill(self) -> None:
        """Whoever is still there."""
        for pipe in self.pipes.values():
            pipe.close()
        for process in self._processes:
            process.join(WAIT)
            assert process.exitcode == 0


@pytest.fixture(params=["sqlite", "postgres"])
def crowd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crowd]:
    ledger = request.getfixturevalue("postgres") if request.param == "postgres" else None
    crowd = Crowd(tmp_path, ledger)
    yield crowd
    crowd.kill()


def test_what_one_process_learns_is_in_every_others_next_prompt(crowd: Crowd) -> None:
    crowd.spawn("holder", "first", "second")
    crowd.ask("holder", "learn", "ask a manager")
    assert crowd.ask("holder", "store") == "the store"
    crowd.ask("holder", "fork")
    crowd.spawn("stranger")
    crowd.ask("holder", "fork")
    everybody = ("holder", "first", "second", "stranger")
    known = ["ask a manager"]
    for name, rule in zip(everybody, RULES, strict=True):
        crowd.ask(name, "learn", rule)
        known.append(rule)
        for other in everybody:
            (prompt,) = crowd.ask(other, "run", 1)
            assert [rule for rule in known if rule not in prompt] == [], f"{other}, after {name}"
    assert [crowd.ask(name, "store") for name in everybody] == [
        "the store",
        *["the ledger's vectors (the store is not open here)"] * 3,
    ]
    crowd.end("first", "second", "holder", "stranger")


def test_forked_and_spawned_processes_count_to_k_together(crowd: Crowd) -> None:
    crowd.every = K
    crowd.spawn("master", "worker 1", "worker 2")
    crowd.ask("master", "run", 1)  # it opens ledger and embedder, and writes
    crowd.ask("master", "fork")
    crowd.ask("master", "fork")
    crowd.spawn("stranger")
    everybody = ("master", "worker 1", "worker 2", "stranger")
    for name in everybody:
        crowd.say(name, "run", 5)
    assert [len(crowd.hear(name)) for name in everybody] == [5] * 4
    assert [crowd.ask(name, "flush") for name in everybody] == [True] * 4
    crowd.end("worker 1", "worker 2", "master", "stranger")
    rows = judge.read(crowd.url)
    assert judge.at_any_time(rows, Acknowledged()) == []
    assert list(judge.nothing_runs(rows)) == []
    assert len(rows.episodes) == 21
    assert [len(record.episodes) for record in rows.done.values()] == [K] * 5
    pids = {json.loads(row["body"])["task"].split()[-1] for row in rows.episodes.values()}
    assert len(pids) == 4
