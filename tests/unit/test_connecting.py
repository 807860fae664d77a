"""Connections to PostgreSQL: pooled, tried after a rest, given up in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

from reflect_middleware import connecting, testing
from reflect_middleware.errors import LedgerError, LedgerUnavailableError, LedgerValueError
from reflect_middleware.ledger import Ledger
from reflect_middleware.types import Reward
from tests.loop.conftest import agent
from tests.postgres import CannotRunError, Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ledger(postgres: str) -> Iterator[Ledger]:
    opened = Ledger(postgres)
    opened.lessons.paused()
    yield opened
    opened.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may stop."""
    try:
        server = Server()
    except CannotRunError as error:
        pytest.skip(f"PostgreSQL cannot run here: {error}")
    if server.given:
        pytest.skip("REFLECT_TEST_POSTGRES names a server that is not ours to stop")
    yield server
    server.close()


def shown(ledger: Ledger, setting: str) -> str:
    with ledger.database.read() as connection:
        return str(connection.exec_driver_sql(f"SHOW {setting}").scalar_one())


def test_the_server_ends_what_takes_too_long(ledger: Ledger, postgres: str) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "application_name")
    assert [shown(ledger, name) for name in names] == ["30s", "10s", "1min", "reflect-middleware"]
    own = Ledger(f"{postgres}&options=-c statement_timeout%3D50ms&application_name=shop")
    assert [shown(own, name) for name in names] == ["50ms", "10s", "1min", "shop"]
    with (
        pytest.raises(LedgerUnavailableError, match=r"statement timeout.*server runs"),
        own.database.read() as connection,
    ):
        connection.exec_driver_sql("SELECT pg_sleep(30)")
    own.close()


def test_a_lock_is_not_waited_for_for_ever(ledger: Ledger, postgres: str) -> None:
    own = Ledger(f"{postgres}&options=-c lock_timeout%3D50ms")
    own.lessons.paused()
    with ledger.database.write() as connection:
        ledger.database.take_turn(connection, "x")
        with pytest.raises(LedgerUnavailableError, match="lock timeout"), own.database.write() as other:
            own.database.take_turn(other, "x")
    own.close()


def test_what_the_url_says_wins() -> None:
    url = sa.make_url("postgresql+psycopg://host/db?connect_timeout=1&options=-csearch_path%3Dreflect")
    arguments = connecting._arguments(url)
    assert "connect_timeout" not in arguments
    assert arguments["keepalives_idle"] == 10
    assert arguments["options"].endswith(" -csearch_path=reflect")


def test_a_connection_that_broke_while_it_rested_is_replaced(
    ledger: Ledger, postgres_server: Server, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sa.make_url(postgres).database
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    postgres_server.execute(end)
    with pytest.raises(LedgerUnavailableError) as found:  # it has not rested: nobody tries it first
        ledger.lessons.paused()
    assert found.value.temporary
    assert ledger.lessons.paused() is False
    monkeypatch.setattr(connecting, "PING_AFTER", 0.0)
    postgres_server.execute(end)
    assert ledger.lessons.paused() is False


def test_a_fresh_connection_costs_no_second_question(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    pings: list[Any] = []
    real = type(ledger.database._open().dialect).do_ping
    monkeypatch.setattr(
        type(ledger.database._open().dialect), "do_ping", lambda *given: (pings.append(given), real(*given))[1]
    )
    for _ in range(3):
        ledger.lessons.paused()
    assert pings == []


def test_the_pool_has_a_limit(ledger: Ledger) -> None:
    pool: Any = ledger.database._open().pool
    assert (pool.size(), pool._max_overflow, pool.timeout()) == (5, 10, 10.0)


def test_a_connection_in_use_ends_with_its_use_once_the_ledger_is_closed(postgres: str) -> None:
    ledger, given = Ledger(postgres), list[Any]()
    with ledger.database.read() as connection:
        given.append(connection.connection.driver_connection)
        ledger.close()
        assert not given[0].closed
    assert given[0].closed


def test_what_a_server_refuses_for_good_is_told_apart(ledger: Ledger) -> None:
    with pytest.raises(LedgerValueError, match="refuses this value") as found:
        ledger.episodes.reward_later("a\0b", Reward(value=1.0))
    assert not found.value.temporary
    with pytest.raises(LedgerError) as missing, ledger.database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM no_such_table")
    assert not missing.value.temporary
    assert "LINE 1" not in str(missing.value)


def test_an_error_hides_the_password() -> None:
    ledger = Ledger("postgresql+psycopg://ann:secret@127.0.0.1:9/db")
    with pytest.raises(LedgerUnavailableError, match=r"ann:\*\*\*@127.0.0.1") as found:
        ledger.episodes.find()
    assert "secret" not in str(found.value)
    with pytest.raises(LedgerUnavailableError):
        ledger.database.probe()
    ledger.close()


def test_a_server_that_is_away_costs_lessons_and_nothing_else(own_server: Server) -> None:
    url = own_server.url(own_server.fresh())
    with testing.reflection(ledger=url, namespace=("shop",), every=99, run="background") as reflection:
        graph = reflection.wrap(agent())
        graph.invoke({"messages": "Refund 0"})
        database = reflection._core.parts.ledger.database
        database.probe()
        own_server.stop()
        with pytest.raises(LedgerUnavailableError):
            database.probe()
        at = time.monotonic()
        assert graph.invoke({"messages": "Refund 1"})["messages"][-1].content == "refunded"
        assert time.monotonic() - at < 5
        own_server.start()
        database.probe()
        graph.invoke({"messages": "Refund 2"})
        assert reflection.flush(60)
        assert {e.task for e in reflection.episodes.list()} == {"Refund 0", "Refund 1", "Refund 2"}


@pytest.mark.process
def test_a_server_that_hangs_holds_no_run_beyond_its_deadlines(own_server: Server) -> None:
    url = own_server.url(own_server.fresh())
    settings: dict[str, Any] = {"run": "background", "every": 99, "retrieve_timeout": 0.3, "exit_timeout": 30.0}
    with testing.reflection(ledger=url, namespace=("shop",), **settings) as reflection:
        reflection.lessons.add(when="refunding", do="ask")
        graph = reflection.wrap(agent())
        graph.invoke({"messages": "Refund 0"})
        stopped = _processes(own_server)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        at = time.monotonic()
        try:
            assert graph.invoke({"messages": "Refund 1"})["messages"][-1].content == "refunded"
            assert time.monotonic() - at < 10
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert reflection.flush(60)
        assert {e.task for e in reflection.episodes.list()} == {"Refund 0", "Refund 1"}


def _processes(server: Server) -> list[int]:
    """The server's process and those that serve connections."""
    main = int((server.data / "postmaster.pid").read_text().split()[0])
    return [
        main,
        *(
            row[0]
            for row in server.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid != pg_backend_pid()"
            )
        ),
    ]


def test_many_threads_share_the_pool(ledger: Ledger) -> None:
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                ledger.lessons.paused()
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with psycopg.connect(ledger.database.url.replace("+psycopg", "", 1)) as connection:
        used = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'reflect-middleware'")
        row = used.fetchone()
    assert row is not None
    assert row[0] <= 5
