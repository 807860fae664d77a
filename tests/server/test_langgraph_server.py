"""The example on the real LangGraph server: `langgraph dev`, which runs in memory, without a licence, on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from langgraph_sdk import get_client

from reflect_middleware import Reflection
from tests.server.processes import free_port, wait_until_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from langgraph_sdk.client import LangGraphClient

    from reflect_middleware import Episode

pytest.importorskip("langgraph_api", reason="the LangGraph server is in the extra [server]")
pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "langgraph_server"
RULE = "refunds above 200 EUR need a manager"
BOB = {
    "langgraph_auth_user_id": "bob",
    "langgraph_auth_user": {"identity": "bob"},
    "user_id": "bob",
    "reflect": {"principal": "bob", "learn": False, "use_lessons": False},
}
"""What a hostile client writes to pass for bob, and to go unrecorded."""


class Server:
    """A running server and the ledger that it writes."""

    def __init__(self, url: str, folder: Path, log: Path) -> None:
        self.url, self.folder, self.log = url, folder, log

    def episodes(self, user: str) -> dict[str, Episode]:
        """By id, read by another process: this one."""
        with Reflection(path=self.folder, store="exact") as reader:
            return {episode.id: episode for episode in reader.episodes.list(namespace=("refund-desk", user))}


def as_user(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}s-token"}


def refund(text: str = "Refund order 1182, 340 EUR") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server"), {}) as made:
        yield made


@contextmanager
def served(folder: Path, changed: Mapping[str, Any]) -> Iterator[Server]:
    """The example, with a graph more that a function makes for each run, and what is `changed` in langgraph.json."""
    app = shutil.copytree(EXAMPLE, folder / "app")  # the server keeps files of its own where it starts
    (app / "factory.py").write_text(FACTORY)
    config = json.loads((app / "langgraph.json").read_text())
    config["graphs"]["made"] = "./factory.py:make"
    (app / "langgraph.json").write_text(json.dumps(config | changed))
    port = free_port()
    quiet = {
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_DISABLE_FILE_PERSISTENCE": "true",
        "LANGSMITH_TRACING": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=app, env=os.environ | quiet | {"REFLECT_PATH": str(folder)}, stdout=log, stderr=log
        )
    made = Server(f"http://127.0.0.1:{port}", folder, folder / "log")
    try:
        wait_until_up(f"{made.url}/ok", process, made.log)
        yield made
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


FACTORY = """
from langchain_core.runnables import RunnableConfig

from refund_desk.graph import builder, reflection


async def make(config: RunnableConfig):
    return reflection.wrap(builder.compile(name="made-to-order"))
"""


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Callable[[str], LangGraphClient]]:
    """Gives a user's client."""
    async with AsyncExitStack() as stack:
        users = {
            user: await stack.enter_async_context(get_client(url=server.url, api_key=None, headers=as_user(user)))
            for user in ("alice", "bob")
        }
        yield users.__getitem__


@pytest.fixture(autouse=True)
def no_complaint(server: Server) -> Iterator[None]:
    """Neither the server's detector of blocking calls nor the middleware finds anything to complain of."""
    yield
    log = server.log.read_text()
    assert "blocking call" not in log.lower()
    assert "Traceback" not in log
    assert "reflect: " not in "".join(line for line in log.splitlines() if "failed" in line)


async def lessons_of(http: httpx.AsyncClient, user: str) -> list[dict[str, Any]]:
    return (await http.get("/lessons", headers=as_user(user))).json()


async def taught(http: httpx.AsyncClient, client: Any, user: str) -> str:
    """A run whose reward becomes a lesson; gives the run's id."""
    thread = await client(user).threads.create()
    run = await client(user).runs.create(thread["thread_id"], "desk", input=refund())
    result: Any = await client(user).runs.join(thread["thread_id"], run["run_id"])
    if not await lessons_of(http, user):
        assert result["messages"][-1]["content"] == "Refunded."
    given = {"run_id": run["run_id"], "score": -1, "comment": RULE}
    answer = await http.post("/feedback", json=given, headers=as_user(user))
    assert answer.json() == {"episode": run["run_id"], "thread": thread["thread_id"]}
    for _ in range(300):
        if await lessons_of(http, user):
            return run["run_id"]
        await asyncio.sleep(0.1)  # the reflection runs in the background of another process
    pytest.fail("No lesson was learned.")


