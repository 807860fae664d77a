"""What a practice runs, in which order, and when it has used up its budget. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reflect_middleware.errors import ConfigurationError
from reflect_middleware.types import Task

Phase = Literal["before", "train", "after"]
FEWEST = 10
"""From how many tasks on a share of them is held out; a list of tasks may be as short as one likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rollout of a practice."""

    name: str
    """The same in every call of the same practice."""
    phase: Phase
    epoch: int
    """From 1; 0 where it measures."""
    rollout: int
    """From 1."""
    task: Task

    @property
    def key(self) -> str:
        """The task's."""
        return self.task.key or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Rollouts that run at once; after those of a training round comes one reflection."""

    phase: Phase
    epoch: int
    number: int
    """Counts the training rounds, from 1; 0 where it measures."""
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a practice does."""

    name: str
    agent: str
    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    rollouts: int
    epochs: int
    every: int
    """Tasks of one reflection."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """By key, a name for the task's input: another input under the same key is another task."""

    def teaching(self) -> Iterator[Round]:
        """Measure, then practise."""
        if self.held_out:
            yield self._measuring("before", 1)
        number = 0
        for epoch in range(1, self.epochs + 1):
            for first in range(0, len(self.train), self.every):
                number += 1
                some = self.train[first : first + self.every]
                yield Round(phase="train", epoch=epoch, number=number, places=self._places("train", epoch, some))

    def last(self, series: int) -> Round | None:
        """The last measurement: what was measured before more was practised is of an earlier series, from 1."""
        return self._measuring("after", series) if self.held_out else None

    def _measuring(self, phase: Phase, series: int) -> Round:
        return Round(phase=phase, epoch=0, number=0, places=self._places(phase, 0, self.held_out, series))

    def _places(self, phase: Phase, epoch: int, tasks: Sequence[Task], series: int = 1) -> tuple[Place, ...]:
        names = {task.key: digest(self.agent, task.key or "", self.marks.get(task.key or "", "")) for task in tasks}
        return tuple(
            Place(
                name=f"practice:{self.name}:{names[task.key]}:{phase}:{epoch or series}:{rollout}",
                phase=phase,
                epoch=epoch,
                rollout=rollout,
                task=task,
            )
            for task in tasks
            for rollout in range(1, self.rollouts + 1)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What was used up."""

    episodes: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be used up; None: no limit."""

    episodes: int | None = None
    """Of the whole practice, however many calls it took."""
    tokens: int | None = None
    """Of the whole practice, the agent's and the reflector's."""
    minutes: float | None = None
    """Of one call."""

    def ended(self, used: Used, kept: Used) -> str:
        """Which limit is reached, if `kept` must remain for the last measurement; empty for none."""
        if self.episodes is not None and used.episodes + kept.episodes >= self.episodes:
            return "max_episodes"
        if self.tokens is not None and used.tokens + kept.tokens >= self.tokens:
            return "max_tokens"
        if self.minutes is not None and used.seconds + kept.seconds >= self.minutes * 60:
            return "max_minutes"
        return ""


def split(tasks: Sequence[Task], share: float) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Tasks to practise on, and tasks to measure with: a share of them, from `FEWEST` tasks on.

    The same tasks are always split in the same way, in whatever order they come: by a hash of their keys. At least one
    is held out, and at least one is not.
    """
    if not share or len(tasks) < FEWEST:
        return tuple(tasks), ()
    drawn = sorted(tasks, key=lambda task: _drawn(task.key or ""))
    out = {task.key for task in drawn[: min(max(round(share * len(tasks)), 1), len(tasks) - 1)]}
    return tuple(t for t in tasks if t.key not in out), tuple(t for t in tasks if t.key in out)


def apart(train: Sequence[Task], held_out: Sequence[Task]) -> None:
    """See that nothing is measured with what was practised on.

    Raises:
        ConfigurationError: If a task is on both sides.
    """
    both = {task.key for task in train} & {task.key for task in held_out}
    if both:
        problem = "What was practised on measures nothing."
        raise ConfigurationError("held_out", min(map(str, both)), "tasks that are not in tasks=", problem)


def digest(*parts: str) -> str:
    """A short name for some texts."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _drawn(key: str) -> float:
    """A number in [0, 1) that a key always draws."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64
