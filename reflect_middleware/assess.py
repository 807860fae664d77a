"""`reward="self"`: the reflecting model judges runs that nobody has rewarded, before it reflects. Pure but for `ask`.

One call for all of them, evidence first. What cannot be read gives no rewards, and never fails a reflection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from reflect_middleware.asking import said
from reflect_middleware.evidence import quoted
from reflect_middleware.fit import fit_episode
from reflect_middleware.forks import gate
from reflect_middleware.hints import SELF, judged
from reflect_middleware.pack import Count
from reflect_middleware.prompts import ASSESS, ASSESS_AGAIN
from reflect_middleware.reflect import RETRY_MARK, Answer
from reflect_middleware.types import Episode, Reward

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

Ask = Callable[["list[BaseMessage]", "dict[str, Any] | None"], "BaseMessage"]
"""Messages, and the JSON schema of the answer where the model can keep to one, to the model's reply."""

VALUES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST: Final = 400
"""Fewest characters that are shown of an episode."""

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """What came of it."""

    rewards: Mapping[str, Reward]
    """By the episode's id."""
    answer: Answer
    """Prompt, raw answers and tokens; no edits."""


def unjudged(episodes: Sequence[Episode]) -> list[Episode]:
    """Those that nobody has rewarded, the model neither: a reflection that is tried again asks for no more."""
    return [e for e in episodes if not judged(e) and all((r.source, r.key) != SELF for r in e.rewards)]


def assess(episodes: Sequence[Episode], ask: Ask, *, budget_tokens: int, count_tokens: Count) -> Assessed:
    """Ask the model about these episodes, and once more where its answer cannot be read.

    Raises:
        Exception: Whatever the model raises when it is first asked.
    """
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    named = {f"E{number}": episode for number, episode in enumerate(episodes, 1)}
    text = question(named, budget_tokens, count_tokens)
    messages: list[BaseMessage] = [SystemMessage(ASSESS), HumanMessage(text)]
    first = _told(Answer(prompt=f"{ASSESS}\n\n{text}"), ask(messages, schema(named)))
    found, problem = read(first.raw, named)
    if not problem:
        return Assessed(rewards=found, answer=first)
    again = ASSESS_AGAIN.format(problem=problem)
    try:
        reply = ask([*messages, AIMessage(first.raw or "(no text)"), HumanMessage(again)], None)
    except Exception as error:  # noqa: BLE001 - the first answer's tokens are to be counted
        note = f"the runs were not assessed: {problem}, then {type(error).__name__}: {error}"
        return Assessed(rewards={}, answer=replace(first, note=note))
    second = _told(replace(first, raw="", prompt=f"{first.prompt}\n\n{again}"), reply)
    found, problem = read(second.raw, named)
    note = f"the runs were not assessed: {problem}" if problem else ""
    return Assessed(rewards=found, answer=replace(second, raw=f"{first.raw}{RETRY_MARK}{second.raw}", note=note))


def question(named: Mapping[str, Episode], budget_tokens: int, count_tokens: Count) -> str:
    """The episodes as one text of at most so many tokens with the instructions, as far as `LEAST` allows that."""
    room = budget_tokens - count_tokens(ASSESS)
    limit = max(room * 4, LEAST)
    while True:
        each = max(limit // len(named), LEAST)
        text = "\n\n".join(fit_episode(handle, episode, each) for handle, episode in named.items())
        if each == LEAST or count_tokens(text) <= room:
            return text
        limit = limit * 3 // 4


def schema(handles: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The answer's JSON schema, evidence before the value, because models think in the order of its keys."""
    properties = {
        "episode": {"type": "string", "enum": list(handles)},
        "because": {"type": "string", "description": "The exact words of the episode that show it, copied."},
        "value": {"type": "number", "enum": list(VALUES)},
    }
    one = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "title": "assessments",
        "description": "How far each task was fulfilled.",
        "type": "object",
        "properties": {"assessments": {"type": "array", "items": one, "maxItems": len(handles)}},
        "required": ["assessments"],
        "additionalProperties": False,
    }


def read(raw: str, named: Mapping[str, Episode]) -> tuple[dict[str, Reward], str]:
    """The rewards in an answer, by the episode's id, and why there is none where nothing could be read."""
    entries = _entries(_decoded(_THOUGHTS.sub("", raw)))
    if entries is None:
        return {}, 'there is no JSON object with a list "assessments" in it'
    found: dict[str, Reward] = {}
    for entry in entries:
        episode, value = named.get(_handle(entry.get("episode"))), _value(entry.get("value"))
        if episode is not None and value is not None:
            found.setdefault(episode.id, _reward(episode, value, str(entry.get("because") or "").strip()))
    if entries and not found:
        return {}, f'no entry has an "episode" of {", ".join(named)} and a "value" of {", ".join(map(str, VALUES))}'
    return found, ""


def _reward(episode: Episode, value: float, because: str) -> Reward:
    bare = episode.model_copy(update={"rewards": ()})  # the agent's own words may show it, too
    comment = because if quoted(because, bare) else f"(not in the words of the run) {because}" if because else ""
    return Reward(value=value, source=SELF[0], key=SELF[1], comment=comment[:500])


def _entries(value: Any) -> list[dict[str, Any]] | None:
    """The list of assessments in decoded JSON: under its name, bare, or a single one."""
    if isinstance(value, dict):
        listed = next(
            (v for k, v in value.items() if str(k).lower() == "assessments"), [value] if "value" in value else None
        )
        value = [listed] if isinstance(listed, dict) else listed
    if not isinstance(value, list):
        return None
    found = [{str(key).lower(): item for key, item in entry.items()} for entry in value if isinstance(entry, dict)]
    return found if found or not value else None


def _decoded(text: str) -> Any:
    """JSON, or what a library can mend of it; None for text that has none."""
    start = min((at for mark in "{[" if (at := text.find(mark)) >= 0), default=-1)
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0]
    except (ValueError, RecursionError):
        pass
    with gate.passing():
        import json_repair

    try:
        return json_repair.loads(text[start:])
    except Exception:  # noqa: BLE001 - a parser of arbitrary text must not decide what breaks a reflection
        return None


def _handle(value: Any) -> str:
    number = _NUMBER.search(str(value))
    return f"E{int(number[0])}" if number else ""


def _value(value: Any) -> float | None:
    """The allowed value that is nearest; None for what is no number from 0 to 1."""
    try:
        given = float(value)
    except (TypeError, ValueError):
        return None
    return min(VALUES, key=lambda allowed: abs(allowed - given)) if 0 <= given <= 1 else None


def _told(so_far: Answer, reply: BaseMessage) -> Answer:
    """What was asked before with this reply."""
    usage = getattr(reply, "usage_metadata", None) or {}
    return replace(
        so_far,
        raw="\n".join(said(reply)),
        input_tokens=so_far.input_tokens + int(usage.get("input_tokens") or 0),
        output_tokens=so_far.output_tokens + int(usage.get("output_tokens") or 0),
    )
