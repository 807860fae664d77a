"""What a practice is given to practise on: tasks of any form, or a file of them, checked before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reflect_middleware.errors import ConfigurationError
from reflect_middleware.render import fingerprint
from reflect_middleware.types import Task

ALLOWED = (
    "a text, Task(input=…, reference=…, key=…), a dict with `input` and perhaps `reference` and `key`, or a graph input"
)
FIELDS = {"input", "reference", "key"}
SHOWN = 5
"""How many bad tasks an error shows."""
KEY_CHARS = 16


def read_tasks(given: Any, *, texts: bool | None, what: str = "tasks") -> tuple[Task, ...]:
    """All tasks, each with a key and a graph input.

    Args:
        given: An iterable of tasks, or the path of a JSONL file of them.
        texts: Whether a text becomes `{"messages": text}`, or is an input as it is; None: the graph takes no text.
        what: The argument's name, for errors.

    Raises:
        ConfigurationError: If a task cannot be read, two have the same key, or there is none; it names each.
    """
    numbered = _of_file(given, what) if isinstance(given, (str, os.PathLike)) else _of_items(given, what)
    tasks: list[Task] = []
    bad: list[str] = []
    places: dict[str | None, str] = {}
    for place, value, trouble in numbered:
        task = None if trouble else _task(value, texts=texts)
        if task is None:
            bad.append(f"{place} is {_short(value)}{trouble}")
        elif task.key in places:
            bad.append(f"{place} has the key {task.key!r} of {places[task.key]}: give one of them a key of its own")
        else:
            places[task.key] = place
            tasks.append(task)
    if bad:
        more = f" … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        no_text = " This graph has no messages, so that a text is no input of it." if texts is None else ""
        problem = f"Nothing was run: {'; '.join(bad[:SHOWN])}{more}.{no_text}"
        raise ConfigurationError(what, _short(given), f"tasks, each of them {ALLOWED}", problem)
    if not tasks:
        raise ConfigurationError(what, _short(given), "at least one task")
    return tuple(tasks)


def _of_items(given: Any, what: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(given, (Mapping, Task)) or not isinstance(given, Iterable):
        raise ConfigurationError(what, given, "a list of tasks, or the path of a JSONL file of them")
    for number, value in enumerate(given, 1):
        yield f"task {number}", value, ""


def _of_file(path: str | os.PathLike[str], what: str) -> Iterator[tuple[str, Any, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"Reading it failed: {error}."
        raise ConfigurationError(what, str(path), "a JSONL file, or a list of tasks", problem) from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line), ""
            except ValueError as error:
                yield f"line {number}", line, f", which is no JSON ({error})"


def _task(value: Any, *, texts: bool | None) -> Task | None:
    """The task with its input and key; None for what is none."""
    if isinstance(value, Task):
        task = value
    elif isinstance(value, Mapping) and "input" in value and set(value) <= FIELDS:
        key = value.get("key")
        if key is not None and not isinstance(key, str):
            return None
        task = Task(input=value["input"], reference=value.get("reference"), key=key)
    else:
        task = Task(input=value)
    if not _input(task.input) or task.key == "" or (texts is None and isinstance(task.input, str)):
        return None
    graph_input = {"messages": task.input} if texts and isinstance(task.input, str) else task.input
    key = task.key or fingerprint(graph_input).removeprefix("out:")[:KEY_CHARS]
    return Task(input=graph_input, reference=task.reference, key=key)


def _input(value: Any) -> bool:
    """Whether this may be a graph's input: a text, a mapping, or an object of the user's, such as a state class."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not isinstance(value, (bool, int, float, bytes, list, tuple, set))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"  # noqa: PLR2004 - a line's worth
