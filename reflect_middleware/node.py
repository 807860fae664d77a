"""A visible node for graphs that want to show where they reflect. It changes no state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig, RunnableLambda

from reflect_middleware.core import off
from reflect_middleware.lanes import awaited
from reflect_middleware.namespaces import principal_of
from reflect_middleware.session import Spec

if TYPE_CHECKING:
    from reflect_middleware.core import Core


def reflect_node(core: Core, spec: Spec) -> RunnableLambda[Any, Any]:
    """A node that starts what is due in the run's namespace; with `run="inline"` it waits for it."""

    def reflect(_: Any, config: RunnableConfig) -> Any:
        if (due := _due(core, spec, config)) is not None:
            due.result()
        return None  # no update, whatever the state's form

    async def areflect(_: Any, config: RunnableConfig) -> Any:
        if (due := _due(core, spec, config)) is not None:
            await awaited(due)
        return None  # no update, whatever the state's form

    return RunnableLambda(reflect, areflect, name="reflect")


def _due(core: Core, spec: Spec, config: RunnableConfig) -> Any:
    """Start what is due; gives back what to wait for, if anything."""
    if core.closed or off():
        return None
    try:
        principal = principal_of(config, overrides=core.options.run_overrides)
        namespace, _ = spec.rule.resolve(config, None, spec.agent, principal)
    except Exception as error:  # noqa: BLE001 - the user's callable, in the user's run
        core.failed("node", error)
        return None
    if namespace is None:
        return None
    if core.options.run == "inline":
        due = core.keeper.judge.submit(lambda: _safely(core, lambda: core.parts.learner.run_due_and_wait(namespace)))
        return None if core.keeper.awaited else due
    core.keeper.writer.submit(lambda: _safely(core, lambda: core.parts.learner.poke(namespace)))
    return None


def _safely(core: Core, work: Callable[[], Any]) -> None:
    core.safely("reflect", work)
