"""Rewards: what may be given, to which run, and how a user's reward callable is asked."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from reflect_middleware.errors import RewardError
from reflect_middleware.render import fingerprint, messages_in
from reflect_middleware.types import Episode, Reward

EVALUATOR = ("inputs", "outputs", "reference_outputs")


def unit(value: Any) -> float:
    """A reward's value: True and False are 1 and 0, other numbers must be in [0, 1].

    Raises:
        RewardError: If it is anything else.
    """
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    raise RewardError(
        f"reward is {value!r}; allowed: True, False or a number from 0 (worst) to 1 (best)."
        " For a score from -1 to 1 use feedback(target, key=..., score=...)."
    )


def from_score(score: Any) -> float:
    """LangSmith's score as a reward: bools and 0 … 1 as they are, -1 … 0 lie below 0 and become 0.

    Raises:
        RewardError: If it is no number in [-1, 1].
    """
    if isinstance(score, bool):
        return float(score)
    if isinstance(score, (int, float)) and math.isfinite(score) and -1 <= score <= 1:
        return max(0.0, float(score))
    raise RewardError(f"score is {score!r}; allowed: True, False or a number from -1 to 1.")


def names_of(target: Any) -> list[str]:
    """Under which names the ledger may know the episode of a run id, a message or a run's result, the best first."""
    if isinstance(target, Episode):
        return [target.id]
    if isinstance(target, BaseMessage):
        return [target.id] if target.id else []
    if isinstance(target, str) or type(target).__name__ == "UUID":
        return [str(target)]
    value = getattr(target, "value", target) if type(target).__name__ == "GraphOutput" else target
    messages = list(messages_in(value))
    asked = max(
        (at for at, message in enumerate(messages) if message.type == "human"), default=-1
    )  # earlier: other runs
    produced = [m.id for m in messages[asked + 1 :] if m.id and m.type in ("ai", "tool")]
    try:
        return [*reversed(produced), fingerprint(value)]
    except Exception:  # noqa: BLE001 - an object that JSON cannot hold has no fingerprint
        return [*reversed(produced)]


def call(fn: Callable[..., Any], episode: Episode) -> list[Reward]:
    """Ask a reward callable or an evaluator; on a thread without a running event loop.

    Raises:
        RewardError: If its answer is none of bool, number, Reward, dict, list of these, None.
        Exception: Whatever the callable raises.
    """
    answer = fn(**_evaluator_arguments(fn, episode)) if _is_evaluator(fn) else fn(episode)
    if inspect.isawaitable(answer):
        answer = asyncio.run(_await(answer))
    return rewards_in(answer)


def rewards_in(answer: Any, *, source: str = "outcome", key: str = "reward") -> list[Reward]:
    """What a user's callable said, as rewards.

    Args:
        answer: bool, number, Reward, dict, list of these, or None.
        source: Who judged where the answer does not say so.
        key: What was judged where the answer does not say so.

    Raises:
        RewardError: If it is none of these.
    """
    if answer is None:
        return []
    if isinstance(answer, Reward):
        return [answer]
    if isinstance(answer, (list, tuple)):
        return [reward for item in answer for reward in rewards_in(item, source=source, key=key)]
    if isinstance(answer, Mapping):
        score = answer.get("score", answer.get("value"))
        if score is None:
            return []
        return [
            Reward(
                value=from_score(score),
                source=str(answer.get("source") or source),
                key=str(answer.get("key") or key),
                comment=str(answer.get("comment") or ""),
                correction=str(answer.get("correction") or ""),
            )
        ]
    return [Reward(value=unit(answer), source=source, key=key)]


def _is_evaluator(fn: Callable[..., Any]) -> bool:
    try:
        names = set(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return False
    return "outputs" in names and bool(names & {"inputs", "reference_outputs"})


def _evaluator_arguments(fn: Callable[..., Any], episode: Episode) -> dict[str, Any]:
    values = {
        "inputs": _loads(episode.input),
        "outputs": _loads(episode.output),
        "reference_outputs": _loads(episode.reference),
    }
    parameters = inspect.signature(fn).parameters
    return {name: value for name, value in values.items() if name in parameters}


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def _await(answer: Any) -> Any:
    return await answer
