"""When something of ours fails: the user's run goes on, nothing is lost, and it can be seen."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from reflect_middleware import testing

from .conftest import adding, agent


def test_garbage_goes_back_and_is_dead_lettered_after_three_tries(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: "no idea"), every=1)
    reflection.lessons.add(when="refunding", do="ask")
    result = reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    assert result["messages"][-1].content == "refunded"
    for tries in (1, 2):
        assert len(reflection.episodes.list(waiting=True)) == 1, tries
        report = reflection.reflect()
        assert "no usable answer" in report.error
    assert reflection.episodes.list(waiting=True) == ()
    (episode,) = reflection.episodes.list()
    assert "no usable answer" in episode.dead_letter
    records = reflection.reflections.list()
    assert [record.status for record in records] == ["failed"] * 3
    assert all("no idea" in record.answer and record.prompt for record in records)
    assert [lesson.do for lesson in reflection.lessons.list(status="active")] == ["ask"]
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1


def test_one_retry_shows_the_error(make: Any) -> None:
    reflector = testing.ScriptedChatModel(["certainly! {", adding("Refund order")])
    reflection = make(reflector, every=1)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    assert len(reflection.lessons.list()) == 1
    assert len(reflector.calls) == 2
    assert len(reflector.calls[1]) > len(reflector.calls[0])


def test_after_a_failure_the_namespace_rests(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: "no idea")
    reflection = make(reflector, every=1)
    graph = reflection.wrap(agent())
    graph.invoke({"messages": "Refund order 1"})
    asked = len(reflector.calls)
    graph.invoke({"messages": "Refund order 2"})
    assert len(reflector.calls) == asked
    assert len(reflection.episodes.list(waiting=True)) == 2


def test_without_a_model_episodes_wait_and_count_no_try(make: Any) -> None:
    reflection = make(None, every=1)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    for _ in range(4):
        assert "Reflecting needs one" in reflection.reflect().error
    (episode,) = reflection.episodes.list(waiting=True)
    assert episode.dead_letter == ""


def test_on_reflection_that_fails_is_only_noted(make: Any) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("the user's callback")

    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1, on_reflection=broken)
    reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    reflection.flush()
    assert len(reflection.lessons.list()) == 1
    assert [f.check for f in reflection.doctor() if not f.ok] == ["failures: on_reflection"]


def test_an_unsupported_quote_is_not_silently_accepted(make: Any) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = make(testing.ScriptedChatModel(lambda _: adding("words that nobody said")), every=1)
    graph = reflection.wrap(agent(model))
    for _ in range(2):
        graph.invoke({"messages": "Refund order 1"})
    (lesson,) = reflection.lessons.list()
    assert (lesson.status, lesson.supported) == ("candidate", False)
    assert [message.type for message in model.calls[-1]] == ["human"]


class Broken(testing.HashingEmbeddings):
    """An embedder that does not work until it is mended."""

    mended = False

    def embed_query(self, text: str) -> list[float]:
        if not Broken.mended:
            raise ConnectionError("no network")
        return super().embed_query(text)


def test_lessons_wait_for_an_embedder_that_works(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = testing.ScriptedChatModel(lambda _: "refunded")
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1, embeddings=Broken())
    graph = reflection.wrap(agent(model))
    for _ in range(2):
        graph.invoke({"messages": "Refund order 1"})
    assert len(reflection.lessons.list(status="active")) == 1
    assert [message.type for message in model.calls[-1]] == ["human"]
    assert "no network" in {f.check: f.message for f in reflection.doctor()}["embedder"]
    monkeypatch.setattr(Broken, "mended", True)
    graph.invoke({"messages": "Refund order 2"})
    reflection.flush()
    graph.invoke({"messages": "Refund order 3"})
    assert [message.type for message in model.calls[-1]] == ["system", "human"]
