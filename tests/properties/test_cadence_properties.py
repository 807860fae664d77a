"""What holds for every combination of cadences and every backlog."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reflect_middleware import AfterSeconds, Backlog, EveryEpisodes, OnClose, OnFailures
from reflect_middleware.cadence import AllOf, AnyOf
from reflect_middleware.due import Standing, counts, is_due, look_again, rest_after

leaves = st.one_of(
    st.builds(EveryEpisodes, st.integers(1, 50)),
    st.builds(AfterSeconds, st.integers(1, 5_000).map(float)),
    st.builds(OnFailures, st.integers(1, 10)),
    st.just(OnClose()),
)
cadences: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda rules: st.one_of(
        st.builds(lambda a, b: a | b, rules, rules),
        st.builds(lambda a, b: a & b, rules, rules),
    ),
    max_leaves=6,
)
backlogs = st.integers(0, 60).flatmap(
    lambda ready: st.builds(
        Backlog,
        ready=st.just(ready),
        oldest=st.integers(0, 6_000).map(float) if ready else st.just(0.0),
        failures=st.integers(0, ready),
        closing=st.booleans(),
    )
)


@given(leaves, leaves, backlogs)
def test_or_is_or_and_and_is_and(a: Any, b: Any, backlog: Backlog) -> None:
    assert (a | b).due(backlog) == (a.due(backlog) or b.due(backlog))
    assert (a & b).due(backlog) == (a.due(backlog) and b.due(backlog))


@given(cadences, backlogs)
def test_the_next_look_is_the_first_time_at_which_it_is_due(rule: Any, backlog: Backlog) -> None:
    seconds = rule.next_look(backlog)

    def at(later: float) -> bool:
        return bool(rule.due(replace(backlog, oldest=backlog.oldest + later if backlog.ready else 0.0)))

    if rule.due(backlog):
        return  # nobody asks
    if seconds is None:
        assert not at(1e9)
    else:
        assert at(seconds)
        assert not any(at(seconds * share) for share in (0.0, 0.5, 0.99) if seconds * share < seconds)


@given(cadences, backlogs)
def test_nothing_is_due_without_an_episode(rule: Any, backlog: Backlog) -> None:
    assert not rule.due(replace(backlog, ready=0, oldest=0.0, failures=0))


@given(cadences)
def test_a_combination_asks_for_what_its_rules_need(rule: Any) -> None:
    def flat(given: Any) -> list[Any]:
        several = isinstance(given, (AnyOf, AllOf))
        return [leaf for part in given.rules for leaf in flat(part)] if several else [given]

    parts = flat(rule)
    sizes = [part.k for part in parts if isinstance(part, EveryEpisodes)]
    assert rule.batch == max(sizes, default=20)
    assert rule.streak == max((part.n for part in parts if isinstance(part, OnFailures)), default=0)
    assert rule.closes == any(isinstance(part, OnClose) for part in parts)


@given(cadences, backlogs, st.booleans(), st.sampled_from([0.0, 7.5]), st.sampled_from([0.0, 3.0, 30.0]))
def test_looking_again_never_comes_before_the_rest_is_over(
    rule: Any, backlog: Backlog, owed: Any, rests: float, held: float
) -> None:
    standing = Standing(namespace=("a",), backlog=backlog, owed=owed, rests=rests, held=held)
    again = look_again(standing, rule)
    assert not (is_due(standing, rule) and (rests or held))
    assert again is None or again >= max(rests, held)
    assert not is_due(standing, rule) or again == 0.0


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_sample_keeps_all_of_a_smaller_one(episode_id: str, a: float, b: float) -> None:
    less, more = sorted((a, b))
    kept = counts("completed", episode_id, rewarded=False, sample=less)
    assert not kept or counts("completed", episode_id, rewarded=False, sample=more)
    assert counts("completed", episode_id, rewarded=True, sample=0.0)
    assert counts("failed", episode_id, rewarded=False, sample=0.0)
    assert not counts("completed", episode_id, rewarded=False, sample=0.0)


@given(st.integers(1, 10_000))
def test_rests_grow_and_are_bounded(failures: int) -> None:
    assert 5.0 <= rest_after(failures) <= rest_after(failures + 1) <= 600.0
