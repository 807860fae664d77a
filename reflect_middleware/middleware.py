"""The middleware for `langchain.agents.create_agent`: lessons by `wrap_model_call`, recording by a watch on callbacks.

Hooks before and after the agent would change its diagram and miss every ending but the normal one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, NotRequired
from uuid import UUID

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import SystemMessage
from langchain_core.runnables.config import var_child_runnable_config
from typing_extensions import TypedDict

from reflect_middleware import boundary
from reflect_middleware.boundary import active
from reflect_middleware.core import Core
from reflect_middleware.presence import Presence, Started
from reflect_middleware.private import CHECKPOINT_NS, RESUMING
from reflect_middleware.session import Session, Spec
from reflect_middleware.watch import parent_here, watch

logger = logging.getLogger(__name__)


class ReflectMiddleware(AgentMiddleware[Any, Any, Any]):
    """Lessons and recording for one agent. Made by `Reflection.middleware()`."""

    name = "reflect"

    def __init__(self, core: Core, spec: Spec) -> None:
        super().__init__()
        self._core = core
        self._spec = spec
        self._watch = watch()
        self.state_schema = _state_with(Presence(self))
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

    def arrived(self, presence: Presence) -> None:
        """A run of its agent starts."""
        self._core.safely("begin", lambda: self._watch.arrived(presence))

    def wants(self, run_id: UUID) -> bool:
        """Whether `wrap` does not look after this run already."""
        outer = active.get()
        return outer is None or outer.core is not self._core or outer.recorder.root_id != run_id

    def late(self, run_id: UUID, run: Started) -> Session | None:
        """A session for a run that ended before its first model call, with what its metadata tells of its config."""
        configurable = {"thread_id": run.metadata.get("thread_id"), "checkpoint_ns": run.metadata.get(CHECKPOINT_NS)}
        try:
            session = self._begun(run_id, run.graph_input, configurable, run.metadata, None)
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self._core.failed("begin", error)
            return None
        if session is not None:
            session.recorder = run.recorder
        return session

    def _session(self, request: ModelRequest[Any]) -> tuple[Session | None, bool]:
        """The run's session, and whether it starts here; None inside a graph that `wrap` looks after, or when off."""
        try:
            return self._found(request)
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self._core.failed("begin", error)
            return None, False

    def _found(self, request: ModelRequest[Any]) -> tuple[Session | None, bool]:
        node_run = parent_here()
        if node_run is None or not self._watch.knows(node_run):
            self._unseen()
            return None, False
        run_id = self._watch.graph_of(node_run) or node_run
        if not self.wants(run_id):
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
        given, metadata = {"messages": list(request.messages)}, config.get("metadata") or {}
        return self._begun(run_id, given, configurable, metadata, getattr(request.runtime, "context", None))

    def _begun(
        self, run_id: UUID, given: Any, configurable: dict[str, Any], metadata: Mapping[str, Any], context: Any
    ) -> Session | None:
        started, caller = self._watch.started(run_id), self._watch.graph_of(run_id)
        command = started.command if started is not None else None
        nested = command is not None and caller is not None
        if nested and command is not None and command.resume is not None:
            configurable[RESUMING] = True
        if started is not None and caller is None:
            given = started.graph_input if started.graph_input is None or command is not None else given
            configurable["checkpoint_id"] = started.metadata.get("checkpoint_id")
        own: dict[str, Any] = {"configurable": configurable, "metadata": metadata}
        if caller is not None:
            root = str(self._watch.root_of(run_id))
            # The attempts of a RetryPolicy have one root; each is a run of the node around us, of its own.
            own |= {"root_run_id": root, "execution": (root, caller)}
        session = self._core.begin(self._spec, given, own, context)
        if nested and command is not None and session is not None and session.plan.resume is not None:
            session.plan = replace(session.plan, resume=(command.resume,))
        return session


def _state_with(presence: Presence) -> Any:
    """The state that our middleware asks for: one channel, in no input and no output, in which nothing ever is."""
    make: Any = TypedDict
    return make("ReflectState", {"reflect": NotRequired[Annotated[Any, presence, PrivateStateAttr]]})


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
