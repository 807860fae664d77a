"""What is known of a run before it starts: whose it is, what it is about, what it goes on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from langgraph.types import Command

from reflect_middleware.boundary import session_here
from reflect_middleware.counters import REFUSED
from reflect_middleware.namespaces import NamespaceRule, principal_of
from reflect_middleware.private import RESUMING, execution_info
from reflect_middleware.render import task_text
from reflect_middleware.session import Plan, Session, Spec
from reflect_middleware.slot import here as practised
from reflect_middleware.types import Namespace

if TYPE_CHECKING:
    from reflect_middleware.core import Core


def planned(core: Core, spec: Spec, graph_input: Any, config: Mapping[str, Any], context: Any) -> Plan | None:
    """What is known of a run before it starts; None if it is to be left alone, or has no namespace."""
    configurable = config.get("configurable") or {}
    own = configurable.get("reflect") if core.options.run_overrides else None
    per_run: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    learn = core.options.learn and per_run.get("learn", True) is not False
    use_lessons = core.options.use_lessons and per_run.get("use_lessons", True) is not False
    if not learn and not use_lessons:
        return None
    principal = principal_of(config, overrides=core.options.run_overrides)
    namespace, why = spec.rule.resolve(config, context, spec.agent, principal)
    if namespace is None:
        core.counters.add(REFUSED, f"{spec.agent!r}: {why}")
        core.warn_once(spec.agent, f"no lessons and nothing learned for {spec.agent!r}: {why}")
        return None
    outer = session_here()
    execution, attempt = _execution(spec.agent, config)
    slot = practised.get()
    if slot is not None and outer is not None:
        slot = slot.inner
    return Plan(
        spec=spec,
        namespace=namespace,
        read=_read(core, spec, namespace, lambda rule: rule.resolve(config, context, spec.agent, principal)),
        task=_task(core, spec, graph_input),
        graph_input=graph_input,
        thread_id=str(configurable.get("thread_id") or ""),
        checkpoint_ns=str(configurable.get("checkpoint_ns") or ""),
        principal=principal,
        task_key=(slot.task_key if slot else "") or str(per_run.get("task_key") or ""),
        reference=slot.reference if slot and slot.reference is not None else per_run.get("reference"),
        metadata=config.get("metadata") or {},
        learn=learn,
        use_lessons=use_lessons,
        resume=_resume(outer, graph_input, configurable),
        parent_id=outer.episode_id if outer else "",
        root_run_id=_outer_run(outer, config),
        execution=execution,
        attempt=attempt,
        slot=slot,
    )


def _read(
    core: Core, spec: Spec, own: Namespace, resolve: Callable[[NamespaceRule], tuple[Namespace | None, str]]
) -> tuple[Namespace, ...]:
    """The namespaces that a run reads beside its own; one that has no name here is left out, the run goes on."""
    found: dict[Namespace, None] = {}
    for number, rule in enumerate(spec.read):
        try:
            namespace, why = resolve(rule)
        except Exception as error:  # noqa: BLE001 - the user's callable; the run goes on with what else it reads
            core.failed("read", error)
            continue
        if namespace is None:
            said = f"{spec.agent!r} runs without the lessons of read={rule.parts!r}: {why}"
            core.warn_once(f"{spec.agent} reads {number}", said)
        elif namespace != own:
            found[namespace] = None
    return tuple(found)


def _task(core: Core, spec: Spec, graph_input: Any) -> str:
    if isinstance(graph_input, Command):
        return "" if graph_input.update is None else task_text(graph_input.update)
    if (custom := spec.task or core.options.task) is not None:
        try:
            return str(custom(graph_input))
        except Exception as error:  # noqa: BLE001 - the user's callable; the default text serves
            core.failed("task", error)
    return task_text(graph_input)


def _resume_value(graph_input: Any, configurable: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The answer that an interrupted run goes on with, in a tuple; None where this run starts anew."""
    if isinstance(graph_input, Command):
        return (graph_input.resume,) if graph_input.resume is not None else None
    if configurable.get(RESUMING):
        return (None,)
    if graph_input is None and not configurable.get("checkpoint_id"):
        return (None,)
    return None


def _resume(outer: Session | None, graph_input: Any, configurable: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """As `_resume_value`; only the outermost run was given the answer."""
    found = _resume_value(graph_input, configurable)
    return outer.plan.resume if found == (None,) and outer is not None and outer.plan.resume else found


def _outer_run(outer: Session | None, config: Mapping[str, Any]) -> str:
    if outer is not None:
        return outer.plan.root_run_id or outer.run_id
    configurable = config.get("configurable") or {}
    return str(config.get("root_run_id") or getattr(execution_info(configurable), "run_id", None) or "")


def _execution(agent: str, config: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The execution of the node that this run belongs to, and the attempt at it; empty outside of a node."""
    configurable = config.get("configurable") or {}
    parts = str(configurable.get("checkpoint_ns") or "").split("|")
    namespace = "|".join(part for part in parts if not part.isdigit())  # langgraph counts a task's further graphs
    if not namespace:
        return (), ""
    info = execution_info(configurable)
    once = (getattr(info, "node_first_attempt_time", None), getattr(info, "node_attempt", 1))
    execution, attempt = config.get("execution") or once
    if not execution:
        return (), ""
    return (agent, str(configurable.get("thread_id") or ""), namespace, str(execution)), str(attempt)