async def test_a_lesson_reaches_the_model_and_a_resumed_run_is_one_episode(
    server: Server, http: httpx.AsyncClient, client: Any
) -> None:
    first = await taught(http, client, "alice")
    thread = await client("alice").threads.create()
    parts = [
        part
        async for part in client("alice").runs.stream(
            thread["thread_id"], "desk", input=refund(), stream_mode=["values", "messages-tuple"]
        )
    ]
    run_id = parts[0].data["run_id"]
    assert "".join(part.data[0]["content"] for part in parts if part.event == "messages") == "I ask a manager first."
    assert not [part for part in parts if "refund an order" in str(part.data)]  # the lesson's words
    state: Any = await client("alice").threads.get_state(thread["thread_id"])
    assert state["tasks"][0]["interrupts"][0]["value"]["question"] == "Refund this order?"
    open_one = server.episodes("alice")[run_id]
    assert (open_one.status, open_one.ended_at) == ("interrupted", None)

    result: Any = await client("alice").runs.wait(thread["thread_id"], "desk", command={"resume": "yes"})
    assert [message["type"] for message in result["messages"]] == ["human", "ai", "ai"]
    assert result["messages"][-1]["content"] == "The manager says: yes"
    episodes = server.episodes("alice")
    assert set(episodes) == {first, run_id}
    episode = episodes[run_id]
    assert (episode.status, episode.thread_id, episode.principal) == ("completed", thread["thread_id"], "alice")
    assert (episode.agent, len(episode.run_ids), episode.root_run_id) == ("refund-desk", 2, run_id)
    assert [step.kind for step in episode.trajectory] == ["model", "interrupt", "resume"]
    assert [exposure.shown for exposure in episode.exposures] == [True]


async def test_a_graph_that_a_function_makes_for_each_run(server: Server, client: Any) -> None:
    thread = await client("alice").threads.create()
    for expected in (1, 2):
        await client("alice").runs.wait(thread["thread_id"], "made", input=refund())
        known = [e for e in server.episodes("alice").values() if e.agent == "made-to-order"]
        assert [e.thread_id for e in known] == [thread["thread_id"]] * expected


async def test_without_auth_nobody_is_verified_whatever_the_client_writes(tmp_path: Path) -> None:
    with served(tmp_path, {"auth": None}) as server:
        async with get_client(url=server.url, api_key=None) as anybody:
            for given in ({"config": {"configurable": BOB}}, {"context": BOB}):
                result: Any = await anybody.runs.wait(None, "desk", input=refund(), **given)
                assert result["messages"][-1]["content"] == "Refunded."
        with Reflection(path=server.folder, store="exact") as reader:
            assert reader.episodes.list() == ()
    log = server.log.read_text()
    assert log.count("nothing learned for 'refund-desk': the run has no value for langgraph_auth_user_id") == 1


@pytest.mark.parametrize("written", ["configurable", "context", "assistant"])
async def test_a_client_cannot_pass_for_another_user(
    server: Server, http: httpx.AsyncClient, client: Any, written: str
) -> None:
    await taught(http, client, "bob")
    alice, before = client("alice"), server.episodes("bob")
    assistant, given = "desk", {"config": {"configurable": BOB}} if written == "configurable" else {"context": BOB}
    if written == "assistant":
        made = await alice.assistants.create("desk", config={"configurable": BOB}, metadata=BOB)
        assistant, given = made["assistant_id"], {"metadata": BOB}
    run_id, alices = "", await lessons_of(http, "alice")
    async for part in alice.runs.stream(None, assistant, input=refund(), on_completion="keep", **given):
        assert part.event != "error", part.data
        run_id = run_id or part.data["run_id"]
    episode = server.episodes("alice")[run_id]
    assert (episode.namespace, episode.principal) == (("refund-desk", "alice"), "alice")
    assert server.episodes("bob").keys() == before.keys()
    assert [exposure.shown for exposure in episode.exposures] == [True] * len(alices)


async def test_rewards_and_lessons_are_the_users_own(server: Server, http: httpx.AsyncClient, client: Any) -> None:
    run_id = await taught(http, client, "bob")
    given = {"run_id": run_id, "score": 1, "comment": "I never saw this run"}
    assert (await http.post("/feedback", json=given, headers=as_user("alice"))).status_code == 404
    assert (await http.post("/feedback", json=given, headers=as_user("nobody"))).status_code == 401
    assert (await http.post("/feedback", json=given | {"score": 7}, headers=as_user("bob"))).status_code == 422
    assert [reward.value for reward in server.episodes("bob")[run_id].rewards] == [0.0]


async def test_the_graph_that_studio_draws_is_the_bare_one(client: Any) -> None:
    assistants = client("alice").assistants
    (desk,) = await assistants.search(graph_id="desk", metadata={"created_by": "system"})
    drawn = await assistants.get_graph(desk["assistant_id"])
    assert sorted(node["id"] for node in drawn["nodes"]) == ["__end__", "__start__", "answer", "ask_manager"]
    schemas = await assistants.get_schemas(desk["assistant_id"])
    assert "messages" in schemas["input_schema"]["properties"]
