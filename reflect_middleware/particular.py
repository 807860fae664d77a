"""Values that belong to one task only: the order's number, the customer's name, the day. Pure.

A lesson with such a value fits no other task. But values are also what most rules are about, so a value counts as one
task's own only where all of this holds: its form is that of a name, id, amount, date, e-mail, URL, file, or it is
quoted; exactly one task has it; nothing states it as a rule. What is unsure passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect_middleware.evidence import plain
from reflect_middleware.forms import Value, holds, named_in, names_in, values_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect_middleware.types import Episode

_OBLIGES = re.compile(
    r"\b(?:must|mustn't|only|always|never|required|requires?|polic(?:y|ies)|rules?|allowed|limit(?:ed|s)?"
    r"|maximum|minimum"
    r"|max|min|mandatory|has to|have to|should|valid|forbidden|permitted|nur|muss|müssen|immer|nie|niemals|erlaubt"
    r"|höchstens|mindestens|pflicht|regel|doit|doivent|toujours|jamais|seulement|obligatoire|maximal|debe|deben|siempre|nunca"
    r"|sólo|solo|obligatorio|deve|devono|sempre|mai|obbligatorio|moet|altijd|nooit|alleen)\b|必须|必須|只能|最多|至少",
    re.IGNORECASE,
)
"""Words of a rule, wherever it is said."""
_BOUNDS = re.compile(
    r"\b(?:above|below|over|under|up to|at most|at least|more than|less than|exceeds?|until|needs?|use"
    r"|instead|expected"
    r"|ab|über|unter|bis|braucht|statt|erwartet|au-dessus|plus de|moins de|jusqu'à|utilisez?|attendu"
    r"|más de|menos de|hasta|usar|esperado|sopra|sotto|fino a|usare|previsto|boven|onder|gebruik)\b"
    r"|超过|超過|使用|不能",
    re.IGNORECASE,
)
"""Words of a rule in the mouth of the environment; a task may have them without stating one."""
_EXAMPLE = re.compile(
    r"(?:e\.\s?g\.|for example|for instance|such as|example:?|z\.\s?B\.|zum Beispiel|wie etwa|par exemple"
    r"|p\.\s?ex\.|por ejemplo"
    r"|p\.\s?ej\.|per esempio|ad es\.)[^.;]*$",
    re.IGNORECASE,
)
_ESCAPE = re.compile(r"\\([nrt\"\\/])")
_CLAUSE = re.compile(r"[;\n]|[.,!?:](?=\s)")


def particular(when: str, do: str, episodes: Sequence[Episode]) -> tuple[tuple[Value, Episode], ...]:
    """The values of a lesson that one task alone has, each once, with an episode of that task."""
    tasks = _tasks(episodes)
    names = [name for task in tasks for name in named_in(task.given)]
    found: dict[str, tuple[Value, Episode]] = {}
    for text in (when, do):
        for value in (*values_in(text), *names_in(text, names)):
            if value.key in found or _EXAMPLE.search(text[: value.at]):
                continue
            holders = [task for task in tasks if task.has(value)]
            if len(holders) == 1 and not _is_rule(value, tasks):
                found[value.key] = (value, holders[0].episodes[0])
    return tuple(found.values())


def still_particular(text: str, held: Sequence[str], episodes: Sequence[Episode]) -> bool:
    """True if a text that was held back for these values still has one, and nothing here shows that it is a rule."""
    tasks = _tasks(episodes)
    left = [value for value in (*values_in(text), *names_in(text, held)) if value.text in held]
    return any(not _is_rule(value, tasks) and sum(t.has(value) for t in tasks) <= 1 for value in left)


@dataclass(frozen=True, slots=True)
class _Task:
    """One task with all its rollouts."""

    words: str
    """Its text."""
    given: str
    """Its text and input."""
    said: tuple[str, ...]
    """What the environment said."""
    episodes: tuple[Episode, ...]

    def has(self, value: Value) -> bool:
        """Whether it has the value. JSON quotes every word, so that only quotes of the text itself count."""
        return holds(self.words if value.kind == "quoted text" else self.given, value)


def _tasks(episodes: Sequence[Episode]) -> list[_Task]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.task_key or plain(episode.task), []).append(episode)
    return [
        _Task(
            words="\n".join(e.task for e in group),
            given="\n".join(f"{e.task}\n{_unescaped(e.input)}" for e in group),
            said=tuple(text for episode in group for text in _environment(episode) if text),
            episodes=tuple(group),
        )
        for group in groups.values()
    ]


def _unescaped(text: str) -> str:
    """JSON's text as it was before it became JSON, as far as values go."""
    return _ESCAPE.sub(lambda match: " " if match[1] in "nrt" else match[1], text)


def _is_rule(value: Value, tasks: Sequence[_Task]) -> bool:
    """True if a task, or what the environment said, states the value as a rule and not as this task's own."""
    for task in tasks:
        if any(_OBLIGES.search(clause) for clause in _clauses(task.given, value)):
            return True
        own = task.has(value)
        for text in task.said:
            if value.kind == "quoted text" and value.key.strip('"') in plain(text):
                return True
            clauses = list(_clauses(text, value))
            if (clauses and not own) or any(_OBLIGES.search(c) or _BOUNDS.search(c) for c in clauses):
                return True
    return False


def _environment(episode: Episode) -> Iterator[str]:
    """What was said by others than the task and the agent: results, errors, comments, corrections."""
    for step in episode.trajectory:
        if step.kind == "tool":
            yield step.output
        yield step.error
    for reward in episode.rewards:
        yield from (reward.comment, reward.correction)
    yield episode.error


def _clauses(text: str, value: Value) -> Iterator[str]:
    """The parts of a text between two marks that have the value."""
    if holds(text, value):
        yield from (clause for clause in _CLAUSE.split(text) if holds(clause, value))
