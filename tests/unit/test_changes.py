"""The counters that tell whether the ledger has to be asked."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from reflect_middleware import lessons_table, testing
from reflect_middleware.changes import Changes
from reflect_middleware.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPACE = ("default",)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    opened.lessons.state(SPACE)
    yield opened
    opened.close()


def reads(ledger: Ledger) -> list[str]:
    """The statements that the ledger runs from now on."""
    seen: list[str] = []
    engine = ledger.database._open()
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: seen.append(statement))
    return seen


def test_nothing_is_known_before_the_first_change_and_during_one(tmp_path: Path) -> None:
    changes = Changes(tmp_path / "marks")
    assert changes.mark() is None
    ticket = changes.begin()
    assert changes.mark() is None
    changes.end(ticket)
    assert changes.mark() == ticket


def test_two_views_of_one_file_see_each_other(tmp_path: Path) -> None:
    one, two = Changes(tmp_path / "marks"), Changes(tmp_path / "marks")
    one.end(one.begin())
    before = two.mark()
    assert before is not None
    ticket = one.begin()
    assert two.mark() is None
    one.end(ticket)
    assert two.mark() not in (None, before)


def test_an_older_end_that_comes_last_does_no_harm(tmp_path: Path) -> None:
    changes = Changes(tmp_path / "marks")
    first = changes.begin()
    second = changes.begin()
    changes.end(first)
    assert changes.mark() is None
    changes.end(second)
    changes.end(first)
    assert changes.mark() == second


@pytest.mark.parametrize("place", [None, "folder"])
def test_a_place_that_cannot_be_mapped_is_never_unchanged(tmp_path: Path, place: str | None) -> None:
    changes = Changes(None if place is None else tmp_path)
    changes.end(changes.begin())
    assert changes.mark() is None


def test_an_unchanged_namespace_costs_no_statement(ledger: Ledger) -> None:
    assert ledger.lessons.state(SPACE) == (0, False)
    seen = reads(ledger)
    assert ledger.lessons.state(SPACE) == (0, False)
    assert ledger.lessons.known_state(SPACE) == (0, False)
    assert seen == []


def test_it_is_asked_again_after_a_while(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.lessons.state(SPACE)
    later = time.monotonic() + lessons_table.FRESH_SECONDS
    monkeypatch.setattr(lessons_table.time, "monotonic", lambda: later)
    seen = reads(ledger)
    ledger.lessons.state(SPACE)
    assert len(seen) == 1


@pytest.mark.parametrize("change", ["lesson", "pause"])
def test_a_change_elsewhere_is_seen_at_once(ledger: Ledger, tmp_path: Path, change: str) -> None:
    assert ledger.lessons.state(SPACE) == (0, False)
    with testing.reflection(path=tmp_path) as other:
        if change == "lesson":
            other.lessons.add(when="always", do="be kind")
        else:
            other.pause()
    assert ledger.lessons.state(SPACE) == ((1, False) if change == "lesson" else (0, True))


def test_a_change_that_was_rolled_back_ends(ledger: Ledger) -> None:
    def fails() -> None:
        with ledger.database.write() as connection:
            ledger.database.changing(connection)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert ledger.database.mark() is not None


@pytest.mark.process
def test_a_process_that_dies_in_a_change_hides_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """It has committed and not said so: the ledger is asked, until somebody opens it anew."""
    dies = (
        "import os, sys\n"
        "from reflect_middleware.changes import Changes\n"
        "from reflect_middleware.ledger import Ledger\n"
        "from reflect_middleware.desk import Change\n"
        "from reflect_middleware.types import Lesson\n"
        "Changes.end = lambda self, ticket: os._exit(9)\n"
        "lesson = Lesson(namespace=('default',), when='always', do='be kind')\n"
        "Ledger(sys.argv[1]).lessons.save_all([Change(lesson=lesson, vector=None, expected_version=0)], 'none')\n"
    )
    assert ledger.lessons.state(SPACE) == (0, False)
    dead = subprocess.run([sys.executable, "-c", dies, ledger.database.url], check=False)
    assert dead.returncode == 9
    assert ledger.lessons.known_state(SPACE) is None
    assert ledger.lessons.state(SPACE) == (1, False)
    assert ledger.database.mark() is None
    Ledger(ledger.database.url).lessons.find(SPACE)
    assert ledger.database.mark() is not None
    assert [lesson.do for lesson in ledger.lessons.find(SPACE)] == ["be kind"]
