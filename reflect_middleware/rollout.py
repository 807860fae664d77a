"""A trajectory without its echoes: calls, results, errors and words, each said once. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reflect_middleware.evidence import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reflect_middleware.types import Episode, Step

_SPOKEN = {"ai": "says", "tool": "result"}
_ROLE = re.compile(r"^(human|ai|tool|system|function): ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One thing that happened, as labelled lines."""

    lines: tuple[tuple[str, str], ...]
    """(label, text)."""
    error: str = ""
    """The step's error, else empty."""
    steps: int = 1
    """How many steps it stands for: notes stand for all that they were written on."""
    noted: bool = False
    """Notes on steps, or the mention of steps that nobody read, instead of a step."""

    @property
    def by_person(self) -> bool:
        """A person spoke: a message after the task, or the answer to an interrupt."""
        return any(label in ("human", "resume") for label, _ in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An episode as it is told: what it was asked, and what happened."""

    task: str
    """What this run was asked: of a conversation the last turn alone."""
    earlier: str
    """The turns before it, a line each: context. Empty where there were none."""
    beats: tuple[Beat, ...]


def told(episode: Episode) -> Told:
    """What happened, in order.

    Models are handed again what was said before, and say a call that the tool then receives: both are left out, and a
    step of which nothing is left is no beat.
    """
    tools = [step for step in episode.trajectory if step.kind == "tool"]
    calls = {key for step in tools for text in _forms_of_call(step) for key in _keys(text)}
    task, earlier = turns(episode)
    seen = {plain(task), plain(episode.task), *(plain(body) for _, body in _messages(earlier))}
    happened = [_beat(step, task, calls, seen) for step in episode.trajectory]
    return Told(task=task, earlier=earlier, beats=tuple(beat for beat in happened if beat.lines))


def turns(episode: Episode) -> tuple[str, str]:
    """The last human turn of an episode's task, and the turns before it as text; the whole task where it has no turns.

    The first model call tells: its last human message is what this run was asked, if the task ends with it.
    """
    given = next((step.input for step in episode.trajectory if step.kind == "model" and step.input), "")
    messages = _messages(given)
    last = max((n for n, (role, _) in enumerate(messages) if role == "human"), default=None)
    task = episode.task.strip()
    if last is None or not (asked := messages[last][1].strip()) or not task.endswith(asked):
        return episode.task, ""
    before = [f"{role}: {body.strip()}" for role, body in messages[:last] if body.strip()]
    return asked, "\n".join(before) or task.removesuffix(asked).strip()


def last_words(episode: Episode) -> str:
    """The output as far as the trajectory does not show it already."""
    shown = {key for step in episode.trajectory for key in _keys(_bare(step.output))}
    rest = _as_told(_without_messages(episode.output, shown), {*shown, plain(episode.task)})
    return "" if plain(_bare(rest)) in shown else rest


def _as_told(output: str, shown: set[str]) -> str:
    """A state's messages as lines like those of steps, for agents that call their tools by themselves."""
    state = _object(output)
    messages = state.pop("messages", None)
    if not messages or not isinstance(messages, list) or not all(isinstance(m, dict) and "type" in m for m in messages):
        return output
    lines = [line for message in messages for line in _message(message, shown)]
    return "\n".join([*lines, *([json.dumps(state, ensure_ascii=False)] if state else [])])


def _message(message: dict[str, Any], shown: set[str]) -> Iterable[str]:
    """One message, without what is shown elsewhere."""
    content, who = message.get("content", ""), message["type"]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    if text.strip() and plain(text) not in shown:
        yield f"{_SPOKEN.get(who, who)}: {text.strip()}"
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            given = json.dumps(call.get("args", {}), ensure_ascii=False)
            yield f"call {call.get('name')} {'(as it said)' if not shown.isdisjoint(_keys(given)) else given}"


def _forms_of_call(step: Step) -> Iterable[str]:
    return (f"{step.name}({step.input})", step.input) if step.input else ()


def _keys(text: str) -> set[str]:
    """What texts that say the same share: the words, and for a JSON object also its values, where 12 is 12.0."""
    value = _object(text, whole=float)
    return {plain(text), plain(json.dumps(value, ensure_ascii=False, sort_keys=True))} if value else {plain(text)}


def _beat(step: Step, task: str, calls: set[str], seen: set[str]) -> Beat:
    if step.kind == "tool":
        lines = [(f"call {step.name}", step.input or "(no arguments)"), ("result", step.output)]
    elif step.kind == "model":
        lines = [*_news(step.input, task, seen, calls), ("says", _without_calls(_bare(step.output), calls))]
    else:
        lines = [(step.kind, step.input or step.output)]
    seen.update((plain(_bare(step.output)), plain(step.error)))
    said = [line for line in lines if line[1].strip()]
    if not step.error:
        return Beat(lines=tuple(said))
    new = [line for line in said if plain(line[1]) != plain(step.error)]
    return Beat(lines=(*new, ("error", step.error)), error=step.error)


def _news(given: str, task: str, seen: set[str], calls: set[str]) -> list[tuple[str, str]]:
    """The messages of a model's input that are neither the task, nor an earlier step's output, nor its own call."""
    messages = _messages(given)
    fresh = [(role, body.strip()) for role, body in messages if plain(body) not in seen and body.strip() not in task]
    seen.update(plain(body) for _, body in fresh)
    return [(role, body) for role, body in fresh if body and not (role == "ai" and plain(body) in calls)]


def _messages(given: str) -> list[tuple[str, str]]:
    """(who, what) of each message in a model's input."""
    parts = _ROLE.split(given)
    return [("given", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]


def _bare(text: str) -> str:
    """The text without the name of who said it."""
    return _ROLE.sub("", text, count=1).strip()


def _without_calls(text: str, calls: set[str]) -> str:
    if not calls.isdisjoint(_keys(text)):
        return ""
    return "\n".join(line for line in text.splitlines() if plain(line) not in calls or not plain(line))


def _without_messages(output: str, shown: set[str]) -> str:
    """The output without its messages where the trajectory shows the last of them."""
    state = _object(output)
    messages = state.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return output
    if plain(str(messages[-1].get("content", ""))) not in shown:
        return output
    rest = {key: value for key, value in state.items() if key != "messages"}
    return json.dumps(rest, ensure_ascii=False) if rest else ""


def _object(text: str, whole: Callable[[str], float] = int) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_int=whole)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
