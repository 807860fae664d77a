"""Signs found in runs: where they land, when, and what they must not set off."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy

from reflect_middleware import OnFailures, Reward, outage, testing
from reflect_middleware.errors import LedgerUnavailableError
from reflect_middleware.schema import rewards as table
from tests.invariants.graphs import asking

from .conftest import adding, agent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reflect_middleware import Episode, Reflection

WRONG = "No, I meant the order 1183"


@tool
def book(day: str) -> str:
    """Book a day."""
    if "-" not in day:
        raise ValueError(f"{day} is no date")
    return f"booked {day}"


def calls(*days: str) -> testing.ScriptedChatModel:
    """A model that books these days, one after the other, and then is done; again and again."""
    script = itertools.cycle([*days, ""])

    def answer(_: Any) -> AIMessage:
        day = next(script)
        asked = [{"name": "book", "args": {"day": day}, "id": f"call {day}"}]
        return AIMessage("", tool_calls=asked) if day else AIMessage("done")

    return testing.ScriptedChatModel(answer)


def looping(model: Any, **options: Any) -> Any:
    """A model and a tool that take turns."""

    def think(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", think).add_node("tools", ToolNode([book], handle_tool_errors=True))
    builder.add_edge(START, "think").add_edge("tools", "think")
    builder.add_conditional_edges("think", lambda s: "tools" if s["messages"][-1].tool_calls else "__end__")
    return builder.compile(**options)


def signs(episode: Episode) -> dict[str, float]:
    return {reward.key: reward.value for reward in episode.rewards if reward.source == "implicit"}


def config(thread: str = "1", **reflect: Any) -> Any:
    return {"configurable": {"thread_id": thread, "reflect": reflect}}


def talk(reflection: Reflection, *messages: str, thread: str = "1") -> list[dict[str, float]]:
    """Runs in one thread; gives the signs of all its episodes, the oldest first."""
    graph = reflection.wrap(agent(checkpointer=InMemorySaver()))
    for text in messages:
        graph.invoke({"messages": [("user", text)]}, config(thread))
    return [signs(e) for e in reversed(reflection.episodes.list(thread_id=thread))]


async def test_errors_and_repairs(make: Any, run: Callable[..., Any]) -> None:
    reflection = make(every=99)
    await run(reflection.wrap(looping(calls("monday", "2026-11-23"))), "Book monday")
    await run(reflection.wrap(looping(calls("monday"))), "Book monday")
    await run(reflection.wrap(looping(calls("2026-11-23"))), "Book a day")
    clean, failed, repaired = reflection.episodes.list()
    assert [signs(e) for e in (repaired, failed, clean)] == [{"repair": 0.7}, {"error": 0.25}, {}]
    assert 'day: "monday" became "2026-11-23"' in repaired.rewards[0].comment
    assert (repaired.reward, failed.reward, clean.reward) == (0.7, 0.25, None)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_with_the_middleware(make: Any, how: str) -> None:
    reflection = make(every=99)
    model = testing.ScriptedChatModel(lambda _: AIMessage("cut o", response_metadata={"finish_reason": "length"}))
    graph = create_agent(model, [], middleware=[reflection.middleware()], checkpointer=InMemorySaver())
    for text in ("Refund 1182", WRONG):
        given = {"messages": [("user", text)]}
        await graph.ainvoke(given, config()) if how == "ainvoke" else graph.invoke(given, config())
        assert reflection.flush(20)  # nothing waits for the record of a run that only the middleware sees
    assert [signs(e) for e in reversed(reflection.episodes.list())] == [
        {"limit": 0.1, "correction": 0.1},
        {"limit": 0.1},
    ]


def test_failures(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(agent(testing.ScriptedChatModel([KeyError("no such order")])))
    with pytest.raises(KeyError):
        graph.invoke({"messages": "Refund 1"})
    endless = reflection.wrap(looping(calls(*["2026-11-23"] * 9)))
    with pytest.raises(GraphRecursionError):
        endless.invoke({"messages": "Book for ever"}, {"recursion_limit": 7})
    assert [signs(e) for e in reflection.episodes.list()] == [{"limit": 0.1, "loop": 0.3}, {"failed": 0.0}]


async def test_the_next_message_judges_the_run_before(make: Any, run: Callable[..., Any]) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(agent(checkpointer=InMemorySaver()))
    for text in ("Refund 1182", WRONG, "Thanks!", "What is wrong with my order?"):
        await run(graph, text, config=config())
    await run(graph, "That's wrong", config=config("another thread"))
    first, second, *rest = (signs(e) for e in reversed(reflection.episodes.list()))
    assert (first, second, rest) == ({"correction": 0.1}, {"thanks": 0.9}, [{}, {}, {}])
    (reward,) = reflection.episodes.list()[-1].rewards
    assert reward.comment == f'the user\'s next message: "{WRONG}"'


def test_across_two_processes_lives(make: Any, tmp_path: Path) -> None:
    for text in ("Refund 1182", WRONG):
        with make(every=99, path=str(tmp_path)) as reflection:
            talk(reflection, text)
    assert [signs(e) for e in make(every=99, path=str(tmp_path)).episodes.list()] == [{}, {"correction": 0.1}]


@pytest.mark.process
def test_from_another_process(tmp_path: Path) -> None:
    with testing.reflection(every=99, path=str(tmp_path)) as reflection:
        talk(reflection, "Refund 1182")
        subprocess.run([sys.executable, "-c", TALKER, str(tmp_path), WRONG], check=True, timeout=120)
        assert [signs(e) for e in reflection.episodes.list()] == [{}, {"correction": 0.1}]


TALKER = """
import sys
from reflect_middleware import Reflection
from tests.loop.conftest import agent

