"""Every registered store passes the shipped contract."""

from __future__ import annotations

import pytest

from reflect_middleware.registry import STORES, installed
from reflect_middleware.testing import StoreContract
from tests.contract.factories import FACTORIES


class TestRegisteredStores(StoreContract):
    @pytest.fixture(params=sorted(FACTORIES))
    def open_store(self, request, tmp_path):
        return lambda: FACTORIES[request.param](tmp_path)


def test_every_registered_store_has_a_factory():
    registered = set(installed(STORES))
    assert {"chroma", "exact", "langchain", "langgraph"} <= registered, (
        "the package is not installed, so no store is registered"
    )
    assert registered == set(FACTORIES), "add the store to tests/contract/factories.py"


def test_an_edited_contract_fails():
    class Edited(StoreContract):
        def test_upsert_replaces(self):
            """Made easier."""

    with pytest.raises(AssertionError, match="test_upsert_replaces"):
        Edited().test_no_test_of_the_contract_is_overridden()
