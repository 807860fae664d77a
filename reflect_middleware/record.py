"""Watching a run: a callback handler that notes every model call, tool call and ending."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand

from reflect_middleware.private import CHECKPOINT_NS, NODE, is_node
from reflect_middleware.render import STEP_CHARS, as_json, is_a, messages_in
from reflect_middleware.types import StepKind

try:
    from langgraph.callbacks import GraphCallbackHandler as _Handler
except ImportError:  # langgraph before its lifecycle callbacks: static interrupts read as completed
    _Handler = BaseCallbackHandler  # type: ignore[assignment,misc]

MIDDLEWARE_HOOKS = (".before_agent", ".before_model", ".after_model", ".after_agent")
"""Endings of the node names of LangChain's own middleware: summaries and guards, not the agent."""


@dataclass(slots=True)
class Run:
    """One callback run that is under way."""

    parent: UUID | None
    kind: str
    """`graph` for the wrapped graph itself, `node`, `chain` or `tool`."""
    node: str = ""
    given: Any = None
    """What a node was given."""


@dataclass(slots=True)
class Noted:
    """A step as it was seen; references only, rendered after the run."""

    kind: StepKind
    name: str
    node: Any
    place: Any
    """The path of graphs and nodes, with a bar between two."""
    run_id: Any
    input: Any
    started: float
    began: float
    output: Any = None
    error: BaseException | str | None = None
    ended: float | None = None
    usage: tuple[int, int] = (0, 0)
    tools: Any = None
    """What the tools that a model could call say of themselves."""


