"""A reward by any name, at any time: before the run, in it, after it, after its reflection, in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from langchain_core.messages import AIMessage, message_to_dict
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from reflect_middleware import Reward, get_episode_id, rewards_table, testing
from reflect_middleware.cadence import EveryEpisodes
from reflect_middleware.errors import RewardError, TargetError
from reflect_middleware.schema import rewards as table
from tests.invariants.graphs import asking

from .conftest import RULE, adding, agent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reflect_middleware import Episode, Reflection

KINDS = ("run id", "message", "message id", "result", "thread")
MESSAGE = "msg-1"
"""Some providers name their messages themselves."""


class Told:
    """One run, and everything by which a reward may name it."""

    def __init__(self) -> None:
        self.run_id = uuid4()
        self.thread = str(uuid4())
        self.result: Any = None

    @property
    def config(self) -> Any:
        return {"run_id": self.run_id, "configurable": {"thread_id": self.thread}}

    def give(self, reflection: Reflection, kind: str, value: float = 0.25, **kwargs: Any) -> None:
        if kind == "thread":
            reflection.reward(thread_id=self.thread, value=value, **kwargs)
            return
        message = AIMessage("refunded", id=MESSAGE)
        targets = {"run id": self.run_id, "message": message, "message id": MESSAGE, "result": self.result}
        reflection.reward(targets[kind], value, **kwargs)


def talking(during: Callable[[], Any] = lambda: None) -> Any:
    """A graph that does something of ours after its model has answered."""
    model = testing.ScriptedChatModel(lambda _: AIMessage("refunded", id=MESSAGE))
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("after", lambda _: during())
    builder.add_edge(START, "answer").add_edge("answer", "after")
    return builder.compile(checkpointer=InMemorySaver())


def run(reflection: Reflection, told: Told, during: Callable[[], Any] = lambda: None) -> None:
    told.result = reflection.wrap(talking(during)).invoke({"messages": "Refund 1"}, told.config)


def learning(**also: Any) -> testing.ScriptedChatModel:
    """A reflector that adds one lesson, then none."""
    return testing.ScriptedChatModel([adding("Refund 1"), *['{"edits": []}'] * 9], **also)


@pytest.mark.parametrize("kind", ["run id", "message", "message id"])
def test_before_the_run(make: Any, kind: str) -> None:
    reflection, told = make(every=99), Told()
    told.give(reflection, kind)
    run(reflection, told)
    assert [e.reward for e in reflection.episodes.list()] == [0.25]


@pytest.mark.parametrize("kind", ["run id", "message", "message id"])
def test_during_the_run(make: Any, kind: str) -> None:
    reflection, told = make(every=99), Told()
    run(reflection, told, lambda: told.give(reflection, kind))
    assert [e.reward for e in reflection.episodes.list()] == [0.25]


def test_during_the_run_by_its_own_id(make: Any) -> None:
    reflection = make(every=99)
    run(reflection, Told(), lambda: reflection.reward(get_episode_id(), 0.25))
    assert [e.reward for e in reflection.episodes.list()] == [0.25]


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_run_and_again_as_a_correction(make: Any, kind: str) -> None:
    reflection, told = make(every=99), Told()
    run(reflection, told)
    told.give(reflection, kind)
    told.give(reflection, kind, 1.0, comment="on second thoughts")
    told.give(reflection, kind, 0.5, key="tone")
    (episode,) = reflection.episodes.list()
    assert {r.key: (r.value, r.comment) for r in episode.rewards} == {
        "reward": (1.0, "on second thoughts"),
        "tone": (0.5, ""),
    }
    assert history(reflection) == [0.25, 1.0, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_long_after_the_run_in_a_new_process_life(make: Any, tmp_path: Path, kind: str) -> None:
    told = Told()
    with make(every=99, path=str(tmp_path)) as former:
        run(former, told)
        other = Told()
        former.wrap(agent(checkpointer=InMemorySaver())).invoke({"messages": "Refund 2"}, other.config)
    reflection = make(every=99, path=str(tmp_path))
    told.give(reflection, kind)
    assert [(e.task, e.reward) for e in reflection.episodes.list()] == [("Refund 2", None), ("Refund 1", 0.25)]


@pytest.mark.parametrize("kind", KINDS)
def test_after_its_reflection(make: Any, kind: str) -> None:
    reflector, told = learning(), Told()
    reflection = make(reflector, every=1)
    run(reflection, told)
    (lesson,) = reflection.lessons.list()
    assert not lesson.needs_review
    told.give(reflection, kind, source="user", comment="the manager was on holiday")
    assert reflection.lessons.get(lesson.id).needs_review
    assert len(reflection.reflections.list()) == 1
    reflection.wrap(agent()).invoke({"messages": "Paint the fence"})
    assert not reflection.lessons.get(lesson.id).needs_review
    assert "since then, reward by user: 0.25 (the manager was on holiday)" in reflector.prompts[1]
    assert [len(record.episodes) for record in reflection.reflections.list()] == [1, 1]


@pytest.mark.process
@pytest.mark.parametrize("every", [99, 1], ids=["before its reflection", "after it"])
def test_from_another_process(make: Any, tmp_path: Path, every: int) -> None:
    reflection = make(learning(), every=every, path=str(tmp_path))
    runs = [Told() for _ in KINDS]
    for number, told in enumerate(runs):
        model = testing.ScriptedChatModel([AIMessage("refunded", id=f"msg-{number}")])
        graph = reflection.wrap(agent(model, checkpointer=InMemorySaver()))
        told.result = graph.invoke({"messages": "Refund 1"}, told.config)
    targets: list[Any] = [
        {"target": str(runs[0].run_id)},
        {"message": message_to_dict(runs[1].result["messages"][-1])},
        {"target": "msg-2"},
        {"result": [message_to_dict(message) for message in runs[3].result["messages"]]},
        {"thread_id": runs[4].thread},
    ]
    command = [sys.executable, "-c", GIVER, str(tmp_path), json.dumps(make.place(tmp_path))]
    done = subprocess.run(command, input=json.dumps(targets), text=True, check=False, timeout=120)
    assert done.returncode == 0
    episodes = {episode.id: episode.reward for episode in reflection.episodes.list()}
    assert [episodes[str(told.run_id)] for told in runs] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [lesson.needs_review for lesson in reflection.lessons.list()] == ([True] if every == 1 else [])


GIVER = """
import json, sys
from langchain_core.messages import messages_from_dict
from reflect_middleware import Reflection

