"""Lessons as lines of JSON: one lesson a line, in the order in which they were learned. Pure.

A file is written to be reviewed: its keys and lines have one order, what is as usual is left out, and nothing in it
changes unless a lesson does. It is read to be distrusted: every line that is wrong is named, and then none counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import StringIO
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from reflect_middleware.errors import LessonFileError, Problem
from reflect_middleware.types import TASK_CHARS, Lesson, LessonStatus, Namespace

MOST_BYTES = 32_000_000
"""A larger file is not read."""
WHEN_CHARS, DO_CHARS, BECAUSE_CHARS = 200, 400, 600
"""Longest texts of a lesson that people write."""
MOST_LESSONS = 100_000
"""A file of more is refused."""
MOST_PROBLEMS = 1_000
"""After more wrong lines the rest is not read."""
ID_CHARS = 200
"""Longest id of a lesson or an episode."""
PATCH_WHEN = "working on any task"
"""The situation of a lesson that was written as a free text."""
STATUSES = ("candidate", "active", "retired")
WORDS = ("when", "do", "because", "task", "status", "sources", "pinned", "always", "supported", "held", "replaces")
"""What a lesson says and is: a file holds it, a rollback restores it. The rest is bookkeeping."""
DETAILS = ("needs_review", "created_by", "created_at", "updated_at", "shown", "shown_reward")
"""What a file may tell besides; reading it changes nothing."""
USUAL = {
    "because": "",
    "task": "",
    "pinned": False,
    "always": False,
    "supported": True,
    "held": [],
    "sources": [],
    "replaces": [],
}
TEXTS = ("when", "do", "because", "task")
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Characters that a reviewer would not see, or that turn what is around them: they are written as escapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One lesson of a file."""

    number: int
    """Its line, from 1."""
    when: str
    do: str
    because: str = ""
    task: str | None = None
    """None: the line does not say, and a lesson that is here keeps its own."""
    id: str = ""
    """Empty: the words name it."""
    version: int = 0
    """Which version of the lesson was written, or was changed in the file; 0: it does not say."""
    status: LessonStatus = "active"
    pinned: bool = False
    always: bool = False
    supported: bool = True
    held: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    namespace: Namespace | None = None

    def words(self) -> dict[str, Any]:
        """What it says of the lesson."""
        return {name: getattr(self, name) for name in WORDS if name != "task" or self.task is not None}

    def lesson(self, namespace: Namespace, at: datetime) -> Lesson:
        """The lesson that it makes where there is none; the lines' order becomes that of age."""
        made_at = at + timedelta(microseconds=self.number)
        return Lesson(
            id=self.id or id_of(namespace, self.when, self.do),
            namespace=namespace,
            version=self.version or 1,
            created_by="import",
            created_at=made_at,
            updated_at=at,
            **self.words(),
        )


def id_of(namespace: Namespace, when: str, do: str) -> str:
    """The id of a lesson that was written without one: the same words give it again."""
    return str(uuid5(NAMESPACE_URL, json.dumps(["lesson", *namespace, when, do])))


