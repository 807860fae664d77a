"""A careful team observes first, then reviews, then uses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.errors import ClosedError, LessonStateError

from .conftest import RULE, adding, agent

if TYPE_CHECKING:
    from reflect_middleware import Reflection

SECRET = "IBAN DE02 1203"


def prompts(model: Any) -> list[str]:
    """The message types of each call of a scripted model."""
    return [" ".join(message.type for message in call) for call in model.calls]


def learned(make: Any, model: Any, **settings: Any) -> Reflection:
    """A Reflection that adds one lesson after each run."""
    return make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1, **settings)


def test_off_in_the_environment_makes_everything_a_no_op(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = learned(make, model)
    reflection.lessons.add(when="refunding an order", do=RULE)
    monkeypatch.setenv("REFLECT", "off")
    result = reflection.wrap(agent(model)).invoke({"messages": "Refund order 1"})
    reflection.reward(result, 0.0)
    assert reflection.reflect().episodes == ()
    monkeypatch.delenv("REFLECT")
    assert prompts(model) == ["human"]
    assert reflection.episodes.list() == ()


def test_observe_only(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = learned(make, model, use_lessons=False)
    graph = reflection.wrap(agent(model))
    for _ in range(2):
        graph.invoke({"messages": "Refund order 1"})
    assert prompts(model) == ["human", "human"]
    assert len(reflection.episodes.list()) == 2
    assert len(reflection.lessons.list()) == 1


def test_use_only(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = learned(make, model, learn=False)
    reflection.lessons.add(when="refunding an order", do=RULE)
    reflection.wrap(agent(model)).invoke({"messages": "Refund order 1"})
    assert prompts(model) == ["system human"]
    assert reflection.episodes.list() == ()


def test_one_run_opts_out(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = make(every=99)
    reflection.lessons.add(when="refunding an order", do=RULE)
    graph = reflection.wrap(agent(model))
    for switch in ({"learn": False}, {"use_lessons": False}, {"learn": False, "use_lessons": False}):
        graph.invoke({"messages": "Refund order 1"}, {"configurable": {"reflect": switch}})
    assert prompts(model) == ["system human", "human", "human"]
    assert len(reflection.episodes.list()) == 1
    deaf = make(every=99, run_overrides=False)
    deaf.wrap(agent()).invoke({"messages": "x"}, {"configurable": {"reflect": {"learn": False}}})
    assert len(deaf.episodes.list()) == 1


def test_people_approve_first(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = learned(make, model, approval="human")
    graph = reflection.wrap(agent(model))
    for _ in range(2):
        graph.invoke({"messages": "Refund order 1"})
    assert prompts(model) == ["human", "human"]
    (candidate,) = reflection.lessons.list(status="candidate")
    assert reflection.lessons.approve(candidate.id).status == "active"
    graph.invoke({"messages": "Refund order 1"})
    assert prompts(model)[-1] == "system human"
    with pytest.raises(LessonStateError, match="'active' already"):
        reflection.lessons.approve(candidate.id)


def test_approving_a_candidate_retires_what_it_replaces(make: Any) -> None:
    edit = {"op": "edit", "lesson": "L1", "episodes": ["E1"], "because": "Refund order", "do": "ask twice"}
    reflector = testing.ScriptedChatModel(lambda _: json.dumps({"edits": [edit]}))
    reflection = make(reflector, every=1, approval="human")
    old = reflection.lessons.add(when="refunding an order", do=RULE)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    (candidate,) = reflection.lessons.list(status="candidate")
    assert reflection.lessons.get(old.id).status == "active"
    reflection.lessons.approve(candidate.id)
    assert reflection.lessons.get(old.id).status == "retired"
    assert [x.do for x in reflection.lessons.list(status="active")] == ["ask twice"]


def test_pause_stops_lessons_and_reflections_and_keeps_recording(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = learned(make, model)
    reflection.lessons.add(when="refunding an order", do=RULE)
    graph = reflection.wrap(agent(model))
    reflection.pause()
    graph.invoke({"messages": "Refund order 1"})
    assert prompts(model) == ["human"]
    assert len(reflection.episodes.list(waiting=True)) == 1
    reflection.resume()
    graph.invoke({"messages": "Refund order 2"})
    assert prompts(model)[-1] == "system human"
    assert reflection.episodes.list(waiting=True) == ()


def test_redaction_comes_before_storing_and_reflecting(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    model = testing.ScriptedChatModel(lambda messages: f"paid to {messages[-1].content}")
    reflection = make(reflector, every=1, redact=lambda text: text.replace(SECRET, "[bank]"), reward_wait=60)
    result = reflection.wrap(agent(model)).invoke({"messages": f"Refund to {SECRET}"}, {"metadata": {"note": SECRET}})
    assert SECRET in result["messages"][-1].content
    reflection.reward(result, 0.0, comment=f"wrong: {SECRET}", correction=SECRET)
    (episode,) = reflection.episodes.list()
    assert SECRET not in episode.model_dump_json()
    assert "[bank]" in episode.model_dump_json()
    assert len(reflector.calls) == 1
    assert SECRET not in str(reflector.calls[0])


def test_the_task_that_a_lesson_keeps_is_redacted(make: Any) -> None:
    reflector = testing.ScriptedChatModel([adding("Refund to [bank]")])
    reflection = make(reflector, every=1, redact=lambda text: text.replace(SECRET, "[bank]"))
    reflection.wrap(agent()).invoke({"messages": f"Refund to {SECRET} at once"})
    assert [lesson.task for lesson in reflection.lessons.list()] == ["Refund to [bank] at once"]


def test_preview_says_what_and_why(make: Any) -> None:
    reflection = make(every=99, top_k=1, min_similarity=0.05)
    assert reflection.preview({"messages": "Refund order 1"}).reason == "no active lessons, or paused"
    reflection.lessons.add(when="refund order", do="ask a manager")
    reflection.lessons.add(when="refund order two", do="ask a manager twice")
    reflection.lessons.add(when="zebra", do="quagga")
    seen = reflection.preview({"messages": "Refund order 1"})
    assert seen.task == "Refund order 1"
    assert [item.shown for item in seen.lessons] == [True, False, False]
    assert [item.reason for item in seen.lessons[1:]] == ["top_k is 1", "below the similarity floor"]
    assert "ask a manager" in seen.block
    assert 0 < seen.tokens <= 600
    assert reflection.episodes.list() == ()


def test_after_close_runs_go_on_bare_and_calls_say_so(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = make(every=99)
    reflection.lessons.add(when="refunding an order", do=RULE)
    graph = reflection.wrap(agent(model))
    reflection.close()
    reflection.close()
    assert graph.invoke({"messages": "Refund order 1"})["messages"][-1].content == "refunded"
    assert prompts(model) == ["human"]
    with pytest.raises(ClosedError, match="build a new one"):
        reflection.reflect()


async def test_both_context_managers(make: Any) -> None:
    with testing.reflection() as one:
        one.lessons.add(when="a", do="b")
    async with testing.reflection() as two:
        await two.lessons.aadd(when="a", do="b")
        assert len(await two.lessons.alist()) == 1
        assert (await two.apreview({"messages": "a"})).block
        await two.apause()
        await two.aresume()
        assert await two.aflush(10)
        assert all(finding.ok for finding in await two.adoctor())
    assert one._core.closed
    assert two._core.closed
