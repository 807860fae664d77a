"""Lessons at two times or in two places: what differs, the way back, and a copy that knows where it came from. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from reflect_middleware.lesson_file import WORDS, in_order
from reflect_middleware.types import Frozen, Lesson, Namespace

TOLD = frozenset(WORDS) - {"task", "sources", "replaces", "status"}
"""What makes a difference to who reads a lesson: a task is never shown."""


class LessonChange(Frozen):
    """One lesson on both sides."""

    before: Lesson
    after: Lesson

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what differs."""
        return tuple(name for name in WORDS if getattr(self.before, name) != getattr(self.after, name))

    def __str__(self) -> str:
        lines = [f"~ [{self.after.id}] {', '.join(self.fields)}"]
        for name in self.fields:
            lines += [f"    - {name}: {_said(self.before, name)}", f"    + {name}: {_said(self.after, name)}"]
        return "\n".join(lines)


class LessonDiff(Frozen):
    """What differs between two sets of active lessons."""

    added: tuple[Lesson, ...] = ()
    """Only in the second, the oldest first."""
    removed: tuple[Lesson, ...] = ()
    """Only in the first, the oldest first."""
    changed: tuple[LessonChange, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.changed)

    def __str__(self) -> str:
        if self.empty:
            return "No difference."
        lines = [f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed"]
        lines += [f"{sign} [{x.id}] {x.text}" for sign, side in (("+", self.added), ("-", self.removed)) for x in side]
        return "\n".join([*lines, *map(str, self.changed)])


def compared(before: Iterable[Lesson], after: Iterable[Lesson]) -> LessonDiff:
    """What differs between the active lessons of two sides.

    The same lesson is the one of the same id, or the fork of it, or one of the same words.
    """
    old = {lesson.id: lesson for lesson in before if lesson.status == "active"}
    new = {lesson.id: lesson for lesson in after if lesson.status == "active"}
    pairs = [(old.pop(i), new.pop(i)) for i in list(old) if i in new]
    pairs += _paired(old, new)
    changes = [LessonChange(before=one, after=other) for one, other in pairs]
    return LessonDiff(
        added=tuple(in_order(new.values())),
        removed=tuple(in_order(old.values())),
        changed=tuple(sorted((x for x in changes if not TOLD.isdisjoint(x.fields)), key=lambda x: x.after.place)),
    )


def _paired(old: dict[str, Lesson], new: dict[str, Lesson]) -> list[tuple[Lesson, Lesson]]:
    """Take out of both what is the same lesson under two ids."""
    there, here = ({x.namespace for x in side.values()} for side in (new, old))
    forks = [(i, fork_id(i, space)) for space in there for i in old]
    forks += [(fork_id(i, space), i) for space in here for i in new]
    by_words = {(x.when, x.do): x.id for x in new.values()}
    forks += [(x.id, by_words[x.when, x.do]) for x in old.values() if (x.when, x.do) in by_words]
    return [(old.pop(one), new.pop(other)) for one, other in forks if one in old and other in new]


def way_back(now: Sequence[Lesson], past: Mapping[str, Lesson], at: datetime) -> list[Lesson]:
    """The next version of each lesson that is not as it was: what was not there then retires.

    Args:
        now: All lessons of the namespace.
        past: Those that there were then, by id, as they were.
        at: The time of the change.
    """
    changed = []
    for lesson in now:
        then = past.get(lesson.id)
        words: dict[str, Any] = {"status": "retired"}
        if then is not None:
            words = {name: getattr(then, name) for name in WORDS}
        if any(getattr(lesson, name) != value for name, value in words.items()):
            stamp = {"version": lesson.version + 1, "created_by": "human", "updated_at": at}
            changed.append(lesson.model_copy(update=words | stamp))
    return changed


def fork_id(lesson_id: str, namespace: Namespace) -> str:
    """The id of a lesson's copy in another namespace: always the same."""
    return str(uuid5(NAMESPACE_URL, json.dumps(["fork", lesson_id, *namespace])))


def forked(lessons: Iterable[Lesson], namespace: Namespace, known: Mapping[str, Lesson], at: datetime) -> list[Lesson]:
    """Copies for another namespace, with their evidence, their age and who wrote them.

    Args:
        lessons: What is copied.
        namespace: The other one.
        known: By id, former copies there, which have retired.
        at: The time of the change.
    """
    copies = []
    for lesson in lessons:
        copy_id = fork_id(lesson.id, namespace)
        before = known.get(copy_id)
        version = lesson.version if before is None else max(before.version + 1, lesson.version)
        news = {"id": copy_id, "namespace": namespace, "version": version, "updated_at": at, "replaces": ()}
        copies.append(lesson.model_copy(update=news))
    return copies


def _said(lesson: Lesson, name: str) -> str:
    value = getattr(lesson, name)
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
