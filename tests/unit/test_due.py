"""Deciding what may run now: pure rules, by example."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from reflect_middleware import AfterSeconds, Backlog, Cadence, EveryEpisodes, OnClose, OnFailures
from reflect_middleware.alarms import Alarms
from reflect_middleware.cadence import cadence
from reflect_middleware.due import blameless, counts, day_of, until_tomorrow
from reflect_middleware.errors import ConfigurationError, LedgerError, ReflectorError
from reflect_middleware.namespaces import rule


class Weekly(Cadence):
    """A user's own rule: only what a rule must have."""

    batch = 7

    def due(self, backlog: Backlog) -> bool:
        """Whether a week is over."""
        return backlog.oldest > 7 * 86_400


def test_rules_read_as_they_are_written() -> None:
    either = EveryEpisodes(5) | AfterSeconds(3_600) | OnFailures(3)
    assert either.due(Backlog(ready=5))
    assert either.due(Backlog(ready=1, oldest=3_600))
    assert either.due(Backlog(ready=3, failures=3))
    assert not either.due(Backlog(ready=4, oldest=3_599, failures=2))
    assert either.next_look(Backlog(ready=1, oldest=600)) == 3_000
    assert either.batch == 5
    assert not (EveryEpisodes(3) & AfterSeconds(60)).due(Backlog(ready=2, oldest=600))


def test_a_rule_of_your_own_combines_with_ours() -> None:
    own = Weekly() | OnClose()
    assert cadence(own) is own
    assert own.batch == 7
    assert own.closes
    assert not Weekly().closes
    assert Weekly().next_look(Backlog(ready=1)) is None
    assert own.due(Backlog(ready=1, closing=True))


@pytest.mark.parametrize(
    "made",
    [lambda: EveryEpisodes(0), lambda: AfterSeconds(0), lambda: AfterSeconds(float("nan")), lambda: OnFailures(-1)],
)
def test_rules_refuse_what_makes_no_sense(made: Any) -> None:
    with pytest.raises(ConfigurationError, match="allowed"):
        made()


def test_half_a_sample_is_about_half() -> None:
    kept = sum(counts("completed", f"episode {n}", rewarded=False, sample=0.5) for n in range(2_000))
    assert 900 < kept < 1_100
    assert all(counts(s, "x", rewarded=False, sample=0.0) for s in ("failed", "cancelled", "abandoned", "interrupted"))


def test_a_day_is_one_of_utc() -> None:
    noon = 1_795_348_800.0  # 2026-11-22 12:00 UTC
    assert day_of(noon) == "2026-11-22"
    assert until_tomorrow(noon) == 12 * 3_600
    assert day_of(noon + until_tomorrow(noon)) == "2026-11-23"


class StatusError(Exception):
    """What providers' clients raise: an error that knows the HTTP status."""

    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.status_code = status_code


def raised(cause: Exception) -> ReflectorError:
    """An error of ours with this cause."""
    error = ReflectorError("no usable answer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (StatusError(429), True),
        (StatusError(503), True),
        (StatusError(401), True),
        (StatusError(400), False),
        (StatusError(413), False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (LedgerError("away"), True),
        (ConfigurationError("model", "x", "y"), True),
        (type("APIConnectionError", (Exception,), {})(), True),
        (ValueError("no JSON"), False),
    ],
)
def test_an_outage_is_not_the_episodes_fault(cause: Exception, expected: Any) -> None:
    assert blameless(raised(cause)) is expected


def test_which_namespaces_a_rule_may_give() -> None:
    template = rule(("acme", "user-{user_id}"))
    assert template.fits(("acme", "user-7"))
    assert not template.fits(("acme", "7"))
    assert not template.fits(("acme", "user-7", "more"))
    assert not template.fits(("other", "user-7"))
    assert not rule(lambda *_: ("acme",)).fits(("acme",))
    assert rule(("a.c",)).fits(("a.c",))
    assert not rule(("a.c",)).fits(("abc",))


def test_alarms_ring_once_each_and_leave_no_thread() -> None:
    rung: list[str] = []
    threads: list[threading.Thread] = []
    both = threading.Event()

    def ring(key: str) -> None:
        rung.append(key)
        threads.append(threading.current_thread())
        if len(rung) == 2:
            both.set()

    alarms: Alarms[str] = Alarms(ring)
    alarms.set("never", 3_600)
    alarms.set("second", 3_600)
    alarms.set("first", 0.01)
    alarms.set("second", 0.02)
    assert both.wait(30)
    assert rung == ["first", "second"]
    assert len(alarms) == 1
    thread = threads[-1]
    alarms.set("never", None)
    alarms.clear()
    thread.join(30)
    assert not thread.is_alive()
    alarms.set("again", 0.0)
    alarms.clear()
