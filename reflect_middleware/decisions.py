"""A reviewer's answer to an interrupt, as rewards with `source="user"`. Pure.

Known are the answers to LangChain's `HumanInTheLoopMiddleware`, all calls at once or one by one, and those of
`langgraph.prebuilt.interrupt`: approving is worth 1, editing 0.5 (with the edited call as correction), rejecting 0.
An answer in the tool's or the agent's place judges nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from reflect_middleware.types import Episode, Reward

VALUES = {"approve": 1.0, "accept": 1.0, "edit": 0.5, "reject": 0.0, "ignore": 0.0}
WORDS = {"approve": "approved", "accept": "approved", "edit": "edited", "reject": "rejected", "ignore": "rejected"}
PREFIX = "decision:"
"""What the key of such a reward begins with; the tool's name follows."""

Asked = Sequence[tuple[str, Any]]
"""The open interrupts as (id, value), in the order in which they came."""


def asked_in(episode: Episode) -> Asked:
    """What an interrupted episode waits for."""
    steps = list(episode.trajectory)
    last = max((index for index, step in enumerate(steps) if step.kind == "resume"), default=-1)
    return [(step.name, _value(step.input)) for step in steps[last + 1 :] if step.kind == "interrupt"]


def rewards_of(asked: Asked, answer: Any) -> list[Reward]:
    """The decisions in an answer as rewards; none if it holds no decision that is known."""
    return [reward for request, decision in _pairs(asked, answer) if (reward := _reward(request, decision))]


def numbered(rewards: Iterable[Reward], taken: Iterable[Reward]) -> tuple[Reward, ...]:
    """The rewards with keys of their own: a tool that is decided on twice is judged twice."""
    keys, found = {reward.key for reward in taken}, []
    for reward in rewards:
        key, number = reward.key, 1
        while key in keys:
            number += 1
            key = f"{reward.key}:{number}"
        keys.add(key)
        found.append(reward.model_copy(update={"key": key}))
    return tuple(found)


def _pairs(asked: Asked, answer: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    ids = dict(asked)
    if isinstance(answer, Mapping) and answer and set(answer) <= set(ids):
        for key, part in answer.items():
            yield from _pairs([(key, ids[key])], part)
        return
    decisions = answer.get("decisions", answer) if isinstance(answer, Mapping) else answer
    decisions = decisions if isinstance(decisions, (list, tuple)) else [decisions]
    requests = [request for _, value in asked for request in _requests(value)]
    for index, decision in enumerate(decisions):
        if isinstance(decision, Mapping):
            yield requests[index] if index < len(requests) else {}, decision


def _requests(value: Any) -> list[Mapping[str, Any]]:
    """The calls that an interrupt asks about, each with a `name` and `args`."""
    if isinstance(value, (list, tuple)):
        return [request for item in value for request in _requests(item)]
    if not isinstance(value, Mapping):
        return [{}]
    if isinstance(found := value.get("action_requests"), (list, tuple)):
        return [item if isinstance(item, Mapping) else {} for item in found]
    inner = value.get("action_request", value)
    return [_call(inner) if isinstance(inner, Mapping) else {}]


def _call(action: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": action.get("name") or action.get("action") or "", "args": action.get("args")}


def _reward(request: Mapping[str, Any], decision: Mapping[str, Any]) -> Reward | None:
    kind = decision.get("type")
    if not isinstance(kind, str) or kind not in VALUES:
        return None
    edited = decision.get("edited_action") or decision.get("args")
    correction = _written(_call(edited)) if kind == "edit" and isinstance(edited, Mapping) else ""
    why = decision.get("message")
    said = f"The reviewer {WORDS[kind]} {_written(request) or 'it'}" + (f": {why}" if why else "")
    name = str(request.get("name") or "call")
    return Reward(value=VALUES[kind], source="user", key=PREFIX + name, comment=said, correction=correction)


def _written(call: Mapping[str, Any]) -> str:
    """A call as text, as `name({...})`."""
    name, args = call.get("name"), call.get("args")
    return f"{name}({json.dumps(args, ensure_ascii=False, default=repr)})" if name else ""


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
