"""What we lean on that LangChain and LangGraph do not promise: all of it, and nothing else.

Each has a test of its own in `tests/unit/test_private.py`, which runs on the lowest and the newest supported versions.
Where one is gone, a slower public way takes its place with one warning, or what it told is done without; nothing fails.

| name | tells | without it |
| --- | --- | --- |
| `CONVERT`, `INSIDE` | every model call, its config | the public methods of chat models are hooked |
| `ensure_config` | whether a run's callbacks join those around it | a graph of one node is run to see it |
| `RESUMING` | that a nested run is resumed | a resumed subgraph is a new episode |
| `RUNTIME` | context, retries and root run inside a node | namespaces need `configurable`; attempts are episodes |
| `STEP_TAG`, `NODE`, `CHECKPOINT_NS` | the node of a step, how deep it lies | steps name no node |
| `SOURCE` | that LangChain's middleware calls a model | those calls get lessons, too |
| `ENTERING` | that a run reads its channels, not `get_state` | the middleware alone sees runs from a model call on |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONVERT = "_convert_input"
"""The method of a chat model that every way of calling it goes through."""
INSIDE = frozenset({"_generate", "_agenerate", "_stream", "_astream"})
"""Where provider classes convert once more, while they build the request."""
RESUMING = "__pregel_resuming"
"""In `configurable`: whether the graph around this one goes on from an interrupt."""
RUNTIME = "__pregel_runtime"
"""In `configurable`: the run's context and which execution of a node this is."""
STEP_TAG = "graph:step:"
"""How a tag of a node's run begins."""
NODE = "langgraph_node"
"""In a run's metadata: the node."""
CHECKPOINT_NS = "langgraph_checkpoint_ns"
"""In a run's metadata: the path of graphs and nodes, with a bar between two."""
SOURCE = "lc_source"
"""In a model call's metadata: which middleware of LangChain makes it."""
ENTERING = frozenset({"__enter__", "__aenter__"})
"""The methods of langgraph's loop in which a run that starts reads its channels."""


def is_node(tags: Sequence[str] | None) -> bool:
    """Whether a run with these tags is a node's."""
    for tag in tags or ():  # noqa: SIM110 - twice as fast as `any`, and asked whenever anything starts in a graph
        if tag.startswith(STEP_TAG):
            return True
    return False


def execution_info(configurable: Mapping[str, Any]) -> Any:
    """Which execution of a node, at which attempt, under which root run; None where that is not told."""
    return getattr(configurable.get(RUNTIME), "execution_info", None)
