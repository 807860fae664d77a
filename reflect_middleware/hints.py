"""What a run itself says of how well it went: rewards of the source `implicit`, by rules that are stated here. Pure.

Weak evidence. A clean run says nothing; each rule that applies gives one reward, whose key is the rule's name and whose
comment quotes what was seen. `docs/rewards.md` holds the same table, and a test compares the two.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from reflect_middleware.errors import ConfigurationError
from reflect_middleware.phrases import verdict
from reflect_middleware.types import Episode, Reward, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule."""

    value: float | None
    """The reward's value; None where it is counted."""
    seen: str
    """What gives this reward."""


RULES: Mapping[str, Rule] = {
    "failed": Rule(value=0.0, seen="the run ended with an error"),
    "limit": Rule(
        value=0.1, seen="the run reached a limit of steps or calls, or its last answer was cut off by one of tokens"
    ),
    "error": Rule(value=0.25, seen="a tool failed, and no later call of it succeeded"),
    "loop": Rule(value=0.3, seen="the same call of a tool, three times or more, each time with the same result"),
    "repair": Rule(value=0.7, seen="a tool failed, and succeeded when it was called again with other arguments"),
    "correction": Rule(value=0.1, seen="the user's next message in the thread says that this was wrong"),
    "thanks": Rule(value=0.9, seen="the user's next message in the thread only thanks or praises"),
    "agreement": Rule(
        value=None, seen="the share of the rollouts of one task, three or more, that gave this same answer"
    ),
}
"""By name, which is the reward's key."""
HEARD = ("correction", "thanks")
"""The rules that look at the next run of the thread."""
IN_RUN = ("failed", "limit", "error", "loop", "repair")
"""The rules that look at nothing but the run."""
SOURCE = "implicit"
SELF = ("self", "self")
"""Source and key of the reflecting model's own assessment."""

REPEATS = 3
"""So many equal calls are a loop."""
ROLLOUTS = 3
"""So many rollouts of a task can agree."""
QUOTE = 160
"""Most characters of each thing that a comment quotes."""
NAMED = 3
"""Most things that one comment names."""

_LIMITS = ("GraphRecursionError", "ModelCallLimitExceededError", "ToolCallLimitExceededError")
_NO_STEPS = "Sorry, need more steps to process this request."
"""What langgraph's prebuilt agent answers instead of going on."""


def rules(signals: Any) -> tuple[str, ...]:
    """Check a `signals=` argument: True for all rules, False for none, or names of rules.

    Raises:
        ConfigurationError: If it is anything else.
    """
    if isinstance(signals, bool):
        return tuple(RULES) if signals else ()
    names = tuple(signals) if isinstance(signals, (tuple, list, set, frozenset)) else (signals,)
    if isinstance(signals, str) or not all(isinstance(name, str) and name in RULES for name in names):
        allowed = f"True, False, or a tuple of names from {', '.join(RULES)}"
        raise ConfigurationError("signals", signals, allowed, "One name alone is written ('repair',).")
    return tuple(name for name in RULES if name in names)


def ours(reward: Reward) -> bool:
    """Whether it is a signal of this page or the model's own assessment, and no judgement from outside."""
    return (reward.source == SOURCE and reward.key in RULES) or (reward.source, reward.key) == SELF


def judged(episode: Episode) -> bool:
    """Whether anybody but we has rewarded it."""
    return not all(map(ours, episode.rewards))


def seen_in(episode: Episode, names: Collection[str]) -> tuple[Reward, ...]:
    """The rewards that an ended run gives itself, by these rules."""
    if not names or episode.status in ("interrupted", "cancelled"):
        return ()
    found = [*_ending(episode), *_tools(episode)]
    return tuple(_reward(name, said) for name, said in found if name in names)


def heard_in(message: str, names: Collection[str], clean: Callable[[str], str]) -> tuple[Reward, ...]:
    """What a user's message, which is cleaned before it is quoted, says of the run before it in the thread."""
    found = verdict(message)
    if not found or found not in names:
        return ()
    return (_reward(found, f'the user\'s next message: "{_cut(clean(message))}"'),)


def agreement(episodes: Iterable[Episode]) -> dict[str, Reward]:
    """By id, how many rollouts of a task gave the same answer; where more than half did, and nobody else has judged."""
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for episode in episodes:
        if episode.status == "completed" and not judged(episode) and (answer := _answer(episode)):
            groups.setdefault(_task(episode), {})[episode.id] = answer
    return {name: reward for group in groups.values() for name, reward in _shares(group)}


def _shares(answers: Mapping[str, str]) -> Iterator[tuple[str, Reward]]:
    many = len(answers)
    counted = Counter(_normal(answer) for answer in answers.values())
    most = max(counted.values())
    if many < ROLLOUTS or most * 2 <= many:
        return
    usual = next(a for a in answers.values() if counted[_normal(a)] == most)
    for name, answer in answers.items():
        same = counted[_normal(answer)]
        also = "" if same == most else f'; {most} gave "{_cut(usual)}"'
        said = f'{same} of {many} rollouts of this task gave "{_cut(answer)}"{also}'
        yield name, Reward(value=same / many, source=SOURCE, key="agreement", comment=said)


