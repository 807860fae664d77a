"""A reflection in a namespace of many lessons: it reads those near the matter, and decides as if it had read all."""

from __future__ import annotations

import json

import pytest

from reflect_middleware import nearby
from reflect_middleware.testing import ScriptedChatModel

from .conftest import adding, agent

MANY = 40
"""Above what `few` sets."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(nearby, "FEW", 20)
    monkeypatch.setattr(nearby, "RELATED", 10)
    monkeypatch.setattr(nearby, "OLDEST", 5)


@pytest.fixture
def many(make):
    """A Reflection with many lessons on other matters, whose model answers as a test says; it notes the batches."""
    said, batches = {}, []

    def reflector(batch):
        batches.append(batch)
        return json.loads(said["answer"])["edits"]

    reflection = make(reflector=reflector, every=1, max_lessons=MANY + 1)
    for number in range(MANY):
        reflection.lessons.add(when=f"matter{number} of kind{number}", do=f"use tool{number}")
    reflection.said, reflection.batches = said, batches
    return reflection


def learn(reflection, answer, text="Refund order 1182: needs a manager above 200 EUR"):
    reflection.said["answer"] = answer
    reflection.wrap(agent()).invoke({"messages": text})
    return reflection.reflections.list()[0].outcomes


def test_it_sees_the_nearest_lessons(many):
    learn(many, adding(), text="matter7 of kind7 needs a manager above 200 EUR")
    seen = many.batches[0].lessons
    assert len(seen) == 10
    assert "matter7 of kind7" in [lesson.when for lesson in seen]


def test_it_sees_what_needs_review_however_far(many):
    learn(many, adding())
    many.reward(many.episodes.list()[0].id, 0.0)
    learn(many, adding(do="ask"), text="matter7 of kind7 needs a manager above 200 EUR")
    assert many.batches[1].lessons[0].when == "refunding an order"
    assert many.batches[1].lessons[0].needs_review


def test_the_same_lesson_is_found_among_many(many):
    assert learn(many, adding())[0].accepted
    (again,) = learn(many, adding())
    assert len(many.lessons.list("active")) == MANY + 1
    assert not again.accepted or again.lesson_id == many.lessons.search("refunding an order")[0].lesson.id


def test_the_cap_counts_the_lessons_that_it_has_not_read(many):
    for number, when in enumerate(("refunding an order", "shipping a parcel", "closing an account")):
        learn(many, adding(when=when, do=f"step{number}"))
    assert len(many.lessons.list("active")) == MANY + 1


def test_a_retired_lesson_is_not_looked_at(many):
    many.lessons.retire(many.lessons.search("matter7 of kind7", 1)[0].lesson.id)
    learn(many, adding(), text="matter7 of kind7 needs a manager above 200 EUR")
    assert all(lesson.status == "active" for lesson in many.batches[0].lessons)


@pytest.mark.parametrize("few", [400, 0])
def test_a_twin_is_found_whatever_task_taught_it(make, monkeypatch, few):
    monkeypatch.setattr(nearby, "FEW", few)
    when, do = "refunding an order of a regular customer", "write down the cause, ask the desk and wait for the answer"
    answers = [adding("please", when, do), adding("please", when, f"{do} politely")]
    reflection = make(ScriptedChatModel(answers), every=1)
    for task in ("please " * 40, "Refund it, please"):
        reflection.wrap(agent()).invoke({"messages": task})
    (lesson,) = reflection.lessons.list()
    embedder = reflection._core.parts.embedder
    stored, said = embedder.embed_documents([lesson.searched, lesson.text])
    assert float(stored @ said) < 0.3, "or the task hides nothing here"
    assert len(lesson.sources) == 2
