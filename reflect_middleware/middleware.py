"""The middleware for `langchain.agents.create_agent`: lessons by `wrap_model_call`, recording by a watch on callbacks.

Hooks before and after the agent would change its diagram and miss every ending but the normal one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import SystemMessage
from langchain_core.runnables.config import var_child_runnable_config

from reflect_middleware import boundary
from reflect_middleware.boundary import active
from reflect_middleware.core import Core
from reflect_middleware.private import RESUMING
from reflect_middleware.session import Plan, Session, Spec
from reflect_middleware.watch import Started, parent_here, watch
from reflect_middleware.wrap import status_of

logger = logging.getLogger(__name__)


class ReflectMiddleware(AgentMiddleware[Any, Any, Any]):
    """Lessons and recording for one agent. Made by `Reflection.middleware()`."""

    name = "reflect"

    def __init__(self, core: Core, spec: Spec) -> None:
        super().__init__()
        self._core = core
        self._spec = spec
        self._watch = watch()
        self._watch.listeners.add(self)
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

    def resumed(self, run: Started, error: BaseException | None) -> None:
        """A resumed run is over that never called this middleware: it may be one that our agent was interrupted in."""
        self._core.keeper.writer.submit(lambda: self._core.safely("record", lambda: self._go_on(run, error)))

    def _go_on(self, run: Started, error: BaseException | None) -> None:
        standing = self._core.parts.ledger.episodes.interrupted(self._spec.agent, run.thread_id, "")
        if standing is None:
            return
        plan = Plan(
            spec=self._spec,
            namespace=standing.namespace,
            task=standing.task,
            graph_input=run.command,
            thread_id=run.thread_id,
            resume=(run.command.resume,),
        )
        session = Session(core=self._core, plan=plan, recorder=run.recorder, resumed_id=standing.id)
        session.finish(status_of(error, session), error)

    def _session(self, request: ModelRequest[Any]) -> tuple[Session | None, bool]:
        """The run's session, and whether it starts here; None inside a graph that `wrap` looks after, or when off."""
        try:
            return self._found(request)
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self._core.failed("begin", error)
            return None, False

    def _found(self, request: ModelRequest[Any]) -> tuple[Session | None, bool]:
        outer, node_run = active.get(), parent_here()
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
            configurable[RESUMING] = True
        given = command if command is not None and not nested else {"messages": list(request.messages)}
        own = {"configurable": configurable, "metadata": config.get("metadata") or {}}
        if (caller := self._watch.graph_of(run_id)) is not None:
            root = str(self._watch.root_of(run_id))
            # The attempts of a RetryPolicy have one root; each is a run of the node around us, of its own.
            own |= {"root_run_id": root, "execution": (root, caller)}
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
    if boundary.holds([*request.messages, *filter(None, [standing])], block):
        return request
    if standing is None:
        return request.override(system_message=SystemMessage(block))
    content = boundary.extend(standing.content, block)
    return request.override(system_message=standing.model_copy(update={"content": content}))
