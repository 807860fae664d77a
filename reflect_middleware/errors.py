"""Every error this package raises on purpose.

One base, `ReflectError`, plus the built-in parent that fits: both `except ReflectError` and `except LookupError` work.
Each message says what happened, with which value, what is allowed, and what to do next.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROBLEMS = 50
"""Most problems that one message names."""
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


class ReflectError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(ReflectError, ValueError):
    """An argument has a value that is not allowed."""

    def __init__(self, what: str, value: Any, allowed: str, todo: str = "") -> None:
        tail = f" {todo}" if todo else ""
        super().__init__(f"{what} is {value!r}; allowed: {allowed}.{tail}")


class WrapError(ReflectError, TypeError):
    """The object given to `wrap` is not a compiled LangGraph graph."""


class TemplateError(ConfigurationError):
    """A namespace template cannot be read, or is used where a plain namespace is needed."""


class RewardError(ReflectError, ValueError):
    """A reward is not a bool or a number in [0, 1]."""


class TargetError(ReflectError, LookupError):
    """A reward's target names no episode, or more than one."""


class LessonNotFoundError(ReflectError, LookupError):
    """No lesson has this id in this namespace."""

    def __init__(self, lesson_id: str) -> None:
        super().__init__(f"No lesson has the id {lesson_id!r}. List the ids with `lessons.list()`.")


class LessonStateError(ReflectError, ValueError):
    """The lesson's status does not allow this change."""


class LessonTextError(ReflectError, ValueError):
    """A lesson's text is empty or too long."""


class LessonCapError(ReflectError, ValueError):
    """A change would leave more lessons of a namespace standing than `max_lessons`; nothing was written."""

    def __init__(self, status: str, count: int, most: int) -> None:
        super().__init__(
            f"This would make {count} {status} lessons; allowed: max_lessons={most}, of each namespace."
            " Retire some, take fewer, or raise max_lessons."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one line of a file of lessons."""

    line: int
    """From 1; 0 for the file as a whole."""
    field: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.field} is {_short.repr(self.value)}; allowed: {self.allowed}"


class LessonFileError(ReflectError, ValueError):
    """A file of lessons cannot be used, or not be written; nothing was changed."""

    def __init__(self, where: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        """What is wrong, line by line."""
        shown = [str(problem) for problem in problems[:PROBLEMS]]
        if more := len(problems) - len(shown):
            shown.append(f"and {more} more")
        super().__init__("\n  ".join([f"{where} cannot be used, and nothing was changed:", *shown]))


class FrozenError(ReflectError, RuntimeError):
    """A frozen Reflection serves a file of lessons: it records, learns and changes nothing."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"This Reflection is frozen: it serves {file} and has no ledger. Change the lessons where they are learned,"
            " export them, and build it anew from the new file."
        )


class EpisodeNotFoundError(ReflectError, LookupError):
    """No episode has this id."""

    def __init__(self, episode_id: str) -> None:
        super().__init__(f"No episode has the id {episode_id!r}. List the ids with `episodes.list()`.")


class ReflectionNotFoundError(ReflectError, LookupError):
    """No reflection has this id."""

    def __init__(self, reflection_id: str) -> None:
        super().__init__(f"No reflection has the id {reflection_id!r}. List the ids with `reflections.list()`.")


class MissingExtraError(ReflectError, ImportError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs a package that is not installed: pip install 'reflect-middleware[{extra}]'.")


class StoreError(ReflectError, RuntimeError):
    """The vector store failed; the driver's own error is its `__cause__`."""


class StoreLockedError(StoreError):
    """Another process holds this embedded store; searches fall back to the ledger's vectors."""


class UnknownStoreError(ReflectError, LookupError):
    """No installed store has this name."""


class EmbedderError(ReflectError, RuntimeError):
    """No embedder could turn text into vectors; the cause is its `__cause__`."""


class LedgerError(ReflectError, RuntimeError):
    """The ledger (SQL database) cannot be opened, read or written; the driver's error is its `__cause__`."""

    temporary = False
    """Whether the same call may succeed later though nobody has changed anything in the ledger."""


class LedgerUnavailableError(LedgerError, ConnectionError):
    """The ledger does not answer now: its server is away, it is locked, its disk is full, it may not be written."""

    temporary = True


class LedgerSchemaError(LedgerError):
    """The ledger's tables are older or newer than this version of the package."""


class LedgerDamagedError(LedgerError):
    """The ledger's file is no readable database."""


class LedgerPlaceError(LedgerError):
    """The ledger's file is where SQLite cannot keep it safe."""


class LedgerValueError(LedgerError, ValueError):
    """The ledger refuses this one value; with another one the call may succeed."""


class ReflectorError(ReflectError, RuntimeError):
    """The reflector gave no usable answer; its batch goes back to the ledger."""


class QuotaError(ReflectError, RuntimeError):
    """A limit on reflections is reached; nothing was claimed."""

    def __init__(self, what: str, seconds: float, *, lasting: bool = False) -> None:
        super().__init__(f"{what}: the episodes wait. Reflections go on in {seconds:,.0f} s at the earliest.")
        self.seconds = seconds
        """When to try again."""
        self.lasting = lasting
        """Whether it is a matter of hours, not of moments."""


class ClosedError(ReflectError, RuntimeError):
    """This Reflection is closed."""
