"""Lessons out of the ledger and into it: files, other namespaces, former times."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from reflect_middleware import files, lesson_pages
from reflect_middleware.errors import ConfigurationError, LessonStateError
from reflect_middleware.history import LessonDiff, compared, fork_id, forked, way_back
from reflect_middleware.incoming import CONFLICTS, Here, ImportReport, OnConflict, Rules, decide, named, within_cap
from reflect_middleware.lesson_file import STATUSES, Line, parse, parse_patch, to_jsonl, within_bounds
from reflect_middleware.types import Lesson, LessonStatus, Namespace, now
from reflect_middleware.viewing import View, twin

if TYPE_CHECKING:
    from reflect_middleware.lessons_table import LessonTable

T = TypeVar("T")
ExportFormat = Literal["jsonl", "markdown", "prompt", "agents.md"]
ImportFormat = Literal["jsonl", "patch"]
Side = datetime | str | os.PathLike[str] | Namespace | None
EXPORTS = ("jsonl", "markdown", "prompt", "agents.md")
IMPORTS = ("jsonl", "patch")
TRIES = 10
"""How often a change is decided anew, at most, because lessons change between the decision and the commit."""
ALLOWED_TIME = "a reflection's id, or a time with a time zone, such as datetime.now(UTC)"


class Exchange(View):
    """The lessons as a whole: what leaves a namespace, what comes in, what it was like, and how it differs."""

    def export(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        format: ExportFormat = "jsonl",
        status: LessonStatus | None = "active",
        details: bool = False,
        tasks: bool = True,
        namespace: Namespace | None = None,
    ) -> str:
        """The lessons of a namespace as text, and as a file.

        Args:
            path: The file to write, as a whole or not at all; None for none.
            format: `"jsonl"`: one lesson a line, for reviews, `import_` and `Reflection.frozen`. `"markdown"`: for
                people. `"prompt"`: the block of a system prompt, with all lessons in it, whatever `token_budget` says.
                `"agents.md"`: a section between two comments; in a file that has it, only the section is replaced.
            status: Only lessons with this one; None for all.
            details: With `"jsonl"`: also when and by whom a lesson was written, and how often it was shown.
            tasks: With `"jsonl"`: also the beginning of the task that taught each lesson. Tasks like it find the
                lesson by it; leave it out where a file must not hold what users asked.
            namespace: The Reflection's own by default.

        Returns:
            The text; of `"agents.md"` the section.

        Raises:
            ConfigurationError: If an argument is not allowed, or a page has half a pair of comments.
            LessonFileError: If the file cannot be written.
        """
        _one_of("format", format, EXPORTS)
        _one_of("status", status, (*STATUSES, None))
        space = self._own(namespace)
        found = self._table.find(space, status)
        if format == "agents.md":
            section = lesson_pages.to_section(found, space)
            if path is not None:
                files.write(Path(path), lesson_pages.placed(section, space, files.page(Path(path))))
            return section
        if format == "jsonl":
            text = to_jsonl(self._with_statistics(found) if details else found, details=details, tasks=tasks)
        else:
            text = lesson_pages.to_markdown(found, space) if format == "markdown" else lesson_pages.to_prompt(found)
        if path is not None:
            files.write(Path(path), text)
        return text

    def import_(
        self,
        source: str | os.PathLike[str],
        *,
        format: ImportFormat = "jsonl",
        on_conflict: OnConflict = "error",
        status: LessonStatus | None = None,
        any_namespace: bool = False,
        dry_run: bool = False,
        namespace: Namespace | None = None,
    ) -> ImportReport:
        """Take lessons from a file or a text: all of them, or none if a single line is wrong.

        The same file twice changes nothing. A lesson that changed here while the file still says what it said stays.

        Args:
            source: A path object; a str that begins with "{" or holds a line break is the text itself, and any str
                with `format="patch"`. Another str is a file's name.
            format: `"jsonl"` as `export` writes it; only `when` and `do` are needed. `"patch"`: free text, of which
                each paragraph becomes a pinned lesson for any task.
            on_conflict: What becomes of a lesson that was changed here and in the file: `"error"`: nothing is written;
                `"skip"`: it stays as it is here; `"replace"`: as in the file, as a new version.
            status: Of lessons that are new here, whatever the file says; those that exist keep theirs. None: as
                in the file.
            any_namespace: True: also take lines that name another namespace.
            dry_run: Write nothing, say what would change.
            namespace: Where they come into; the Reflection's own by default.

        Raises:
            ConfigurationError: If an argument is not allowed.
            LessonFileError: If the file cannot be read, or a line is wrong or in conflict; all of them are named.
            LessonCapError: If more than `max_lessons` would be active, or wait.
        """
        _one_of("format", format, IMPORTS)
        _one_of("on_conflict", on_conflict, CONFLICTS)
        _one_of("status", status, (*STATUSES, None))
        space = self._own(namespace)
        text, where = _text_of(source, whole=format == "patch")
        lines = (parse_patch if format == "patch" else parse)(text, where)
        rules = Rules(on_conflict=on_conflict, status=status, any_namespace=any_namespace, dry_run=dry_run, at=now())

        def work() -> ImportReport:
            report, before = self._decided(lines, space, rules, where)
            changed = [*report.added, *(change.after for change in report.changed)]
            if not dry_run:
                self._save(*changed, before=before)
            return report

        return _retried(work)

    def rollback(
        self, *, to: datetime | str, dry_run: bool = False, namespace: Namespace | None = None
    ) -> tuple[Lesson, ...]:
        """Bring a whole namespace back to how it was at a time, or as a reflection (its id) left it.

        Lessons that did not exist then retire. The way back is a new version of each lesson that differs, all in one
        transaction, so a rollback can be rolled back. A reflection under way goes on: its edits are decided anew on
        what it finds.

        Args:
            to: A time with a time zone, or the id of a reflection that was done.
            dry_run: Change nothing, give what would change.
            namespace: The Reflection's own by default.

        Returns:
            The lessons that changed, as they are now; `diff` tells what changed in them.

        Raises:
            ConfigurationError: If `to` is no such time, or a reflection of another namespace or without an end.
            ReflectionNotFoundError: If `to` names no reflection.
            LessonCapError: If more than `max_lessons` would be active, and more than now.
        """
        space = self._own(namespace)
        at = self._moment(to, space)

        def work() -> tuple[Lesson, ...]:
            standing = self._table.find(space)
            changed = way_back(standing, self._table.as_of(space, at), now())
            within_cap(standing, changed, self._core.options.max_lessons)
            return tuple(changed) if dry_run else self._save(*changed)

        return _retried(work)

    def diff(self, a: Side, b: Side = None, *, namespace: Namespace | None = None) -> LessonDiff:
        """What differs between the active lessons of two sides: added, removed, changed with both texts.

        Args:
            a: A time with a time zone, a reflection's id (as it left the lessons), a namespace (as it is now), a file
                of lessons as a path object, or None: as it is now.
            b: The other side.
            namespace: Of sides that name none; the Reflection's own by default.

        Raises:
            ConfigurationError: If a side is nothing of these.
            LessonFileError: If a file cannot be read.
            ReflectionNotFoundError: If there is no such reflection.
        """
        space = self._own(namespace)
        return compared(self._side(a, space), self._side(b, space))

    def fork(self, to: Namespace, *, namespace: Namespace | None = None) -> tuple[Lesson, ...]:
        """Copy the active lessons of a namespace into another one, such as staging; `diff` knows which is which.

        A copy has an id of its own, always the same one, and keeps its evidence, sources and author.

        Args:
            to: The other namespace, in which no lesson may stand.
            namespace: What is copied; the Reflection's own by default.

        Returns:
            The copies.

        Raises:
            ConfigurationError: If `to` is the same namespace, or lessons stand in it.
            LessonCapError: If there are more than `max_lessons`.
        """
        space, other = self._own(namespace), self._own(to)
        if space == other:
            raise ConfigurationError("to", other, "another namespace than the one that is copied")

        def work() -> tuple[Lesson, ...]:
            if standing := sum(self._table.standing(other).values()):
                allowed = "a namespace in which no lesson stands"
                raise ConfigurationError("to", other, allowed, f"{standing} do: retire them, or name another one.")
            lessons = self._table.find(space, "active")
            known = {x.id: x for x in self._table.many([fork_id(x.id, other) for x in lessons])}
            copies = forked(lessons, other, known, now())
            within_cap((), copies, self._core.options.max_lessons)
            before = {x.id: known[x.id].version if x.id in known else 0 for x in copies}
            return self._save(*copies, before=before)

        return _retried(work)

    aexport, aimport_, arollback = twin(export), twin(import_), twin(rollback)
    adiff, afork = twin(diff), twin(fork)

    @property
    def _table(self) -> LessonTable:
        return self._core.parts.ledger.lessons

    @abstractmethod
    def _save(self, *lessons: Lesson, before: Mapping[str, int] | None = None) -> tuple[Lesson, ...]:
        """Write the next versions of lessons, all of them or none."""

    @abstractmethod
    def _with_statistics(self, lessons: tuple[Lesson, ...]) -> tuple[Lesson, ...]:
        """The lessons with how often they were shown."""

    def _decided(
        self, lines: Sequence[Line], space: Namespace, rules: Rules, where: str
    ) -> tuple[ImportReport, dict[str, int]]:
        """What an import does, and the versions that it builds on."""
        standing = self._table.find(space, standing=True)
        lines = named(lines, space, standing, self._named_in(lines))
        known = self._named_in(lines)
        here = Here(
            namespace=space,
            standing=standing,
            known=known,
            history=self._table.history,
            most=self._core.options.max_lessons,
        )
        before = {line.id: known[line.id].version if line.id in known else 0 for line in lines}
        return decide(lines, here, rules, where), before

    def _named_in(self, lines: Sequence[Line]) -> dict[str, Lesson]:
        return {lesson.id: lesson for lesson in self._table.many([line.id for line in lines if line.id])}

    def _moment(self, to: datetime | str, space: Namespace) -> datetime:
        if isinstance(to, str):
            record = self._core.parts.ledger.reflections.get(to)
            if record.namespace != space or record.status != "done":
                found = f"{record.status}, of {record.namespace}"
                raise ConfigurationError("The reflection", found, f"one that was done, of {space}")
            return record.started_at + timedelta(seconds=record.seconds)
        if getattr(to, "tzinfo", None) is None:
            raise ConfigurationError("The time", to, ALLOWED_TIME)
        return to

    def _side(self, side: Side, space: Namespace) -> Iterable[Lesson]:
        if side is None or isinstance(side, tuple):
            return self._table.find(space if side is None else self._own(side), "active")
        if isinstance(side, os.PathLike):
            path = Path(side)
            lines = parse(files.read(path), str(path))
            return [line.lesson(line.namespace or space, now()) for line in named(lines, space, (), {})]
        return self._table.as_of(space, self._moment(side, space)).values()


def _text_of(source: str | os.PathLike[str], *, whole: bool) -> tuple[str, str]:
    """A source's text, and its name for errors."""
    if isinstance(source, str) and (whole or "\n" in source or source.lstrip("\ufeff \t").startswith("{")):
        within_bounds(len(source), "The text")
        return source, "The text"
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigurationError("source", source, "a path or a text")
    return files.read(Path(source)), str(source)


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ConfigurationError(name, value, " | ".join(map(repr, allowed)))


def _retried(work: Callable[[], T]) -> T:
    """Decide and write, again if somebody was faster in between."""
    for _ in range(TRIES - 1):
        try:
            return work()
        except LessonStateError:
            continue
    return work()
