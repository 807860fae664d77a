"""What a run sets off follows behind its commit, and `flush` waits for all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import Episode, testing
from reflect_middleware.database import LOG_LENGTH


def graph():  # type: ignore[no-untyped-def]  # langgraph's type has four parameters
    return StateGraph(MessagesState).add_node("echo", lambda _: {}).add_edge(START, "echo").compile()


@pytest.mark.parametrize("durability", ["queue", "commit"])
def test_flush_waits_for_the_reward_of_every_run(durability: Literal["queue", "commit"]) -> None:
    asked: list[str] = []

    def judged(episode: Episode) -> float:
        asked.append(episode.id)
        return 1.0

    with testing.reflection(reward=judged, run="background", durability=durability) as reflection:
        wrapped = reflection.wrap(graph())
        for turn in range(3):
            wrapped.invoke({"messages": f"task {turn}"})
            reflection.flush()
            assert len(asked) == turn + 1
        assert [episode.reward for episode in reflection.episodes.list()] == [1.0] * 3


def test_a_log_does_not_grow_with_the_runs(tmp_path: Path) -> None:
    with testing.reflection(path=str(tmp_path), run="background") as reflection:
        wrapped = reflection.wrap(graph())

        def size(runs: int) -> int:
            for _ in range(runs):
                wrapped.invoke({"messages": "go"})
            reflection.flush()
            return (tmp_path / "ledger.db-wal").stat().st_size

        usual = size(3 * LOG_LENGTH)
        assert size(3 * LOG_LENGTH) < 2 * usual
