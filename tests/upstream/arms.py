"""A pytest plugin (`-p arms`) that puts our library into every graph or every agent of another project's tests.

`REFLECT_ARM` says how, `REFLECT_OUTCOMES` is the JSON file for what became of each test. The Reflection is the real
one, with the default store and embedder and reflections in the background, so that whatever it does on an event loop
is seen by the detector of blocking calls.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import blockbuster_ctx
from langchain import agents
from langchain.agents import factory
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import BaseMessage, SystemMessage
from langgraph.func import entrypoint
from langgraph.graph import StateGraph

from reflect_middleware import testing
from reflect_middleware.core import Core

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from reflect_middleware import Reflection

ARM, _, LESSON = os.environ["REFLECT_ARM"].partition("+")
DETECT = "REFLECT_DETECT" in os.environ
ONLY = frozenset(os.environ.get("REFLECT_ONLY", "").split("\n")) - {""}


class Watch:
    """What became of each test, and what our library complained of while it ran."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: dict[str, str] = {}
        self.complaints: list[tuple[str, str]] = []
        self.injected = 0
        self.test = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.test = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)

    def complain(self, text: str) -> None:
        self.complaints.append((self.test, text))

    def write(self, path: Path, episodes: int) -> None:
        left: dict[str, Any] = {"passed": sorted(self.passed - self.failed.keys()), "failed": self.failed}
        left |= {"complaints": self.complaints, "episodes": episodes, "injected": self.injected}
        path.write_text(json.dumps(left), encoding="utf-8")


class Idle(AgentMiddleware):
    """Does nothing: what differs with it differs with any middleware."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request)


class Listener(logging.Handler):
    """Hands our library's warnings to the watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self.watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self.watch.complain(record.getMessage())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    """The detector, for suites that do not bring it. It leaves out fixtures, and waits for locks: those tests wait."""
    with blockbuster_ctx() if DETECT else nullcontext() as detector:
        if detector is not None:
            for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
                detector.functions[name].deactivate()
        return (yield)


def listen(watch: Watch) -> None:
    """Hear of every failure that our library swallows; it logs only the first of a kind as a warning."""
    logging.getLogger("reflect_middleware").addHandler(Listener(watch))
    failed = Core.failed

    @functools.wraps(failed)
    def heard(self: Core, where: str, error: BaseException) -> None:
        watch.complain(f"{where}: {error!r}")
        failed(self, where, error)

    Core.failed = heard


def wrap_all(reflection: Reflection) -> None:
    """Every compiled graph and every entrypoint is a wrapped one."""

    def wrapping(build: Callable[..., Any]) -> Any:
        @functools.wraps(build)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return reflection.wrap(build(*args, **kwargs))

        return wrapped

    StateGraph.compile = wrapping(StateGraph.compile)
    entrypoint.__call__ = wrapping(entrypoint.__call__)


def add_to_all(make: Callable[[], AgentMiddleware[Any, Any]]) -> None:
    """Every agent has one more middleware, as its last."""
    create_agent = factory.create_agent

    @functools.wraps(create_agent)
    def with_ours(*args: Any, middleware: Any = (), **kwargs: Any) -> Any:
        return create_agent(*args, middleware=[*middleware, make()], **kwargs)

    agents.create_agent = factory.create_agent = with_ours


def count_and_hide(watch: Watch, *, hidden: bool) -> None:
    """Count the model calls that get the lesson; a hidden one is taken out again, as the last step before the model.

    A test that fails with a lesson and passes with a hidden one fails by the lesson's words alone.
    """
    from reflect_middleware import boundary, middleware

    merge, merged = boundary.merge, middleware._merged

    def counted_merge(messages: Sequence[BaseMessage], block: str) -> list[BaseMessage]:
        given = merge(messages, block)
        watch.injected += given != list(messages)
        if not hidden:
            return given
        taken = [without(message, block) for message in given][len(given) - len(messages) :]
        assert taken == list(messages)
        return taken

    def counted_merged(request: Any, block: str) -> Any:
        given = merged(request, block)
        watch.injected += given is not request
        standing = request.system_message
        return given.override(system_message=standing and without(given.system_message, block)) if hidden else given

    boundary.merge, middleware._merged = counted_merge, counted_merged


def without(message: BaseMessage, block: str) -> BaseMessage:
    """The message as it was before the lesson was merged into it."""
    if not isinstance(message, SystemMessage):
        return message
    content = message.content
    taken = content.removesuffix(block).removesuffix("\n\n") if isinstance(content, str) else content[:-1]
    return message.model_copy(update={"content": taken})


def build(watch: Watch) -> Reflection:
    """A Reflection that also reflects all the time, without a change to the lessons."""
    model = testing.ScriptedChatModel(lambda _: '{"edits": []}')
    made = testing.reflection(model, every=5, run="background", store="chroma", embeddings=None)
    if LESSON:
        made.lessons.add(when="always", do="be kind")
        count_and_hide(watch, hidden=LESSON == "hidden")
    return made


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that are asked for."""
    if ONLY:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in ONLY])
        items[:] = [item for item in items if item.nodeid in ONLY]


def pytest_configure(config: pytest.Config) -> None:
    watch = config.stash[WATCH] = Watch()
    config.pluginmanager.register(watch)
    if ARM == "idle":
        add_to_all(Idle)
    elif ARM != "bare":
        listen(watch)
        reflection = config.stash[REFLECTION] = build(watch)
        if ARM == "wrap":
            wrap_all(reflection)
        else:
            add_to_all(reflection.middleware)


def pytest_unconfigure(config: pytest.Config) -> None:
    episodes = 0
    if (reflection := config.stash.get(REFLECTION, None)) is not None:
        reflection.flush(60)
        episodes = len(reflection.episodes.list(limit=None))
        reflection.close()
    config.stash[WATCH].write(Path(os.environ["REFLECT_OUTCOMES"]), episodes)


WATCH = pytest.StashKey[Watch]()
REFLECTION = pytest.StashKey["Reflection"]()
