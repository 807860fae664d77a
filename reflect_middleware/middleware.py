"""The middleware for `langchain.agents.create_agent`: lessons by `wrap_model_call`, recording by a watch on callbacks.

Hooks before and after the agent would change its diagram and miss every ending but the normal one. A configure hook
sees them all: it puts one handler into every callback manager, which follows only the runs that our middleware asked
it to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from uuid import UUID

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import SystemMessage
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook
from langgraph.types import Command

from reflect_middleware import boundary
from reflect_middleware.boundary import active
from reflect_middleware.core import Core
from reflect_middleware.lanes import on_a_loop
from reflect_middleware.record import Recorder
from reflect_middleware.session import Session, Spec
from reflect_middleware.wrap import status_of

logger = logging.getLogger(__name__)
FORWARDED = ("on_chat_model_start", "on_llm_start", "on_llm_end", "on_llm_error", "on_tool_start", "on_tool_end",
             "on_tool_error")  # fmt: skip


class Watch(BaseCallbackHandler):
    """Knows every run's parent, and forwards what happens below a followed run to its recorder."""

    run_inline = True

    def __init__(self) -> None:
        self._parents: dict[UUID, UUID | None] = {}
        self._sessions: dict[UUID, Session] = {}
        self._commands: dict[UUID, tuple[Command[Any], Recorder]] = {}
        """Runs that a Command started, and the graphs below them. What they do before their first model call is kept:
        an approved tool call."""
        self._lock = threading.Lock()
        for name in FORWARDED:
            setattr(self, name, self._forward(name))

    def follow(self, run_id: UUID, session: Session, node_run: UUID, metadata: Mapping[str, Any]) -> Session:
        """Record this run from now on; gives the session that follows it already, if there is one."""
        with self._lock:
            standing = self._sessions.setdefault(run_id, session)
        if standing is session:
            _, kept = self._commands.get(run_id, (None, None))
            if kept is not None:
                session.recorder = kept
            else:
                start = session.recorder.on_chain_start
                start(None, None, run_id=run_id, parent_run_id=self._parents.get(run_id))
                start(None, None, run_id=node_run, parent_run_id=run_id, tags=["graph:step:"], metadata=metadata)
        return standing

    def session(self, run_id: UUID | None) -> Session | None:
        """The session that follows this run."""
        return self._sessions.get(run_id) if run_id is not None else None

    def knows(self, run_id: UUID) -> bool:
        """Whether this run's start was seen."""
        return run_id in self._parents

    def graph_of(self, node_run: UUID) -> UUID | None:
        """The run id of the graph that this node's run belongs to."""
        return self._parents.get(node_run)

    def here(self) -> Session | None:
        """The followed session whose node or tool this code is part of; None in a wrapped graph further inside."""
        if not self._sessions:
            return None
        wrapped, run_id = active.get(), _parent_here()
        while run_id is not None:
            if (session := self._sessions.get(run_id)) is not None:
                return session
            if wrapped is not None and run_id == wrapped.recorder.root_id:
                return None
            run_id = self._parents.get(run_id)
        return None

    def command(self, run_id: UUID) -> Any:
        """The Command that this run was started with, if it was."""
        return self._commands.get(run_id, (None, None))[0]

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the run's parent; a followed graph's recorder gets its nodes."""
        self._parents[run_id] = parent_run_id
        command = inputs if isinstance(inputs, Command) else self._resumed(parent_run_id, kwargs.get("tags") or ())
        if command is not None:
            recorder = Recorder()
            recorder.on_chain_start(None, None, run_id=run_id, parent_run_id=parent_run_id)
            self._commands[run_id] = (command, recorder)
        for recorder in self._above(parent_run_id):
            recorder.on_chain_start(serialized, inputs, run_id=run_id, parent_run_id=parent_run_id, **kwargs)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A followed run's record is queued when it ends."""
        for recorder in self._above(run_id):
            recorder.on_chain_end(outputs, run_id=run_id, **kwargs)
        self._over(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A followed run's record is queued when it fails, is cancelled or abandoned."""
        for recorder in self._above(run_id):
            recorder.on_chain_error(error, run_id=run_id, **kwargs)
        self._over(run_id, error)

    def _resumed(self, parent_run_id: UUID | None, tags: Sequence[str]) -> Any:
        """The Command that a run below goes on with, unless it is a mere node."""
        if not self._commands or any(tag.startswith("graph:step:") for tag in tags):
            return None
        while parent_run_id is not None:
            if (command := self.command(parent_run_id)) is not None:
                return command if command.resume is not None else None
            parent_run_id = self._parents.get(parent_run_id)
        return None

    def _over(self, run_id: UUID, error: BaseException | None) -> None:
        self._parents.pop(run_id, None)
        self._commands.pop(run_id, None)
        session = self._sessions.pop(run_id, None)
        if session is None:
            return
        session.recorder.interrupted |= session.recorder.paused and error is None
        done = session.finish(status_of(error, session), error)
        if not on_a_loop() and (error is None or isinstance(error, Exception)):
            session.wait(done)

    def _above(self, run_id: UUID | None) -> list[Recorder]:
        found: list[Recorder] = []
        while (self._sessions or self._commands) and run_id is not None:
            if (session := self._sessions.get(run_id)) is not None:
                found.append(session.recorder)
            elif (kept := self._commands.get(run_id)) is not None:
                found.append(kept[1])
            run_id = self._parents.get(run_id)
        return found

    def _forward(self, name: str) -> Callable[..., None]:
        def forward(*args: Any, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
            if name == "on_tool_start":
                self._parents[run_id] = parent_run_id
            for recorder in self._above(parent_run_id):
                getattr(recorder, name)(*args, run_id=run_id, parent_run_id=parent_run_id, **kwargs)
            if name in ("on_tool_end", "on_tool_error"):
                self._parents.pop(run_id, None)

        return forward


def _parent_here() -> UUID | None:
    """The run that callbacks of this code belong to."""
    config = var_child_runnable_config.get() or {}
    run_id: UUID | None = getattr(config.get("callbacks"), "parent_run_id", None)
    return run_id


_watch: Watch | None = None
_hooking = threading.Lock()


def watch() -> Watch:
    """The process's one watch, hooked into callback managers on first use."""
    global _watch  # noqa: PLW0603 - a configure hook cannot be taken back
    with _hooking:
        if _watch is None:
            _watch = Watch()
            boundary.finders.append(_watch.here)
            register_configure_hook(ContextVar("reflect_watch", default=_watch), inheritable=True)
        return _watch


class ReflectMiddleware(AgentMiddleware[Any, Any, Any]):
    """Lessons and recording for one agent. Made by `Reflection.middleware()`."""

    name = "reflect"

    def __init__(self, core: Core, spec: Spec) -> None:
        super().__init__()
        self._core = core
        self._spec = spec
        self._watch = watch()
        self._warned = False
        self.tools = []

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Put the run's lessons into the system message of this model call."""
        session, fresh = self._session(request)
        if session is not None and fresh:
            session.prepare()
        return handler(_with_lessons(request, session))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Async twin of `wrap_model_call`."""
        session, fresh = self._session(request)
        if session is not None and fresh:
            await session.aprepare()
        return await handler(_with_lessons(request, session))

    def _session(self, request: ModelRequest[Any]) -> tuple[Session | None, bool]:
        """The run's session, and whether it starts here; None inside a graph that `wrap` looks after, or when off."""
        try:
            return self._found(request)
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self._core.failed("begin", error)
            return None, False

    def _found(self, request: ModelRequest[Any]) -> tuple[Session | None, bool]:
        outer, node_run = active.get(), _parent_here()
        if node_run is None or not self._watch.knows(node_run):
            self._unseen()
            return None, False
        run_id = self._watch.graph_of(node_run) or node_run
        if outer is not None and outer.core is self._core and outer.recorder.root_id == run_id:
            return None, False
        if (standing := self._watch.session(run_id)) is not None:
            return standing, False
        session = self._begin(request, run_id)
        if session is None:
            return None, False
        metadata = (var_child_runnable_config.get() or {}).get("metadata") or {}
        return self._watch.follow(run_id, session, node_run, metadata), True

    def _unseen(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "reflect: the middleware cannot see the run that it is called in, which gets no lessons and is not"
                " recorded; use reflection.wrap(agent)"
            )

    def _begin(self, request: ModelRequest[Any], run_id: UUID) -> Session | None:
        config: Mapping[str, Any] = var_child_runnable_config.get() or {}
        configurable = dict(config.get("configurable") or {})
        # The node's own namespace ends in its task; the agent's is what stands before it.
        configurable["checkpoint_ns"] = str(configurable.get("checkpoint_ns") or "").rpartition("|")[0]
        command = self._watch.command(run_id)
        nested = command is not None and self._watch.graph_of(run_id) is not None
        if nested and command.resume is not None:
            configurable["__pregel_resuming"] = True
        given = command if command is not None and not nested else {"messages": list(request.messages)}
        own = {"configurable": configurable, "metadata": config.get("metadata") or {}}
        session = self._core.begin(self._spec, given, own, getattr(request.runtime, "context", None))
        if nested and session is not None and session.plan.resume is not None:
            session.plan = replace(session.plan, resume=(command.resume,))
        return session


def _with_lessons(request: ModelRequest[Any], session: Session | None) -> ModelRequest[Any]:
    if session is None or not session.block or boundary.muted():
        return request
    try:
        return (
            _merged(request, session.block) if session.wants_lessons(var_child_runnable_config.get() or {}) else request
        )
    except Exception as error:  # noqa: BLE001 - boundary to the user's run
        session.core.failed("inject", error)
        return request


def _merged(request: ModelRequest[Any], block: str) -> ModelRequest[Any]:
    standing = request.system_message
    if standing is None:
        return request.override(system_message=SystemMessage(block))
    if block in boundary.text_of(standing.content):
        return request
    content = boundary.extend(standing.content, block)
    return request.override(system_message=standing.model_copy(update={"content": content}))
