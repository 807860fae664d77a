"""The work of an operation does not grow with the ledger. Counted in SQLite's steps; `make scale` measures time."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from benchmarks.ledgers import Size
from benchmarks.operations import EVERY, Operation, Subject
from reflect_middleware.episodes_table import STATISTICS
from reflect_middleware.schema import exposures, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL, LARGE = 1_000, 20_000
WALKS = ("episodes_unread", "episodes_time", "reflections_time")
"""Indices that a statement may go along: the first holds what waits only; with a LIMIT, the others end soon."""


class Counted:
    """A ledger whose steps and statements are counted."""

    def __init__(self, episodes: int, folder: Path, stack: ExitStack) -> None:
        size = Size(episodes=episodes, lessons=20, namespaces=1)
        self.subject = Subject(size, f"sqlite:///{folder / size.name}.db", folder / size.name, stack)
        self.steps = 0
        self.statements: dict[str, Any] = {}
        engine = self.subject.ledger.database._open()
        sa.event.listen(engine, "checkout", lambda connection, *_: connection.set_progress_handler(self._step, 1))
        sa.event.listen(engine, "before_cursor_execute", self._statement)
        self.engine = engine

    def did(self, operation: Operation) -> int:
        """The steps of one operation, that of a process which has done it before."""
        for _ in range(3):
            work = operation.prepare(self.subject)
            self.steps = 0
            work()
            self.subject.settle()
            self.subject.turn += 1
        return self.steps

    def plans(self) -> Iterator[tuple[str, str]]:
        """Each statement, and each line of its plan."""
        with self.engine.connect() as connection:
            for statement, values in self.statements.items():
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
                yield from ((statement, row[3]) for row in rows)

    def _step(self) -> int:
        self.steps += 1
        return 0

    def _statement(self, *given: Any) -> None:
        _, _, statement, values, _, many = given
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            self.statements[statement] = values[0] if many and isinstance(values, list) else values


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Counted, Counted]]:
    folder = tmp_path_factory.mktemp("scale")
    with ExitStack() as stack:
        yield Counted(SMALL, folder, stack), Counted(LARGE, folder, stack)


def test_every_operation_takes_as_many_steps_in_a_large_ledger(ledgers):
    small, large = ledgers
    steps = {x.title: (small.did(x), large.did(x)) for x in EVERY if x.flat}
    assert all(few > 0 for few, _ in steps.values())
    assert {title: both for title, both in steps.items() if both[1] > 1.3 * both[0] + 50} == {}


def test_no_statement_reads_a_whole_table(ledgers):
    _, large = ledgers
    for operation in EVERY:
        large.did(operation)
    plans = list(large.plans())
    assert len({statement for statement, _ in plans}) > len(EVERY)
    scans = [pair for pair in plans if pair[1].startswith("SCAN ") and pair[1].split()[1] in metadata.tables]
    assert [pair for pair in scans if not pair[1].endswith(WALKS)] == []
    assert [pair for pair in scans if not pair[1].endswith(WALKS[0]) and "LIMIT" not in pair[0]] == []


def test_lists_of_any_length_fit_into_statements(ledgers):
    _, large = ledgers
    most = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER
    sa.event.listen(large.engine, "checkout", lambda connection, *_: connection.setlimit(most, 1_500))
    found = large.subject.ledger.episodes.find(limit=3_000)
    assert len({episode.id for episode in found}) == 3_000


def test_statistics_count_all_episodes_and_judge_by_the_latest(ledgers):
    _, large = ledgers
    lesson = large.subject.known[large.subject.namespace][0]
    shown = sa.select(exposures.c.episode_id).where(exposures.c.lesson_id == lesson, exposures.c.shown)
    with large.engine.connect() as connection:
        ids = sorted(connection.execute(shown).scalars(), reverse=True)
    assert len(ids) > 2 * STATISTICS
    judged = [given for e in large.subject.ledger.episodes.many(ids[:STATISTICS]) if (given := e.reward) is not None]
    ((count, mean),) = large.subject.ledger.episodes.lesson_statistics([lesson]).values()
    assert count == len(ids)
    assert mean == pytest.approx(sum(judged) / len(judged))
