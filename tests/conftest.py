"""Shared by all tests. The shipped contract suite must be registered before it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("reflect_middleware.testing.store_contract")

from tests import chroma  # noqa: E402 - after the registration
from tests.postgres import CannotRunError, Server  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.terminal import TerminalReporter


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One PostgreSQL for the whole session, started by the first test that asks."""
    pytest.importorskip("psycopg", reason="PostgreSQL needs pip install 'reflect-middleware[postgres]'")
    try:
        server = Server()
    except CannotRunError as error:
        pytest.skip(f"PostgreSQL cannot run here: {error}")
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database."""
    name = postgres_server.fresh()
    yield postgres_server.url(name)
    postgres_server.give_back(name)


@pytest.fixture(scope="session")
def chroma_server() -> Iterator[chroma.Server]:
    """One Chroma server for the whole session, started by the first test that asks."""
    server = chroma.Server()
    yield server
    server.close()


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """What the contract measured: each store's recall@10."""
    reports = [report for status in ("passed", "failed") for report in terminalreporter.getreports(status)]
    found = {report.nodeid: dict(report.user_properties) for report in reports if report.when == "call"}
    lines = [f"{told['recall@10']:.3f} {where}" for where, told in found.items() if "recall@10" in told]
    if lines:
        terminalreporter.section("recall@10 of the stores")
        terminalreporter.write_line("\n".join(sorted(lines)))