with Reflection(path=sys.argv[1], store="exact", embeddings="hashing") as reflection:
    config = {"configurable": {"thread_id": "1"}}
    reflection.wrap(agent()).invoke({"messages": [("user", sys.argv[2])]}, config)
"""


def test_after_the_reflection_it_marks_the_lesson(make: Any) -> None:
    reflector = testing.ScriptedChatModel([adding("Refund 1182"), *['{"edits": []}'] * 9])
    reflection = make(reflector, every=1)
    talk(reflection, "Refund 1182")
    (lesson,) = reflection.lessons.list()
    assert not lesson.needs_review
    talk(reflection, WRONG)
    assert "reward by implicit for correction: 0.1 (the user's next message:" in reflector.prompts[1]
    assert len(reflection.reflections.list()) == 2
    assert not reflection.lessons.get(lesson.id).needs_review  # the second one has looked


def test_before_the_reflection_it_is_read(make: Any) -> None:
    reflector = testing.ScriptedChatModel(['{"edits": []}'])
    reflection = make(reflector, every=2)
    talk(reflection, "Refund 1182", WRONG)
    assert f'reward by implicit for correction: 0.1 (the user\'s next message: "{WRONG}")' in reflector.prompts[0]


def test_other_agents_namespaces_and_runs_inside_are_left_alone(make: Any) -> None:
    reflection = make(every=99)
    saver = InMemorySaver()
    graphs = [reflection.wrap(agent(checkpointer=saver), name=name) for name in ("a", "b")]
    graphs.append(reflection.wrap(agent(checkpointer=saver), name="b", namespace=("elsewhere",)))
    for graph, text in zip([graphs[0], graphs[1], graphs[2]], ["Refund 1", WRONG, WRONG], strict=True):
        graph.invoke({"messages": [("user", text)]}, config())
    assert [signs(e) for e in reflection.episodes.list()] == [{}, {}, {}]
    inner = reflection.wrap(agent(), name="inner")
    builder = StateGraph(MessagesState).add_node("one", inner).add_node("two", inner)
    outer = reflection.wrap(builder.add_edge(START, "one").add_edge("one", "two").compile(checkpointer=saver), name="o")
    for text in ("Refund 1", WRONG):
        outer.invoke({"messages": [("user", text)]}, config("2"))
    found = [(e.agent, signs(e)) for e in reflection.episodes.list(thread_id="2") if signs(e)]
    assert found == [("o", {"correction": 0.1})]


def test_a_node_hears_what_is_said_to_the_graph_around_it(make: Any) -> None:
    reflection = make(every=99)
    inner = reflection.wrap(agent(), name="inner")
    builder = StateGraph(MessagesState).add_node("one", inner).add_node("two", inner)
    outer = builder.add_edge(START, "one").add_edge("one", "two").compile(checkpointer=InMemorySaver())
    for text in ("Refund 1", WRONG):
        outer.invoke({"messages": [("user", text)]}, config())
    assert [signs(e) for e in reversed(reflection.episodes.list())] == [{}, {"correction": 0.1}, {}, {}]


def test_signs_do_not_end_a_wait(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(reflector, every=1, reward_wait=3_600)
    graph = reflection.wrap(looping(calls("monday"), checkpointer=InMemorySaver()))
    for text in ("Book monday", WRONG):
        graph.invoke({"messages": [("user", text)]}, config())
    assert [signs(e) for e in reflection.episodes.list()] == [{"error": 0.25}, {"error": 0.25, "correction": 0.1}]
    assert reflector.calls == []
    reflection.reward(thread_id="1", value=1.0)
    assert len(reflector.calls) == 1


def test_signs_do_not_make_a_run_count(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=99, sample=0.0)
    talk(reflection, "Refund 1182", "Thanks!")
    reflection.wrap(looping(calls("monday"))).invoke({"messages": "Book monday"})
    assert [bool(signs(e)) for e in reflection.episodes.list()] == [True, False, True]
    assert reflection.reflect().episodes == ()
    reflection.reward(thread_id="1", value=1.0)
    assert len(reflection.reflect().episodes) == 1


def test_signs_are_no_failures_for_a_cadence(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(reflector, every=OnFailures(1))
    reflection.wrap(looping(calls("monday"))).invoke({"messages": "Book monday"})
    assert signs(reflection.episodes.list()[0]) == {"error": 0.25}
    assert reflector.calls == []


def test_the_figures_about_late_rewards_leave_them_out(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=1, reward=None)
    talk(reflection, "Refund 1182", WRONG)
    assert signs(reflection.episodes.list()[1])
    (finding,) = [f for f in reflection.doctor() if f.check == "rewards"]
    assert finding.facts["rewards"] == 0


def test_lessons_are_not_measured_by_signs(make: Any) -> None:
    reflection = make(every=99)
    lesson = reflection.lessons.add(when="booking", do="give a date")
    graph = reflection.wrap(looping(calls("monday")))
    results = [graph.invoke({"messages": f"Book monday {n}"}) for n in range(4)]
    assert reflection.lessons.get(lesson.id).shown_reward is None
    reflection.reward(results[0], 0.0, source="judge")
    assert reflection.lessons.get(lesson.id).shown_reward == 0.0
    for result, value in zip(results[1:], (1.0, 0.5, 0.75), strict=True):
        reflection.reward(result, value, source="user")
    assert reflection.lessons.get(lesson.id).shown_reward == 0.75  # never together with what a judge said


@pytest.mark.parametrize(
    ("signals", "kept"),
    [(False, {}), (("repair", "thanks"), {}), (("error",), {"error": 0.25}), (("correction",), {"correction": 0.1})],
)
def test_each_can_be_turned_off(make: Any, signals: Any, kept: dict[str, float]) -> None:
    reflection = make(every=99, signals=signals)
    graph = reflection.wrap(looping(calls("monday"), checkpointer=InMemorySaver()))
    for text in ("Book monday", WRONG):
        graph.invoke({"messages": [("user", text)]}, config())
    assert signs(reflection.episodes.list()[1]) == kept


def test_a_message_that_says_nothing_asks_the_ledger_nothing(make: Any) -> None:
    reflection = make(every=99)
    asked: list[str] = []
    before = type(reflection._core.parts.ledger.episodes)._before

    def counted(*args: Any) -> str:
        asked.append(found := before(*args))
        return found

    reflection._core.parts.ledger.episodes._before = counted  # type: ignore[method-assign]
    graph = reflection.wrap(agent())
    for text, thread in (("Refund 1", "1"), ("Please hurry", "1"), (WRONG, "")):
        graph.invoke({"messages": [("user", text)]}, config(thread))
    assert asked == []


def test_the_run_before_is_found_by_an_index(make: Any) -> None:
    reflection = make(every=99)
    talk(reflection, "Refund 1182")
    database, seen = reflection._core.parts.ledger.database, []
    with database.read() as connection:
        engine = connection.engine

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT episodes.id, episodes.agent, episodes.dead_letter"):
            seen.append((statement, parameters))

    sa.event.listen(engine, "after_cursor_execute", note)
    talk(reflection, WRONG)
    assert len(seen) == 1
    if database.is_sqlite:
        with database.read() as connection:
            plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + seen[0][0], seen[0][1]).all()
        assert [row.detail for row in plan] == [
            "SEARCH episodes USING INDEX episodes_thread_namespace (thread_id=? AND namespace=? AND started_at<?)"
        ]


def test_a_run_that_goes_on_is_looked_at_as_a_whole(make: Any) -> None:
    reflection = make(every=99)
    model = testing.ScriptedChatModel([ConnectionError("busy"), "done"])
    policy = RetryPolicy(initial_interval=0.0, max_interval=0.0, jitter=False)
    builder = StateGraph(MessagesState).add_node("a", reflection.wrap(agent(model)), retry_policy=policy)
    builder.add_edge(START, "a").compile().invoke({"messages": "Refund 1"})
    (episode,) = reflection.episodes.list()
    assert (episode.status, episode.rewards) == ("completed", ())
    with reflection._core.parts.ledger.database.read() as connection:
        bodies = connection.execute(sa.select(table.c.body)).scalars().all()
    assert [Reward.model_validate_json(body).key for body in bodies] == ["failed"]  # the history


def test_an_interrupted_run_says_nothing_until_it_ends(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(asking(checkpointer=InMemorySaver()))
    graph.invoke({"question": "sure?"}, config())
    graph.invoke(Command(resume="that's wrong"), config())
    assert [e.rewards for e in reflection.episodes.list()] == [()]


def test_what_is_quoted_is_redacted_and_purged(make: Any) -> None:
    reflection = make(every=99, redact=lambda text: text.replace("1183", "###"))
    talk(reflection, "Refund 1182", WRONG, "Thank you!")
    second, first = reflection.episodes.list()[1:]
    assert first.rewards[0].comment == 'the user\'s next message: "No, I meant the order ###"'
    reflection.episodes.purge(ids=[second.id])
    assert [e.rewards for e in reflection.episodes.list()] == [(), ()]
    with reflection._core.parts.ledger.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0


def test_while_the_ledger_is_away(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = make(every=99)
    talk(reflection, "Refund 1")
    monkeypatch.setattr(outage, "PAUSES", (60.0, 60.0))
    reflection._core.keeper.outage._pause = 60.0
    episodes = reflection._core.parts.ledger.episodes
    put = episodes.put

    def refuse(*_: Any, **__: Any) -> Any:
        raise LedgerUnavailableError("away")

    episodes.put = refuse
    graph = reflection.wrap(looping(calls("monday"), checkpointer=InMemorySaver()))
    for text in (WRONG, "that's wrong too"):
        graph.invoke({"messages": [("user", text)]}, config("2"))
    episodes.put = put
    assert reflection.flush(20)
    second, first = reflection.episodes.list(thread_id="2")
    assert (signs(first), signs(second)) == ({"error": 0.25, "correction": 0.1}, {"error": 0.25})


def test_a_failure_of_ours_costs_the_signs_only(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("reflect_middleware.overhear.seen_in", broken)
    monkeypatch.setattr("reflect_middleware.overhear.heard_in", broken)
    reflection = make(every=99)
    assert talk(reflection, "Refund 1", WRONG) == [{}, {}]
    assert reflection.flush(20)
    assert reflection._core.parts.ledger.health.counts()["signals"].count == 4


def test_rollouts_of_a_task_agree(make: Any) -> None:
    reflector = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    reflection = make(reflector, every=4)
    answers = itertools.cycle(["The sum is 42.", "the sum is 42.0", "41", "42 is the sum"])
    graph = reflection.wrap(agent(testing.ScriptedChatModel(lambda _: next(answers))))
    for _ in range(4):
        graph.invoke({"messages": "Add them"}, config("", task_key="sum"))
    assert [signs(e) for e in reflection.episodes.list()] == [{}, {}, {}, {}]  # two of four are no majority
    answers = itertools.cycle(["42", "42", "42", "7"])
    for _ in range(4):
        graph.invoke({"messages": "Add them"}, config("", task_key="sum"))
    assert [signs(e) for e in reversed(reflection.episodes.list()[:4])] == [{"agreement": 0.75}] * 3 + [
        {"agreement": 0.25}
    ]
    assert 'reward by implicit for agreement: 0.25 (1 of 4 rollouts of this task gave "7"' in reflector.prompts[1]
