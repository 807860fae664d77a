"""A visible node for graphs that want to show where they reflect. It changes no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig, RunnableLambda

from reflect_middleware.core import off
from reflect_middleware.lanes import awaited
from reflect_middleware.session import Spec

if TYPE_CHECKING:
    from reflect_middleware.core import Core


def reflect_node(core: Core, spec: Spec) -> RunnableLambda[Any, dict[str, Any]]:
    """A node that starts what is due in the run's namespace; with `run="inline"` it waits for it."""

    def reflect(state: Any, config: RunnableConfig) -> dict[str, Any]:
        if (due := _due(core, spec, config)) is not None:
            due.result()
        return {}

    async def areflect(state: Any, config: RunnableConfig) -> dict[str, Any]:
        if (due := _due(core, spec, config)) is not None:
            await awaited(due)
        return {}

    return RunnableLambda(reflect, areflect, name="reflect")


def _due(core: Core, spec: Spec, config: RunnableConfig) -> Any:
    """Start what is due; gives back what to wait for, if anything."""
    namespace, _ = spec.rule.resolve(dict(config), None, spec.agent)
    if namespace is None or core.closed or off():
        return None
    if core.options.run == "inline":
        return core.keeper.judge.submit(lambda: core.safely("reflect", lambda: core.parts.learner.run_due_and_wait(namespace)))
    core.keeper.writer.submit(lambda: core.safely("reflect", lambda: core.parts.learner.poke(namespace)))
    return None