@dataclass(slots=True)
class Recorder(_Handler):
    """Follows one run of one wrapped graph. Its methods are called from any thread and never raise."""

    run_inline = True
    raise_error = False

    root_id: UUID | None = None
    """The wrapped graph's own run id, known once it has started."""
    parent_run_id: UUID | None = None
    output: Any = None
    interrupted: bool = False
    """The graph has said that it pauses."""
    paused: bool = False
    """A node of the graph itself has asked for an interrupt; that the graph pauses may come later, or be missed."""
    runs: dict[UUID, Run] = field(default_factory=dict)
    steps: dict[Any, Noted] = field(default_factory=dict)
    """By run id, in the order in which they started."""
    message_ids: list[str] = field(default_factory=list)
    """Ids of the messages that this run made."""
    tool_calls: set[str] = field(default_factory=set)
    asked: set[Any] = field(default_factory=set)
    """Ids of the interrupts that are noted."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A graph, a node or any other runnable starts."""
        if self.root_id is None:
            self.root_id, self.parent_run_id = run_id, parent_run_id
            self.runs[run_id] = Run(parent_run_id, "graph")
            return
        if is_node(tags):
            self.runs[run_id] = Run(parent_run_id, "node", str((metadata or {}).get(NODE, "")), inputs)
        else:
            self.runs[run_id] = Run(parent_run_id, "chain")

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A graph, a node or any other runnable ends."""
        run = self.runs.pop(run_id, None)
        if run is None or run.kind == "chain":
            return
        if run.kind == "graph":
            self.output = outputs
        elif run.kind == "node":
            self._made(messages_in(outputs), run)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A graph, a node or any other runnable fails, or pauses for an interrupt."""
        run = self.runs.pop(run_id, None)
        if run_id == self.root_id and isinstance(error, ParentCommand) and error.args:
            self.output = error.args[0].update
        if run is None or run.kind != "node" or not isinstance(error, GraphInterrupt):
            return
        self.note_interrupts(error.args[0] if error.args else (), run.node, run_id)
        if run.parent == self.root_id:
            self.paused = True
            self.interrupted |= _Handler is BaseCallbackHandler

    def on_interrupt(self, event: Any) -> None:
        """A graph pauses; ours if the event carries our run id."""
        if event.run_id == self.root_id:
            self.interrupted = True

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: Sequence[Sequence[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chat model is called."""
        name = str((metadata or {}).get("ls_model_name") or kwargs.get("name") or "")
        self._start("model", name, [m for batch in messages for m in batch], run_id, metadata)
        self.steps[run_id].tools = (kwargs.get("invocation_params") or {}).get("tools")

    def on_llm_start(
        self,
        serialized: Any,
        prompts: list[str],
        *,
        run_id: UUID,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A text model is called."""
        self._start("model", str(kwargs.get("name") or ""), list(prompts), run_id, metadata)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A model has answered."""
        answers = [generation for batch in response.generations for generation in batch]
        messages = [message for g in answers if (message := getattr(g, "message", None)) is not None]
        step = self._end(run_id, messages or [g.text for g in answers])
        for message in messages:
            if message.id:
                self.message_ids.append(message.id)
            if step is not None and (usage := getattr(message, "usage_metadata", None)):
                step.usage = (
                    step.usage[0] + int(usage.get("input_tokens") or 0),
                    step.usage[1] + int(usage.get("output_tokens") or 0),
                )

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model call has failed."""
        self._end(run_id, None, error)

    def on_tool_start(
        self,
        serialized: Mapping[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: Mapping[str, Any] | None = None,
        inputs: Any = None,
        **kwargs: Any,
    ) -> None:
        """A tool is called."""
        self.runs[run_id] = Run(parent_run_id, "tool")
        name = str((serialized or {}).get("name") or kwargs.get("name") or "")
        self._start("tool", name, inputs if inputs is not None else input_str, run_id, metadata)
        if call_id := kwargs.get("tool_call_id"):
            self.tool_calls.add(call_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool has answered, perhaps with an error message for the model."""
        self.runs.pop(run_id, None)
        failed = isinstance(output, ToolMessage) and output.status == "error"
        self._end(run_id, output, as_json(output.content, STEP_CHARS) if failed else None)
        if isinstance(output, ToolMessage):
            self.tool_calls.add(output.tool_call_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool has failed."""
        self.runs.pop(run_id, None)
        self._end(run_id, None, None if isinstance(error, GraphBubbleUp) else error)
        if call_id := kwargs.get("tool_call_id"):
            self.tool_calls.add(call_id)

    def note_interrupts(self, interrupts: Any, node: str, key: Any) -> None:
        """A graph asks. An interrupt passes through the nodes of all graphs around it: noted where it comes from."""
        given = interrupts if isinstance(interrupts, (list, tuple)) else [interrupts]
        new = {key: item for item in given if (key := getattr(item, "id", id(item))) not in self.asked}
        self.asked.update(new)
        for name, item in new.items():
            self._instant("interrupt", str(name), node, getattr(item, "value", item), (key, name))

    def place_of(self, parent_run_id: UUID | None) -> tuple[str, bool]:
        """Where a call under this run is made: the node's name, if known, and False if it is in a tool's body."""
        while parent_run_id is not None and (run := self.runs.get(parent_run_id)) is not None:
            if run.kind in ("tool", "node", "graph"):
                return run.node, run.kind != "tool"
            parent_run_id = run.parent
        return "", True

    def _start(self, kind: StepKind, name: str, given: Any, run_id: UUID, metadata: Mapping[str, Any] | None) -> None:
        where = metadata or {}
        place, node = where.get(CHECKPOINT_NS, ""), where.get(NODE, "")
        self.steps[run_id] = Noted(kind, name, node, place, run_id, given, time.time(), time.monotonic())

    def _end(self, run_id: UUID, output: Any, error: BaseException | str | None = None) -> Noted | None:
        if (step := self.steps.get(run_id)) is not None:
            step.output, step.error, step.ended = output, error, time.monotonic()
        return step

    def _instant(self, kind: StepKind, name: str, node: str, given: Any, key: tuple[Any, Any]) -> None:
        at = time.monotonic()
        self.steps[key] = Noted(kind, name, node, "", key[0], given, time.time(), at, ended=at)

    def _made(self, messages: Iterable[BaseMessage], run: Run) -> None:
        for message in messages:
            if message.id:
                self.message_ids.append(message.id)
            if is_a(message, ToolMessage) and message.status == "error":
                self._refused(message, run)

    def _refused(self, message: ToolMessage, run: Run) -> None:
        """A call that fires no tool callback (an unknown tool): only its error message in the state tells of it."""
        called = message.tool_call_id
        if called in self.tool_calls or called in self.steps:
            return
        if message_key(message) in {message_key(standing) for standing in messages_in(run.given)}:
            return
        at = time.monotonic()
        text = as_json(message.content, STEP_CHARS)
        self.steps[message.tool_call_id] = Noted(
            "tool", message.name or "", run.node, "", message.tool_call_id, "", time.time(), at, text, text, at
        )


def message_key(message: BaseMessage) -> Any:
    """What tells a message from all others."""
    return message.id or id(message)
