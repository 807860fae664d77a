"""Edits that touch several lessons are made as a whole or not at all, whoever else is at work or whatever is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.errors import EmbedderError, LessonStateError
from reflect_middleware.types import now
from tests.faults import judge
from tests.faults.judge import Acknowledged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Reflection
    from reflect_middleware.types import Lesson

QUOTE = "Refund order seventeen"


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(params=["auto"])
def reflection(request: pytest.FixtureRequest) -> Iterator[Reflection]:
    with testing.reflection(reflector=merging, every=99, approval=request.param) as reflection:
        reflection.lessons.add(when="packing a parcel", do="use paper")
        reflection.lessons.add(when="packing a crate", do="use straw")
        yield reflection


def merging(batch: Any) -> list[dict[str, Any]]:
    """Merges the first two lessons."""
    words = {"because": QUOTE, "when": "packing anything", "do": "use paper or straw"}
    return [{"op": "merge", "lessons": ["L1", "L2"], "episodes": ["E1"], **words}]


def run_once(reflection: Reflection) -> None:
    """One episode to reflect on."""
    from langgraph.graph import START, MessagesState, StateGraph

    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda _: {"messages": [("ai", "done")]})
    builder.add_edge(START, "answer")
    reflection.wrap(builder.compile()).invoke({"messages": QUOTE})


def standing(reflection: Reflection) -> dict[str, str]:
    """What is in use."""
    return {lesson.do: lesson.status for lesson in reflection.lessons.list()}


def dying_at_version(reflection: Reflection, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process ends when it is about to write the n-th version from now on."""
    table, written = reflection._core.parts.ledger.lessons, []
    keep = table._keep

    def dying(connection: Any, lesson: Lesson) -> None:
        written.append(lesson)
        if len(written) == number:
            raise Killed
        keep(connection, lesson)

    monkeypatch.setattr(table, "_keep", dying)


@pytest.mark.parametrize("reflection", ["human"], indirect=True)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_approval_retires_what_it_replaces_or_does_nothing(
    monkeypatch: pytest.MonkeyPatch, reflection: Reflection, number: int
) -> None:
    run_once(reflection)
    reflection.reflect()
    (candidate,) = reflection.lessons.list("candidate")
    before = standing(reflection)
    with monkeypatch.context() as patch:
        dying_at_version(reflection, patch, number)
        with pytest.raises(Killed):
            reflection.lessons.approve(candidate.id)
    assert standing(reflection) == before
    reflection.lessons.approve(candidate.id)
    assert standing(reflection) == {"use paper": "retired", "use straw": "retired", "use paper or straw": "active"}


def test_a_rollback_brings_everything_back_or_nothing(monkeypatch: pytest.MonkeyPatch, reflection: Reflection) -> None:
    at = now()
    for lesson in reflection.lessons.list():
        reflection.lessons.edit(lesson.id, do=f"{lesson.do}, twice")
    with monkeypatch.context() as patch:
        dying_at_version(reflection, patch, 2)
        with pytest.raises(Killed):
            reflection.lessons.rollback(to=at)
    assert standing(reflection) == {"use paper, twice": "active", "use straw, twice": "active"}
    assert len(reflection.lessons.rollback(to=at)) == 2
    assert standing(reflection) == {"use paper": "active", "use straw": "active"}


@pytest.mark.parametrize("rival", ["edit", "retire"])
def test_a_merge_of_a_lesson_that_changes_meanwhile_is_decided_again(
    monkeypatch: pytest.MonkeyPatch, reflection: Reflection, rival: str
) -> None:
    first, _ = reflection.lessons.list()
    table, calls = reflection._core.parts.ledger.reflections, []
    commit = table.commit

    def late(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:  # an operator, between the check of the answer and its commit
            getattr(reflection.lessons, rival)(first.id, **({"do": "use old paper"} if rival == "edit" else {}))
        return commit(*args, **kwargs)

    monkeypatch.setattr(table, "commit", late)
    run_once(reflection)
    report = reflection.reflect()
    assert len(calls) == 2
    assert report.error == ""
    assert [outcome.reason for outcome in report.rejected] == [
        "lesson L1 was changed or retired while the reflector read it"
    ]
    assert "use paper or straw" not in standing(reflection)
    assert standing(reflection)["use straw"] == "active"
    assert reflection.reflections.get(report.reflections[0]).outcomes == report.rejected
    assert judge.at_any_time(judge.read(reflection._options.ledger_url), Acknowledged()) == []


def test_a_lesson_that_changes_without_end_gives_the_batch_back(
    monkeypatch: pytest.MonkeyPatch, reflection: Reflection
) -> None:
    table = reflection._core.parts.ledger.lessons

    def contested(*_: Any) -> None:
        raise LessonStateError("somebody is always faster")

    run_once(reflection)
    with monkeypatch.context() as patch:
        patch.setattr(table, "apply", contested)
        assert "always faster" in reflection.reflect().error
    assert len(reflection.episodes.list(waiting=True)) == 1
    assert len(reflection.reflect().accepted) == 1


def test_new_words_never_keep_the_vector_of_the_old_ones(
    monkeypatch: pytest.MonkeyPatch, reflection: Reflection
) -> None:
    lesson = reflection.lessons.list()[0]
    with monkeypatch.context() as patch:

        def down(_: Any) -> None:
            raise EmbedderError("no embedder today")

        patch.setattr(reflection._core.parts.embedder, "embed_documents", down)
        reflection.lessons.edit(lesson.id, when="feeding the office cat", do="use the blue bowl")
    (found,) = reflection.lessons.search("feeding the office cat", k=1)
    reflection.flush()
    (found,) = reflection.lessons.search("feeding the office cat", k=1)
    assert found.lesson.do == "use the blue bowl"
    wrong = judge.vectors_right(judge.read(reflection._options.ledger_url), testing.HashingEmbeddings().embed_query)
    assert list(wrong) == []
