"""Lessons by hand: every change a version, none lost, all of it undoable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.errors import (
    ConfigurationError,
    EpisodeNotFoundError,
    LessonNotFoundError,
    LessonStateError,
    LessonTextError,
    ReflectionNotFoundError,
)
from reflect_middleware.types import now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Reflection


@pytest.fixture
def reflection() -> Iterator[Reflection]:
    """A Reflection without a model."""
    with testing.reflection() as made:
        yield made


def test_add_edit_retire_approve_and_history(reflection: Reflection) -> None:
    lesson = reflection.lessons.add(when="refunding", do="ask", because="they said so")
    reflection.lessons.edit(lesson.id, do="ask a manager")
    reflection.lessons.retire(lesson.id)
    with pytest.raises(LessonStateError, match=r"'retired' already.*approve"):
        reflection.lessons.retire(lesson.id)
    reflection.lessons.approve(lesson.id)
    history = reflection.lessons.history(lesson.id)
    assert [(x.version, x.do, x.status) for x in history] == [
        (1, "ask", "active"),
        (2, "ask a manager", "active"),
        (3, "ask a manager", "retired"),
        (4, "ask a manager", "active"),
    ]
    assert reflection.lessons.get(lesson.id).version == 4
    assert reflection.lessons.edit(lesson.id).version == 4


def test_list_by_status(reflection: Reflection) -> None:
    one, two = (reflection.lessons.add(when=f"case {n}", do="ask") for n in range(2))
    reflection.lessons.retire(one.id)
    assert [x.id for x in reflection.lessons.list()] == [one.id, two.id]
    assert [x.id for x in reflection.lessons.list(status="active")] == [two.id]
    with pytest.raises(ConfigurationError, match=r"status is 'gone'; allowed: 'candidate'"):
        reflection.lessons.list(status="gone")  # type: ignore[arg-type]


def test_search_ranks_and_leaves_out_what_is_retired(reflection: Reflection) -> None:
    assert reflection.lessons.search("refund") == ()
    near = reflection.lessons.add(when="refund an order", do="ask a manager")
    far = reflection.lessons.add(when="paint the fence", do="use green")
    found = reflection.lessons.search("refund order")
    assert [item.lesson.id for item in found] == [near.id, far.id]
    assert found[0].similarity > found[1].similarity
    reflection.lessons.retire(near.id)
    assert [item.lesson.id for item in reflection.lessons.search("refund order")] == [far.id]


def test_rollback_to_a_time_and_back(reflection: Reflection) -> None:
    kept = reflection.lessons.add(when="a", do="old words")
    gone = reflection.lessons.add(when="b", do="retired later")
    then = now()
    reflection.lessons.edit(kept.id, do="new words")
    reflection.lessons.retire(gone.id)
    late = reflection.lessons.add(when="c", do="too late")
    before_rollback = now()
    changed = reflection.lessons.rollback(to=then)
    assert {x.id for x in changed} == {kept.id, gone.id, late.id}
    state = {x.id: (x.do, x.status) for x in reflection.lessons.list()}
    assert state == {
        kept.id: ("old words", "active"),
        gone.id: ("retired later", "active"),
        late.id: ("too late", "retired"),
    }
    reflection.lessons.rollback(to=before_rollback)
    assert reflection.lessons.get(kept.id).do == "new words"
    assert reflection.lessons.get(late.id).status == "active"
    assert reflection.lessons.rollback(to=now()) == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"when": "", "do": "x"}, r"when has 0 characters.*allowed: 1 to 200"),
        ({"when": "x", "do": " "}, r"do has 0 characters"),
        ({"when": "x", "do": "y" * 401}, r"do has 401 characters.*allowed: 1 to 400"),
        ({"when": "x", "do": "y", "because": "z" * 601}, r"because has 601"),
    ],
)
def test_words_out_of_bounds(reflection: Reflection, given: dict[str, str], says: str) -> None:
    with pytest.raises(LessonTextError, match=says):
        reflection.lessons.add(**given)
    assert reflection.lessons.list() == ()


def test_unknown_ids(reflection: Reflection) -> None:
    for call in (reflection.lessons.get, reflection.lessons.retire, reflection.lessons.history):
        with pytest.raises(LessonNotFoundError, match=r"No lesson has the id 'x'.*lessons.list"):
            call("x")
    with pytest.raises(EpisodeNotFoundError, match="'x'"):
        reflection.episodes.get("x")
    with pytest.raises(ReflectionNotFoundError, match="'x'"):
        reflection.reflections.get("x")
    with pytest.raises(ReflectionNotFoundError, match="'x'"):
        reflection.lessons.rollback(to="x")


def test_two_writers_do_not_overwrite_each_other(reflection: Reflection) -> None:
    lesson = reflection.lessons.add(when="a", do="b")
    table = reflection._core.parts.ledger.lessons
    stale = table.get(lesson.id)
    reflection.lessons.edit(lesson.id, do="mine")
    from reflect_middleware.desk import Change

    change = Change(lesson=stale.model_copy(update={"do": "theirs", "version": 2}), vector=None, expected_version=1)
    with pytest.raises(LessonStateError, match="changed meanwhile"):
        table.save_all([change], "")
    assert reflection.lessons.get(lesson.id).do == "mine"


async def test_async_twins(reflection: Reflection) -> None:
    lessons = reflection.lessons
    lesson = await lessons.aadd(when="refund", do="ask")
    await lessons.aedit(lesson.id, do="ask twice")
    assert (await lessons.aget(lesson.id)).do == "ask twice"
    assert [item.lesson.id for item in await lessons.asearch("refund")] == [lesson.id]
    await lessons.aretire(lesson.id)
    await lessons.aapprove(lesson.id)
    assert [x.version for x in await lessons.ahistory(lesson.id)] == [1, 2, 3, 4]
    assert await lessons.arollback(to=now()) == ()
    assert await reflection.episodes.alist() == ()
    assert await reflection.reflections.alist() == ()
    with pytest.raises(EpisodeNotFoundError):
        await reflection.episodes.aget("x")
    assert lessons.aadd.__doc__ == "Async twin of `add`."


def test_statistics_describe_what_was_shown(reflection: Reflection) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    model: Any = testing.ScriptedChatModel(lambda _: "ok")
    builder = StateGraph(MessagesState)
    builder.add_node("a", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "a")
    lesson = reflection.lessons.add(when="refund", do="ask")
    graph = reflection.wrap(builder.compile())
    results = [graph.invoke({"messages": f"refund {n}"}) for n in range(3)]
    reflection.reward(results[0], 1.0)
    reflection.reward(results[1], 0.0)
    seen = reflection.lessons.get(lesson.id)
    assert (seen.shown, seen.shown_reward) == (3, 0.5)
    exposure = reflection.episodes.list()[0].exposures[0]
    assert (exposure.lesson_id, exposure.shown, exposure.probability) == (lesson.id, True, 1.0)
