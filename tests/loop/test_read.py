"""Reading further namespaces, and lessons that apply everywhere: what a run is shown, and that nothing else crosses."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from reflect_middleware import get_lessons, testing
from reflect_middleware.errors import TemplateError
from reflect_middleware.retrieve import TWIN
from tests.loop.conftest import adding, agent

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

OWN, TEAM, ALL = ("acme", "ann"), ("acme", "team"), ("acme",)
STRANGER = ("acme", "bob")
TASK = "refund order 7"


def seeing() -> tuple[Any, list[str]]:
    """An agent's model, and the lesson blocks that its calls get."""
    seen: list[str] = []
    return testing.ScriptedChatModel(lambda _: seen.append(get_lessons()) or "ok"), seen


def filled(reflection: Reflection) -> dict[str, str]:
    """A lesson in each namespace; gives their ids by what they advise."""
    spaces = {"own": OWN, "team": TEAM, "all": ALL, "stranger": STRANGER}
    return {do: reflection.lessons.add(when=TASK, do=do, namespace=space).id for do, space in spaces.items()}


@pytest.mark.parametrize("store", ["exact", "chroma"])
async def test_lessons_of_all_are_ranked_together_and_say_where_they_are_from(
    make: Callable[..., Reflection], run: Callable[..., Any], store: str
) -> None:
    reflection = make(store=store, namespace=("acme", "{user}"), read=[("acme", "{team}"), ALL])
    ids = filled(reflection)
    if store == "chroma":
        for space in (OWN, TEAM, ALL):
            reflection._core.parts.index.sync(space)
    model, seen = seeing()
    await run(reflection.wrap(agent(model)), TASK, config={"configurable": {"user": "ann", "team": "team"}})
    lines = [line for line in seen[0].splitlines() if line.startswith("- ")]
    assert [line.rpartition(": ")[2] for line in lines] == ["own", "team [acme/team]", "all [acme]"]
    (episode,) = reflection.episodes.list()
    assert (episode.namespace, episode.read) == (OWN, (TEAM, ALL))
    shown = {x.lesson_id: x.namespace for x in episode.exposures if x.shown}
    assert shown == {ids["own"]: OWN, ids["team"]: TEAM, ids["all"]: ALL}
    assert reflection._core.parts.index.is_open == (store == "chroma")


def test_own_lessons_win_ties_and_copies_are_shown_once(make: Callable[..., Reflection]) -> None:
    reflection = make(namespace=OWN, read=[TEAM], top_k=1)
    there = reflection.lessons.add(when=TASK, do="ask", namespace=TEAM)
    copy = reflection.lessons.add(when=TASK.upper(), do="ask.")
    found = reflection.preview(TASK)
    assert found.read == (TEAM,)
    assert [(x.lesson.id, x.lesson.namespace, x.reason) for x in found.lessons] == [
        (copy.id, OWN, ""),
        (there.id, TEAM, TWIN),
    ]


def test_nothing_is_written_to_what_is_only_read(make: Callable[..., Reflection]) -> None:
    model = testing.ScriptedChatModel([adding(because=TASK)])
    reflection = make(model, namespace=OWN, read=[TEAM], every=1)
    theirs = reflection.lessons.add(when=TASK, do="their way", namespace=TEAM)
    revision = reflection._core.parts.ledger.lessons.state(TEAM)
    result = reflection.wrap(agent()).invoke({"messages": [("user", TASK)]})
    reflection.reward(result, 0.0, comment="late")
    (record,) = reflection.reflections.list()
    assert "their way" not in record.prompt
    assert record.namespace == OWN
    (known,) = reflection.lessons.list(namespace=TEAM)
    assert (known.version, known.needs_review, known.sources) == (theirs.version, False, ())
    assert reflection._core.parts.ledger.lessons.state(TEAM) == revision
    assert reflection.episodes.list(namespace=TEAM) == ()
    assert [lesson.do for lesson in reflection.lessons.list()] == ["ask a manager above 200 EUR"]


def test_an_empty_part_leaves_one_out_with_one_warning(
    make: Callable[..., Reflection], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(config: Any, context: Any) -> Any:
        raise KeyError("team")

    reflection = make(namespace=OWN, read=[("acme", "{team}"), broken, ALL, OWN])
    filled(reflection)
    model, seen = seeing()
    wrapped = reflection.wrap(agent(model))
    with caplog.at_level(logging.WARNING, "reflect_middleware"):
        for _ in range(2):
            wrapped.invoke({"messages": [("user", TASK)]}, {"configurable": {"team": ""}})
    assert ["own" in seen[0], "team" in seen[0], "all [acme]" in seen[0]] == [True, False, True]
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "runs without the lessons of read=" in text]) == 1
    assert len([text for text in said if "read failed" in text]) == 1
    assert [episode.read for episode in reflection.episodes.list()] == [(ALL,)] * 2


def test_each_agent_may_read_others(make: Callable[..., Reflection]) -> None:
    reflection = make(namespace=OWN, read=[ALL])
    filled(reflection)
    (first, second), (one, other) = zip(seeing(), seeing(), strict=True)
    reflection.wrap(agent(first), read=[]).invoke({"messages": [("user", TASK)]})
    wrapped = reflection.wrap(agent(second))
    reflection.wrap(wrapped, read=[TEAM]).invoke({"messages": [("user", TASK)]})
    assert ["own" in one[0], "[acme" in one[0]] == [True, False]
    assert ["team [acme/team]" in other[0], "all [acme]" in other[0]] == [True, False]


