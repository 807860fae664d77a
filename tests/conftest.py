"""Shared by all tests. The shipped contract suite must be registered before it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("reflect_middleware.testing.store_contract")

from tests.postgres import CannotRunError, Server  # noqa: E402 - after the registration

if TYPE_CHECKING:
    from collections.abc import Iterator


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
