"""Ledgers of earlier versions are brought to the present, whoever comes first, on both databases."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from typer.testing import CliRunner

from reflect_middleware import testing
from reflect_middleware.cli import app
from reflect_middleware.errors import LedgerSchemaError
from reflect_middleware.ledger import Ledger
from reflect_middleware.migrations import schema_1, schema_2
from reflect_middleware.schema import SCHEMA_VERSION, metadata
from reflect_middleware.types import Episode, Lesson, Reward
from tests.loop.conftest import agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Server

SPACE = ("shop",)
WHEN = "2026-11-01T12:00:00Z"
RUN = Episode(
    id="e1", namespace=SPACE, principal="ann", task="refund", status="completed", started_at=WHEN, ended_at=WHEN
)
LESSON = Lesson(id="l1", namespace=SPACE, when="refunding", do="ask", sources=("e1",), created_at=WHEN, updated_at=WHEN)
AT = RUN.started_at.timestamp()
ROWS: dict[str, dict[str, Any]] = {
    "episodes": {
        "id": "e1",
        "namespace": '["shop"]',
        "status": "completed",
        "started_at": AT,
        "ended_at": AT,
        "ready_at": AT,
        "body": RUN.model_dump_json(exclude={"rewards", "exposures", "reflection_id", "dead_letter"}),
    },
    "aliases": {"alias": "m1", "episode_id": "e1", "at": AT},
    "rewards": {
        "target": "e1",
        "source": "user",
        "key": "reward",
        "current": True,
        "waiting": False,
        "at": AT,
        "body": Reward(value=0.25).model_dump_json(),
    },
    "exposures": {
        "episode_id": "e1",
        "lesson_id": "l1",
        "version": 1,
        "shown": True,
        "probability": 1.0,
        "similarity": 0.5,
        "position": 0,
    },
    "namespaces": {"namespace": '["shop"]', "revision": 1},
    "lessons": {
        "id": "l1",
        "namespace": '["shop"]',
        "status": "active",
        "version": 1,
        "revision": 1,
        "body": LESSON.model_dump_json(),
    },
    "lesson_versions": {
        "lesson_id": "l1",
        "version": 1,
        "namespace": '["shop"]',
        "at": AT,
        "by": "human",
        "body": LESSON.model_dump_json(),
    },
    "lesson_sources": {"episode_id": "e1", "lesson_id": "l1"},
    "reflections": {
        "id": "r1",
        "namespace": '["shop"]',
        "status": "running",
        "owner": "somebody who died",
        "lease_until": AT,
        "started_at": AT,
        "body": json.dumps({"id": "r1", "namespace": ["shop"], "status": "running", "episodes": []}),
    },
    "counters": {"name": "retrieve", "count": 3, "last": "late", "at": AT},
    "meta": {"key": "schema", "value": "1"},
}
"""One row of each kind, as the first release wrote them."""


def make_old(url: str) -> None:
    """A ledger of the first release with something in it."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            schema_1.upgrade()
        for table, row in ROWS.items():
            reflected = sa.Table(table, sa.MetaData(), autoload_with=connection)
            connection.execute(reflected.insert().values(row))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a ledger, on each database."""
    on_a_server = request.param == "postgresql"
    return str(request.getfixturevalue("postgres")) if on_a_server else f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def old(url: str) -> str:
    """The URL of a ledger of the first release."""
    make_old(url)
    return url


@pytest.fixture
def opened(url: str) -> Iterator[Ledger]:
    """A ledger there, which opens when it is used."""
    ledger = Ledger(url)
    yield ledger
    ledger.close()


def described(url: str) -> tuple[Any, ...]:
    """What the database says of its tables and indices, and where that differs from `schema.py`."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        different = compare_metadata(MigrationContext.configure(connection), metadata)
        inspector = sa.inspect(connection)
        columns = {
            (table, column["name"], str(column["type"]), column["nullable"], str(column["default"]))
            for table in inspector.get_table_names()
            for column in inspector.get_columns(table)
        }
        where = "sqlite_master WHERE type = 'index'" if url.startswith("sqlite") else "pg_indexes"
        what = "name, sql" if url.startswith("sqlite") else "indexname, indexdef"
        named = " AND" if "WHERE" in where else " WHERE schemaname = 'public' AND"
        found = connection.exec_driver_sql(f"SELECT {what} FROM {where}{named} {what.split(', ')[1]} IS NOT NULL").all()
        indices = {(name, " ".join(str(text).split())) for name, text in found}
    engine.dispose()
    return different, columns, indices