with Reflection(path=sys.argv[1], store="exact", **json.loads(sys.argv[2])) as reflection:
    for number, given in enumerate(json.load(sys.stdin)):
        if "message" in given:
            given = {"target": messages_from_dict([given["message"]])[0]}
        if "result" in given:
            given = {"target": {"messages": messages_from_dict(given["result"])}}
        reflection.reward(given.pop("target", None), value=number / 10, **given)
"""


def test_between_the_claim_and_the_commit_of_its_reflection(make: Any) -> None:
    told, prompts = Told(), []

    def reflector(batch: Any) -> list[Any]:
        prompts.append([reward.value for episode in batch.episodes for reward in episode.rewards])
        if len(prompts) == 1:
            reflection.reward(told.run_id, 0.0, source="user", comment="wrong")
        return json.loads(adding("Refund 1"))["edits"] if len(prompts) == 1 else []

    reflection = make(reflector=reflector, every=1)
    run(reflection, told)
    (lesson,) = reflection.lessons.list()
    assert prompts == [[]]
    assert lesson.needs_review
    reflection.wrap(agent()).invoke({"messages": "Paint the fence"})
    assert not reflection.lessons.get(lesson.id).needs_review


def test_a_callback_may_reward_in_inline_mode(make: Any) -> None:
    told = Told()
    reflection = make(learning(), every=1, on_reflection=lambda _: told.give(reflection, "run id"))
    run(reflection, told)
    assert reflection.flush(30)
    assert [e.reward for e in reflection.episodes.list()] == [0.25]


def test_a_second_change_while_the_first_one_is_reviewed(make: Any) -> None:
    told, rounds = Told(), []

    def reflector(batch: Any) -> list[Any]:
        rounds.append([reward.value for lesson in batch.lessons for reward in batch.late(lesson)])
        if len(rounds) == 2:
            told.give(reflection, "run id", 0.75)
        return json.loads(adding("Refund 1"))["edits"] if len(rounds) == 1 else []

    reflection = make(reflector=reflector, every=1)
    run(reflection, told)
    (lesson,) = reflection.lessons.list()
    told.give(reflection, "run id", 0.5)
    reflection.wrap(agent()).invoke({"messages": "Paint the fence"})
    assert reflection.lessons.get(lesson.id).needs_review
    reflection.wrap(agent()).invoke({"messages": "Mow the lawn"})
    assert not reflection.lessons.get(lesson.id).needs_review
    assert rounds == [[], [0.5], [0.75]]


def test_the_same_reward_again_changes_nothing(make: Any) -> None:
    reflection, told = make(learning(), every=1), Told()
    told.give(reflection, "run id", comment="fine")
    run(reflection, told)
    told.give(reflection, "run id", comment="fine")
    assert [lesson.needs_review for lesson in reflection.lessons.list()] == [False]
    assert history(reflection) == [0.25]
    told.give(reflection, "run id", comment="not so fine")
    assert [lesson.needs_review for lesson in reflection.lessons.list()] == [True]


def test_many_keys_from_many_threads(make: Any) -> None:
    reflection, told = make(every=99), Told()
    run(reflection, told)

    def judge(number: int) -> None:
        for value in (0.0, number / 100):
            told.give(reflection, KINDS[number % len(KINDS)], value, key=f"key-{number}", source="judge")

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (episode,) = reflection.episodes.list()
    assert {r.key: r.value for r in episode.rewards} == {f"key-{n}": n / 100 for n in range(40)}
    assert episode.reward == pytest.approx(sum(range(40)) / 4_000)


def test_of_the_rewards_that_wait_under_one_name_the_last_one_stands(make: Any) -> None:
    reflection, told = make(every=99), Told()
    for value in (0.0, 0.5, 1.0):
        told.give(reflection, "run id", value)
    told.give(reflection, "message id", 0.75, key="tone")
    run(reflection, told)
    (episode,) = reflection.episodes.list()
    assert {r.key: r.value for r in episode.rewards} == {"reward": 1.0, "tone": 0.75}


def test_unknown_ids_wait_in_bounds(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_table, "WAITING_REWARDS", 3)
    reflection = make(every=99)
    runs = [Told() for _ in range(5)]
    for told in runs:
        told.give(reflection, "run id")
    assert len(history(reflection)) == 3
    for told in runs:
        run(reflection, told)
    given = {episode.id: episode.reward for episode in reflection.episodes.list()}
    assert [given[str(told.run_id)] for told in runs] == [None, None, 0.25, 0.25, 0.25]


def test_unknown_ids_wait_for_a_time(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = make(every=99)
    early, late, later = Told(), Told(), Told()
    early.give(reflection, "run id")
    late.give(reflection, "run id")
    past = time.time() + rewards_table.WAITING_SECONDS
    monkeypatch.setattr(rewards_table.time, "time", lambda: past - 60)
    run(reflection, early)
    monkeypatch.setattr(rewards_table.time, "time", lambda: past + 60)
    run(reflection, late)
    later.give(reflection, "run id")
    assert [e.reward for e in reflection.episodes.list()] == [None, 0.25]
    assert len(history(reflection)) == 2


def test_what_was_judged_long_ago_waits_as_long(make: Any) -> None:
    reflection, told = make(every=99), Told()
    old = Reward(value=0.25, at=Reward(value=0).at.replace(year=2020))
    reflection.reward(told.run_id, old)
    run(reflection, told)
    assert [e.reward for e in reflection.episodes.list()] == [0.25]


def test_a_reward_ends_the_wait_for_one_whenever_it_came(make: Any) -> None:
    reflector = learning()
    reflection, told = make(reflector, every=2, reward_wait=3_600), Told()
    told.give(reflection, "run id")
    run(reflection, told)
    graph, thread = reflection.wrap(asking(checkpointer=InMemorySaver())), {"configurable": {"thread_id": "1"}}
    graph.invoke({"question": "sure?"}, thread)
    reflection.reward(thread_id="1", value=1.0)
    assert len(reflector.calls) == 0
    graph.invoke(Command(resume="yes"), thread)
    assert [len(record.episodes) for record in reflection.reflections.list()] == [2]


def test_an_early_reward_does_not_forestall_the_reward_callable(make: Any) -> None:
    told, ready = Told(), []

    def judge(episode: Episode) -> bool:
        standing = reflection._core.parts.ledger.work.standing(("default",), EveryEpisodes(1))
        ready.append((standing.backlog.ready, len(episode.rewards)))
        return True

    reflection = make(testing.ScriptedChatModel(['{"edits": []}']), every=1, reward=judge)
    told.give(reflection, "run id", source="user")
    run(reflection, told)
    assert ready == [(0, 1)]
    assert [len(record.episodes) for record in reflection.reflections.list()] == [1]


def test_a_reward_whose_run_is_recorded_meanwhile_is_not_kept_waiting(make: Any) -> None:
    reflection, told = make(every=99), Told()
    run(reflection, told)
    episodes = reflection._core.parts.ledger.episodes
    assert episodes.reward_later(str(told.run_id), Reward(value=0.5)) == [str(told.run_id)]
    assert [e.reward for e in reflection.episodes.list()] == [0.5]


def whole_state(state: MessagesState) -> Any:
    """A node that gives all messages back, the old ones too."""
    return {"messages": [*state["messages"], AIMessage("done", id=str(uuid4()))]}


def no_id(_: MessagesState) -> Any:
    """A node that leaves the message's id to the state."""
    return {"messages": [AIMessage("done")]}


