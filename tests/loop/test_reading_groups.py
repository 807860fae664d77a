"""What a reflection says of what it cut and skipped, in report, record and prompt, on both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from reflect_middleware import testing
from reflect_middleware.pack import approximate_tokens, render

from .conftest import RULE, adding, agent


class Reflector:
    """A scripted reflector's model that remembers its prompts."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.prompts = list(answers), list[str]()

    def __call__(self, messages: list[Any]) -> str:
        self.prompts.append(str(messages[-1].content))
        return self.answers[len(self.prompts) - 1]


def test_a_batch_that_says_nothing_new_asks_nobody_and_is_consumed(make):
    model = Reflector()
    reflection = make(testing.ScriptedChatModel(model), every=2, reward=lambda _: 1.0)
    graph = reflection.wrap(agent())
    for _ in range(2):
        graph.invoke({"messages": "Refund order 1182"})
    (record,) = reflection.reflections.list()
    assert model.prompts == []
    assert (record.status, record.prompt, record.input_tokens) == ("done", "", 0)
    assert set(record.skipped[0].episodes) == set(record.episodes) == {e.id for e in reflection.episodes.list()}
    assert "each with reward 1" in record.skipped[0].reason
    assert all(episode.reflection_id == record.id for episode in reflection.episodes.list())


def test_the_report_and_the_record_say_what_was_cut_and_skipped(make):
    model, reports = Reflector(json.dumps({"edits": []})), []
    long = testing.ScriptedChatModel(lambda messages: "refunded " * (9_000 if "long" in str(messages) else 1))
    reflection = make(
        testing.ScriptedChatModel(model),
        every=3,
        reward=lambda episode: float("long" not in episode.task),
        reflector_budget=2_500,
        on_reflection=reports.append,
    )
    graph = reflection.wrap(agent(long))
    for text in ("Refund order 1182", "a long one", "Refund order 1182"):
        graph.invoke({"messages": text})
    (record,), (report,) = reflection.reflections.list(), reports
    assert record.cut == report.cut
    assert record.skipped == report.skipped
    (cut,), (skip,) = report.cut, report.skipped
    assert cut.episode == next(e.id for e in reflection.episodes.list() if "long" in e.task)
    assert 0 < cut.characters < cut.of_characters
    assert "characters cut]" in model.prompts[0]
    assert "Not shown: E1, E2 (2 runs of one task" in model.prompts[0]
    assert skip.episodes == record.episodes[:2], "handles count up along the groups"
    assert cut.episode == record.episodes[2]


@pytest.fixture
def one(tmp_path):
    """A Reflection on SQLite: what a prompt shows does not depend on the database."""
    made: list[Any] = []

    def build(model: Any = None, **settings: Any) -> Any:
        made.append(testing.reflection(model, path=tmp_path, **settings))
        return made[-1]

    yield build
    for reflection in made:
        reflection.close()


def test_injected_lessons_are_in_no_episode_that_the_reflector_reads(one):
    batches: list[Any] = []

    def reflector(batch: Any) -> Any:
        batches.append(batch)
        return json.loads(adding(do="ask a manager first"))["edits"]

    reflection = one(reflector=reflector, every=1)
    seen: list[str] = []
    model = testing.ScriptedChatModel(lambda messages: seen.append(str(messages)) or "refunded")
    graph = reflection.wrap(agent(model))
    for _ in range(2):
        graph.invoke({"messages": f"Refund order 1182: {RULE}"})
    assert "ask a manager first" in seen[1], "the lesson was injected"
    assert batches[1].lessons[0].do == "ask a manager first"
    text = render(batches[1], 10_000, approximate_tokens)
    assert "ask a manager" not in text[text.index("<episode") :]


def test_a_lesson_is_shown_with_what_the_runs_that_had_it_earned(one):
    model = Reflector(adding(do="ask a manager first"), json.dumps({"edits": []}))
    reflection = one(testing.ScriptedChatModel(model), every=1, reward=lambda _: 0.25)
    graph = reflection.wrap(agent())
    for _ in range(2):
        graph.invoke({"messages": f"Refund order 1182: {RULE}"})
    assert "shown in 1 with mean reward 0.25" in model.prompts[1]


def test_of_a_conversation_the_last_turn_is_the_task(one):
    model = Reflector(*[json.dumps({"edits": []})] * 5)
    reflection = one(testing.ScriptedChatModel(model), every=1)
    graph = reflection.wrap(agent(checkpointer=InMemorySaver()))
    for number in range(1, 6):
        graph.invoke({"messages": f"turn {number}"}, {"configurable": {"thread_id": "t"}})
    text = model.prompts[4]
    assert "task: turn 5\nearlier turns, not the task: human: turn 1\nai: refunded\nhuman: turn 2" in text
    assert text.count("turn 5") == 1
    assert text.count("turn 4") == 1


def test_an_embedder_that_fails_leaves_the_groups_to_the_words(one):
    class Broken(testing.HashingEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            raise OSError("gone")

    batches: list[Any] = []
    reflection = one(
        reflector=lambda batch: batches.append(batch) or [], every=2, embeddings=Broken(), use_lessons=False
    )
    graph = reflection.wrap(agent())
    for text in ("Refund order 1182", "Please refund order 1182"):
        graph.invoke({"messages": text})
    assert batches[0].vectors == {}
    assert len(batches[0].episodes) == 2


def test_tasks_that_read_alike_come_with_vectors_and_a_days_limit_with_what_is_left(one):
    batches: list[Any] = []
    reflection = one(reflector=lambda batch: batches.append(batch) or [], every=2, daily_tokens=9_000)
    graph = reflection.wrap(agent())
    for text in ("Refund order 1182", "Please refund order 1182"):
        graph.invoke({"messages": text})
    assert set(batches[0].vectors) == {"Refund order 1182", "Please refund order 1182"}
    assert batches[0].tokens_left == 9_000