def test_an_old_ledger_reads_as_ever_and_can_do_what_is_new(old: str, opened: Ledger) -> None:
    if not old.startswith("sqlite"):
        assert opened.database.migrate() == (1, SCHEMA_VERSION)
    (episode,) = opened.episodes.find()
    assert episode.model_copy(update={"rewards": (), "exposures": ()}) == RUN
    assert (episode.reward, len(episode.exposures)) == (0.25, 1)
    assert opened.lessons.find(SPACE) == (LESSON,)
    assert opened.lessons.history("l1") == (LESSON,)
    assert opened.episodes.resolve("m1") == ["e1"]
    assert [record.id for record in opened.reflections.find()] == ["r1"]
    with opened.database.read() as connection:
        row = connection.exec_driver_sql("SELECT principal, sampled, size FROM episodes").one()
    assert tuple(row) == ("ann", True, len(ROWS["episodes"]["body"]))
    claim = opened.reflections.claim(SPACE, "me", at_least=1, at_most=5, lease=30.0)
    assert claim is not None
    assert claim.episodes == ("e1",)


def test_migrated_and_made_anew_are_the_same(old: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ledger = Ledger(old)
    ledger.database.migrate()
    ledger.close()
    migrated = described(old)
    if old.startswith("sqlite"):
        anew = f"sqlite:///{tmp_path / 'new' / 'ledger.db'}"
        (tmp_path / "new").mkdir()
    else:
        server: Server = request.getfixturevalue("postgres_server")
        anew = server.url(name := server.fresh())
        request.addfinalizer(lambda: server.give_back(name))
    fresh = Ledger(anew)
    assert fresh.database.migrate() == (None, SCHEMA_VERSION)
    assert fresh.database.migrate() == (SCHEMA_VERSION, SCHEMA_VERSION)
    fresh.close()
    made = described(anew)
    assert migrated[0] == made[0] == []
    assert migrated[1] == made[1]
    assert migrated[2] == made[2]


def test_a_file_is_copied_before_it_is_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_old(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    with caplog.at_level(logging.INFO, logger="reflect_middleware"):
        assert len(ledger.episodes.find()) == 1
    ledger.close()
    (copy,) = (tmp_path / "backups").glob("ledger-*.db")
    assert str(copy) in caplog.text
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT value FROM meta").fetchall() == [("1",)]
        assert connection.execute("SELECT id FROM episodes").fetchall() == [("e1",)]
    connection.close()


def test_what_the_first_release_left_unfinished_is_finished(tmp_path: Path) -> None:
    make_old(f"sqlite:///{tmp_path / 'ledger.db'}")
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        for statement in ("DELETE FROM meta", "DROP TABLE exposures", "DROP INDEX rewards_waiting"):
            connection.execute(statement)
    connection.close()
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert [episode.id for episode in ledger.episodes.find()] == ["e1"]
    ledger.close()


def test_on_a_server_an_old_ledger_waits_for_the_command(postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    make_old(postgres)
    with testing.reflection(ledger=postgres, namespace=SPACE, every=99) as reflection:
        with pytest.raises(LedgerSchemaError, match=r"schema 1.*needs 2.*reflect migrate --ledger postgresql"):
            reflection.episodes.list()
        graph = reflection.wrap(agent())
        assert graph.invoke({"messages": "Refund 7"})["messages"][-1].content == "refunded"
        assert "reflect migrate" in caplog.text
        done = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["migrate", "--ledger", postgres, "--json"])
        assert done.exit_code == 0, done.output
        assert (json.loads(done.output)["before"], json.loads(done.output)["now"]) == (1, SCHEMA_VERSION)
        graph.invoke({"messages": "Refund 8"})
        assert reflection.flush(60)
        assert {e.task for e in reflection.episodes.list()} == {"refund", "Refund 7", "Refund 8"}


def test_a_ledger_of_the_future_is_left_alone(url: str) -> None:
    first = Ledger(url)
    first.lessons.pause(value=False)
    with first.database.write() as connection:
        connection.exec_driver_sql("UPDATE meta SET value = '99' WHERE key = 'schema'")
    first.close()
    before = described(url)
    later = Ledger(url)
    with pytest.raises(LedgerSchemaError, match=f"schema 99.*up to {SCHEMA_VERSION}.*Nothing was touched"):
        later.episodes.find()
    assert described(url) == before


def test_a_migration_that_fails_changes_nothing(old: str, opened: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise OSError("no space left on device")

    before = described(old)
    with monkeypatch.context() as patch:
        patch.setattr(schema_2, "_fill", full)
        with pytest.raises(Exception, match="no space left"):
            opened.database.migrate()
    assert described(old)[1:] == before[1:]
    assert opened.database.migrate() == (1, SCHEMA_VERSION)


@pytest.mark.process
def test_several_processes_upgrade_at_once(old: str, opened: Ledger, tmp_path: Path) -> None:
    code = "import sys; from reflect_middleware.ledger import Ledger; print(Ledger(sys.argv[1]).database.migrate())"
    children = [
        subprocess.Popen([sys.executable, "-c", code, old], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = sorted(child.communicate(timeout=120)[0].strip() for child in children)
    assert said == [f"(1, {SCHEMA_VERSION})"] + [f"({SCHEMA_VERSION}, {SCHEMA_VERSION})"] * 3
    assert [episode.id for episode in opened.episodes.find()] == ["e1"]
    assert len(list((tmp_path / "backups").glob("*"))) == (1 if old.startswith("sqlite") else 0)


def test_several_make_a_new_ledger_at_once(url: str) -> None:
    several = [Ledger(url) for _ in range(6)]
    with ThreadPoolExecutor(len(several)) as threads:
        assert list(threads.map(lambda ledger: ledger.episodes.find(), several)) == [()] * len(several)
    for ledger in several:
        ledger.close()


def test_a_user_without_the_right_to_make_tables_is_told_what_to_do(postgres_server: Server, postgres: str) -> None:
    name = sa.make_url(postgres).database
    postgres_server.execute("DROP ROLE IF EXISTS modest")
    postgres_server.execute("CREATE ROLE modest LOGIN")
    modest = sa.make_url(postgres).set(username="modest").render_as_string(hide_password=False)
    ledger = Ledger(modest)
    with pytest.raises(LedgerSchemaError, match=r"may not make them: permission denied.*reflect migrate --ledger"):
        ledger.episodes.find()
    assert Ledger(postgres).database.migrate() == (None, SCHEMA_VERSION)
    postgres_server.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO modest", str(name))
    postgres_server.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO modest", str(name))
    with testing.reflection(ledger=modest, namespace=SPACE, every=99) as reflection:
        result = reflection.wrap(agent()).invoke({"messages": "Refund 7"})
        reflection.reward(result, 0.5)
        assert [e.reward for e in reflection.episodes.list()] == [0.5]
    ledger.close()
    postgres_server.execute("DROP OWNED BY modest", str(name))
    postgres_server.execute("DROP ROLE modest")


def test_tables_of_another_program_are_not_taken_for_ours(postgres_server: Server, postgres: str) -> None:
    name = str(sa.make_url(postgres).database)
    postgres_server.execute("CREATE TABLE audit (who text)", name)
    postgres_server.execute("CREATE TABLE meta (something int)", name)
    crowded = Ledger(postgres)
    with pytest.raises(LedgerSchemaError, match=r"another program.*: audit, meta. Use.*search_path"):
        crowded.episodes.find()
    crowded.close()
    postgres_server.execute("CREATE SCHEMA reflect", name)
    apart = Ledger(f"{postgres}&options=-csearch_path%3Dreflect")
    assert apart.episodes.find() == ()
    apart.close()
    assert ("reflect",) in postgres_server.execute(
        "SELECT schemaname FROM pg_tables WHERE tablename = 'episodes'", name
    )
    postgres_server.execute("DROP SCHEMA reflect CASCADE", name)


def test_alembic_is_imported_only_when_there_is_something_to_migrate(tmp_path: Path) -> None:
    code = (
        "import sys; from reflect_middleware.ledger import Ledger; Ledger(sys.argv[1]).episodes.find();"
        " print('alembic' in sys.modules)"
    )

    def said(place: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    place = f"sqlite:///{tmp_path / 'ledger.db'}"
    assert [said(place), said(place)] == ["False", "False"]
    (tmp_path / "ledger.db").unlink()
    make_old(place)
    assert [said(place), said(place)] == ["True", "False"]
