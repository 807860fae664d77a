"""Retention: the oldest go in the background, what still waits to be read does not, and lessons stay."""

from __future__ import annotations

import time
from typing import Any

import pytest

from reflect_middleware import Reflection, Retention, testing
from reflect_middleware.errors import ConfigurationError

from .conftest import adding, agent

DAY = 86_400.0


def runs(reflection: Any, *tasks: str) -> None:
    for task in tasks:
        reflection.wrap(agent()).invoke({"messages": task})


def tasks(reflection: Any) -> list[str]:
    return [episode.task for episode in reversed(reflection.episodes.list(limit=None))]


def test_by_days(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=2, retention=Retention(days=10))
    runs(reflection, "one", "two", "waits")
    keeper = reflection._core.housekeeper
    assert keeper.apply(time.time() + 9 * DAY)["episodes"] == 0
    assert keeper.apply(time.time() + 11 * DAY) == {"episodes": 2, "unread": 0, "reflections": 1}
    assert tasks(reflection) == ["waits"]
    (record,) = reflection.reflections.list()
    assert (record.prompt, record.answer, len(record.episodes)) == ("", "", 2)
    assert "no reflection has read" not in caplog.text
    assert keeper.apply(time.time() + 21 * DAY)["unread"] == 1
    assert "dropped 1 episodes that no reflection has read" in caplog.text
    (entry,) = reflection.audit()
    assert (entry.action, entry.details) == ("retention", {"episodes": 2, "unread": 1, "reflections": 1})


def test_by_number(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=4, retention=Retention(episodes=3))
    runs(reflection, *"abcd", "e", "f")
    reflection._core.housekeeper.apply()
    assert tasks(reflection) == ["d", "e", "f"]


def test_by_number_what_waits_is_never_dropped(make: Any) -> None:
    reflection = make(every=99, retention=Retention(episodes=1))
    runs(reflection, *"abc")
    reflection._core.housekeeper.apply()
    assert tasks(reflection) == ["a", "b", "c"]


def test_by_size(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=1, retention=Retention(megabytes=1))
    table = reflection._core.parts.ledger.retention
    runs(reflection, "first")
    empty = table.size()
    assert reflection._core.housekeeper.apply()["episodes"] == 0
    runs(reflection, *(f"{n} " + "long words " * 2_000 for n in range(30)))
    assert table.size() > 1_000_000 > empty
    reflection._core.housekeeper.apply()
    assert table.size() < 1_000_000 or tasks(reflection) == []


def test_a_dropped_episode_leaves_its_name_to_its_lesson_and_a_purge_finds_it(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel([adding("Refund 77")]), every=1, retention=Retention(days=1))
    config = {"configurable": {"reflect": {"principal": "anna"}}}
    reflection.wrap(agent()).invoke({"messages": "Refund 77"}, config)
    (lesson,) = reflection.lessons.list()
    reflection._core.housekeeper.apply(time.time() + 2 * DAY)
    (name,) = reflection.episodes.list()
    assert (name.task, name.output, name.trajectory, name.dead_letter) == ("", "", (), "dropped by retention")
    assert reflection.lessons.list() == (lesson,)
    assert reflection._core.housekeeper.apply(time.time() + 9 * DAY)["episodes"] == 0
    report = reflection.episodes.purge(principal="anna")
    assert (report.lessons, report.complete) == ((lesson.id,), True)


def test_it_runs_beside_reflections(make: Any) -> None:
    answers = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(answers, every=1, retention=Retention(episodes=1))
    runs(reflection, "a")
    reflection._core.housekeeper.lane.wait_idle(30)
    reflection._core.housekeeper._next = reflection._core.parts.learner._tidy_at = 0.0
    runs(reflection, "b", "c")
    reflection._core.housekeeper.lane.wait_idle(30)
    assert "a" not in tasks(reflection)


@pytest.mark.parametrize("limit", [{"days": 0}, {"days": "7"}, {"episodes": 1.5}, {"megabytes": -1}, {"days": True}])
def test_limits_that_are_none(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        Retention(**limit)


def test_only_a_retention() -> None:
    with pytest.raises(ConfigurationError, match="Retention\\(days"):
        Reflection(retention=30)  # type: ignore[arg-type]
