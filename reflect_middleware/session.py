"""One run of a wrapped agent, from its start to its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphInterrupt

from reflect_middleware.lanes import awaited, on_a_loop
from reflect_middleware.namespaces import NamespaceRule
from reflect_middleware.private import NODE, SOURCE
from reflect_middleware.record import MIDDLEWARE_HOOKS, Recorder
from reflect_middleware.retrieve import Choice
from reflect_middleware.slot import Slot
from reflect_middleware.telemetry import Search
from reflect_middleware.types import EpisodeStatus, Namespace, new_id, now

if TYPE_CHECKING:
    from reflect_middleware.core import Core


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What `wrap` or `middleware` was told about one agent."""

    agent: str
    rule: NamespaceRule
    task: Callable[[Any], str] | None
    reward: Callable[..., Any] | None
    inject: Callable[[Mapping[str, Any]], bool] | None
    read: tuple[NamespaceRule, ...] = ()
    """How the namespaces are found that are read beside its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known of a run before it starts."""

    spec: Spec
    namespace: Namespace
    task: str
    graph_input: Any
    read: tuple[Namespace, ...] = ()
    """Further namespaces whose lessons it may be shown; nothing is ever written to them."""
    thread_id: str = ""
    checkpoint_ns: str = ""
    principal: str = ""
    task_key: str = ""
    reference: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    learn: bool = True
    use_lessons: bool = True
    resume: Any = None
    """The value an interrupted run goes on with, as `(value,)`; None if this is no resume."""
    parent_id: str = ""
    root_run_id: str = ""
    """The outer run's id where it is known, else empty: this run is then its own root."""
    execution: tuple[str, ...] = ()
    """Names the execution of the node that this run belongs to, whatever a RetryPolicy makes of it; empty for none."""
    attempt: str = ""
    """Names the attempt of that execution."""
    slot: Slot | None = None
    """Its place in a practice; None for a run of the user's own."""


@dataclass(slots=True)
class Session:
    """A run under way: what it was given, what is seen of it, and how it ends."""

    core: Core
    plan: Plan
    recorder: Recorder = field(default_factory=Recorder)
    choice: Choice = field(default_factory=Choice)
    resumed_id: str = ""
    """The interrupted or failed episode that this run goes on with."""
    started: datetime = field(default_factory=now)
    ended: bool = False
    fallback_id: str = ""
    """The run's id while the graph has not said one: the caller's, or one of ours."""
    last: Any = None
    """The last chunk that the graph gave; the result of `invoke` is in it."""
    span_context: Any = None
    """OpenTelemetry's name for the span in which the run was started; None for none."""
    listener: Callable[[Any], None] | None = None
    """Is told of each chunk of a graph whose callbacks are not heard here."""

    @property
    def block(self) -> str:
        """The text that goes into the system message; empty for none."""
        return self.choice.block

    @property
    def run_id(self) -> str:
        """The graph's own run id; one of ours if the run failed before it had one."""
        if (known := self.recorder.root_id) is not None:
            return str(known)
        self.fallback_id = self.fallback_id or new_id()
        return self.fallback_id

    @property
    def episode_id(self) -> str:
        """The episode's id: the first run's."""
        return self.resumed_id or self.run_id

    def wants_lessons(self, config: Mapping[str, Any]) -> bool:
        """Whether the model call with this config is one of the agent's own."""
        metadata = config.get("metadata") or {}
        node, outside_tools = self.recorder.place_of(_parent(config) or _parent(var_child_runnable_config.get() or {}))
        node = node or str(metadata.get(NODE, ""))
        if self.plan.spec.inject is not None:
            return bool(self.plan.spec.inject({**metadata, NODE: node}))
        # LangChain names the source of the calls that its own middleware makes: summaries, tool selection.
        source = metadata.get(SOURCE)
        own = source is None or source == self.plan.metadata.get(SOURCE)
        return outside_tools and own and not node.endswith(MIDDLEWARE_HOOKS)

    def prepare(self) -> None:
        """Fetch the lessons; past the deadline the run goes on without them."""
        with Search(self) as search:
            try:
                # A coroutine may call a sync graph: it waits for us, but its thread reads no file.
                if not on_a_loop() and (found := self.core.finder.at_once(self.plan)) is not None:
                    self._take(found)
                    return
                for fetch, seconds in self.core.finder.fetches(self.plan, search.inside):
                    self._take(fetch().result(seconds))
            except Exception as error:  # noqa: BLE001 - boundary to the user's run
                search.failed(error)
                self.core.finder.failed(error)

    async def aprepare(self) -> None:
        """Async twin of `prepare`."""
        with Search(self) as search:
            try:
                for fetch, seconds in self.core.finder.fetches(self.plan, search.inside):
                    self._take(await awaited(fetch(), seconds))
            except Exception as error:  # noqa: BLE001 - boundary to the user's run
                search.failed(error)
                self.core.finder.failed(error)

    def passed(self, chunk: Any) -> None:
        """The graph has given a chunk."""
        self.last = chunk
        if (listener := self.listener) is not None:
            self.core.safely("listen", lambda: listener(chunk))

    def finish(self, status: EpisodeStatus, error: BaseException | None = None) -> Future[Any] | None:
        """Queue the record; safe in cancellation and garbage collection. None if there is nothing to wait for."""
        if self.ended:
            return None
        self.ended = True
        try:
            if isinstance(error, GraphInterrupt) and error.args:
                self.recorder.note_interrupts(error.args[0], "", self.run_id)
            return self.core.keeper.finish(self, status, error)
        except Exception as failure:  # noqa: BLE001 - boundary to the user's run
            self.core.failed("end", failure)
            return None

    def wait(self, done: Future[Any] | None) -> None:
        """Wait for the commit, as `durability` says."""
        if done is not None and self._on_time():
            try:
                done.result(self.core.keeper.timeout)
            except Exception as error:  # noqa: BLE001 - boundary to the user's run
                self._late(done, error)

    async def await_(self, done: Future[Any] | None) -> None:
        """Async twin of `wait`."""
        if done is not None and self._on_time():
            try:
                await awaited(done, self.core.keeper.timeout)
            except Exception as error:  # noqa: BLE001 - boundary to the user's run
                self._late(done, error)

    def _on_time(self) -> bool:
        """Whether the writer keeps up: while a record is overdue, no further run waits for its own."""
        overdue = self.core.keeper.overdue
        return overdue is None or overdue.done()

    def _late(self, done: Future[Any], error: Exception) -> None:
        if done.done():
            self.core.failed("record", error)
            return
        self.core.keeper.overdue = done
        waited = TimeoutError(f"no commit within {self.core.keeper.timeout} s; it follows")
        self.core.failed("waiting for the record", waited)

    def _take(self, found: tuple[Choice, str] | None) -> None:
        if found is not None:
            self.choice, resumed_id = found
            self.resumed_id = resumed_id or self.resumed_id


def _parent(config: Mapping[str, Any]) -> Any:
    return getattr(config.get("callbacks"), "parent_run_id", None)
