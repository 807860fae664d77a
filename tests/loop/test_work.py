"""What waits, rests, is spent or given up: kept in the ledger, so that every process on it goes by the same."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from typing import Any

import pytest

from reflect_middleware import AfterSeconds, EveryEpisodes, OnClose, OnFailures, Reflection, testing
from reflect_middleware.due import day_of
from reflect_middleware.errors import ConfigurationError, EpisodeNotFoundError

from .conftest import RULE, adding, agent

NOTHING = '{"edits": []}'


def quiet() -> Any:
    return testing.ScriptedChatModel(lambda _: NOTHING)


def ran(reflection: Any, *tasks: str, **config: Any) -> list[Any]:
    graph = reflection.wrap(agent())
    return [graph.invoke({"messages": [("user", task)]}, {"configurable": config}) for task in tasks]


def path_of(reflection: Any) -> str:
    return str(reflection._options.path)


def sql(reflection: Any, statement: str) -> None:
    with reflection._core.parts.ledger.database.write() as connection:
        connection.exec_driver_sql(statement)


def spent(reflection: Any) -> int:
    """Today's tokens."""
    return int(reflection._core.parts.ledger.health.spent(day_of(time.time())))


def failures(reflection: Any) -> list[int]:
    """In a row, of the namespaces that rest."""
    return [rest.failures for rest in reflection._core.parts.ledger.health.resting()]


class Seen:
    """Waits for reports."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.came = threading.Condition()

    def __call__(self, report: Any) -> None:
        with self.came:
            self.reports.append(report)
            self.came.notify_all()

    def wait(self, count: int) -> list[Any]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.reports) >= count, 30), self.reports
        return self.reports


def test_after_a_time_a_reflection_is_due_without_another_run(make: Any) -> None:
    seen = Seen()
    reflection = make(quiet(), every=EveryEpisodes(9) | AfterSeconds(0.5), run="background", on_reflection=seen)
    ran(reflection, "Refund order 1")
    (report,) = seen.wait(1)
    assert len(report.episodes) == 1
    assert time.time() - reflection.episodes.get(report.episodes[0]).ended_at.timestamp() >= 0.5


def test_a_streak_of_failures_makes_a_reflection_due(make: Any) -> None:
    reflection = make(quiet(), every=EveryEpisodes(9) | OnFailures(2))
    scores = {"good": 1.0, "bad": 0.25}
    for task in ("bad", "good", "bad"):
        reflection.reward(ran(reflection, task)[0], scores[task])
    assert reflection.reflections.list() == ()
    reflection.reward(ran(reflection, "bad")[0], scores["bad"])
    (record,) = reflection.reflections.list()
    assert len(record.episodes) == 4


def test_a_failed_run_is_part_of_the_streak(make: Any) -> None:
    def broken(_: Any) -> str:
        raise RuntimeError("the shop is closed")

    reflection = make(quiet(), every=OnFailures(2))
    graph = reflection.wrap(agent(testing.ScriptedChatModel(broken)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            graph.invoke({"messages": "Refund order 1"})
    (record,) = reflection.reflections.list()
    assert len(record.episodes) == 2


@pytest.mark.parametrize("run", ["background", "inline"])
def test_on_close_all_that_has_ended_is_read(make: Any, tmp_path: Any, run: str) -> None:
    reflector = quiet()
    reflection = make(reflector, every=EveryEpisodes(3) | OnClose(), path=str(tmp_path), run=run, reward_wait=3_600)
    ran(reflection, *(f"Refund order {n}" for n in range(5)))
    assert reflector.calls == []
    reflection.close()
    other = make(None, path=str(tmp_path))
    assert [len(record.episodes) for record in other.reflections.list()] == [2, 3]


def test_without_on_close_closing_reads_nothing(make: Any, tmp_path: Any) -> None:
    reflector = quiet()
    reflection = make(reflector, every=3, path=str(tmp_path))
    ran(reflection, "Refund order 1")
    reflection.close()
    assert reflector.calls == []


def test_a_sample_of_the_successes_counts_and_all_are_recorded(make: Any) -> None:
    reflector = quiet()
    reflection = make(reflector, every=2, sample=0.0)
    results = ran(reflection, *(f"Refund order {n}" for n in range(3)))
    assert len(reflection.episodes.list()) == 3
    assert reflection.episodes.list(waiting=True) == ()
    assert reflection.reflect().episodes == ()
    reflection.reward(results[0], 1.0)
    assert reflector.calls == []
    reflection.reward(results[2], 0.0, comment=RULE)
    (record,) = reflection.reflections.list()
    assert [reflection.episodes.get(i).task for i in record.episodes] == ["Refund order 0", "Refund order 2"]


def test_runs_that_a_callable_judges_always_count(make: Any) -> None:
    reflection = make(quiet(), every=2, sample=0.0, reward=lambda e: 0.5 if e.task != "unjudged" else None)
    ran(reflection, "unjudged", "Refund order 1", "unjudged", "Refund order 2")
    (record,) = reflection.reflections.list()
    assert len(record.episodes) == 2


def test_failed_runs_always_count(make: Any) -> None:
    def broken(_: Any) -> str:
        raise RuntimeError("the shop is closed")

    reflection = make(quiet(), every=1, sample=0.0)
    with pytest.raises(RuntimeError, match="closed"):
        reflection.wrap(agent(testing.ScriptedChatModel(broken))).invoke({"messages": "Refund order 1"})
    assert len(reflection.reflections.list()) == 1


def test_a_reward_that_waited_for_its_run_makes_it_count(make: Any) -> None:
    from uuid import uuid4

    run_id = uuid4()
    reflection = make(quiet(), every=1, sample=0.0)
    reflection.reward(run_id, 0.25)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"}, {"run_id": run_id})
    assert len(reflection.reflections.list()) == 1


@pytest.mark.parametrize("value", [-0.1, 1.1, "half", True, float("nan")])
def test_a_sample_is_a_share(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"sample is .* a share from 0"):
        Reflection(None, sample=value)


class Counted(testing.ScriptedChatModel):
    """A scripted model whose provider counts 600 tokens read and 100 written."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate(*args, **kwargs)
        usage = {"input_tokens": 600, "output_tokens": 100, "total_tokens": 700}
        result.generations[0].message.usage_metadata = usage
        return result


