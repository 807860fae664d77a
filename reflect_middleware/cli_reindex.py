"""`reflect reindex`: build a store from the ledger, compare it, switch to it."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from reflect_middleware.cli_open import Target, folder, from_app, opened
from reflect_middleware.cli_view import View
from reflect_middleware.errors import ConfigurationError
from reflect_middleware.parts import Parts
from reflect_middleware.reflection import Reflection
from reflect_middleware.reindex import Progress

Store = Annotated[str | None, typer.Option("--store", help="A store's name or URL.  [default: the present one]")]
Model = Annotated[
    str | None, typer.Option("--embeddings", help="An embedder's name, or provider:model.  [default: the present one]")
]
TENTH = 10
"""Without a terminal, so many lines are written of each step."""


def following(target: Target, values: dict[str, Any]) -> Reflection:
    """The user's own Reflection, or one over a ledger that has the store to which that was moved.

    Raises:
        ConfigurationError: If the default embedder would have to embed all lessons, of which another one has vectors.
    """
    if target.app:
        return from_app(target.app)
    if target.ledger is not None:
        reflection = Reflection(ledger=target.ledger, namespace=("reindex",))
    else:
        reflection = Reflection(path=folder(target, creates=False))
    parts = reflection._core.parts  # noqa: SLF001 - the command line is part of the house
    if values.get("embeddings") is None and (others := sorted(filter(None, lacking(parts)))):
        reflection.close()
        made = f"The vectors are by {', '.join(others)}, and the default embedder is another one."
        allowed = "an embedder's name (`reflect reindex --embeddings`), or your own Reflection (--app)"
        raise ConfigurationError("embeddings", None, allowed, made)
    return reflection


def lacking(parts: Parts) -> dict[str, int]:
    """Lessons of which the embedder has made no vector, by the one that has."""
    return parts.ledger.health.lacking(parts.embedder.id)


@opened(opens=following)
def _reindex(reflection: Reflection, view: View, *, store: Store = None, embeddings: Model = None) -> None:
    """Build a store from the ledger while agents go on with theirs, compare it with an exact search, and switch.

    Killed, the same command goes on where it was. Exit code 1 if it did not switch; it says why.
    """
    with _shown(quiet=view.as_json) as progress:
        report = reflection.reindex(store, embeddings=embeddings, progress=progress)
    view.fields(report)
    if not report.switched:
        raise typer.Exit(1)


@functools.wraps(_reindex)
def reindex(**values: Any) -> None:
    """The whole ledger is indexed: no namespace need be named."""
    _reindex(**values | {"namespace": None})


reindex.__name__ = "reindex"


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on a terminal, some lines elsewhere; both on stderr, nothing with --json."""
    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=console) as bars:
            tasks: dict[str, Any] = {}

            def move(step: Progress) -> None:
                if step.doing not in tasks:
                    tasks[step.doing] = bars.add_task(step.doing)
                bars.update(tasks[step.doing], completed=step.done, total=step.total)

            yield move
    else:
        yield _lines()


def _lines() -> Callable[[Progress], None]:
    said: dict[str, int] = {}

    def say(step: Progress) -> None:
        share = TENTH * step.done // max(1, step.total)
        if share > said.get(step.doing, -1):
            said[step.doing] = share
            sys.stderr.write(f"{step.doing}: {step.done:,} of {step.total:,} lessons\n")

    return say
