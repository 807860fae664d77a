"""What the doctor says about what it found: when it is a problem, when advice, and what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect_middleware import advice
from reflect_middleware.advice import Finding, ago

DAY = 86_400.0
LEDGER = {"mode": "wal", "schema": 2, "expected": 2, "size": 1_500_000, "paused": False, "free": 50 * 2**30}


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "ok", "1.5 MB, WAL, schema 2; running"),
        ({"paused": True}, "advice", "reflect resume"),
        ({"mode": "delete"}, "problem", "network file system"),
        ({"schema": 3}, "problem", "install the version that wrote it"),
        ({"schema": 1}, "problem", "reflect migrate"),
        ({"free": 500 * 2**20}, "advice", "524 MB free"),
        ({"free": 500 * 2**20, "paused": True}, "advice", "make room"),
        ({"free": 2**20}, "problem", "1.05 MB free on its disk: make room"),
        ({"free": 500 * 2**20, "schema": 1}, "problem", "make room"),
    ],
)
def test_ledger(changed: dict[str, object], level: str, words: str) -> None:
    found = advice.ledger("sqlite:////data/ledger.db", **LEDGER | changed)  # type: ignore[arg-type]
    assert (found.level, words in found.message) == (level, True), found.message


def test_a_server_has_no_journal_mode() -> None:
    found = advice.ledger("postgresql://host/name", **LEDGER | {"mode": "PostgreSQL 16.2", "free": None})  # type: ignore[arg-type]
    assert (found.level, "PostgreSQL 16.2" in found.message) == ("ok", True)


EPISODES = {
    "total": 2_000,
    "waiting": 3,
    "oldest": 60.0,
    "interrupted": 1,
    "dead": 0,
    "reason": "",
    "sampled_out": 0,
    "of": 1_000,
}


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "ok", "2,000 recorded; 3 wait for a reflection, the first for 60 s; 1 interrupted"),
        ({"oldest": None, "waiting": 0}, "ok", "0 wait for a reflection; 1 interrupted"),
        ({"oldest": 2 * DAY}, "advice", "nobody reflects"),
        ({"dead": 4, "reason": "no\nusable answer"}, "advice", "4 dead-lettered, the newest because of: no usable"),
        ({"sampled_out": 250}, "ok", "25 % of the last 1,000 are sampled out"),
    ],
)
def test_episodes(changed: dict[str, object], level: str, words: str) -> None:
    found = advice.episodes(**EPISODES | changed)  # type: ignore[arg-type]
    assert (found.level, words in found.message) == (level, True), found.message


@pytest.mark.parametrize(
    ("done", "failed", "level", "words"),
    [
        (None, None, "ok", "none yet"),
        (90.0, None, "ok", "the last one 90 s ago"),
        (90.0, 600.0, "ok", "the last failure 10 min ago: quota"),
        (600.0, 90.0, "problem", "90 s ago and none has succeeded since: quota"),
        (None, 2 * DAY, "ok", "none has succeeded since"),
    ],
)
def test_reflections(done: float | None, failed: float | None, level: str, words: str) -> None:
    found = advice.reflections(done=done, failed=failed, reason="quota", running=[])
    assert (found.level, words in found.message) == (level, True), found.message


def test_a_reflection_under_way_names_its_owner_and_its_lease() -> None:
    found = advice.reflections(done=None, failed=None, reason="", running=[(("a", "b"), "host:7:x", 20.0)])
    assert (found.level, "in a/b by host:7:x, lease for another 20 s" in found.message) == ("ok", True)
    found = advice.reflections(done=None, failed=None, reason="", running=[(("a",), "host:7:x", -300.0)])
    assert (found.level, "which died 5 min ago" in found.message) == ("advice", True)
    assert found.facts["running"] == [{"namespace": ["a"], "owner": "host:7:x", "lease_seconds": -300.0}]


def test_late_rewards_get_a_wait_that_nine_of_ten_need() -> None:
    found = advice.rewards(73, [float(n) for n in range(100)], reward_wait=0)
    assert found.level == "advice"
    assert found.message.startswith("73 % of the last 100 rewards came after their reflection")
    assert "90 s of the run's end: set reward_wait=90 (it is 0)" in found.message
    hours = advice.rewards(50, [11_234.0] * 50, reward_wait=60)
    assert "within 3 h of the run's end: set reward_wait=12000 (it is 60)" in hours.message
    assert advice.rewards(0, [], reward_wait=0).message == "none yet"
    assert advice.rewards(9, [1.0] * 20, reward_wait=0).level == "ok", "too few to say"
    assert advice.rewards(10, [1.0] * 200, reward_wait=0).level == "ok", "too small a share"


@given(st.lists(st.floats(0, 1e7), min_size=10))
def test_the_wait_that_is_advised_is_enough_for_nine_of_ten(delays: list[float]) -> None:
    found = advice.rewards(len(delays), sorted(delays), reward_wait=0)
    wanted = float(found.message.partition("reward_wait=")[2].partition(" ")[0])
    assert sum(delay <= wanted for delay in delays) >= 0.9 * len(delays)


def test_lessons_prompt_and_vectors() -> None:
    waiting = advice.lessons({"active": 2, "candidate": 1}, 1, approval="human")
    assert (waiting.level, "reflect lessons approve" in waiting.message) == ("advice", True)
    assert advice.lessons({"candidate": 1}, 0, approval="auto").level == "ok"
    cramped = advice.prompt(["l1", "l2"], top_k=5, token_budget=600, of=1_000)
    assert (cramped.level, "l1, l2" in cramped.message, "token_budget=600" in cramped.message) == ("advice", True, True)
    assert advice.prompt([], top_k=5, token_budget=600, of=1_000).level == "ok"
    mixed = advice.vectors("one", 256, {"one": 5, "two": 3, "": 1})
    assert (mixed.level, "1 not made yet, 3 by two" in mixed.message) == ("advice", True)
    assert advice.vectors("one", 256, {"one": 5}).level == "ok"


def test_store_in_step_behind_or_held() -> None:
    assert "in step" in advice.store("'chroma'", "the store", held="", behind={("a",): 0}).message
    behind = advice.store("'chroma'", "the store", held="", behind={("a",): 1, ("b",): 4})
    assert (behind.level, "5 lessons behind the ledger, most in b" in behind.message) == ("advice", True)
    held = advice.store("'chroma'", "the ledger's vectors", held="Process 7 holds the store", behind={})
    assert (held.level, "Process 7" in held.message) == ("ok", True)


def test_tokens_back_off_spool_and_backup() -> None:
    assert advice.tokens(10, None).level == advice.tokens(10, 20).level == "ok"
    assert (advice.tokens(20, 20).level, "midnight UTC" in advice.tokens(20, 20).message) == ("advice", True)
    assert advice.resting([]).level == "ok"
    resting = advice.resting([(("a",), 1, 5.0), (("b",), 4, 80.0)])
    assert (resting.level, "b after 4 in a row for another 80 s" in resting.message) == ("advice", True)
    assert [advice.spool(*row).level for row in ((0, None, 0), (3, 9.0, 0), (3, 9.0, 1))] == ["ok", "advice", "problem"]
    assert advice.backup(None, kept=0, episodes=0).level == "ok"
    assert advice.backup(None, kept=0, episodes=9).level == "advice"
    assert advice.backup(DAY, kept=2, episodes=9).level == "ok"
    assert advice.backup(30 * DAY, kept=2, episodes=9).level == "advice"


def test_a_failure_is_a_problem_for_a_day_and_says_what_to_do() -> None:
    fresh = advice.failure("embed", 1_200, "no network", 60.0)
    assert (fresh.check, fresh.level, fresh.ok) == ("failures: embed", "problem", False)
    assert fresh.message.startswith("1,200 so far, the last 60 s ago: no network; ")
    assert "key, network and name" in fresh.message
    old = advice.failure("embed", 1, "no network", 2 * DAY)
    assert (old.level, old.ok, "key" in old.message) == ("ok", True, False)
    assert advice.failure("namespace", 3, "no user_id", 1.0).level == "advice"
    assert advice.failure("something new", 1, "x" * 900, 1.0).message.endswith("x…")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7_300, "2 h"), (3 * DAY, "3 d"), (DAY, "24 h")]
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert ago(seconds) == text


def test_only_a_problem_is_not_ok() -> None:
    levels: tuple[advice.Level, ...] = ("ok", "advice", "problem")
    assert [Finding(check="c", level=level, message="m").ok for level in levels] == [True, True, False]
    assert Finding(check="c", message="m").model_dump() == {
        "check": "c",
        "level": "ok",
        "message": "m",
        "facts": {},
        "ok": True,
    }