@pytest.mark.parametrize("node", [whole_state, no_id])
@pytest.mark.parametrize("kind", ["message", "message id", "result", "copied result"])
def test_in_a_thread_each_message_names_the_run_that_made_it(make: Any, node: Any, kind: str) -> None:
    reflection = make(every=99)
    builder = StateGraph(MessagesState).add_node("answer", node).add_edge(START, "answer")
    graph = reflection.wrap(builder.compile(checkpointer=InMemorySaver()))
    results = [graph.invoke({"messages": f"Refund {n}"}, {"configurable": {"thread_id": "1"}}) for n in range(3)]
    for value, result in reversed(list(enumerate(results))):
        message = result["messages"][-1]
        targets = {"message": message, "message id": message.id, "result": result, "copied result": dict(result)}
        reflection.reward(targets[kind], value / 2)
    assert [e.reward for e in reversed(reflection.episodes.list())] == [0.0, 0.5, 1.0]


def test_a_result_of_a_run_that_was_not_recorded_names_no_other_run(make: Any) -> None:
    reflection = make(every=99)
    graph = reflection.wrap(agent(checkpointer=InMemorySaver()))
    thread = {"thread_id": "1"}
    graph.invoke({"messages": "Refund 1"}, {"configurable": thread})
    unseen = graph.invoke({"messages": "Refund 2"}, {"configurable": thread | {"reflect": {"learn": False}}})
    with pytest.raises(TargetError, match="No recorded run gave this dict"):
        reflection.reward(unseen, 1.0)
    assert [e.rewards for e in reflection.episodes.list()] == [()]


def test_feedback_as_langsmiths_client_sends_it(make: Any) -> None:
    reflection, told = make(every=99), Told()
    run(reflection, told)
    reflection.feedback(told.run_id, key="thumb", score=1, comment=None, correction=None)
    reflection.feedback(str(told.run_id), key="facts", score=0.5, comment="half", correction={"amount": 3})
    reflection.feedback(thread_id=told.thread, key="tone", score=False)
    (episode,) = reflection.episodes.list()
    given = {r.key: (r.value, r.comment, r.correction) for r in episode.rewards}
    assert given == {"thumb": (1.0, "", ""), "facts": (0.5, "half", "{'amount': 3}"), "tone": (0.0, "", "")}
    with pytest.raises(RewardError, match="score is None"):
        reflection.feedback(told.run_id, key="thumb", comment=RULE)


def history(reflection: Reflection) -> list[float]:
    """The values of all rewards in the ledger, replaced and waiting ones too."""
    with reflection._core.parts.ledger.database.read() as connection:
        rows = connection.execute(sa.select(table.c.body).order_by(table.c.seq)).all()
    return [Reward.model_validate_json(row.body).value for row in rows]
