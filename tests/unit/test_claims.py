"""One reflection per namespace at a time, whoever asks and whatever the clocks say; on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware.cadence import EveryEpisodes
from reflect_middleware.desk import Change
from reflect_middleware.episodes_table import EpisodeTable, Record
from reflect_middleware.ledger import Ledger
from reflect_middleware.types import Episode, Lesson, ReflectionRecord, Reward, new_id, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPACE = ("shop",)
ONE = EveryEpisodes(1)
HOUR = 3_600.0
Open = "Callable[..., Ledger]"


def opener(url: str) -> Iterator[Callable[..., Ledger]]:
    """Opens ledgers as processes do whose clocks are wrong by some seconds."""
    opened: list[Ledger] = []

    def ledger(ahead: float = 0.0) -> Ledger:
        made = Ledger(url)
        real = made.database.clock
        made.database.clock = lambda: real() + ahead
        opened.append(made)
        return made

    yield ledger
    for made in opened:
        made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens views of one ledger, on each database."""
    on_a_server = request.param == "postgresql"
    yield from opener(request.getfixturevalue("postgres") if on_a_server else f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def on_postgres(postgres: str) -> Iterator[Callable[..., Ledger]]:
    """Opens views of one ledger on PostgreSQL."""
    yield from opener(postgres)


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens views of one ledger in a file."""
    yield from opener(f"sqlite:///{tmp_path / 'ledger.db'}")


def put(ledger: Ledger, *, wait: float = 0.0, namespace: tuple[str, ...] = SPACE, **more: Any) -> str:
    """Record a run that has just ended by this ledger's clock; gives its id."""
    at = ledger.database.clock()
    when = datetime.fromtimestamp(at, UTC)
    given = {"id": new_id(), "task": "refund", "status": "completed", "started_at": when, "ended_at": when} | more
    ledger.episodes.put(Record(episode=Episode(namespace=namespace, **given), ready_at=at + wait))
    return str(given["id"])


def claim(ledger: Ledger, owner: str = "me", *, namespace: tuple[str, ...] = SPACE, lease: float = 30.0) -> Any:
    """Claim up to three episodes that count."""
    return ledger.reflections.claim(namespace, owner, at_least=1, at_most=3, lease=lease)


def blocked(work: Callable[[], Any]) -> tuple[threading.Thread, threading.Event]:
    """Start work that should have to wait for a transaction of ours; the event says that it is done."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (work(), done.set()))
    thread.start()
    assert not done.wait(0.3), "it waited for nobody"
    return thread, done


@pytest.mark.parametrize("rounds", [15])
def test_of_many_who_ask_at_once_one_gets_the_claim(ledgers: Any, rounds: int) -> None:
    several = [ledgers() for _ in range(4)]
    start = threading.Barrier(len(several))

    def ask(ledger: Ledger) -> Any:
        start.wait(30)
        return claim(ledger)

    with ThreadPoolExecutor(len(several)) as threads:
        for _ in range(rounds):
            ids = {put(several[0]) for _ in range(5)}
            (won,) = [found for found in threads.map(ask, several) if found is not None]
            assert set(won.episodes) <= ids
            assert len(won.episodes) == 3
            several[0].reflections.release(won)
            with several[0].database.write() as connection:
                connection.exec_driver_sql("DELETE FROM episodes")


def test_namespaces_are_claimed_side_by_side(on_postgres: Any) -> None:
    one, two = on_postgres(), on_postgres()
    for namespace in (SPACE, ("bank",)):
        put(one, namespace=namespace)
    with one.database.write() as connection:
        one.database.take_turn(connection, 'claim ["shop"]')
        assert claim(two, namespace=("bank",)) is not None


def test_what_a_reward_holds_is_left_to_the_next_claim(on_postgres: Any) -> None:
    from reflect_middleware.rewards_table import lock

    one, two = on_postgres(), on_postgres()
    held, free = put(one), put(one)
    with one.database.write() as connection:
        lock(connection, [held])
        assert claim(two).episodes == (free,)


def test_a_lease_is_measured_by_the_servers_clock(on_postgres: Any) -> None:
    late, early = on_postgres(-HOUR), on_postgres(HOUR)
    put(late)
    won = claim(late)
    assert won is not None
    put(early)
    assert claim(early) is None
    assert [standing.namespace for standing in early.work.standings(ONE)] == [SPACE]  # for its episode
    assert late.reflections.renew(won, 30.0)
    assert claim(early) is None
    assert late.reflections.renew(won, -1.0)
    again = claim(early)
    assert again is not None
    assert set(won.episodes) <= set(again.episodes)
    record = ReflectionRecord(id=won.id, namespace=SPACE, status="done", episodes=won.episodes)
    assert not late.reflections.commit(won, record, [], "")


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_a_host_whose_clock_is_wrong_neither_delays_nor_hurries(on_postgres: Any, ahead: float) -> None:
    wrong, right = on_postgres(ahead), on_postgres()
    put(wrong)
    assert right.work.standing(SPACE, ONE).backlog.ready == 1
    put(wrong, wait=600.0)
    assert right.work.standing(SPACE, ONE).backlog.ready == 1
    for ledger in (wrong, right):
        wait = ledger.work.standing(SPACE, ONE).next_ready
        assert wait is not None
        assert 590.0 < wait <= 600.0
    later = put(wrong, wait=600.0)
    wrong.episodes.open_for_reflection(later, wrong.database.clock())
    assert right.work.standing(SPACE, ONE).backlog.ready == 2


def test_a_clock_put_back_leaves_no_claim_standing(on_sqlite: Any) -> None:
    before, after = on_sqlite(2 * HOUR), on_sqlite()
    first = put(before)
    assert claim(before, "somebody who died") is not None
    found = claim(after)
    assert found is not None
    assert found.episodes == (first,)


def test_a_clock_put_back_delays_no_episode(on_sqlite: Any) -> None:
    before, after = on_sqlite(2 * HOUR), on_sqlite()
    put(before)
    put(after, wait=600.0)
    assert after.work.standing(SPACE, ONE).backlog.ready == 1


def test_a_clock_put_back_a_little_changes_nothing(on_sqlite: Any) -> None:
    before, after = on_sqlite(0.5), on_sqlite()
    put(before)
    assert claim(before, lease=0.2) is not None
    assert claim(after) is None


def test_who_lives_renews_after_the_clock_was_put_back(on_sqlite: Any) -> None:
    before, after = on_sqlite(2 * HOUR), on_sqlite()
    put(before)
    won = claim(before)
    assert after.reflections.renew(won, 30.0)
    assert claim(after, "another one") is None


def test_a_clock_put_forward_costs_a_claim_and_nothing_else(on_sqlite: Any) -> None:
    before, after = on_sqlite(), on_sqlite(2 * HOUR)
    put(before)
    lost, won = claim(before), claim(after, "another one")
    assert won.episodes == lost.episodes
    for holder, expected in ((lost, False), (won, True)):
        record = ReflectionRecord(id=holder.id, namespace=SPACE, status="done", episodes=holder.episodes)
        assert before.reflections.commit(holder, record, [], "") is expected
    assert claim(before) is None


def test_a_reward_that_meets_its_run_on_the_way_finds_it(on_postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = on_postgres(), on_postgres()
    two.episodes.resolve("x")
    run, waiting = new_id(), []
    real = EpisodeTable._open

    def held(*given: Any, **more: Any) -> None:
        waiting.append(blocked(lambda: two.episodes.reward_later(run, Reward(value=0.5))))
        real(*given, **more)

    monkeypatch.setattr(EpisodeTable, "_open", held)
    put(one, id=run)
    ((thread, done),) = waiting
    thread.join(30)
    assert done.is_set()
    assert one.episodes.get(run).reward == 0.5


def test_a_late_reward_leaves_the_words_that_a_reflection_has_just_written(ledgers: Any) -> None:
    one, two = ledgers(), ledgers()
    source = put(one)
    put_lesson = {"namespace": SPACE, "sources": (source,), "created_at": now(), "updated_at": now()}
    old = Lesson(id=new_id(), when="refunding", do="ask", status="active", version=1, **put_lesson)
    one.lessons.save_all([Change(lesson=old, vector=None, expected_version=0)], "")
    won = claim(one)
    record = ReflectionRecord(id=won.id, namespace=SPACE, status="done", episodes=won.episodes)
    one.reflections.commit(won, record, [], "")
    new = old.model_copy(update={"do": "ask a manager", "version": 2})
    with one.database.write() as connection:
        one.lessons.apply(connection, [Change(lesson=new, vector=None, expected_version=1)], "")
        thread, done = blocked(lambda: two.episodes.reward(source, Reward(value=0.0)))
    thread.join(30)
    assert done.is_set()
    found = one.lessons.get(old.id)
    assert (found.do, found.version, found.needs_review) == ("ask a manager", 2, True)


def test_rewards_and_reflections_never_wait_for_each_other(on_postgres: Any) -> None:
    one, two = on_postgres(), on_postgres()
    source = put(one)
    made = {"namespace": SPACE, "sources": (source,), "created_at": now(), "updated_at": now(), "status": "active"}
    lessons = sorted([Lesson(id=new_id(), when=f"case {n}", do="ask", version=1, **made) for n in range(2)], key=_id)
    for lesson in lessons:
        one.lessons.save_all([Change(lesson=lesson, vector=None, expected_version=0)], "")
    won = claim(one)
    one.reflections.commit(won, ReflectionRecord(id=won.id, namespace=SPACE, status="done", episodes=()), [], "")
    put(one)
    started = threading.Event()
    errors: list[BaseException] = []

    def judge() -> None:
        started.set()
        try:
            for n in range(40):
                two.episodes.reward(source, Reward(value=n / 40))
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    started.wait(30)
    for n in range(2, 42):
        put(one)
        won = claim(one)
        changes = [
            Change(lesson=lesson.model_copy(update={"version": n}), vector=None, expected_version=n - 1)
            for lesson in reversed(lessons)  # against the order in which a reward marks them
        ]
        record = ReflectionRecord(id=won.id, namespace=SPACE, status="done", episodes=won.episodes)
        assert one.reflections.commit(won, record, changes, "")
    thread.join(60)
    assert errors == []


def _id(lesson: Lesson) -> str:
    return lesson.id
