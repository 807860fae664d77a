"""Nothing of ours blocks an event loop: the real ledger, store and embedder under a detector of blocking calls."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx
from langchain.agents import create_agent
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import testing
from tests.invariants.graphs import asked, looping, nested, once, weigh
from tests.loop.conftest import adding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def detector() -> Iterator[BlockBuster]:
    with blockbuster_ctx() as found:
        yield found


@pytest.fixture(params=["wrap", "middleware", "node"])
def build(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    def made(reflection: Any) -> Any:
        if request.param == "wrap":
            return reflection.wrap(looping())
        if request.param == "middleware":
            return create_agent(once(), [weigh], middleware=[reflection.middleware()])
        builder = StateGraph(MessagesState).add_node("agent", reflection.wrap(nested()))
        builder.add_node("reflect", reflection.node())
        return builder.add_edge(START, "agent").add_edge("agent", "reflect").compile()

    return made


async def test_the_detector_works() -> None:
    with pytest.raises(BlockingError):
        time.sleep(0)  # noqa: ASYNC251 - what it must find


@pytest.mark.parametrize("mode", ["inline", "background"])
async def test_runs_rewards_reflections_and_views(build: Any, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    reflector = testing.ScriptedChatModel(lambda _: adding(because="apple weighs 3 kg"))
    reflection = await asyncio.to_thread(testing.reflection, reflector, every=2, run=mode)
    async with reflection:
        agent = build(reflection)
        await reflection.lessons.aadd(when="weighing", do="name the unit")
        with reflection.track() as track:
            result = await agent.ainvoke(asked())
        await reflection.areward(result, 0.5, comment="fine")
        await reflection.areward(track.episode_ids[-1], 1.0, source="user")
        async for _ in agent.astream(asked(), stream_mode=["messages", "updates"], subgraphs=True):
            pass
        [_ async for _ in agent.astream_events(asked(), version="v2")]
        await agent.abatch([asked(), asked()])
        assert (await reflection.apreview(asked())).block
        await reflection.aflush()
        await reflection.areflect()
        assert await reflection.lessons.alist()
        assert await reflection.episodes.alist()
        assert await reflection.reflections.alist()
        await reflection.adoctor()
    assert not [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]


async def test_a_failing_reflection_does_not_block_either(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = await asyncio.to_thread(testing.reflection)
    async with reflection:
        agent = build(reflection)
        monkeypatch.setattr(type(reflection._core.parts), "ledger", property(lambda self: 1 / 0))
        assert (await agent.ainvoke(asked()))["messages"][-1].text == "done"
        monkeypatch.undo()


async def test_a_sync_run_on_a_loop_waits_for_us_but_reads_nothing_there(
    build: Any, detector: BlockBuster, caplog: pytest.LogCaptureFixture
) -> None:
    reflection = await asyncio.to_thread(testing.reflection)
    async with reflection:
        await reflection.lessons.aadd(when="weighing", do="name the unit")
        agent = build(reflection)
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            detector.functions[name].deactivate()  # the caller chose to wait
        for _ in range(2):
            agent.invoke(asked())
        await reflection.aflush()
        assert [len(episode.exposures) for episode in await reflection.episodes.alist()] == [1, 1]
    assert not [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