def _ending(episode: Episode) -> Iterator[tuple[str, str]]:
    last = next((step for step in reversed(episode.trajectory) if step.kind == "model"), None)
    if episode.status == "failed":
        yield ("limit" if episode.error.startswith(_LIMITS) else "failed"), f"the run failed: {_cut(episode.error)}"
    elif _NO_STEPS in episode.output:
        yield "limit", f'the run gave up: "{_NO_STEPS}"'
    elif last is not None and last.truncated:
        yield "limit", f'the last answer was cut off by its token limit after: "…{_cut(last.output[-QUOTE:])}"'


def _tools(episode: Episode) -> Iterator[tuple[str, str]]:
    """What the calls of tools say: of each rule one thing, however often it applies."""
    calls: dict[str, list[Step]] = {}
    for step in _calls(episode):
        calls.setdefault(step.name, []).append(step)
    left: list[str] = []
    repairs: list[str] = []
    for name, steps in calls.items():
        for index, step in enumerate(steps):
            if step.error and step.error != episode.error:
                after = next((s for s in steps[index + 1 :] if not s.error and _follows(s, step)), None)
                if after is None:
                    left.append(f"{name} failed with {_cut(step.input) or 'no arguments'}: {_cut(step.error)}")
                elif after.input != step.input:
                    repairs.append(_repair(step, after))
    again = [said for steps in calls.values() if len(steps) >= REPEATS for said in _loops(steps)]
    for rule, said in (("error", left), ("loop", again), ("repair", repairs)):
        if said:
            yield rule, "; ".join(dict.fromkeys(said[-NAMED:]))


def _calls(episode: Episode) -> Iterator[Step]:
    """The calls of tools; not those in whose place a reviewer has answered, whose decision is a reward of its own."""
    answered = False
    for step in episode.trajectory:
        if step.kind in ("resume", "model"):
            answered = step.kind == "resume"
        elif step.kind == "tool" and not (answered and step.error and not step.input):
            yield step


def _follows(later: Step, earlier: Step) -> bool:
    """Whether a call was made when the other's result was known, and not beside it."""
    return later.started_at >= earlier.started_at + timedelta(seconds=earlier.seconds)


def _loops(steps: Sequence[Step]) -> Iterator[str]:
    for (name, given, got), times in Counter((s.name, s.input, s.error or s.output) for s in steps).items():
        if times >= REPEATS:
            yield f"{name} was called {times} times with {_cut(given) or 'no arguments'}, each time with: {_cut(got)}"


def _repair(failed: Step, good: Step) -> str:
    """What was changed between a call that failed and one that did not."""
    before, after = _arguments(failed.input), _arguments(good.input)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if before and after and names:
        changed = ", ".join(
            f"{name}: {_cut(_written(before, name))} became {_cut(_written(after, name))}" for name in names[:NAMED]
        )
    else:
        changed = f"{_cut(failed.input) or 'no arguments'} became {_cut(good.input) or 'no arguments'}"
    return f"{failed.name} failed: {_cut(failed.error)}; it succeeded after a change of {changed}"


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _written(arguments: Mapping[str, Any], name: str) -> str:
    return json.dumps(arguments[name], ensure_ascii=False) if name in arguments else "nothing"


def _reward(name: str, comment: str) -> Reward:
    return Reward(value=RULES[name].value or 0.0, source=SOURCE, key=name, comment=comment)


def _cut(text: str) -> str:
    """On one line, its end cut off where it is long."""
    line = " ".join(text[: 4 * QUOTE].split())
    return line if len(line) <= QUOTE else f"{line[:QUOTE]}…"


def _task(episode: Episode) -> tuple[str, ...]:
    """What rollouts of one task have in common: the key that their runs said, else one person's equal tasks."""
    if episode.task_key:
        return "key", episode.task_key
    return "task", episode.principal, episode.agent, " ".join(episode.task.casefold().split())


def _answer(episode: Episode) -> str:
    """The final answer: the last message of the output, else the output."""
    output = _arguments(episode.output)
    messages = output.get("messages")
    if not isinstance(messages, list):
        return episode.output
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    content = last.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""


_NUMBER = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d{1,3})?")
_BETWEEN = re.compile(r"[^\w.+-]+")


def _normal(answer: str) -> str:
    """An answer as it is compared: without case and marks, numbers as numbers."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    words = (word.strip(".+").rstrip("-") for word in _BETWEEN.split(_NUMBER.sub(_number, text)))
    return " ".join(filter(None, words))


def _number(found: re.Match[str]) -> str:
    return f" {Decimal(found.group().replace(',', '')).normalize()} "
