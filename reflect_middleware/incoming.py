"""What a file of lessons changes in a namespace. Pure.

A line says which version of its lesson it is, so three states are compared: the version the line began with, the line,
and the lesson as it is here now. Only where both have moved on is there a conflict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from reflect_middleware.errors import LessonCapError, LessonFileError, Problem
from reflect_middleware.history import LessonChange, fork_id
from reflect_middleware.lesson_file import WORDS, Line, id_of
from reflect_middleware.types import Frozen, Lesson, LessonStatus, Namespace

OnConflict = Literal["error", "skip", "replace"]
CONFLICTS = ("error", "skip", "replace")
STANDING: tuple[LessonStatus, ...] = ("active", "candidate")


class ImportReport(Frozen):
    """What an import did, or would do."""

    namespace: Namespace
    dry_run: bool = False
    added: tuple[Lesson, ...] = ()
    changed: tuple[LessonChange, ...] = ()
    unchanged: tuple[str, ...] = ()
    """Ids of lessons that are as the file says."""
    behind: tuple[str, ...] = ()
    """Ids of lessons that have moved on here while the file still says what they said: they stay as they are."""
    skipped: tuple[str, ...] = ()
    """Ids of lessons that were changed here and in the file, and stay as they are here, by `on_conflict="skip"`."""

    def __str__(self) -> str:
        counts = ((self.added, "added"), (self.changed, "changed"), (self.unchanged, "unchanged"))
        rest = ((self.behind, "newer here"), (self.skipped, "skipped"))
        said = ", ".join(f"{len(found)} {name}" for found, name in (*counts, *rest) if found or name == "added")
        lines = [f"{'It would be: ' if self.dry_run else ''}{said}"]
        lines += [f"+ [{x.id}] {x.status}: {x.text}" for x in self.added]
        return "\n".join([*lines, *map(str, self.changed)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The namespace that the lines come into."""

    namespace: Namespace
    standing: Sequence[Lesson]
    """Its active lessons and candidates."""
    known: Mapping[str, Lesson]
    """By id, of whatever namespace and status: those that the lines may name."""
    history: Callable[[str], Sequence[Lesson]]
    """All versions of a lesson."""
    most: int
    """Most active lessons, and most candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the lines are to be taken."""

    on_conflict: OnConflict
    status: LessonStatus | None
    """Of lessons that are new here; None: as the file says."""
    any_namespace: bool
    dry_run: bool
    at: datetime


def named(
    lines: Sequence[Line], namespace: Namespace, standing: Sequence[Lesson], known: Mapping[str, Lesson]
) -> list[Line]:
    """The lines with the ids that their lessons have here, or get.

    A line without an id is the lesson of the same words; one that a fork of this namespace wrote is the lesson that was
    forked; one whose lesson stands in its own namespace of this ledger becomes a fork of it.

    Args:
        lines: As they were read.
        namespace: Where they come into.
        standing: The lessons there.
        known: By id, the lessons of this ledger that they name.
    """
    by_words = {(x.when, x.do): x.id for x in reversed(standing)}
    forks = {line.namespace for line in lines} - {None, namespace}
    origin = {fork_id(x.id, fork): x.id for fork in forks if fork is not None for x in standing}

    def name(line: Line) -> str:
        if (there := known.get(line.id)) is not None and there.namespace == line.namespace != namespace:
            return origin.get(line.id) or fork_id(line.id, namespace)
        if line.id:
            return origin.get(line.id, line.id)
        return by_words.get((line.when, line.do)) or id_of(namespace, line.when, line.do)

    return [replace(line, id=name(line)) for line in lines]


def decide(lines: Sequence[Line], here: Here, rules: Rules, where: str) -> ImportReport:
    """What to write; the lessons in it are as they are to be.

    Args:
        lines: As `named` gives them.
        here: The namespace.
        rules: How to take them.
        where: Names the file in errors.

    Raises:
        LessonFileError: If a line is of another namespace, or in conflict.
        LessonCapError: If too many lessons would stand.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("added", "changed", "unchanged", "behind", "skipped")}
    problems = list(_foreign(lines, here, rules))
    for line in lines if not problems else ():
        old = here.known.get(line.id)
        if old is None:
            lesson = line.lesson(here.namespace, rules.at)
            found["added"].append(lesson.model_copy(update={"status": rules.status or line.status}))
            continue
        new = _changed(line, old, rules)
        fate = _fate(line, old, new, here.history)
        if fate == "conflict" and rules.on_conflict == "error":
            problems.append(_conflict(line, old))
            continue
        fate = {"conflict": "skipped" if rules.on_conflict == "skip" else "changed"}.get(fate, fate)
        found[fate].append(LessonChange(before=old, after=new) if fate == "changed" else old.id)
    if problems:
        raise LessonFileError(where, problems)
    within_cap(here.standing, [*found["added"], *(change.after for change in found["changed"])], here.most)
    return ImportReport(namespace=here.namespace, dry_run=rules.dry_run, **{k: tuple(v) for k, v in found.items()})


def within_cap(standing: Iterable[Lesson], changed: Iterable[Lesson], most: int) -> None:
    """Refuse a change that would leave too many lessons standing; fewer than before are never too many.

    Raises:
        LessonCapError: If it would.
    """
    before = {lesson.id: lesson.status for lesson in standing}
    after = before | {lesson.id: lesson.status for lesson in changed}
    had, has = Counter(before.values()), Counter(after.values())
    for status in STANDING:
        if has[status] > max(most, had[status]):
            raise LessonCapError(status, has[status], most)


def _fate(line: Line, old: Lesson, new: Lesson, history: Callable[[str], Sequence[Lesson]]) -> str:
    if all(getattr(new, name) == getattr(old, name) for name in WORDS):
        return "unchanged"
    if line.version == old.version or (line.version > old.version and old.created_by == "import"):
        return "changed"
    base = next((x for x in history(old.id) if x.version == line.version), None) if line.version else None
    if base is not None and all(getattr(base, name) == value for name, value in line.words().items()):
        return "behind"
    return "conflict"


def _changed(line: Line, old: Lesson, rules: Rules) -> Lesson:
    status = old.status if rules.status is not None else line.status
    stamp = {
        "version": max(old.version + 1, line.version),
        "updated_at": rules.at,
        "created_by": "import",
        "needs_review": False,
    }
    return old.model_copy(update=line.words() | {"status": status} | stamp)


def _foreign(lines: Sequence[Line], here: Here, rules: Rules) -> Iterable[Problem]:
    """Lines that belong elsewhere: nothing crosses a namespace unasked."""
    mine = list(here.namespace)
    for line in lines:
        if line.namespace not in (None, here.namespace) and not rules.any_namespace:
            allowed = f"{mine}, or none; any_namespace=True takes the lessons of others over"
            yield Problem(line=line.number, field="namespace", value=list(line.namespace or ()), allowed=allowed)
        elif (old := here.known.get(line.id)) is not None and old.namespace != here.namespace:
            allowed = f"one that is not in {list(old.namespace)} of this ledger; lessons.fork copies within a ledger"
            yield Problem(line=line.number, field="id", value=line.id, allowed=allowed)


def _conflict(line: Line, old: Lesson) -> Problem:
    said = f"version {line.version}" if line.version else "no version"
    allowed = (
        f"version {old.version}, at which the lesson is here ({old.text!r}), since it was changed here and in the file:"
        " export anew, or pass on_conflict='replace' or 'skip'"
    )
    return Problem(line=line.number, field=f"lesson {line.id}", value=said, allowed=allowed)
