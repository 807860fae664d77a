"""A practice's progress on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from reflect_middleware.practice_report import PracticeProgress

Tell = Callable[["PracticeProgress"], Any]
WORDS = {"before": "measuring before", "after": "measuring after"}


@contextlib.contextmanager
def told(progress: Any) -> Iterator[Tell | None]:
    """What to tell of the progress: the user's callable, a bar where standard error is a terminal, or nobody."""
    if callable(progress):
        yield progress
    elif progress or (progress is None and sys.stderr.isatty()):
        with _bar() as bar:
            yield _Bar(bar)
    else:
        yield None


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description}", markup=False)
    return Progress(words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True))


class _Bar:
    """Shows each step."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("practice")

    def __call__(self, found: PracticeProgress) -> None:
        self.bar.update(self.task, description=described(found), completed=found.done, total=found.total)


def described(found: PracticeProgress) -> str:
    """One line: what is done now, with which success so far."""
    where = WORDS.get(found.phase, f"epoch {found.epoch}")
    success = "no rewards yet" if found.success is None else f"success {100 * found.success:.0f} %"
    return f"{where}, {success}, {found.lessons} lessons, {found.tokens:,} tokens"
