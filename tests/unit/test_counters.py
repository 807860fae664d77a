"""Counting what went wrong: exact, few writes, nothing lost, nothing said that a log must not hold."""

from __future__ import annotations

import ast
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.counters import NAMES, REPEAT_SECONDS, Count, Counters, words
from reflect_middleware.errors import ConfigurationError, EmbedderError, LedgerError
from reflect_middleware.health_table import HealthTable
from reflect_middleware.ledger import Ledger
from tests.loop.conftest import adding, agent

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
SECRET = "the customer's card is 4711"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Written:
    """Adds up what is written, and refuses while `broken`."""

    def __init__(self) -> None:
        self.writes: list[Mapping[str, Count]] = []
        self.broken = False
        self.started = threading.Event()

    def __call__(self, counts: Mapping[str, Count]) -> None:
        self.started.set()
        if self.broken:
            raise LedgerError("locked")
        self.writes.append(counts)

    def total(self, name: str) -> int:
        return sum(counts[name].count for counts in self.writes if name in counts)


def test_a_thousand_failures_within_a_second_are_two_writes_and_none_is_lost() -> None:
    written = Written()
    counters = Counters(written, clock=Clock())
    counters.add("retrieve", "first")
    assert written.started.wait(10)
    for number in range(999):
        counters.add("retrieve", f"{number}")
    counters.add("retrieve")  # says nothing new
    assert counters.settle(10)
    assert (written.total("retrieve"), len(written.writes)) == (1001, 2)
    assert written.writes[-1]["retrieve"].last == "998"


def test_what_cannot_be_written_is_kept_for_the_next_time_and_bounded() -> None:
    written, clock = Written(), Clock()
    counters = Counters(written, clock=clock)
    written.broken = True
    for number in range(NAMES + 50):
        counters.add(f"name {number}", "broken")
    counters.settle(10)
    written.broken = False
    clock.now += 2
    counters.add("name 0", "mended")
    assert counters.settle(10)
    assert written.total("name 0") == 2
    assert len({name for counts in written.writes for name in counts}) == NAMES
    assert written.writes[-1]["name 0"].last == "mended"


def test_after_its_close_nothing_is_counted_and_no_thread_starts() -> None:
    written = Written()
    counters = Counters(written)
    counters.close()
    counters.add("late")
    assert counters.settle(10)
    assert written.writes == []


def test_a_failure_that_goes_on_is_told_again_with_its_number() -> None:
    clock = Clock()
    counters = Counters(Written(), clock=clock)
    assert counters.repeats("store:OSError") == 1
    assert [counters.repeats("store:OSError") for _ in range(3)] == [None] * 3
    clock.now += REPEAT_SECONDS
    assert counters.repeats("store:OSError") == 4
    assert counters.repeats("embed:OSError") == 1


def test_two_processes_add_to_the_same_counter(tmp_path: Path) -> None:
    one, two = (Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") for _ in range(2))
    assert (one.health.counts(), two.health.counts()) == ({}, {})

    def count(table: HealthTable, last: str) -> None:
        for _ in range(50):
            table.add({"store": Count(count=1, last=last, at=1.0), "embed": Count(count=2, last="", at=2.0)})

    threads = [threading.Thread(target=count, args=(x.health, name)) for x, name in ((one, "a"), (two, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = one.health.counts()
    assert (counts["store"].count, counts["embed"].count, counts["embed"].last) == (100, 200, "")
    two.health.add({"store": Count(count=1, last="", at=3.0)})
    assert counts["store"].last == one.health.counts()["store"].last  # an event without words keeps the last ones
    one.close()
    two.close()


def test_words_of_others_stay_out_of_logs() -> None:
    quoting = EmbedderError(f"The model could not embed ({SECRET}).")
    quoting.__cause__ = ValueError(SECRET)
    assert words(quoting) == "EmbedderError from ValueError"
    assert words(RuntimeError(SECRET)) == "RuntimeError"
    assert words(OSError(28, "No space left on device", SECRET)) == "OSError: No space left on device"
    assert words(LedgerError("the ledger is full")) == "LedgerError: the ledger is full"
    assert "every" in words(ConfigurationError("every", 0, "1 or more"))


@pytest.mark.parametrize("broken", ["reward", "task", "embeddings", "model", "on_reflection", "redact"])
def test_no_log_at_info_or_above_holds_content(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails while it holds a task, a lesson or an answer, and with everything that succeeds."""

    def fail(*_: Any) -> Any:
        raise RuntimeError(SECRET)

    class Fails(testing.HashingEmbeddings):
        embed_query = embed_documents = fail  # type: ignore[assignment]

    model = testing.ScriptedChatModel(lambda _: SECRET if broken == "model" else adding("Refund"))
    settings = {} if broken == "model" else {broken: Fails() if broken == "embeddings" else fail}
    reflection = testing.reflection(model, every=1, **settings)
    with caplog.at_level(logging.INFO), reflection:
        reflection.lessons.add(when=f"{SECRET} is asked", do=SECRET)
        graph = reflection.wrap(agent())
        for _ in range(2):
            graph.invoke({"messages": f"Refund order 1, {SECRET}"})
        reflection.reflect()
        reflection.flush()
    told = [record for record in caplog.records if record.name.startswith("reflect_")]
    assert [record for record in told if record.levelno >= logging.WARNING], "the failure is told"
    shown = logging.Formatter("%(message)s")
    assert [record.name for record in told if SECRET in shown.format(record)] == []


def test_a_broken_embedder_is_counted_run_by_run_but_not_written_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(testing.HashingEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            raise ConnectionError("no network")

    writes: list[Mapping[str, Count]] = []
    real = HealthTable.add
    monkeypatch.setattr(HealthTable, "add", lambda self, counts: (writes.append(counts), real(self, counts)))
    with testing.reflection(None, embeddings=Fails()) as reflection:
        reflection.lessons.add(when="refunding", do="ask")
        graph = reflection.wrap(agent())
        for _ in range(20):
            graph.invoke({"messages": "Refund order 1"})
        reflection.flush()
        counts = reflection._core.parts.ledger.health.counts()
    assert (counts["retrieve"].count, counts["retrieve.resting"].count) == (3, 17)
    assert len(writes) <= 5
    assert "no network" in counts["retrieve"].last


@pytest.mark.parametrize("folder", ["reflect_middleware", "adapters/reflect_adapters"])
def test_each_logger_is_named_as_its_module_and_has_no_handler(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                assert [ast.unparse(argument) for argument in node.args] == ["__name__"], file
            assert not (isinstance(node, ast.Attribute) and node.attr in ("addHandler", "basicConfig")), file
