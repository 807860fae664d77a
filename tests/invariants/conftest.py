"""Reflections with one lesson to find, shared by a module's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reflect_middleware import testing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Reflection

LESSON = "name the unit with every weight"


@pytest.fixture
def reflection() -> Iterator[Reflection]:
    """One lesson; no reflector."""
    with testing.reflection() as made:
        made.lessons.add(when="weighing", do=LESSON)
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Reflection]:
    """As `reflection`, for tests that do not look at its ledger."""
    with testing.reflection(run="background") as made:
        made.lessons.add(when="weighing", do=LESSON)
        yield made


@pytest.fixture(scope="module")
def empty() -> Iterator[Reflection]:
    """As `shared`, without a lesson."""
    with testing.reflection(run="background") as made:
        yield made
