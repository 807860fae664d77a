"""The commit at the end of a run: rows written by SQLite's own driver, on a connection that is kept."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from reflect_middleware import Reward
from reflect_middleware.database import LOG_LENGTH, Database
from reflect_middleware.episodes_table import Record
from reflect_middleware.errors import LedgerError
from reflect_middleware.ledger import Ledger
from reflect_middleware.schema import meta
from reflect_middleware.types import Episode, new_id, now

NONE = sa.select(meta.c.key).where(meta.c.key == sa.bindparam("id"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield opened
    opened.close()


def record(*aliases: str, ready_at: float = 0.0) -> Record:
    ended = now()
    episode = Episode(
        id=new_id(), namespace=("default",), task="go", status="completed", started_at=ended, ended_at=ended
    )
    return Record(episode=episode, ready_at=ready_at, aliases=aliases)


def written(database: Database, key: str, *, unless: str) -> bool:
    rows = [{"key": key, "value": "kept"}]
    return database.append((sa.insert(meta), rows), unless=NONE, given={"id": unless})


def keys(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(sa.select(meta.c.key)))


def test_all_is_written_or_nothing(ledger: Ledger) -> None:
    database = ledger.database
    assert written(database, "one", unless="nothing")
    assert not written(database, "two", unless="one")  # there is more to do, which takes `write`
    with pytest.raises(LedgerError, match="UNIQUE"):
        written(database, "one", unless="nothing")
    assert written(database, "three", unless="nothing")
    assert keys(database) == {"schema", "one", "three"}


def test_a_ledger_that_is_locked_is_an_error_and_the_next_commit_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    database = ledger.database
    assert written(database, "one", unless="nothing")
    database._spare._held[0][1].cursor().execute("PRAGMA busy_timeout=0")
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="locked"):
        written(database, "two", unless="nothing")
    other.execute("ROLLBACK")
    other.close()
    assert written(database, "two", unless="nothing")


def test_threads_that_append_at_once_do_not_share_a_connection(ledger: Ledger) -> None:
    start, threads = threading.Barrier(4), 4

    def work(number: int) -> None:
        start.wait(10)
        for turn in range(20):
            ledger.episodes.put(record(f"{number}/{turn}"))

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(30)
    assert len(ledger.episodes.find(limit=None)) == 20 * threads
    assert len(ledger.database._spare._held) <= 1


def test_closing_leaves_no_connection_behind(ledger: Ledger, tmp_path: Path) -> None:
    ledger.episodes.put(record())
    assert (tmp_path / "ledger.db-wal").exists()
    ledger.close()
    assert not (tmp_path / "ledger.db-wal").exists()  # SQLite removes it with its last connection
    with pytest.raises(LedgerError, match="closed"):
        ledger.episodes.put(record())


def test_a_long_log_is_moved_into_the_file(ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(LOG_LENGTH):
        assert not ledger.database.log_is_long
        ledger.episodes.put(record())
    assert ledger.database.log_is_long
    ledger.database.checkpoint()
    assert not ledger.database.log_is_long
    alone = shutil.copy(tmp_path / "ledger.db", tmp_path / "alone.db")  # without its log
    with sqlite3.connect(alone) as copy:
        assert copy.execute("SELECT count(*) FROM episodes").fetchone() == (LOG_LENGTH,)
    copy.close()


@pytest.mark.parametrize("ready_at", [0.0, 9e9])
def test_rewards_that_came_first_count_at_once(ledger: Ledger, ready_at: float) -> None:
    early = record("message", ready_at=ready_at)
    assert ledger.episodes.reward_later("message", Reward(value=1.0)) == []
    ledger.episodes.put(early)
    assert ledger.episodes.get(early.episode.id).reward == 1.0
    with ledger.database.read() as connection:
        ready = connection.exec_driver_sql("SELECT ready_at FROM episodes").scalar()
    assert ready == 0.0
    ledger.episodes.put(early)  # once more, as after a commit of which nobody heard
    with ledger.database.read() as connection:
        assert connection.exec_driver_sql("SELECT ready_at FROM episodes").scalar() == 0.0


def test_an_answer_named_after_its_call_is_known_by_both_names(ledger: Ledger) -> None:
    call = new_id()
    first = record(f"lc_run--{call}-0", "msg_abc")
    ledger.episodes.put(first)
    for name in (f"lc_run--{call}-0", call, "msg_abc"):
        assert ledger.episodes.resolve(name) == [first.episode.id]
    later, second = new_id(), new_id()
    assert ledger.episodes.reward_later(f"lc_run--{later}-0", Reward(value=0.0)) == []
    known = record(later, second)
    ledger.episodes.put(known)
    assert ledger.episodes.get(known.episode.id).reward == 0.0