def test_a_day_has_its_tokens_in_all_processes(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = make(Counted(lambda _: NOTHING), every=1, daily_tokens=1_000)
    ran(first, "Refund order 1")
    second = make(Counted(lambda _: NOTHING), every=1, daily_tokens=1_000, path=path_of(first))
    ran(second, "Refund order 2")  # 700 of 1,000: this one may go beyond
    ran(second, "Refund order 3", "Refund order 4")
    assert len(second.reflections.list()) == 2
    assert len(second.episodes.list(waiting=True)) == 2
    assert "daily_tokens" in second.reflect().error
    assert len([r for r in caplog.records if "1,000 tokens" in r.getMessage()]) == 1
    assert spent(second) == 1_400
    sql(second, "UPDATE spent SET day = '2020-01-01'")  # the next day
    assert len(second.reflect().episodes) == 2


def test_failed_reflections_cost_tokens_too_and_unknown_ones_are_guessed(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: "no idea"), every=1)
    ran(reflection, "Refund order 1")
    assert spent(reflection) > 200


def test_after_a_failure_the_namespace_rests_in_every_process(make: Any) -> None:
    first = make(testing.ScriptedChatModel(lambda _: "no idea"), every=1)
    ran(first, "Refund order 1")
    reflector = quiet()
    second = make(reflector, every=1, path=path_of(first))
    ran(second, "Refund order 2")
    assert second.work() == ()
    assert reflector.calls == []
    assert failures(second) == [1]
    sql(second, "UPDATE work SET rest_until = 1")
    assert [len(r.episodes) for r in second.work()] == [1, 1]
    assert failures(second) == []