def in_order(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The oldest first, as in the prompt: what is learned later is appended."""
    return sorted(lessons, key=lambda lesson: lesson.place)


def to_jsonl(lessons: Iterable[Lesson], *, details: bool = False, tasks: bool = True) -> str:
    """One line for each lesson, with the task that taught it unless `tasks` is False."""
    return "".join(f"{_line(lesson, details=details, tasks=tasks)}\n" for lesson in in_order(lessons))


def _line(lesson: Lesson, *, details: bool, tasks: bool) -> str:
    given = lesson.model_dump(mode="json")
    words = ("when", "do", "because", "task", "pinned", "always", "supported", "held", "sources", "replaces")
    left_out = () if tasks else ("task",)
    said = {name: given[name] for name in words if name not in left_out and given[name] != USUAL.get(name)}
    line = {"id": lesson.id, "version": lesson.version, "status": lesson.status, **said, "namespace": lesson.namespace}
    if details:
        line |= {name: given[name] for name in DETAILS}
    text = json.dumps(line, ensure_ascii=False)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def decoded(data: bytes, where: str) -> str:
    """A file's text.

    Raises:
        LessonFileError: If it is not UTF-8, or too long.
    """
    within_bounds(len(data), where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        value = data[error.start : error.start + 4]
        raise LessonFileError(where, [Problem(line=line, field="the text", value=value, allowed="UTF-8")]) from error


def within_bounds(size: int, where: str) -> None:
    """Refuse what is too long to be a file of lessons.

    Raises:
        LessonFileError: If it is.
    """
    if size > MOST_BYTES:
        allowed = f"at most {MOST_BYTES:,} bytes: export active lessons only"
        raise LessonFileError(where, [Problem(line=0, field="the size", value=size, allowed=allowed)])


def parse(text: str, where: str) -> tuple[Line, ...]:
    """The lessons of a JSONL text; blank lines are skipped.

    Args:
        text: As `decoded` gives it.
        where: Names it in errors.

    Raises:
        LessonFileError: If a line is wrong. All of them are named.
    """
    problems: list[Problem] = []
    lines: list[Line] = []
    # Not by `splitlines`: a lesson may hold other characters that end a line.
    for number, raw in enumerate(StringIO(text.removeprefix("\ufeff"), newline="\n"), 1):
        if len(problems) > MOST_PROBLEMS or len(lines) > MOST_LESSONS:
            break
        if raw.strip():
            given = _object(raw.strip(), number, problems)
            wrong = len(problems)
            problems.extend(_problems(given, number) if given is not None else ())
            if given is not None and len(problems) == wrong:
                lines.append(_read(given, number))
    problems.extend(_twice(lines))
    if len(lines) > MOST_LESSONS:
        allowed = f"at most {MOST_LESSONS:,} lessons"
        problems.append(Problem(line=lines[-1].number, field="the number", value=len(lines), allowed=allowed))
    if problems:
        raise LessonFileError(where, sorted(problems, key=lambda problem: problem.line))
    return tuple(lines)


def parse_patch(text: str, where: str) -> tuple[Line, ...]:
    """A free text as lessons that apply to any task: one for each paragraph.

    Raises:
        LessonFileError: If there is none, or one is too long for a lesson.
    """
    lines, number = [], 1
    for block in re.split(r"(\n[ \t\r]*\n\s*)", text.removeprefix("\ufeff").strip("\n")):
        if block.strip():
            do = " ".join(block.split())
            lines.append(Line(number=number, when=PATCH_WHEN, do=do, pinned=True, always=True))
        number += block.count("\n")
    problems = [problem for line in lines for problem in _checked("do", line.do, line.number)]
    if not lines:
        problems = [Problem(line=1, field="the text", value=text[:60], allowed="a paragraph or more")]
    problems.extend(_twice(lines))
    if problems:
        raise LessonFileError(where, problems)
    return tuple(lines)


class _TwiceError(ValueError):
    """A key stands twice in one object."""


def _object(raw: str, number: int, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        found = json.loads(raw, object_pairs_hook=_once)
    except _TwiceError as error:
        problems.append(Problem(line=number, field="a key", value=str(error), allowed="each key once"))
        return None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        problems.append(Problem(line=number, field="the line", value=raw, allowed="one JSON object"))
        return None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _problems(given: dict[str, Any], number: int) -> Iterator[Problem]:
    for name in ("when", "do"):
        if name not in given:
            yield Problem(line=number, field=name, value=None, allowed=CHECKS[name][1])
    for name, value in given.items():
        if name not in CHECKS and name not in DETAILS:
            yield Problem(line=number, field="a key", value=name, allowed=", ".join([*CHECKS, *DETAILS]))
        elif name in CHECKS:
            yield from _checked(name, value, number)


def _checked(name: str, value: Any, number: int) -> Iterator[Problem]:
    fits, allowed = CHECKS[name]
    if not fits(value):
        length = f" of {len(value.strip())} characters" if isinstance(value, str) and name in TEXTS else ""
        yield Problem(line=number, field=f"{name}{length}", value=value, allowed=allowed)


def _read(given: dict[str, Any], number: int) -> Line:
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Line(number=number, **{name: value for name, value in known.items() if name in CHECKS})


def _twice(lines: Sequence[Line]) -> Iterator[Problem]:
    first: dict[Any, int] = {}
    for line in lines:
        key = line.id or (line.namespace, line.when, line.do)
        if (before := first.setdefault(key, line.number)) != line.number:
            field, value = ("id", line.id) if line.id else ("do", line.do)
            yield Problem(line=line.number, field=field, value=value, allowed=f"another than in line {before}")


def _clean(value: Any) -> bool:
    """A text that both databases can keep."""
    return isinstance(value, str) and "\0" not in value and not re.search("[\ud800-\udfff]", value)


def _text(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    allowed = f"a text of {least} to {most} characters, without NUL and half characters"
    return (lambda value: _clean(value) and least <= len(value.strip()) <= most), allowed


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(_clean(item) and 0 < len(item) <= ID_CHARS for item in value)


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": _text(1, ID_CHARS),
    "version": (lambda value: type(value) is int and 1 <= value < 2**31, "a whole number from 1 on"),
    "status": (lambda value: value in STATUSES, " | ".join(STATUSES)),
    "when": _text(1, WHEN_CHARS),
    "do": _text(1, DO_CHARS),
    "because": _text(0, BECAUSE_CHARS),
    "task": _text(0, TASK_CHARS),
    "pinned": (_bool, "true or false"),
    "always": (_bool, "true or false"),
    "supported": (_bool, "true or false"),
    "held": (_ids, "a list of the values of one task that it waits for"),
    "sources": (_ids, "a list of episode ids"),
    "replaces": (_ids, "a list of lesson ids"),
    "namespace": (lambda value: _ids(value) and bool(value), "a list of texts, at least one"),
}
"""The keys of a line, in their order: whether a value fits, and what is allowed."""
