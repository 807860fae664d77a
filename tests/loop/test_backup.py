"""Backup while agents run, and restore over a sound, a damaged and a missing ledger. Files only: SQLite."""

from __future__ import annotations

import random
import sqlite3
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import Reflection, backups_table, places, testing
from reflect_middleware.errors import ConfigurationError, LedgerError, LedgerUnavailableError
from reflect_middleware.testing import HashingEmbeddings

from .conftest import Maker, agent
from .test_processes import child

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def make() -> Iterator[Maker]:
    """Makes Reflections on SQLite; PostgreSQL has its own tools."""
    maker = Maker(None)
    yield maker
    maker.close()


def runs(reflection: Reflection, *tasks: str) -> None:
    wrapped = reflection.wrap(agent())
    for task in tasks:
        wrapped.invoke({"messages": task})


def tasks(reflection: Reflection) -> list[str]:
    return sorted(episode.task for episode in reflection.episodes.list(limit=None))


def damage(file: Path, kind: str) -> None:
    """Random bytes over a page or two, or over the head; or half of it gone; or all."""
    rng, size = random.Random(7), file.stat().st_size
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        with file.open("r+b") as opened:
            opened.truncate(size // 2 + 17)
    else:
        pages = range(0, size, 4096) if kind == "pages" else [0]
        with file.open("r+b") as opened:
            for page in pages if kind == "head" else list(pages)[1:]:
                opened.seek(page)
                opened.write(rng.randbytes(2048))


def test_a_backup_is_one_sound_file_for_its_owner_only(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "one", "two")
    file = reflection.backup()
    assert file.parent == reflection._options.path / "backups"
    assert [other.name for other in file.parent.iterdir()] == [file.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert backups_table.unsound(file) == ""
    assert len(backups_table.episodes_in(file)) == 2


def test_while_others_write(make: Any) -> None:
    reflection = make(every=9_999, durability="queue")
    runs(reflection, "first")
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            runs(reflection, "again")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        sizes = [len(backups_table.episodes_in(reflection.backup())) for _ in range(3)]
    finally:
        over.set()
        thread.join()
    assert sizes == sorted(sizes)


def test_keep_the_newest(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    made = [reflection.backup(keep=2) for _ in range(4)]
    assert sorted(made[0].parent.iterdir()) == made[2:]


def test_to_a_file_of_ones_own(make: Any, tmp_path: Path) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    file = reflection.backup(tmp_path / "mine.db")
    assert file == tmp_path / "mine.db"
    with pytest.raises(ConfigurationError, match="does not exist yet"):
        reflection.backup(file)


def test_what_was_wrong_is_undone_and_kept_beside(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    lesson = reflection.lessons.add(when="a", do="right")
    file = reflection.backup()
    runs(reflection, "two", "three")
    reflection.lessons.edit(lesson.id, do="wrong")
    report = reflection.restore()
    assert (report.file, report.lost) == (file, 2)
    assert tasks(reflection) == ["one"]
    assert reflection.lessons.get(lesson.id).do == "right"
    assert report.aside is not None
    assert len(backups_table.episodes_in(report.aside)) == 3
    assert reflection.audit()[0].action == "restore"
    runs(reflection, "four")
    assert tasks(reflection) == ["four", "one"]


@pytest.mark.parametrize("kind", ["pages", "cut", "missing"])
def test_a_damaged_ledger_is_replaced(make: Any, kind: str) -> None:
    path = str(make(every=9)._options.path)
    with Reflection(path=path, embeddings=HashingEmbeddings(), store="exact", every=9) as former:
        runs(former, *(f"task {n}" for n in range(8)))
        former.lessons.add(when="a", do="b")
        former.backup()
    ledger = former._options.path / "ledger.db"
    damage(ledger, kind)
    reflection = make(every=9, path=path)
    report = reflection.restore()
    assert (report.lost, report.aside is None) == (None, kind == "missing")
    assert len(tasks(reflection)) == 8
    runs(reflection, "afterwards")
    assert len(tasks(reflection)) == 9
    assert backups_table.unsound(reflection.backup()) == ""


def test_a_damaged_backup_is_passed_over(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    good = reflection.backup()
    bad = reflection.backup()
    damage(bad, "pages")
    report = reflection.restore()
    assert report.file == good
    assert str(bad) in report.passed_over[0]
    damage(good, "head")
    with pytest.raises(LedgerError, match=r"No backup .* can be restored"):
        reflection.restore()
    with pytest.raises(LedgerError, match="no such file"):
        reflection.restore(bad.with_name("nothing.db"))
    assert tasks(reflection) == ["one"]


def test_a_backup_of_a_later_release_is_refused(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    file = reflection.backup()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(LedgerError, match="upgrade reflect-middleware"):
        reflection.restore(file)


def test_what_is_recorded_during_a_restore_is_not_lost_in_silence(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reflection = make(path=str(tmp_path), every=9)
    runs(reflection, "one")
    reflection.backup()
    other = make(path=str(tmp_path), every=9)
    runs(other, "two")
    copy, copied = backups_table.copy, list[Path]()

    def and_then(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(target)
        if len(copied) == 1:
            runs(other, "three")

    monkeypatch.setattr(backups_table, "copy", and_then)
    report = reflection.restore()
    assert tasks(reflection) == ["one"]
    assert report.lost == 2
    assert report.aside is not None
    assert len(backups_table.episodes_in(report.aside)) == 3


def test_a_ledger_that_another_process_keeps_writing_to_is_not_waited_for_for_ever(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    reflection.backup()
    monkeypatch.setattr(backups_table, "WAIT", 0.1)
    writer = sqlite3.connect(reflection._options.path / "ledger.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailableError, match="Nothing was changed"):
        reflection.restore()
    writer.close()
    assert tasks(reflection) == ["one"]


def test_where_the_backup_finds_no_room_the_damaged_ledger_stays(tmp_path: Path, make: Any) -> None:
    with make(path=str(tmp_path), every=9) as former:
        runs(former, "one")
        former.backup()
    damage(file := tmp_path / "ledger.db", "head")
    reflection = make(path=str(tmp_path), every=9)
    before = file.read_bytes()
    (room := file.with_name("ledger.db.restoring.unfinished")).mkdir()
    with pytest.raises(LedgerError, match=r"ledger\.db"):
        reflection.restore()
    assert file.read_bytes() == before
    room.rmdir()
    assert reflection.restore().lost is None
    assert tasks(reflection) == ["one"]


@pytest.mark.skipif(sys.platform == "win32", reason="there a file that is open cannot be moved in the first place")
def test_nobody_begins_a_new_ledger_while_one_is_restored(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(path=str(tmp_path), every=9) as former:
        runs(former, "one")
        former.backup()
    damage(file := tmp_path / "ledger.db", "head")
    reflection = make(path=str(tmp_path), every=9)
    copy, refused = backups_table.copy, list[str]()

    def meanwhile(source: Path, target: Path) -> None:
        copy(source, target)
        monkeypatch.setattr(places, "WAIT_SECONDS", 0.0)
        with pytest.raises(LedgerUnavailableError) as error, places.alone(file):
            pass
        refused.append(str(error.value))

    monkeypatch.setattr(backups_table, "copy", meanwhile)
    reflection.restore()
    assert len(refused) == 1
    assert tasks(reflection) == ["one"]


def test_without_a_backup_or_a_ledger(make: Any) -> None:
    reflection = make(every=9)
    with pytest.raises(LedgerError, match="no ledger"):
        reflection.backup()
    with pytest.raises(LedgerError, match="reflect backup"):
        reflection.restore()


def test_postgresql_has_its_own_tools() -> None:
    with testing.reflection(ledger="postgresql+psycopg://user:secret@nowhere/db", namespace=("a",)) as reflection:
        for act in (reflection.backup, reflection.restore):
            with pytest.raises(ConfigurationError, match="pg_dump") as error:
                act()
            assert "secret" not in str(error.value)


@pytest.mark.process
@pytest.mark.parametrize("store", ["chroma"])
def test_a_running_process_sees_the_restored_lessons_at_its_next_run(tmp_path: Path, make: Any, store: str) -> None:
    reflection = make(path=str(tmp_path))
    lesson = reflection.lessons.add(when="refunding an order", do="the first advice")
    with child(make, tmp_path, f"wait:{store}") as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def next_run() -> str:
            other.stdin.write("go\n")
            other.stdin.flush()
            return other.stdout.readline()

        assert other.stdout.readline() == "ready\n"
        reflection.backup()
        reflection.lessons.edit(lesson.id, do="the second advice")
        assert all("the second advice" in next_run() for _ in range(3))
        reflection.restore()
        assert "the first advice" in next_run()
        reflection.lessons.edit(lesson.id, do="the third advice")
        assert "the third advice" in next_run()
        other.stdin.close()
        assert other.wait(timeout=60) == 0
    assert any(episode.task == "Refund order 9" for episode in reflection.episodes.list())


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="there a file that is open cannot be moved in the first place")
def test_a_damaged_ledger_that_another_process_has_open_is_left_alone(tmp_path: Path, make: Any) -> None:
    with make(path=str(tmp_path), every=9) as former:
        runs(former, "one")
        former.backup()
    with child(make, tmp_path, "hang", 1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "acknowledged\n"
        damage(tmp_path / "ledger.db", "head")
        reflection = make(path=str(tmp_path), every=9)
        with pytest.raises(LedgerError, match="Another process"):
            reflection.restore()
        other.kill()
    assert reflection.restore().lost is None
    assert tasks(reflection) == ["one"]


def test_a_purge_reaches_the_backups(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "canary CANARY-31337 in a backup", "kept")
    file = reflection.backup()
    damaged = file.with_name("damaged-20260101.db")
    damaged.write_bytes(b"CANARY-31337")
    gone = next(episode.id for episode in reflection.episodes.list() if "CANARY" in episode.task)
    report = reflection.episodes.purge(gone)
    assert report.complete, report.left
    assert report.backups == 1
    assert not damaged.exists()
    files = [f for f in reflection._options.path.rglob("*") if f.is_file()]
    assert [f.name for f in files if b"CANARY-31337" in f.read_bytes()] == []
    assert list(file.parent.iterdir()) == [file]
    assert len(backups_table.episodes_in(file)) == 1
    reflection.restore()
    assert tasks(reflection) == ["kept"]


def test_a_backup_that_cannot_be_read_is_named(make: Any) -> None:
    reflection = make(every=9)
    runs(reflection, "one")
    damage(file := reflection.backup(), "head")
    report = reflection.episodes.purge(reflection.episodes.list()[0].id)
    assert not report.complete
    assert f"{file}: it cannot be read" in report.left[0]
