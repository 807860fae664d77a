"""Following runs by callbacks alone: how the middleware, which no one wraps a graph in, sees every end of a run.

A configure hook puts one handler into every callback manager; it follows only the runs that our middleware asked it to.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook
from langgraph.types import Command

from reflect_middleware import boundary
from reflect_middleware.boundary import active
from reflect_middleware.lanes import on_a_loop
from reflect_middleware.private import STEP_TAG, is_node
from reflect_middleware.record import Recorder
from reflect_middleware.session import Session
from reflect_middleware.wrap import status_of

FORWARDED = ("on_chat_model_start", "on_llm_start", "on_llm_end", "on_llm_error", "on_tool_start", "on_tool_end",
             "on_tool_error")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A run that a Command started."""

    command: Command[Any]
    recorder: Recorder
    """Notes what it does until a middleware is called in it."""
    thread_id: str


class Listener(Protocol):
    """Who may know an agent whose runs are not followed."""

    def resumed(self, run: Started, error: BaseException | None) -> None:
        """An outermost run is over that a Command resumed and that nobody followed."""


class Watch(BaseCallbackHandler):
    """Knows every run's parent, and forwards what happens below a followed run to its recorder."""

    run_inline = True

    def __init__(self) -> None:
        self._parents: dict[UUID, UUID | None] = {}
        self._sessions: dict[UUID, Session] = {}
        self._started: dict[UUID, Started] = {}
        """Runs that a Command started, and the graphs below them. What they do before their first model call is kept:
        an approved tool call."""
        self.listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self.renew()
        for name in FORWARDED:
            setattr(self, name, self._forward(name))

    def renew(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def follow(self, run_id: UUID, session: Session, node_run: UUID, metadata: Mapping[str, Any]) -> Session:
        """Record this run from now on; gives the session that follows it already, if there is one."""
        with self._lock:
            standing = self._sessions.setdefault(run_id, session)
        if standing is session:
            if (started := self._started.get(run_id)) is not None:
                session.recorder = started.recorder
            else:
                start = session.recorder.on_chain_start
                start(None, None, run_id=run_id, parent_run_id=self._parents.get(run_id))
                start(None, None, run_id=node_run, parent_run_id=run_id, tags=[STEP_TAG], metadata=metadata)
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

    def root_of(self, run_id: UUID) -> UUID:
        """The outermost run around this one."""
        while (parent := self._parents.get(run_id)) is not None:
            run_id = parent
        return run_id

    def here(self) -> Session | None:
        """The followed session whose node or tool this code is part of; None in a wrapped graph further inside."""
        if not self._sessions:
            return None
        wrapped, run_id = active.get(), parent_here()
        while run_id is not None:
            if (session := self._sessions.get(run_id)) is not None:
                return session
            if wrapped is not None and run_id == wrapped.recorder.root_id:
                return None
            run_id = self._parents.get(run_id)
        return None

    def command(self, run_id: UUID) -> Any:
        """The Command that this run was started with, if it was."""
        started = self._started.get(run_id)
        return None if started is None else started.command

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the run's parent; a followed graph's recorder gets its nodes."""
        self._parents[run_id] = parent_run_id
        command = inputs if isinstance(inputs, Command) else self._resumed(parent_run_id, kwargs.get("tags") or ())
        if command is not None:
            recorder = Recorder()
            recorder.on_chain_start(None, None, run_id=run_id, parent_run_id=parent_run_id)
            thread_id = str((kwargs.get("metadata") or {}).get("thread_id") or "")
            self._started[run_id] = Started(command=command, recorder=recorder, thread_id=thread_id)
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
        if not self._started or is_node(tags):
            return None
        while parent_run_id is not None:
            if (command := self.command(parent_run_id)) is not None:
                return command if command.resume is not None else None
            parent_run_id = self._parents.get(parent_run_id)
        return None

    def _over(self, run_id: UUID, error: BaseException | None) -> None:
        outermost = self._parents.pop(run_id, None) is None
        started, session = self._started.pop(run_id, None), self._sessions.pop(run_id, None)
        if session is None:
            if outermost and started is not None and started.thread_id and started.command.resume is not None:
                for listener in list(self.listeners):
                    listener.resumed(started, error)
            return
        session.recorder.interrupted |= session.recorder.paused and error is None
        done = session.finish(status_of(error, session), error)
        if not on_a_loop() and (error is None or isinstance(error, Exception)):
            session.wait(done)

    def _above(self, run_id: UUID | None) -> list[Recorder]:
        found: list[Recorder] = []
        while (self._sessions or self._started) and run_id is not None:
            if (session := self._sessions.get(run_id)) is not None:
                found.append(session.recorder)
            elif (started := self._started.get(run_id)) is not None:
                found.append(started.recorder)
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


def parent_here() -> UUID | None:
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
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_watch.renew)
        return _watch
