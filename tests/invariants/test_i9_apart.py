"""I4, I9: runs at the same time never see each other's lessons, exposures or rewards, and every one is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import TypedDict

from reflect_middleware import testing
from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, looping, once, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Reflection

USERS = [f"u{number:02}" for number in range(20)]


class Context(TypedDict):
    user: str


@pytest.fixture
def crowd() -> Iterator[Reflection]:
    with testing.reflection(namespace=("{user}",), run="background") as made:
        for user in USERS:
            made.lessons.add(when="weighing", do=f"belongs to {user}", namespace=(user,))
        yield made


def check(reflection: Reflection, model: ScriptedChatModel, rewards: dict[str, float], *, runs: int) -> None:
    """Every prompt and every episode is of one user only, and so is its reward."""
    reflection.flush()
    for call in model.calls:
        system, *rest = call
        (user,) = {word for message in rest for word in str(message.content).split() if word in USERS}
        assert str(system.content).count("belongs to") == 1
        assert f"belongs to {user}\n" in str(system.content)
    kept = {user: reflection.episodes.list(namespace=(user,), limit=1000) for user in USERS}
    assert sum(map(len, kept.values())) == runs
    for user, episodes in kept.items():
        (lesson,) = reflection.lessons.list(namespace=(user,))
        for episode in episodes:
            assert episode.status == "completed"
            assert user in episode.task
            assert [step.kind for step in episode.trajectory] == ["model", "tool", "model"]
            assert [exposure.lesson_id for exposure in episode.exposures] == [lesson.id]
            assert [reward.value for reward in episode.rewards] == [rewards[user]]


def test_interleaved_streams_in_one_thread(crowd: Reflection) -> None:
    model = once()
    agent = crowd.wrap(looping(model))
    streams = [
        agent.stream(asked(f"weigh for {user}"), {"configurable": {"user": user}}, stream_mode="values")
        for user in USERS[:6]
    ]
    last: dict[int, Any] = {}
    while any(s is not None for s in streams):
        for number, stream in enumerate(streams):
            if stream is not None and (chunk := next(stream, None)) is not None:
                last[number] = chunk
            else:
                streams[number] = None
    for number in range(6):
        crowd.reward(last[number], number / 6)
    check(crowd, model, {user: number / 6 for number, user in enumerate(USERS[:6])}, runs=6)


def test_identity_by_context(crowd: Reflection) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    from tests.invariants.graphs import node

    model = ScriptedChatModel(lambda _: said())
    inner = StateGraph(MessagesState, context_schema=Context).add_node("model", node(model)).add_edge(START, "model")
    builder = StateGraph(MessagesState, context_schema=Context).add_node(
        "agent", crowd.wrap(inner.compile(), name="inner")
    )
    outer = crowd.wrap(builder.add_edge(START, "agent").compile(), name="outer")
    outer.invoke(asked("for u03"), context={"user": "u03"})
    crowd.flush()
    assert {episode.agent for episode in crowd.episodes.list(namespace=("u03",))} == {"inner", "outer"}
    assert str(model.calls[0][0].content).count("belongs to u03") == 1


def test_without_identity_nothing_is_learned_or_shown(crowd: Reflection, caplog: pytest.LogCaptureFixture) -> None:
    model = once()
    agent = crowd.wrap(looping(model))
    for configurable in ({}, {"user": ""}, {"user": None}):
        agent.invoke(asked(), {"configurable": configurable})
    assert all(call[0].type == "human" for call in model.calls)
    assert caplog.text.count("the run has no value for user") == 1
