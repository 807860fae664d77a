"""A wrapped RemoteGraph: what it gives is the bare one's, its runs are recorded, no lessons leave, and that is said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteException, RemoteGraph
from langgraph.types import Command, RetryPolicy

from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graph_server import serving
from tests.invariants.graphs import Asking, asked, asking, looping, once, same
from tests.invariants.test_injection import fences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Episode, Reflection

THREAD: Any = {"configurable": {"thread_id": "6f6e5f0e-0f6b-4b62-8f0e-3d2a0f9f1c11"}}
QUESTION = {"question": "sure?"}


class Server:
    """The served graphs, and the requests that came in."""

    def __init__(self, url: str, requests: list[dict[str, Any]], model: ScriptedChatModel) -> None:
        self.url, self.requests, self.model = url, requests, model

    def remote(self, name: str) -> RemoteGraph:
        return RemoteGraph(name, url=self.url, api_key="none")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    def fail(state: MessagesState) -> Any:
        raise ValueError("no scale")

    model = once()
    failing = StateGraph(MessagesState).add_node("fail", fail).add_edge(START, "fail").compile()
    with serving(scale=looping(model), clerk=asking(checkpointer=InMemorySaver()), broken=failing) as (url, requests):
        yield Server(url, requests, model)


def only(reflection: Reflection) -> Episode:
    (episode,) = reflection.episodes.list()
    return episode


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("mode", [None, "values", "updates", "messages", ["values", "updates", "messages"]], ids=str)
async def test_the_same_chunks(shared: Reflection, server: Server, mode: Any, version: Any, *, subgraphs: bool) -> None:
    bare, wrapped = server.remote("scale"), shared.wrap(server.remote("scale"))
    options: Any = {"stream_mode": mode, "subgraphs": subgraphs, "version": version}
    assert same(list(bare.stream(asked(), **options))) == same(list(wrapped.stream(asked(), **options)))
    assert same([c async for c in bare.astream(asked(), **options)]) == same(
        [c async for c in wrapped.astream(asked(), **options)]
    )


async def test_the_same_results_and_state(shared: Reflection, server: Server) -> None:
    bare, wrapped = server.remote("scale"), shared.wrap(server.remote("scale"))
    assert type(wrapped).__name__ == "RemoteGraph"
    assert isinstance(wrapped, RemoteGraph)
    assert same(bare.invoke(asked())) == same(wrapped.invoke(asked()))
    assert same(await bare.ainvoke(asked(), version="v2")) == same(await wrapped.ainvoke(asked(), version="v2"))
    assert same(bare.batch([asked()] * 2)) == same(wrapped.batch([asked()] * 2))
    asking_bare, asking_wrapped = server.remote("clerk"), shared.wrap(server.remote("clerk"))
    assert same(asking_bare.invoke(QUESTION, THREAD)) == same(asking_wrapped.invoke(QUESTION, THREAD))
    assert same(asking_bare.get_state(THREAD)) == same(asking_wrapped.get_state(THREAD))
    assert asking_wrapped.invoke(Command(resume="yes"), THREAD)["answer"] == "yes"


def test_recorded_without_lessons_and_said_so_once(
    reflection: Reflection, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        remote = reflection.wrap(server.remote("scale"))
        assert reflection.wrap(remote) is remote
    assert caplog.text.count("'scale' is a RemoteGraph: its runs are recorded here") == 1
    result = remote.invoke(asked(), {"metadata": {"customer": "c1"}})
    reflection.reward(result, 0.5)
    episode = only(reflection)
    assert (episode.agent, episode.status, episode.task, episode.reward) == (
        "scale", "completed", "how heavy is an apple", 0.5
    )  # fmt: skip
    assert "apple weighs 3 kg" in episode.output
    assert "how heavy" in episode.input
    assert (episode.exposures, episode.trajectory) == ((), ())
    assert set(fences(server.model)) == {0}
    assert "every weight" not in str(server.requests)
    assert episode.metadata["customer"] == "c1"


def test_a_reward_by_the_servers_run_id(reflection: Reflection, server: Server) -> None:
    seen: list[Any] = []
    list(reflection.wrap(server.remote("scale")).stream(asked(), on_run_created=seen.append))
    run_id = server.requests[-1]["run_id"]
    assert seen[0]["run_id"] == run_id == only(reflection).metadata["remote_run_id"]
    assert only(reflection).id != run_id  # the server's own Reflection may have an episode of that id
    reflection.reward(run_id, 1.0)
    assert only(reflection).reward == 1.0


def test_a_client_that_tells_no_run_id(reflection: Reflection, server: Server) -> None:
    remote = server.remote("scale")
    stream = remote.sync_client.runs.stream

    class Runs:
        def stream(self, *, assistant_id: str, **kwargs: Any) -> Any:
            assert "on_run_created" not in kwargs
            return stream(assistant_id=assistant_id, **kwargs)

    remote.sync_client.runs = Runs()
    assert reflection.wrap(remote).invoke(asked())["messages"][-1]["content"] == "done"
    assert "remote_run_id" not in only(reflection).metadata


@pytest.mark.parametrize(
    "options",
    [
        {"stream_mode": "values"},
        {"stream_mode": "updates"},
        {},
        {"stream_mode": ["updates", "values"]},
        {"stream_mode": ["values", "updates"], "subgraphs": True},
        {"stream_mode": "values", "version": "v2"},
        {"stream_mode": ["updates"], "version": "v2", "subgraphs": True},
    ],
    ids=str,
)
async def test_interrupts_whatever_is_streamed(reflection: Reflection, server: Server, options: Any) -> None:
    from uuid import uuid4

    thread: Any = {"configurable": {"thread_id": str(uuid4())}}
    remote = reflection.wrap(server.remote("clerk"))
    list(remote.stream(QUESTION, thread, **options))
    assert only(reflection).status == "interrupted"
    assert [chunk async for chunk in remote.astream(Command(resume="yes"), thread, **options)]
    episode = only(reflection)
    assert (episode.status, [step.kind for step in episode.trajectory]) == ("completed", ["interrupt", "resume"])
    assert "sure?" in episode.trajectory[0].input
    assert episode.trajectory[1].input == "yes"
    assert "yes" in episode.output or "end" in episode.output  # the state, or what the last node wrote


async def test_failures_and_consumers_that_leave(reflection: Reflection, server: Server) -> None:
    remote = reflection.wrap(server.remote("broken"))
    with pytest.raises(RemoteException, match="no scale"):
        remote.invoke(asked())
    with pytest.raises(RemoteException, match="no scale"):
        await remote.ainvoke(asked())
    chunks = reflection.wrap(server.remote("scale")).stream(asked())
    next(chunks)
    chunks.close()
    reflection.flush()
    assert [episode.status for episode in reflection.episodes.list()] == ["abandoned", "failed", "failed"]
    assert "no scale" in reflection.episodes.list()[1].error


def test_as_a_node_its_interrupts_and_retries(reflection: Reflection, server: Server) -> None:
    builder = StateGraph(Asking).add_node("clerk", reflection.wrap(server.remote("clerk"), name="clerk"))
    outer = reflection.wrap(builder.add_edge(START, "clerk").compile(checkpointer=InMemorySaver()), name="outer")
    result = outer.invoke(QUESTION, {"configurable": {"thread_id": "0d8e4b0a-93a5-4c87-b6c2-0f0f7c3c2b1e"}})
    assert result["__interrupt__"][0].value == {"please": "sure?"}
    episodes = {episode.agent: episode for episode in reflection.episodes.list()}
    assert {name: episode.status for name, episode in episodes.items()} == {
        "clerk": "interrupted", "outer": "interrupted"
    }  # fmt: skip
    assert [step.kind for step in episodes["clerk"].trajectory] == ["interrupt"]
    assert episodes["clerk"].parent_id == episodes["outer"].id

    policy = RetryPolicy(initial_interval=0.0, jitter=False, max_attempts=2, retry_on=RemoteException)
    flow = StateGraph(MessagesState).add_node("a", reflection.wrap(server.remote("broken")), retry_policy=policy)
    with pytest.raises(RemoteException):
        flow.add_edge(START, "a").compile().invoke(asked())
    (broken,) = (episode for episode in reflection.episodes.list() if episode.agent == "broken")
    assert (broken.status, [step.kind for step in broken.trajectory]) == ("failed", ["retry"])


async def test_copies_and_switches(reflection: Reflection, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = reflection.wrap(server.remote("scale"), name="far", namespace=("far",))
    tagged = remote.with_config({"tags": ["t"]}).copy({"name": "other"})
    assert isinstance(tagged, RemoteGraph)
    tagged.invoke(asked())
    remote.invoke(asked(), {"configurable": {"reflect": {"learn": False}}})
    monkeypatch.setenv("REFLECT", "off")
    await remote.ainvoke(asked())
    monkeypatch.delenv("REFLECT")
    (episode,) = reflection.episodes.list(namespace=("far",))
    assert episode.agent == "far"
