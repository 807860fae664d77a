"""Every registered store passes the shipped contract."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from reflect_middleware.registry import STORES, installed
from reflect_middleware.testing import StoreContract
from tests.contract.factories import BREAK, FACTORIES, ON_POSTGRES


class TestRegisteredStores(StoreContract):
    @pytest.fixture(params=sorted({*FACTORIES, *ON_POSTGRES}))
    def open_store(self, request, tmp_path):
        if request.param in FACTORIES:
            return lambda: FACTORIES[request.param](tmp_path)
        url = request.getfixturevalue("postgres")  # starts the server, so only where it is needed
        return lambda: ON_POSTGRES[request.param](url)

    @pytest.fixture
    def server(self, open_store, request):
        """PostgreSQL lets nobody into this database, and throws out who is in: what a client sees of a server away."""
        if request.node.callspec.params["open_store"] not in ON_POSTGRES:
            return None
        return Database(request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres"))

    @pytest.fixture
    def break_driver(self, server, request):
        name = request.node.callspec.params["open_store"]
        yield BREAK.get(name) if server is None else lambda store: server.stop()
        if server is not None:
            server.start()


class Database:
    def __init__(self, server, url):
        self._server, self._name = server, make_url(url).database

    def stop(self):
        self._server.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        self._server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'")

    def start(self):
        self._server.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


def test_every_store_over_a_driver_is_broken_once():
    assert set(BREAK) == {*FACTORIES} - {"exact"}, "say in tests/contract/factories.py how to make its driver fail"


def test_every_registered_store_has_a_factory():
    registered = set(installed(STORES))
    assert {"chroma", "exact", "langchain", "langgraph", "pgvector", "qdrant"} <= registered, (
        "the package is not installed, so no store is registered"
    )
    assert registered == {*FACTORIES, *ON_POSTGRES}, "add the store to tests/contract/factories.py"


def test_an_edited_contract_fails():
    class Edited(StoreContract):
        def test_upsert_replaces(self):
            """Made easier."""

    with pytest.raises(AssertionError, match="test_upsert_replaces"):
        Edited().test_no_test_of_the_contract_is_overridden()