def test_what_a_thread_was_shown_stays_in_place(make: Callable[..., Reflection]) -> None:
    reflection = make(namespace=OWN, read=[TEAM])
    reflection.lessons.add(when=TASK, do="theirs", namespace=TEAM)
    model, seen = seeing()
    wrapped = reflection.wrap(agent(model))
    for number in range(2):
        wrapped.invoke({"messages": [("user", TASK)]}, {"configurable": {"thread_id": "t"}})
        reflection.lessons.add(when=TASK, do=f"own {number}", always=number == 0)
    wrapped.invoke({"messages": [("user", "something else")]}, {"configurable": {"thread_id": "t"}})
    assert "theirs" in seen[0]
    assert seen[1].startswith(seen[0].removesuffix("</lessons>"))
    assert seen[2].startswith(seen[1].removesuffix("</lessons>"))
    assert "own 0" in seen[1]


def test_whoever_resumes_a_run_brings_no_lessons_of_theirs(make: Callable[..., Reflection]) -> None:
    def ask(_: MessagesState) -> dict[str, Any]:
        seen.append(get_lessons())
        return {"messages": [("ai", interrupt("sure?"))]}

    seen: list[str] = []
    reflection = make(namespace=ALL, read=[("acme", "{user}")])
    filled(reflection)
    builder = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask")
    wrapped = reflection.wrap(builder.compile(checkpointer=InMemorySaver()))
    wrapped.invoke({"messages": [("user", TASK)]}, {"configurable": {"thread_id": "t", "user": "ann"}})
    wrapped.invoke(Command(resume="yes"), {"configurable": {"thread_id": "t", "user": "bob"}})
    assert ["own [acme/ann]" in text and "stranger" not in text for text in seen] == [True, True]
    (episode,) = reflection.episodes.list()
    assert (episode.status, episode.read) == ("completed", (OWN,))


def test_what_is_known_is_not_asked_again() -> None:
    with testing.reflection(namespace=OWN, read=[TEAM, ALL]) as reflection:
        filled(reflection)
        reflection.lessons.add(when="anything", do="be kind", namespace=ALL, always=True)
        wrapped = reflection.wrap(agent())
        for _ in range(2):
            wrapped.invoke({"messages": [("user", TASK)]})
        reflection.flush()
        asked: list[str] = []
        engine = reflection._core.parts.ledger.database._open()
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_: asked.append(statement))
        assert "be kind" in reflection.preview(TASK).block
        assert asked == []


def test_a_namespace_to_read_is_a_tuple_in_a_list() -> None:
    for wrong in ("acme", ("acme",), [()], [("acme", "{}")], {"acme"}, None):
        with pytest.raises(TemplateError, match="allowed"):
            testing.reflection(read=wrong)
    with testing.reflection() as reflection, pytest.raises(TemplateError, match=r"read=\[\('acme', …\)\]"):
        reflection.wrap(agent(), read=("acme",))


def test_what_applies_everywhere_is_in_every_run(make: Callable[..., Reflection]) -> None:
    reflection = make(min_similarity=0.9)
    kind = reflection.lessons.add(when="anything is asked", do="be kind", always=True)
    reflection.lessons.add(when=TASK, do="ask")
    found = reflection.preview("an unrelated matter")
    assert [(x.lesson.id, x.shown, x.always) for x in found.lessons if x.shown] == [(kind.id, True, True)]
    reflection.wrap(agent()).invoke({"messages": [("user", "an unrelated matter")]})
    (episode,) = reflection.episodes.list()
    assert [(x.lesson_id, x.shown, x.probability) for x in episode.exposures] == [(kind.id, True, 1.0)]
    reflection.lessons.edit(kind.id, always=False)
    assert reflection.preview("an unrelated matter").block == ""
    reflection.lessons.edit(kind.id, always=True)
    reflection.lessons.retire(kind.id)
    assert reflection.preview("an unrelated matter").block == ""


def test_they_are_found_without_reading_the_others() -> None:
    with testing.reflection() as reflection:
        reflection.lessons.add(when="anything", do="be kind", always=True)
        database = reflection._core.parts.ledger.database
        asked: list[tuple[str, Any]] = []
        note = lambda _c, _u, statement, values, *_: asked.append((statement, values))  # noqa: E731
        sa.event.listen(database._open(), "before_cursor_execute", note)
        (kind,) = reflection._core.parts.ledger.lessons.always(("default",))
        assert kind.do == "be kind"
        [(statement, values)] = [pair for pair in asked if "always" in pair[0]]  # the index makes its vector meanwhile
        with database.read() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
        assert "lessons_always" in str(plan)


def test_it_survives_what_a_reflection_makes_of_it(make: Callable[..., Reflection]) -> None:
    def reflector(_: Any) -> list[dict[str, Any]]:
        words = {"because": "refunded", "when": "refunding", "do": "be very kind"}
        return [{"op": "merge", "lessons": ["L1", "L2"], "episodes": ["E1"], **words}]

    reflection = make(reflector=reflector, every=1)
    first = reflection.lessons.add(when="answering", do="be kind", always=True)
    reflection.lessons.add(when="replying", do="be polite")
    reflection.wrap(agent()).invoke({"messages": [("user", TASK)]})
    (merged,) = reflection.lessons.list(status="active")
    assert (merged.do, merged.always) == ("be very kind", True)
    reflection.lessons.edit(merged.id, always=False)
    (record,) = reflection.reflections.list()
    back = reflection.lessons.rollback(to=record.id)
    assert [lesson.always for lesson in back] == [True]
    assert reflection.lessons.get(first.id).always
