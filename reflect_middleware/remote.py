"""A graph that runs on a LangGraph server: its runs are recorded; its model runs elsewhere and gets no lessons."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langgraph.pregel.protocol import PregelProtocol
from langgraph.types import Interrupt

from reflect_middleware.record import Recorder
from reflect_middleware.session import Session

logger = logging.getLogger(__name__)
INTERRUPT = "__interrupt__"


@dataclass(slots=True, kw_only=True)
class Listener:
    """Reads from a RemoteGraph's chunks what a local graph's callbacks would tell."""

    recorder: Recorder
    several: bool
    """Whether several stream modes were asked for, so that each chunk names its own."""
    mode: str
    """The one that was asked for, if it was one."""
    subgraphs: bool
    parts: bool
    """Whether the chunks have the form of `version="v2"`."""
    whole: bool = False
    """A chunk with the whole state was seen: what nodes wrote is then no output."""

    def __call__(self, chunk: Any) -> None:
        """Note the chunk: the last state is the output, or what was written last where no state is streamed."""
        mode, data = self._read(chunk)
        if mode == "values" or (mode == "updates" and not self.whole):
            self.whole |= mode == "values"
            self.recorder.output = _without_interrupts(data)
        asked = chunk["interrupts"] if self.parts and chunk.get("interrupts") else None
        if asked is None and isinstance(data, Mapping) and mode in ("values", "updates"):
            asked = data.get(INTERRUPT)
        if asked:
            self.recorder.interrupted = True
            self.recorder.note_interrupts([_interrupt(item) for item in asked], "", "remote")

    def _read(self, chunk: Any) -> tuple[str, Any]:
        if self.parts:
            return chunk["type"], chunk["data"]
        if self.several:
            return (chunk[1], chunk[2]) if self.subgraphs else (chunk[0].partition("|")[0], chunk[1])
        return self.mode, chunk[1] if self.subgraphs else chunk


def is_remote(graph: Any) -> bool:
    """Whether this is langgraph's RemoteGraph, told without importing it."""
    return isinstance(graph, PregelProtocol) and hasattr(graph, "assistant_id")


def tell(agent: str) -> None:
    """Say what wrapping a RemoteGraph does and does not do."""
    logger.warning(
        "reflect: %r is a RemoteGraph: its runs are recorded here, but its model runs on the server and gets no"
        " lessons; wrap the graph itself where it is served",
        agent,
    )


def attach(graph: Any, session: Session, config: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Follow a run of a RemoteGraph; gives the config and the arguments to start it with."""
    session.plan = replace(session.plan, use_lessons=False)
    mode = kwargs.get("stream_mode") or "updates"
    session.listener = Listener(
        recorder=session.recorder,
        several=not isinstance(mode, str),
        mode=mode if isinstance(mode, str) else "",
        subgraphs=bool(kwargs.get("subgraphs")),
        parts=kwargs.get("version") == "v2",
    )
    if not _tells_run_id(graph):
        return config, kwargs
    return config, {**kwargs, "on_run_created": _created(session, kwargs.get("on_run_created"))}


def _created(session: Session, users: Callable[[Any], Any] | None) -> Callable[[Any], None]:
    """Keep the server's run id, under which its traces and their feedback name the run."""

    def created(run: Any) -> None:
        run_id = str(run.get("run_id") or "")
        session.recorder.message_ids.append(run_id)
        session.plan = replace(session.plan, metadata={**session.plan.metadata, "remote_run_id": run_id})
        if users is not None:
            users(run)

    return created


def _tells_run_id(graph: Any) -> bool:
    """Whether the client takes `on_run_created`; one of the user's own making need not."""
    clients = [client for client in (graph.client, graph.sync_client) if client is not None]
    try:
        return all("on_run_created" in inspect.signature(client.runs.stream).parameters for client in clients)
    except (AttributeError, TypeError, ValueError):
        return False


def _interrupt(item: Any) -> Any:
    return Interrupt(value=item.get("value"), id=str(item.get("id") or "")) if isinstance(item, Mapping) else item


def _without_interrupts(data: Any) -> Any:
    return {k: v for k, v in data.items() if k != INTERRUPT} if isinstance(data, Mapping) else data
