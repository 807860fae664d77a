"""Values that belong to one task only: the order's number, the customer's name, the day. Pure.

A lesson with such a value fits no other task. But values are also what most rules are about, so a value counts as one
task's own only where all of this holds: its form is that of a name, id, amount, date, e-mail, URL, file, or it is
quoted; exactly one task has it; nothing states it as a rule. What is unsure passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from reflect_middleware.evidence import plain
from reflect_middleware.forms import READ, Value, holds, named_in, names_in, values_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect_middleware.types import Episode

OBLIGES = re.compile(
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


def is_rule(text: str) -> bool:
    """Whether a text has words of a rule or of a bound."""
    return bool(OBLIGES.search(text) or _BOUNDS.search(text))


class Tasks:
    """The tasks of a batch, looked at once: what each says, and what the environment said to it."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        groups: dict[str, list[Episode]] = {}
        for episode in episodes:
            groups.setdefault(episode.task_key or plain(episode.task), []).append(episode)
        self._tasks = [_Task(rollouts) for rollouts in groups.values()]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for task in self._tasks for name in named_in(task.given.text)))

    def particular(self, when: str, do: str) -> tuple[tuple[Value, Episode], ...]:
        """The values of a lesson that one task alone has, each once, with an episode of that task."""
        found: dict[str, tuple[Value, Episode]] = {}
        for text in (when, do):
            for value in (*values_in(text), *names_in(text, self._names)):
                if value.key in found or _EXAMPLE.search(text[: value.at]):
                    continue
                holders = [task for task in self._tasks if task.has(value)]
                if len(holders) == 1 and not self._is_rule(value):
                    found[value.key] = (value, holders[0].episodes[0])
        return tuple(found.values())

    def still_particular(self, text: str, held: Sequence[str]) -> bool:
        """True if a text that was held back for these values still has one, and nothing shows that it is a rule."""
        left = [value for value in (*values_in(text), *names_in(text, held)) if value.text in held]
        return any(not self._is_rule(value) and sum(task.has(value) for task in self._tasks) <= 1 for value in left)

    def _is_rule(self, value: Value) -> bool:
        """True if a task, or what the environment said, states the value as a rule and not as this task's own."""
        return any(task.states(value) for task in self._tasks)


class _Text:
    """A text of which is asked again and again whether it has a value."""

    def __init__(self, parts: Iterable[str]) -> None:
        self.text = "\n".join(parts)
        self._read: dict[str, frozenset[str]] = {}

    def has(self, value: Value) -> bool:
        """Whether it has the value, in whatever form."""
        if value.kind not in READ:
            return holds(self.text, value)
        if value.kind not in self._read:
            self._read[value.kind] = READ[value.kind](self.text)
        return value.key in self._read[value.kind]

    def clauses(self, value: Value) -> Iterator[str]:
        """Its parts between two marks that have the value."""
        if self.has(value):
            yield from (clause for clause in _CLAUSE.split(self.text) if holds(clause, value))


class _Task:
    """One task with all its rollouts."""

    def __init__(self, rollouts: Sequence[Episode]) -> None:
        self.episodes = rollouts
        self.words = _Text(episode.task for episode in rollouts)
        self.given = _Text(f"{episode.task}\n{_unescaped(episode.input)}" for episode in rollouts)
        self.said = _Text(dict.fromkeys(text for episode in rollouts for text in _environment(episode) if text))

    def has(self, value: Value) -> bool:
        """Whether it has the value. JSON quotes every word, so that only quotes of the text itself count."""
        return (self.words if value.kind == "quoted text" else self.given).has(value)

    def states(self, value: Value) -> bool:
        """Whether a rule with the value is stated: in its own text, or by the environment."""
        if any(OBLIGES.search(clause) or _is_rule_of_a_task(clause) for clause in self.given.clauses(value)):
            return True
        if value.kind == "quoted text" and f" {plain(value.text)} " in f" {plain(self.said.text)} ":
            return True
        clauses = list(self.said.clauses(value))
        if clauses and not self.has(value):
            return True
        return any(map(is_rule, clauses))


def _is_rule_of_a_task(clause: str) -> bool:
    """Whether a clause of a task has two words of bounds: "needs a manager above 200 EUR", not "a flight under 200"."""
    return len({match[0].casefold() for match in _BOUNDS.finditer(clause)}) > 1


def _unescaped(text: str) -> str:
    """JSON's text as it was before it became JSON, as far as values go."""
    return _ESCAPE.sub(lambda match: " " if match[1] in "nrt" else match[1], text)


def _environment(episode: Episode) -> Iterator[str]:
    """What was said by others than the task and the agent: results, errors, comments, corrections."""
    for step in episode.trajectory:
        if step.kind == "tool":
            yield step.output
        yield step.error
    for reward in episode.rewards:
        yield from (reward.comment, reward.correction)
    yield episode.error
