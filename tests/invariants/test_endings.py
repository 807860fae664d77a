"""One episode for each run, with the status that fits, however the run ends: wrapped, or with the middleware alone."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.errors import GraphRecursionError

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, calling, looping, said, weigh

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

Build = "Callable[[Reflection, Any], Any]"


class Held:
    """A model that signals that it is at work, and then waits until it is cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        outer = self

        class Waiting(ScriptedChatModel):
            async def _astream(self, *args: Any, **kwargs: Any) -> Any:
                outer.entered.set()
                await asyncio.Event().wait()
                yield

            async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
                outer.entered.set()
                await asyncio.Event().wait()

        self.model = Waiting(lambda _: said())


@pytest.fixture(params=["wrap", "middleware", "both"])
def build(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def made(reflection: Reflection, model: Any, **options: Any) -> Any:
        middleware = [] if request.param == "wrap" else [reflection.middleware()]
        agent = create_agent(model, [weigh], middleware=middleware, **options)
        return agent if request.param == "middleware" else reflection.wrap(agent)

    return made


def endless(messages: list[BaseMessage]) -> Any:
    return calling(call_id=f"call-{len(messages)}")


def ends(reflection: Reflection) -> Counter[str]:
    reflection.flush()
    return Counter(episode.status for episode in reflection.episodes.list(limit=1000))


def test_completed(reflection: Reflection, build: Any) -> None:
    def answer(messages: list[BaseMessage]) -> Any:
        return said("3 kg") if isinstance(messages[-1], ToolMessage) else calling()

    model = ScriptedChatModel(answer)
    build(reflection, model, system_prompt="You weigh.").invoke(asked())
    assert ends(reflection) == {"completed": 1}
    episode = reflection.episodes.list()[0]
    assert [(step.kind, step.name) for step in episode.trajectory] == [
        ("model", ""), ("tool", "weigh"), ("model", "")
    ]  # fmt: skip
    assert episode.task == "how heavy is an apple"
    assert "3 kg" in episode.output
    assert [exposure.shown for exposure in episode.exposures] == [True]
    assert [str(call[0].content).count("<lessons>") for call in model.calls] == [1, 1]
    assert "<lessons>" not in episode.model_dump_json()


async def test_failed(reflection: Reflection, build: Any) -> None:
    agent = build(reflection, ScriptedChatModel([ValueError("no quota"), ValueError("no quota")]))
    with pytest.raises(ValueError, match="no quota"):
        agent.invoke(asked())
    with pytest.raises(ValueError, match="no quota"):
        await agent.ainvoke(asked())
    assert ends(reflection) == {"failed": 2}
    episode = reflection.episodes.list()[0]
    assert episode.error == "ValueError: no quota"
    assert [step.error for step in episode.trajectory] == ["ValueError: no quota"]


async def test_a_recursion_limit_is_a_failure(reflection: Reflection, build: Any) -> None:
    agent = build(reflection, ScriptedChatModel(endless))
    with pytest.raises(GraphRecursionError):
        agent.invoke(asked(), {"recursion_limit": 5})
    with pytest.raises(GraphRecursionError):
        await agent.ainvoke(asked(), {"recursion_limit": 5})
    assert ends(reflection) == {"failed": 2}
    assert reflection.episodes.list()[0].error.startswith("GraphRecursionError")


@pytest.mark.parametrize("how", ["cancel", "wait_for", "anyio"])
async def test_cancelled(reflection: Reflection, build: Any, how: str) -> None:
    held = Held()
    agent = build(reflection, held.model)
    match how:
        case "cancel":
            task = asyncio.create_task(agent.ainvoke(asked()))
            await held.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        case "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.ainvoke(asked()), 0.2)
        case _:
            async with anyio.create_task_group() as group:
                group.start_soon(agent.ainvoke, asked())
                await held.entered.wait()
                group.cancel_scope.cancel()
    assert ends(reflection) == {"cancelled": 1}


async def test_cancelled_while_lessons_are_looked_for(reflection: Reflection, monkeypatch: pytest.MonkeyPatch) -> None:
    from reflect_middleware.session import Session

    async def forever(self: Session) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Session, "aprepare", forever)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reflection.wrap(looping()).ainvoke(asked()), 0.05)
    assert ends(reflection) == {"cancelled": 1}


async def test_a_task_groups_twenty_cancelled_runs_lose_no_episode(reflection: Reflection, build: Any) -> None:
    agents = [Held() for _ in range(20)]
    async with anyio.create_task_group() as group:
        for held in agents:
            group.start_soon(build(reflection, held.model).ainvoke, asked())
        for held in agents:
            await held.entered.wait()
        group.cancel_scope.cancel()
    assert ends(reflection) == {"cancelled": 20}


def test_abandoned_by_break_close_and_garbage_collection(reflection: Reflection, build: Any) -> None:
    agent = build(reflection, ScriptedChatModel(endless))
    for _ in agent.stream(asked(), stream_mode="updates"):
        break
    gc.collect()
    closed = agent.stream(asked(), stream_mode="updates")
    next(closed)
    closed.close()
    dropped = agent.stream(asked(), stream_mode="updates")
    next(dropped)
    del dropped
    gc.collect()
    never = agent.stream(asked())
    del never
    assert ends(reflection) == {"abandoned": 3}


async def test_abandoned_async(reflection: Reflection, build: Any) -> None:
    agent = build(reflection, ScriptedChatModel(endless))
    closed = agent.astream(asked(), stream_mode="updates")
    await anext(closed)
    await closed.aclose()
    dropped = agent.astream(asked(), stream_mode="updates")
    await anext(dropped)
    del dropped
    gc.collect()
    while ends(reflection)["abandoned"] < 2:  # noqa: ASYNC110 - the event loop closes it, as soon as it has the time
        await asyncio.sleep(0)
    assert ends(reflection) == {"abandoned": 2}


def test_a_consumer_that_throws_fails_the_run(reflection: Reflection) -> None:
    chunks = reflection.wrap(looping()).stream(asked(), stream_mode="updates")
    next(chunks)
    with pytest.raises(KeyError):
        chunks.throw(KeyError("stop"))
    assert ends(reflection) == {"failed": 1}


def test_a_run_that_outlives_its_reflection(reflection: Reflection, build: Any) -> None:
    chunks = build(reflection, ScriptedChatModel(endless)).stream(asked(), stream_mode="updates")
    next(chunks)
    reflection.close()
    next(chunks)
    chunks.close()
