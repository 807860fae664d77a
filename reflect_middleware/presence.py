"""How an agent with our middleware tells that a run of it starts and when it may be done: by a channel in its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.channels.base import BaseChannel
from langgraph.errors import EmptyChannelError
from langgraph.types import Command

from reflect_middleware import hooks
from reflect_middleware.record import Recorder
from reflect_middleware.render import messages_in
from reflect_middleware.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A graph's run, before a middleware is called in it."""

    graph_input: Any
    command: Command[Any] | None
    """What it was started with, or the run around it."""
    metadata: Mapping[str, Any]
    recorder: Recorder
    presence: Presence | None = None
    """Of an agent with our middleware."""

    def go_on(self) -> None:
        """Another node starts."""
        if self.presence is not None:
            self.presence.finished = False

    @property
    def paused(self) -> bool:
        """Whether the run, which is over without an error, waits for something: a node, or the tools that were called.

        Between an agent's model and its tools there is no edge: the calls are sent.
        """
        if self.presence is None:
            return False
        return not self.presence.finished or ("thread_id" in self.metadata and _unanswered(self.recorder.output))


class Listener(Protocol):
    """A middleware, as its agent's channel and the watch know it."""

    def arrived(self, presence: Presence) -> None:
        """A run of its agent starts; raises nothing, since the user's run is on the way."""

    def wants(self, run_id: UUID) -> bool:
        """Whether this run of its agent is not looked after by others."""

    def late(self, run_id: UUID, run: Started) -> Session | None:
        """A session for a run of its agent that is over and never called it; None if it is to be left alone."""


class Presence(BaseChannel[Any, Any, Any]):
    """A channel that nobody writes: by having it an agent tells when a run of it starts, and when it may be done."""

    __slots__ = ("finished", "listener")

    def __init__(self, listener: Listener) -> None:
        super().__init__(Any)
        self.listener = listener
        self.finished = False

    @property
    def ValueType(self) -> Any:  # noqa: N802 - langgraph's name
        """Nothing is ever in it."""
        return Any

    @property
    def UpdateType(self) -> Any:  # noqa: N802 - langgraph's name
        """Nothing is ever in it."""
        return Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Presence:
        return self  # a copied agent still reports to the same middleware

    def copy(self) -> Presence:
        """The same one: it belongs to the run."""
        return self

    def from_checkpoint(self, checkpoint: Any) -> Presence:
        """A run of the agent starts, or somebody looks at its state."""
        fresh = type(self)(self.listener)
        fresh.key = self.key
        if hooks.in_a_run_that_starts():
            self.listener.arrived(fresh)
        return fresh

    def get(self) -> Any:
        """Nothing is ever in it."""
        raise EmptyChannelError

    def update(self, values: Sequence[Any]) -> bool:
        """Nobody writes it."""
        return False

    def finish(self) -> bool:
        """No edge leads on; what was sent may still run."""
        self.finished = True
        return False


def _unanswered(output: Any) -> bool:
    """Whether the last answer in the state calls tools that have not answered."""
    called: set[Any] = set()
    for message in messages_in(output):
        if isinstance(message, AIMessage):
            called = {call["id"] for call in message.tool_calls}
        elif isinstance(message, ToolMessage):
            called.discard(message.tool_call_id)
    return bool(called)
