"""Giving a reward: which episodes are meant, and what waits while the ledger is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.messages import BaseMessage

from reflect_middleware.errors import TargetError
from reflect_middleware.reward import names_of
from reflect_middleware.telemetry import evaluated
from reflect_middleware.types import Namespace, Reward

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.spool import Given

NO_TARGET = "reward needs a target: the run's result, a message, a run id, or thread_id=…"


def give(core: Core, target: Any, thread_id: str | None, namespace: Namespace | None, given: Reward) -> None:
    """Give a reward to the episodes that are meant, now or when they are known, and do what is due by it.

    Raises:
        TargetError: If the target names no run, or several that gave the same result.
    """
    if core.frozen:  # the same program judges its runs where it learns and where it serves what was learned
        core.warn_once("reward", f"rewards are ignored: {core.frozen} is served frozen, and nothing is recorded")
        return
    reward = core.keeper.cleaned(given)
    waits: list[str] = []

    def aside() -> Given:
        given = _given(core, target, thread_id, namespace, reward)
        waits.extend(given.names[:1])
        return given

    spaces: dict[str, Namespace] = core.keeper.do(
        lambda: _rewarded(core, target, thread_id, namespace, reward), aside, {}
    )
    for episode_id in spaces or waits or ([] if target is None else [_run_id(target)]):
        evaluated(episode_id, reward)
    for space in spaces.values():
        core.parts.learner.rewarded(space)


def _rewarded(
    core: Core, target: Any, thread_id: str | None, namespace: Namespace | None, reward: Reward
) -> dict[str, Namespace]:
    """Give the reward to the episodes that are meant; gives their namespaces by their ids."""
    table = core.parts.ledger.episodes
    found = _found(core, target, thread_id, namespace)
    for episode_id in found:
        table.reward(episode_id, reward)
    known = found or table.reward_later(_run_id(target), reward)
    return {episode_id: table.get(episode_id).namespace for episode_id in known}


def _given(core: Core, target: Any, thread_id: str | None, namespace: Namespace | None, reward: Reward) -> Given:
    """A reward that waits, since the ledger is away: which episodes are meant is found out later."""
    from reflect_middleware.spool import Given

    if thread_id is not None:
        return Given(reward=reward, thread_id=thread_id, namespace=namespace)
    known = None if target is None else core.keeper.lately.result(target)
    names = tuple(names_of(target)) if known is None and target is not None else (known,) if known else ()
    if not names:
        raise TargetError(NO_TARGET)
    by_id = known is not None or isinstance(target, (str, UUID, BaseMessage))
    return Given(reward=reward, names=names, unknown=by_id)


def _found(core: Core, target: Any, thread_id: str | None, namespace: Namespace | None) -> list[str]:
    """Ids of the episodes that are meant; empty for a run id that is not known yet."""
    if thread_id is not None:
        latest = core.parts.ledger.episodes.latest(thread_id, namespace)
        if latest is None:
            raise TargetError(f"The thread {thread_id!r} has no episode. List episodes with `episodes.list()`.")
        return [latest]
    if target is None:
        raise TargetError(NO_TARGET)
    if (known := core.keeper.lately.result(target)) is not None:
        return [known]
    for name in names_of(target):
        found = core.parts.ledger.episodes.resolve(name)
        if len(found) > 1 and name.startswith("out:"):
            raise TargetError(
                f"{len(found)} runs gave this same result; say which one is meant: use"
                " `with reflection.track() as t:` around the run and pass `t.episode_ids[0]`."
            )
        if found:
            return found
    if isinstance(target, (str, UUID, BaseMessage)):
        return []
    raise TargetError(
        f"No recorded run gave this {type(target).__name__}. Pass the object that the wrapped graph returned, or"
        " use `with reflection.track() as t:` and pass `t.episode_ids[0]`."
    )


def _run_id(target: Any) -> str:
    return str(target.id) if isinstance(target, BaseMessage) else str(target)
