"""What goes into the prompt, whatever is given: within the budget, in a stable order, nobody crowded out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from reflect_middleware.retrieve import (
    ALWAYS_MOST,
    ALWAYS_SHARE,
    CROWDED,
    Limits,
    block_of,
    choose,
    estimate_tokens,
    ranked,
)
from reflect_middleware.types import Lesson

OWN, OTHER = ("own",), ("other", "place")
START = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def lessons(draw: st.DrawFn) -> list[Lesson]:
    """Lessons of two namespaces, of any length."""
    texts = draw(st.lists(st.text(min_size=1, max_size=120), max_size=14))
    return [
        Lesson(
            id=f"id{number}",
            namespace=draw(st.sampled_from([OWN, OTHER])),
            when=f"case {number}",
            do=text,
            created_at=START + timedelta(seconds=draw(st.integers(0, 3))),
        )
        for number, text in enumerate(texts)
    ]


@given(
    everything=lessons(),
    seen=st.integers(0, 4),
    everywhere=st.sets(st.integers(0, 13)),
    limits=st.builds(
        Limits, top_k=st.integers(0, 6), token_budget=st.integers(0, 500), min_similarity=st.sampled_from([-1.0, 0.3])
    ),
)
def test_budget_caps_and_order(everything: list[Lesson], seen: int, everywhere: set[int], limits: Limits) -> None:
    earlier = everything[:seen]
    always = [lesson for number, lesson in enumerate(everything) if number in everywhere]
    candidates = [(lesson, 0.6 - number / 20) for number, lesson in enumerate(everything) if number % 3]
    choice = choose(candidates, earlier, limits, estimate_tokens, always=always, own=OWN)
    shown = [item.lesson for item in choice.considered if item.shown]
    core = [lesson for lesson in always if lesson.id in choice.always]

    assert choice.tokens <= limits.token_budget
    assert choice.block == block_of(shown, OWN)
    assert len({item.lesson.id for item in choice.considered}) == len(choice.considered)
    assert all(item.shown != bool(item.reason) for item in choice.considered)

    assert len(core) <= ALWAYS_MOST
    assert not core or estimate_tokens(block_of(core, OWN)) <= limits.token_budget * ALWAYS_SHARE
    assert {lesson.id for lesson in core} <= {lesson.id for lesson in shown}, "what applies everywhere is shown"
    left = [item for item in choice.considered if item.reason == CROWDED]
    assert all(item.lesson in always and item.lesson not in core for item in left)

    known = {lesson.id for lesson in earlier}
    old = [lesson for lesson in shown if lesson.id in known]
    new = [lesson for lesson in shown if lesson.id not in known | choice.always]
    fresh = [lesson for lesson in core if lesson.id not in known]
    assert shown == [*old, *fresh, *new], "the thread's own, then what applies everywhere, then what fits"
    assert old == [lesson for lesson in earlier if lesson in old], "in their order"
    assert len(new) <= limits.top_k
    assert new == sorted(new, key=lambda lesson: (lesson.created_at, lesson.id))


@given(lessons())
def test_those_that_fit_keep_half_of_the_room(everything: list[Lesson]) -> None:
    """However many lessons apply everywhere, one that fits and takes at most half the budget is shown."""
    fits = Lesson(id="fits", namespace=OWN, when="this", do="that")
    budget = 2 * estimate_tokens(block_of([fits], OWN))
    limits = Limits(top_k=1, token_budget=budget, min_similarity=0.3)
    choice = choose([(fits, 0.5)], [], limits, estimate_tokens, always=everything, own=OWN)
    assert fits in [item.lesson for item in choice.considered if item.shown]


@given(st.lists(st.lists(st.integers(0, 4), max_size=5), max_size=4))
def test_own_lessons_win_ties(given: list[list[int]]) -> None:
    found = [
        [(Lesson(namespace=(str(place),), when="a", do="b"), score / 4) for score in sorted(scores, reverse=True)]
        for place, scores in enumerate(given)
    ]
    order = [(-score, int(lesson.namespace[0])) for lesson, score in ranked(found)]
    assert order == sorted(order)
