"""Shared by all tests. The shipped contract suite must be registered before it is imported."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("reflect_middleware.testing.store_contract")
