"""Every registered store passes the shipped contract."""

from __future__ import annotations

import pytest

from reflect_middleware.registry import STORES, installed
from reflect_middleware.testing import StoreContract
from tests.contract.factories import FACTORIES, ON_POSTGRES


class TestRegisteredStores(StoreContract):
    @pytest.fixture(params=sorted({*FACTORIES, *ON_POSTGRES}))
    def open_store(self, request, tmp_path):
        if request.param in FACTORIES:
            return lambda: FACTORIES[request.param](tmp_path)
        url = request.getfixturevalue("postgres")  # starts the server, so only where it is needed
        return lambda: ON_POSTGRES[request.param](url)


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
