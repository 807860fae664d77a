"""Following runs by callbacks alone: how the middleware, which no one wraps a graph in, sees every end of a run.

A configure hook puts one handler into every callback manager; it follows only the runs that our middleware asked it to.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook
from langgraph.types import Command

from reflect_middleware import boundary
from reflect_middleware.boundary import active
from reflect_middleware.lanes import on_a_loop
from reflect_middleware.presence import Presence, Started
from reflect_middleware.private import STEP_TAG, is_node
from reflect_middleware.record import Recorder
from reflect_middleware.session import Session
from reflect_middleware.wrap import status_of

FORWARDED = ("on_chat_model_start", "on_llm_start", "on_llm_end", "on_llm_error", "on_tool_start", "on_tool_end",
             "on_tool_error")  # fmt: skip


class Watch(BaseCallbackHandler):
    """Knows every run's parent, and forwards what happens below a followed run to its recorder."""

    run_inline = True

    def __init__(self) -> None:
        self._parents: dict[UUID, UUID | None] = {}
        self._sessions: dict[UUID, Session] = {}
        self._started: dict[UUID, Started] = {}
        """Runs of agents with our middleware, runs that a Command started, and the graphs below them. What they do
        before their first model call is kept: an approved tool call."""
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

    def arrived(self, presence: Presence) -> None:
        """A run of an agent with our middleware reads its channels: the one that was started last in this context."""
        run_id, graph_input, metadata = _latest.get()
        if run_id is None or run_id not in self._parents or not presence.listener.wants(run_id):
            return
        started = self._started.get(run_id) or self._note(run_id, graph_input, metadata, None)
        if started.presence is None:
            self._started[run_id] = replace(started, presence=presence)

    def started(self, run_id: UUID) -> Started | None:
        """What this run was started with, if that is known."""
        return self._started.get(run_id)

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the run's parent; a followed graph's recorder gets its nodes."""
        self._parents[run_id] = parent_run_id
        metadata = kwargs.get("metadata") or {}
        _latest.set((run_id, inputs, metadata))
        command = inputs if isinstance(inputs, Command) else self._resumed(parent_run_id, kwargs.get("tags") or ())
        if command is not None:
            self._note(run_id, inputs, metadata, command)
        if parent_run_id in self._started and is_node(kwargs.get("tags")):
            self._started[parent_run_id].go_on()
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
            if (started := self._started.get(parent_run_id)) is not None and started.command is not None:
                return started.command if started.command.resume is not None else None
            parent_run_id = self._parents.get(parent_run_id)
        return None

    def _note(self, run_id: UUID, graph_input: Any, metadata: Mapping[str, Any], command: Any) -> Started:
        recorder = Recorder()
        recorder.on_chain_start(None, None, run_id=run_id, parent_run_id=self._parents.get(run_id))
        noted = Started(graph_input=graph_input, command=command, metadata=metadata, recorder=recorder)
        return self._started.setdefault(run_id, noted)

    def _over(self, run_id: UUID, error: BaseException | None) -> None:
        if _latest.get()[0] == run_id:
            _latest.set(_NONE)
        started, session = self._started.pop(run_id, None), self._sessions.pop(run_id, None)
        presence = None if started is None else started.presence
        if session is None and started is not None and presence is not None:
            session = presence.listener.late(run_id, started)
        self._parents.pop(run_id, None)
        if session is None:
            return
        paused = session.recorder.paused or (started is not None and started.paused)
        session.recorder.interrupted |= paused and error is None
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


_NONE: tuple[UUID | None, Any, Mapping[str, Any]] = (None, None, {})
_latest = ContextVar("reflect_run", default=_NONE)
"""The run that was started last in this context and is not over, its input and its metadata."""
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
