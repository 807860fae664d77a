"""A short storm on each database: a kill at each place of the list, then some at random; `make soak` is long."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.faults.storm import DIRECTED, Storm

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork"),
]
KILLS = 10


@pytest.mark.parametrize(("ledger", "store"), [("sqlite", "chroma"), ("postgres", "exact")])
def test_whatever_is_killed_nothing_is_lost_or_done_twice(
    request: pytest.FixtureRequest, tmp_path: Path, ledger: str, store: str
) -> None:
    seed = random.SystemRandom().randrange(10_000)
    url = request.getfixturevalue("postgres") if ledger == "postgres" else None
    storm = Storm(tmp_path, ledger=url, store=store, seed=seed)
    storm.direct()
    storm.rage(KILLS)
    result = storm.finish()
    assert result.wrong == [], f"seed {seed}"
    expected = {place for _, place, _ in DIRECTED if store == "chroma" or not place.startswith("store:")}
    assert expected <= set(result.places)
    assert result.kills >= len(expected) + KILLS
    assert len(result.told.episodes) > 20
    assert result.statuses["done"] > 5
    assert result.statuses["released"] > 0


@pytest.mark.parametrize("ledger", ["sqlite", "postgres"])
def test_many_processes_may_start_at_once_where_nothing_is_yet(
    request: pytest.FixtureRequest, tmp_path: Path, ledger: str
) -> None:
    url = request.getfixturevalue("postgres") if ledger == "postgres" else None
    storm = Storm(tmp_path, ledger=url, seed=7, lease=30.0)
    lives = [storm.start(role, rounds=4) for role in ("produce", "reflect", "curate") * 2]
    assert [storm.end(life) for life in lives] == [0] * len(lives)
    assert [note["text"] for note in storm.notes() if "cannot be used" in note.get("text", "")] == []
    result = storm.finish()
    assert result.wrong == []
    assert result.told.episodes