def test_in_the_background_it_is_tried_again_when_the_rest_is_over(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from reflect_middleware import due

    monkeypatch.setattr(due, "BACK_OFF", (0.2, 600.0))
    seen = Seen()
    reflector = testing.ScriptedChatModel(["no idea", "no idea", NOTHING])
    reflection = make(reflector, every=1, run="background", on_reflection=seen)
    ran(reflection, "Refund order 1")
    first, second = seen.wait(2)
    assert "no usable answer" in first.error
    assert second.error == ""


def test_an_outage_uses_up_no_tries(make: Any) -> None:
    class Away(testing.ScriptedChatModel):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            raise ConnectionError("no route to the provider")

    reflection = make(Away(lambda _: NOTHING), every=1)
    ran(reflection, "Refund order 1")
    for _ in range(5):
        assert "no route" in reflection.reflect().error
    (episode,) = reflection.episodes.list(waiting=True)
    assert episode.dead_letter == ""
    assert failures(reflection) == [6]


def test_a_model_that_cannot_be_built_uses_up_no_tries(make: Any) -> None:
    def unknown() -> Any:
        raise ImportError("no package for this provider")

    reflection = make(unknown, every=1)
    ran(reflection, "Refund order 1")
    for _ in range(4):
        assert "no package for this provider" in reflection.reflect().error
    assert len(reflection.episodes.list(waiting=True)) == 1


def test_dead_letters_are_listed_with_their_reason_and_tried_again(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    reflector = testing.ScriptedChatModel(lambda _: "no idea")
    reflection = make(reflector, every=9, tries=2)
    ran(reflection, "Refund order 1", "Refund order 2")
    for _ in range(2):
        assert reflection.reflect().error
    dead = reflection.episodes.list(dead=True)
    assert len(dead) == 2
    assert all("no usable answer" in episode.dead_letter for episode in dead)
    assert [r.levelno for r in caplog.records if "given up" in r.getMessage()] == [logging.ERROR]
    with pytest.raises(EpisodeNotFoundError, match="'nobody'"):
        reflection.episodes.retry("nobody")
    assert reflection.episodes.retry(dead[0].id) == (dead[0].id,)
    assert reflection.episodes.retry(dead[0].id) == ()
    assert reflection.reflect().error
    assert len(reflection.episodes.list(dead=True)) == 1, "it has all its tries again"
    assert reflection.episodes.retry(namespace=("elsewhere",)) == ()
    assert reflection.episodes.retry() == (dead[1].id,)
    assert len(reflection.episodes.list(waiting=True)) == 2


async def test_retry_starts_what_is_due_by_it(make: Any) -> None:
    seen = Seen()
    reflector = testing.ScriptedChatModel(["no idea", "no idea", NOTHING])
    reflection = make(reflector, every=1, tries=1, run="background", on_reflection=seen)
    ran(reflection, "Refund order 1")
    seen.wait(1)
    assert len(await reflection.episodes.aretry()) == 1
    assert seen.wait(2)[1].error == ""


def test_work_does_all_that_is_due_in_all_namespaces(make: Any) -> None:
    recorder = make(None, run="external", namespace=("shop", "{user}"))
    for user, times in (("ann", 2), ("bob", 1), ("cat", 5)):
        ran(recorder, *(f"Refund order {n}" for n in range(times)), user=user)
    worker = make(quiet(), every=2, run="external", path=path_of(recorder))
    reports = worker.work(namespace=("shop", "a*"))
    assert reports == ()
    reports = worker.work(parallel=2)
    assert sorted((r.namespace[1], len(r.episodes)) for r in reports) == [("ann", 2), ("cat", 2), ("cat", 2)]
    assert worker.work() == ()


async def test_work_async_and_of_one_namespace(make: Any) -> None:
    recorder = make(None, run="external", namespace=("shop", "{user}"))
    for user in ("ann", "bob"):
        ran(recorder, "Refund order 1", user=user)
    worker = make(quiet(), every=1, run="external", path=path_of(recorder))
    assert [r.namespace for r in await worker.awork(namespace=("*", "bob"))] == [("shop", "bob")]


def test_work_says_what_failed_and_goes_on_elsewhere(make: Any) -> None:
    recorder = make(None, run="external", namespace=("shop", "{user}"))
    for user in ("ann", "bob"):
        ran(recorder, f"Refund for {user}", user=user)
    model = testing.ScriptedChatModel(lambda messages: "no idea" if "for ann" in str(messages) else NOTHING)
    worker = make(model, every=1, run="external", path=path_of(recorder))
    reports = {r.namespace[1]: r.error for r in worker.work()}
    assert "no usable answer" in reports["ann"]
    assert reports["bob"] == ""


def test_work_needs_a_model_and_sensible_limits(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="Reflecting needs one"):
        make(None).work()
    with pytest.raises(ConfigurationError, match="parallel is 0"):
        make(quiet()).work(parallel=0)


def test_limits_hold_for_all_processes_on_the_ledger(make: Any) -> None:
    from reflect_middleware.due import Quota
    from reflect_middleware.errors import QuotaError

    recorder = make(None, run="external", namespace=("shop", "{user}"))
    for user in ("ann", "bob", "cat"):
        ran(recorder, "Refund order 1", user=user)
    table = recorder._core.parts.ledger.reflections

    def claim(user: str, **limits: int) -> Any:
        quota = Quota(**limits)
        return table.claim(("shop", user), "a process", at_least=1, at_most=9, lease=60, quota=quota)

    assert claim("ann", at_once=1)
    with pytest.raises(QuotaError, match="1 reflections are under way"):
        claim("bob", at_once=1)
    assert claim("nobody", at_once=1) is None, "nothing to take: no limit is told of"
    assert claim("bob", at_once=2, per_minute=2)
    with pytest.raises(QuotaError, match="2 reflections began within a minute") as full:
        claim("cat", at_once=3, per_minute=2)
    assert 50 < full.value.seconds <= 60


def test_paused_nothing_is_worked_on(make: Any) -> None:
    reflection = make(quiet(), every=1, run="external")
    ran(reflection, "Refund order 1")
    reflection.pause()
    assert reflection.work() == ()
    reflection.resume()
    assert len(reflection.work()) == 1


def test_a_process_takes_up_what_another_left(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = make(None, run="external")
    ran(first, "Refund order 1", "Refund order 2")
    dead = first._core.parts.ledger.reflections.claim(("default",), "who died", at_least=1, at_most=9, lease=0.5)
    seen = Seen()
    second = make(quiet(), every=9, run="background", path=path_of(first), on_reflection=seen)
    with caplog.at_level(logging.INFO, logger="reflect_middleware"):
        ran(second, "Refund order 3")  # its first use: the lease still holds, and it looks again when that is over
        (report,) = seen.wait(1)
    assert set(dead.episodes) < set(report.episodes)
    assert len([r for r in caplog.records if "taken up" in r.getMessage()]) == 1


def test_nobody_takes_up_the_namespaces_of_another_agent(make: Any) -> None:
    sales = make(None, run="external", namespace=("sales",))
    ran(sales, "Refund order 1")
    reflector = quiet()
    support = make(reflector, every=1, run="background", path=path_of(sales), namespace=("support",))
    ran(support, "Refund order 2")
    assert support.flush(30)
    assert [r.namespace for r in support.reflections.list()] == [("support",)]


async def test_an_async_reflector_may_await_a_reward(make: Any) -> None:
    async def reflector(batch: Any) -> list[Any]:
        await reflection.areward(batch.episodes[0].id, 0.5, source="self", key="by the reflector")
        return []

    reflection = make(reflector=reflector, every=1, run="inline")
    await reflection.wrap(agent()).ainvoke({"messages": [("user", "Refund order 1")]})
    (episode,) = reflection.episodes.list()
    assert [reward.key for reward in episode.rewards] == ["by the reflector"]


def test_lessons_come_out_of_work(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1, run="external")
    ran(reflection, "Refund order 1")
    (report,) = reflection.work()
    assert json.loads(report.model_dump_json())["lessons"][0]["do"] == "ask a manager above 200 EUR"


def test_a_reflector_may_run_the_agent_and_judge_from_a_thread(make: Any) -> None:
    async def reflector(batch: Any) -> list[Any]:
        if batch.episodes[0].task == "Refund order 1":
            result = await asyncio.to_thread(graph.invoke, {"messages": [("user", "Refund order 2")]})
            await asyncio.to_thread(reflection.reward, result, 0.5)
        return []

    reflection = make(reflector=reflector, every=1, run="inline")
    graph = reflection.wrap(agent())
    graph.invoke({"messages": [("user", "Refund order 1")]})
    assert reflection.flush(30)
    assert len(reflection.reflections.list()) == 2
