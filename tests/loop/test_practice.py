"""Practice: real graphs and the real loop on both ledgers; only the models are scripted, and the rule they learn."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from reflect_middleware import Reward, Task, testing
from reflect_middleware.errors import ConfigurationError, WrapError
from reflect_middleware.practice_drive import async_only

from .conftest import RULE, Maker, adding, agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Episode

TASKS = [f"Refund order {number}" for number in range(10)]
FEW = {"rollouts": 2, "held_out": None, "progress": False}


def knows_the_rule(messages: list[Any]) -> str:
    """The simulated agent follows a lesson if it is shown one; it cannot know the rule otherwise."""
    return "I ask a manager." if messages[0].type == "system" and "manager" in messages[0].text else "Refunded."


def learner(first: int = 1) -> testing.ScriptedChatModel:
    """The simulated reflector states the rule in its answer of this number."""
    calls: list[int] = []

    def answer(_: Any) -> str:
        calls.append(1)
        return adding() if len(calls) == first else '{"edits": []}'

    return testing.ScriptedChatModel(answer)


def pupil(**compile_options: Any) -> Any:
    return agent(testing.ScriptedChatModel(knows_the_rule), **compile_options)


def judge(episode: Episode) -> Reward:
    good = "manager" in episode.output
    return Reward(value=float(good), comment="" if good else RULE)


@pytest.fixture
def quick() -> Iterator[Maker]:
    """As `make`, on SQLite only: for what asks the ledger nothing of its own."""
    maker = Maker(None)
    yield maker
    maker.close()


async def practised(kind: str, reflection: Any, *args: Any, **kwargs: Any) -> Any:
    if kind == "async":
        return await reflection.apractice(*args, **kwargs)
    return reflection.practice(*args, **kwargs)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_hidden_rule_is_learned_and_held_out_success_rises(quick: Any, kind: str) -> None:
    reflection, seen = quick(learner(2)), []
    given = {"reward": judge, "rollouts": 2, "epochs": 2, "progress": seen.append, "held_out": TASKS[4:6]}
    report = await practised(kind, reflection, pupil(), TASKS[:4], **given)
    assert (report.stopped, report.tasks, report.held_out, report.runs) == ("done", 4, 2, 4 * 2 * 2 + 2 * 2 * 2)
    assert [point.success for point in report.epochs] == [0.5, 1.0]
    assert [point.success for point in report.rounds][:4] == [0, 0, 1, 1]
    assert (report.before.success, report.after.success) == (0, 1)
    assert (report.measured.pairs, report.measured.difference, report.measured.p_value) == (2, 1, 0.5)
    assert [lesson.do for lesson in report.lessons] == ["ask a manager above 200 EUR"]
    assert report.useful == (report.lessons[0].id,)
    assert report.tokens_per_useful_lesson == report.agent_tokens + report.reflector_tokens > 0
    assert seen[-1].done == seen[-1].total == report.runs
    assert (seen[0].phase, seen[-1].phase, seen[-1].lessons) == ("before", "after", 1)
    assert "+100 points" in str(report)


async def test_what_measures_is_recorded_and_never_read(make: Any) -> None:
    reflection = make(learner())
    report = reflection.practice(pupil(), TASKS, reward=judge, rollouts=1, progress=False)
    episodes = reflection.episodes.list(limit=None)
    phases = [episode.metadata["practice_phase"] for episode in episodes]
    assert [phases.count(phase) for phase in ("before", "train", "after")] == [2, 8, 2]
    for episode in episodes:
        assert (episode.reflection_id == "held-out") is (episode.metadata["practice_phase"] != "train")
        assert episode.metadata["practice"] == report.name
    read = {i for record in reflection.reflections.list() for i in record.episodes}
    assert read == {episode.id for episode in episodes if episode.metadata["practice_phase"] == "train"}
    assert reflection.reflect().episodes == ()


async def test_the_runs_of_one_task_are_one_group_in_one_reflection(quick: Any) -> None:
    batches: list[Any] = []
    reflection = quick(reflector=lambda batch: batches.append(batch) or [])
    tasks = [Task(input="Refund 1", reference="ask", key="one"), {"input": "Refund 2"}, {"messages": "Refund 3"}]

    def evaluator(outputs: Any, reference_outputs: Any) -> bool:
        return bool(outputs) and reference_outputs == "ask"

    reflection.practice(pupil(), tasks, reward=evaluator, rollouts=3, every=2, progress=False)
    assert [len(batch.episodes) for batch in batches] == [6, 3]
    keys = [[episode.task_key for episode in batch.episodes] for batch in batches]
    assert keys[0][:3] == ["one"] * 3
    assert len(set(keys[0][3:])) == len(set(keys[1])) == 1
    assert [episode.reward for episode in batches[0].episodes] == [1, 1, 1, 0, 0, 0]


async def test_episodes_that_wait_for_the_cadence_are_left_to_it(make: Any) -> None:
    reflection = make(learner(), every=5)
    graph = reflection.wrap(pupil())
    graph.invoke({"messages": [("user", "production")]})
    (waiting,) = reflection.episodes.list(waiting=True)
    reflection.practice(graph, TASKS[:3], reward=judge, rollouts=2, held_out=None, progress=False)
    assert [episode.id for episode in reflection.episodes.list(waiting=True)] == [waiting.id]
    assert reflection.reflect().episodes == (waiting.id,)


async def test_rollouts_run_at_once_and_no_more_than_allowed(quick: Any) -> None:
    together, most, lock = threading.Barrier(3), [0, 0], threading.Lock()

    def answer(state: MessagesState) -> Any:
        with lock:
            most[0] += 1
            most[1] = max(most)
        together.wait(30)
        with lock:
            most[0] -= 1
        return {"messages": [("ai", "done")]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    report = quick(learner()).practice(graph, ["a"], rollouts=6, concurrency=3, held_out=None, progress=False)
    assert (report.runs, report.runs_failed, most[1]) == (6, 0, 3)


async def test_async_agents_share_one_loop(quick: Any) -> None:
    together: dict[Any, asyncio.Barrier] = {}
    now, most = [0], [0]

    async def answer(state: MessagesState) -> Any:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await together.setdefault(asyncio.get_running_loop(), asyncio.Barrier(2)).wait()
        now[0] -= 1
        return {"messages": [("ai", "done")]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    assert async_only(graph)
    assert not async_only(pupil())
    reflection = quick(learner())
    given = {"rollouts": 4, "concurrency": 2, "held_out": None, "progress": False}
    assert (await reflection.apractice(graph, ["a"], **given)).runs_failed == 0
    assert list(together) == [asyncio.get_running_loop()]
    assert (await asyncio.to_thread(reflection.practice, graph, ["b"], **given)).runs_failed == 0
    assert (len(together), most) == (2, [2])
    assert (await asyncio.to_thread(reflection.practice, pupil(), ["c"], **given, use_async=True)).runs == 4


async def test_each_run_has_a_thread_of_its_own_where_there_is_a_checkpointer(quick: Any) -> None:
    reflection = quick(learner())
    reflection.practice(pupil(checkpointer=InMemorySaver()), ["a"], reward=judge, **FEW)
    threads = [episode.thread_id for episode in reflection.episodes.list()]
    assert len(set(threads)) == 2
    assert all(threads)
    reflection.practice(pupil(), ["b"], reward=judge, config={"configurable": {"user": "ann"}}, **FEW)
    assert {episode.thread_id for episode in reflection.episodes.list(limit=2)} == {""}


async def test_failures_of_a_run_and_of_the_reward_callable_end_nothing(quick: Any) -> None:
    def answer(state: MessagesState) -> Any:
        if "crash" in state["messages"][0].text:
            raise ValueError("no such order")
        return {"messages": [("ai", "done")]}

    def reward(episode: Episode) -> Any:
        if episode.status == "failed":
            return None
        if "odd" in episode.task:
            raise KeyError("odd")
        return 1.0

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    reflection = quick(learner())
    report = reflection.practice(graph, ["crash", "odd", "fine"], reward=reward, **FEW)
    assert (report.stopped, report.runs, report.runs_failed, report.runs_unjudged) == ("done", 6, 2, 2)
    assert [point.reward for point in report.rounds] == [0, None, 1]
    assert any("KeyError" in note for note in report.notes)
    assert len(report.reflections) == 3


async def test_a_run_that_pauses_is_counted_and_never_judged(quick: Any) -> None:
    def answer(state: MessagesState) -> Any:
        return {"messages": [("ai", interrupt("sure?"))]}

    builder = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")
    report = quick(learner()).practice(builder.compile(checkpointer=InMemorySaver()), ["a"], reward=judge, **FEW)
    assert (report.runs, report.runs_interrupted, report.runs_unjudged, report.reflections) == (2, 2, 2, ())


def test_the_same_name_goes_on_where_it_was(make: Any) -> None:
    reflection = make(learner(2))
    given = {"reward": judge, "rollouts": 2, "held_out": TASKS[:2], "progress": False}
    part = reflection.practice(pupil(), TASKS[2:7], **given, name="refunds", max_episodes=13)
    assert (part.stopped, part.runs, part.after.success) == ("max_episodes", 13, 1)
    assert part.measured.difference == 1
    assert "max_episodes is reached; go on with name='refunds'" in str(part)
    whole = reflection.practice(pupil(), TASKS[2:7], **given, name="refunds")
    assert (whole.stopped, whole.runs, whole.resumed) == ("done", 5 * 2 + 3 * 2 * 2, 13), "it is measured anew"
    assert len(reflection.episodes.list(limit=None)) == whole.runs
    assert whole.useful == part.useful
    again = reflection.practice(pupil(), TASKS[2:7], **given, name="refunds")
    assert (again.runs, again.resumed) == (whole.runs, whole.runs)
    assert again.model_dump(exclude={"resumed", "seconds"}) == whole.model_dump(exclude={"resumed", "seconds"})
    other = reflection.practice(pupil(), [Task(input="new words", key="x")], **FEW, name="refunds")
    same_key = reflection.practice(pupil(), [Task(input="other words", key="x")], **FEW, name="refunds")
    assert (other.resumed, same_key.resumed) == (0, 0)


async def test_who_was_stopped_between_run_and_reward_or_reflection_does_that_first(make: Any) -> None:
    batches: list[Any] = []
    reflection = make(reflector=lambda batch: batches.append(batch) or [])
    given = {"name": "n", **FEW}
    none = reflection.practice(pupil(), ["a"], reward=lambda _: None, **given)
    with reflection._core.parts.ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE episodes SET reflection_id = ''")
    done = reflection.practice(pupil(), ["a"], reward=judge, **given)
    assert (none.runs_unjudged, done.runs_unjudged, done.resumed) == (2, 0, 2)
    assert [[episode.reward for episode in batch.episodes] for batch in batches] == [[None, None], [0, 0]]


async def test_budgets_of_tokens_and_minutes_keep_what_the_last_measurement_needs(quick: Any) -> None:
    reflection = quick(learner(99))
    given = {"reward": judge, "rollouts": 2, "held_out": ["x", "y"], "concurrency": 1, "progress": False}
    full = reflection.practice(pupil(), TASKS[:4], **given)
    each = full.agent_tokens // full.runs
    report = reflection.practice(pupil(), TASKS[:4], **given, max_tokens=each * 10)
    assert report.stopped == "max_tokens"
    assert report.after.runs == 4
    assert 8 <= report.runs < full.runs
    late = reflection.practice(pupil(), TASKS, **given, max_minutes=1e-9)
    assert (late.stopped, late.runs, late.after, late.measured) == ("max_minutes", 0, None, None)
    assert "not measured to the end" in str(late)


async def test_failed_reflections_are_tried_with_the_next_round_and_then_end_it(quick: Any) -> None:
    batches: list[int] = []

    def flaky(batch: Any) -> list[Any]:
        batches.append(len(batch.episodes))
        if len(batches) == 1:
            raise ValueError("garbage")
        return []

    report = quick(reflector=flaky).practice(pupil(), ["a", "b"], reward=judge, **FEW)
    assert (report.stopped, batches, len(report.errors), len(report.reflections)) == ("done", [2, 4], 1, 1)
    reflection = quick(reflector=lambda _: 1 / 0)
    report = reflection.practice(pupil(), TASKS, reward=judge, **FEW)
    assert (report.stopped, report.runs, len(report.errors)) == ("failed", 6, 3)
    assert "ZeroDivisionError" in str(report)
    report = quick(reflector=lambda _: 1 / 0).practice(pupil(), ["a"], reward=judge, **FEW)
    assert (report.stopped, len(report.errors)) == ("failed", 3)


async def test_the_days_tokens_end_it(quick: Any) -> None:
    reflection = quick(learner(), daily_tokens=1)
    report = reflection.practice(pupil(), TASKS[:4], reward=judge, **FEW)
    assert (report.stopped, report.runs, len(report.reflections)) == ("daily_tokens", 4, 1)


async def test_it_waits_for_another_reflection_of_the_namespace(make: Any) -> None:
    reflection = make(learner())
    reflection.wrap(pupil()).invoke({"messages": [("user", "production")]})
    ledger = reflection._core.parts.ledger
    claim = ledger.reflections.claim(("default",), "another", at_least=1, at_most=1, lease=60, whatever=True)
    asked = threading.Event()
    unread = ledger.practice.unread

    def looked(ids: Any) -> Any:
        found = unread(ids)
        if asked.is_set():
            ledger.reflections.release(claim)
        asked.set()
        return found

    ledger.practice.unread = looked
    assert len(reflection.practice(pupil(), ["a"], reward=judge, **FEW).reflections) == 1


@pytest.mark.parametrize("use_async", [None, True])
async def test_ctrl_c_finishes_what_is_under_way_and_says_how_to_go_on(
    quick: Any, monkeypatch: pytest.MonkeyPatch, use_async: Any
) -> None:
    from concurrent.futures import Future

    pressed: list[int] = []
    wait = Future.exception

    def pressing(self: Any, timeout: Any = None) -> Any:
        if not pressed and threading.current_thread() is threading.main_thread():
            pressed.append(1)
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(Future, "exception", pressing)
    reflection = quick(learner())
    report = reflection.practice(pupil(), TASKS, reward=judge, **FEW, name="n", use_async=use_async)
    assert pressed
    assert report.stopped == "interrupted"
    assert report.runs <= 2
    assert "go on with name='n'" in str(report)
    assert reflection.practice(pupil(), TASKS, reward=judge, **FEW, name="n").resumed == report.runs


async def test_a_cancelled_practice_does_its_cut_off_runs_again(quick: Any) -> None:
    began, hang = asyncio.Event(), [True]

    async def answer(state: MessagesState) -> Any:
        began.set()
        if hang[0]:
            await asyncio.Event().wait()
        return {"messages": [("ai", "done")]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    reflection = quick(learner())
    running = asyncio.create_task(reflection.apractice(graph, ["a"], name="n", **FEW))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    hang[0] = False
    report = await reflection.apractice(graph, ["a"], name="n", **FEW)
    assert (report.runs, report.resumed, report.runs_failed) == (2, 0, 0)


async def test_inner_agents_learn_by_the_cadence_but_not_from_measurements(make: Any) -> None:
    reflection = make(learner(99), every=50)
    inner = reflection.wrap(pupil(), name="inner")
    outer = StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile(name="outer")
    reflection.practice(outer, ["a"], reward=judge, rollouts=1, held_out=["b"], progress=False)
    found = {(e.agent, e.metadata["practice_phase"]): e for e in reflection.episodes.list()}
    assert {key: e.reflection_id == "held-out" for key, e in found.items()} == {
        ("inner", "before"): True,
        ("outer", "before"): True,
        ("inner", "train"): False,
        ("outer", "train"): False,
        ("inner", "after"): True,
        ("outer", "after"): True,
    }
    assert [e.agent for e in reflection.episodes.list(waiting=True)] == ["inner"]


async def test_agents_that_are_wrapped(quick: Any) -> None:
    reflection, another = quick(learner()), quick(learner())
    mine = reflection.wrap(pupil(), name="mine", reward=judge)
    report = reflection.practice(mine, ["a"], **FEW)
    assert (report.agent, report.rounds[0].reward) == ("mine", 0)
    with pytest.raises(WrapError, match="'mine' is wrapped by another Reflection"):
        another.practice(mine, ["a"])
    with pytest.raises(WrapError, match="allowed: a compiled"):
        reflection.practice("no graph", ["a"])


BAD = [
    ({"rollouts": 0}, "rollouts is 0; allowed: a whole number from 1"),
    ({"epochs": 1.5}, "epochs is 1.5"),
    ({"concurrency": True}, "concurrency is True"),
    ({"every": 0}, "every is 0"),
    ({"max_episodes": 0}, "max_episodes is 0"),
    ({"max_tokens": -1}, "max_tokens is -1"),
    ({"max_minutes": 0}, "max_minutes is 0; allowed: minutes, a number above 0"),
    ({"held_out": 1}, "held_out is 1; allowed: a share from 0"),
    ({"held_out": True}, "held_out is True"),
    ({"held_out": ["a"]}, "What was practised on measures nothing"),
    ({"held_out": [None]}, "held_out is .*task 1 is None"),
    ({"reward": 1.0}, "reward is 1.0; allowed: a callable"),
    ({"name": " "}, "name is ' '"),
    ({"progress": "bar"}, "progress is 'bar'"),
    ({"use_async": "yes"}, "use_async is 'yes'"),
]


def test_arguments_that_are_not_allowed() -> None:
    with testing.reflection(learner()) as reflection:
        for given, message in BAD:
            with pytest.raises(ConfigurationError, match=message):
                reflection.practice(pupil(), ["a"], **given)
        assert reflection.episodes.list() == ()


def test_nothing_runs_where_nothing_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, message in (
        ({"learn": False}, "learn is False"),
        ({"use_lessons": False}, "use_lessons is False"),
        ({"model": None}, "model is None"),
        ({"namespace": ("{user}",)}, "the run has no value for user"),
    ):
        model = settings.pop("model", learner())
        with testing.reflection(model, **settings) as reflection, pytest.raises(ConfigurationError, match=message):
            reflection.practice(pupil(), ["a"])
    with testing.reflection(learner()) as reflection:
        reflection.pause()
        with pytest.raises(ConfigurationError, match="resume"):
            reflection.practice(pupil(), ["a"])
        reflection.resume()
        monkeypatch.setenv("REFLECT", "off")
        with pytest.raises(ConfigurationError, match="REFLECT is 'off'"):
            reflection.practice(pupil(), ["a"])
        monkeypatch.delenv("REFLECT")
    with pytest.raises(Exception, match="closed"):
        reflection.practice(pupil(), ["a"])


def test_tasks_can_be_graph_inputs_of_any_form() -> None:
    from langgraph.func import entrypoint
    from typing_extensions import TypedDict

    class State(TypedDict):
        number: int

    graph = StateGraph(State).add_node("n", RunnableLambda(lambda state: state)).add_edge(START, "n").compile()

    @entrypoint()
    def shout(text: str) -> str:
        return text.upper()

    with testing.reflection(learner()) as reflection:
        assert reflection.practice(graph, [{"number": 1}], **FEW).runs_failed == 0
        with pytest.raises(ConfigurationError, match="This graph has no messages"):
            reflection.practice(graph, ["one"])
        assert reflection.practice(shout, ["one"], **FEW).runs_failed == 0
        assert reflection.episodes.list(limit=1)[0].output == "ONE"


def test_candidates_wait_for_approval_and_the_report_says_so() -> None:
    with testing.reflection(learner(), approval="human") as reflection:
        report = reflection.practice(pupil(), ["a"], reward=judge, **FEW)
        assert report.useful == ()
        assert report.tokens_per_useful_lesson is None
        assert "1 lessons wait for approval" in str(report)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_ledger_that_fails_ends_it_with_its_error(kind: str) -> None:
    from reflect_middleware.errors import LedgerError

    with testing.reflection(learner()) as reflection:
        graph = reflection.wrap(pupil())

        def broken(*_: Any) -> None:
            raise LedgerError("away")

        reflection._core.parts.ledger.practice.judge = broken
        with pytest.raises(LedgerError, match="away"):
            await practised(kind, reflection, graph, ["a"], reward=judge, **FEW)


def test_runs_that_nobody_records_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    with testing.reflection(learner()) as reflection:
        switched_off = lambda _: monkeypatch.setenv("REFLECT", "off")  # noqa: E731
        report = reflection.practice(pupil(), ["a"], rollouts=2, held_out=None, progress=switched_off)
        monkeypatch.delenv("REFLECT")
        assert report.runs == 0
        assert "REFLECT is off" in report.notes[0]


def test_a_run_that_cannot_be_written_ends_it_and_is_taken_up_later() -> None:
    from reflect_middleware.errors import LedgerUnavailableError

    with testing.reflection(learner()) as reflection:
        table = reflection._core.parts.ledger.episodes
        put, given = table.put, {"rollouts": 1, "held_out": None, "progress": False, "name": "n"}

        def away(*_: Any, **__: Any) -> None:
            raise LedgerUnavailableError("away")

        table.put = away
        with pytest.raises(LedgerUnavailableError, match="name='n'"):
            reflection.practice(pupil(), ["a"], reward=judge, **given)
        table.put = put
        reflection.flush()
        report = reflection.practice(pupil(), ["a"], reward=judge, **given)
        assert (report.runs, report.resumed, report.runs_unjudged) == (1, 1, 0)


def test_progress_that_fails_ends_nothing() -> None:
    with testing.reflection(learner()) as reflection:
        report = reflection.practice(pupil(), ["a"], rollouts=2, held_out=None, progress=lambda _: 1 / 0)
        assert report.stopped == "done"
