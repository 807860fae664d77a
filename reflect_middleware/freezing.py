"""Serving a file of lessons instead of learning: what may be set, what the file holds, and how that begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, cast

from reflect_middleware import files
from reflect_middleware.errors import ConfigurationError, LessonFileError, Problem
from reflect_middleware.lanes import awaited, once
from reflect_middleware.lesson_file import Line, parse
from reflect_middleware.namespaces import NamespaceFn, rule
from reflect_middleware.retrieve import CountTokens
from reflect_middleware.types import Lesson, Namespace

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from reflect_middleware.core import Core
    from reflect_middleware.options import Options

BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
"""How old the first lesson of a file counts as; each further one is a moment younger."""
DEFAULT: Namespace = ("default",)


class Serving(TypedDict, total=False):
    """The settings of a frozen Reflection; their meanings are those of `Reflection`."""

    embeddings: Embeddings | str | None
    namespace: Namespace | NamespaceFn | None
    read: Sequence[Namespace | NamespaceFn]
    task: Callable[[Any], str] | None
    top_k: int
    token_budget: int
    count_tokens: CountTokens | None
    min_similarity: float
    use_lessons: bool
    redact: Callable[[str], str] | None
    inject: Callable[[Mapping[str, Any]], bool] | None
    retrieve_timeout: float
    run_overrides: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The lessons of a file."""

    file: str
    spaces: Mapping[Namespace, tuple[Lesson, ...]]
    """The active ones of each namespace, in the file's order."""


def settled(file: str | os.PathLike[str], settings: Mapping[str, Any]) -> tuple[Shelf, dict[str, Any]]:
    """Read the file, and find its namespace where none is given.

    Raises:
        ConfigurationError: If a setting is unknown, or no lesson is of the namespace.
        LessonFileError: If the file cannot be read, or a line is wrong.
    """
    if unknown := [name for name in settings if name not in Serving.__annotations__]:
        allowed = ", ".join(Serving.__annotations__)
        raise ConfigurationError("A setting of a frozen Reflection", unknown[0], allowed, "It never learns.")
    path = Path(file).absolute()
    lines = parse(files.read(path), str(path))
    named = {line.namespace for line in lines if line.namespace is not None}
    given = settings.get("namespace")
    if given is None:
        given = _escaped(next(iter(named)) if len(named) == 1 else DEFAULT)
    spaces = _shelved(lines, rule(given).plain, str(path))
    found = rule(given)
    if spaces and not callable(found.parts) and not any(map(found.fits, spaces)):
        theirs = ", ".join(str(space) for space in sorted(spaces)[:10])
        raise ConfigurationError("namespace", given, f"one of which there are lessons in {path}: {theirs}")
    return Shelf(file=str(path), spaces=spaces), {**settings, "namespace": given}


def _shelved(lines: Sequence[Line], own: Namespace | None, where: str) -> dict[Namespace, tuple[Lesson, ...]]:
    spaces: dict[Namespace, list[Lesson]] = {}
    problems = []
    for line in lines:
        space = line.namespace or own
        if space is None:
            allowed = "a list of texts, since namespace= is a template here"
            problems.append(Problem(line=line.number, field="namespace", value=None, allowed=allowed))
        elif line.status == "active":
            spaces.setdefault(space, []).append(line.lesson(space, BEGINNING))
    if problems:
        raise LessonFileError(where, problems)
    return {space: tuple(lessons) for space, lessons in spaces.items()}


def _escaped(namespace: Namespace) -> Namespace:
    return tuple(part.replace("{", "{{").replace("}", "}}") for part in namespace)


class Freezing:
    """What makes a Reflection over a file."""

    _options: Options

    @classmethod
    def frozen(cls, file: str | os.PathLike[str], **settings: Unpack[Serving]) -> Self:
        """Serve a file of lessons as `lessons.export` wrote it: no ledger, no model, no writes, nothing is learned.

        Runs get the same lessons in the same form. The file is read and checked here, once: for a newer one build a
        new Reflection. Vectors are made in memory by the first run of a namespace. Rewards are ignored with one
        warning, nodes do nothing, and whatever would record, learn or change lessons raises a FrozenError.

        Args:
            file: One lesson a line; those that are `active` are served, to runs of their own namespace.
            settings: Of those of `Reflection`: embeddings, namespace, task, top_k, token_budget, count_tokens,
                min_similarity, use_lessons, redact, inject, retrieve_timeout, run_overrides. Without `namespace` it is
                the file's, if there is only one.

        Raises:
            ConfigurationError: If a setting is not allowed, or no lesson of the file is of the namespace.
            LessonFileError: If the file cannot be read, or a line is wrong; all of them are named.
        """
        from reflect_middleware.frozen import FrozenCore

        shelf, chosen = settled(file, settings)
        made = cast("Any", cls)(None, store="exact", learn=False, **chosen)
        made._over(FrozenCore(made._options, shelf))  # noqa: SLF001 - its own
        return cast("Self", made)

    @classmethod
    async def afrozen(cls, file: str | os.PathLike[str], **settings: Unpack[Serving]) -> Self:
        """Async twin of `frozen`."""
        return await awaited(once("frozen", lambda: cls.frozen(file, **settings)))

    def _over(self, core: Core) -> None:
        """Begin with this inner side."""
        raise NotImplementedError
