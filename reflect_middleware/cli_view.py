"""What the commands print: tables for people, tab-separated lines for pipes, JSON for programs.

No meaning is carried by colour alone.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reflect_middleware.finding import Finding
from reflect_middleware.types import (
    AuditEntry,
    EditOutcome,
    Episode,
    Lesson,
    Namespace,
    ReflectionRecord,
    ReflectionReport,
    Retrieved,
    Step,
)

SHORT = 8
"""Last characters of an id in a table, enough to name it in the next command; the first ones may be a time."""

LEVELS = {"ok": "ok", "advice": "advice", "problem": "PROBLEM"}
LESSON = ("id", "status", "version", "shown", "when", "do")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How one command shows its result."""

    as_json: bool = False
    namespace: Namespace | None = None
    """The namespace that the command was given; None for the Reflection's own."""

    def lessons(self, found: Sequence[Lesson]) -> None:
        """A list of lessons."""
        self._list(found, LESSON, [_lesson_row(lesson) for lesson in found], nothing="No lessons.")

    def said(self, report: BaseModel) -> None:
        """A report that can say by itself what is in it."""
        if self.as_json:
            _json(_data(report))
        else:
            sys.stdout.write(f"{report}\n")

    def nearest(self, found: Sequence[Retrieved]) -> None:
        """The answer of a search."""
        rows = [(f"{hit.similarity:.2f}", *_lesson_row(hit.lesson)) for hit in found]
        self._list(found, ("cosine", *LESSON), rows, nothing="No lesson is near.")

    def versions(self, found: Sequence[Lesson]) -> None:
        """All versions of one lesson."""
        rows = [(v.version, _time(v.updated_at), _status(v), v.created_by, v.when, v.do) for v in found]
        self._list(found, ("version", "at", "status", "by", "when", "do"), rows, nothing="No versions.")

    def lesson(self, lesson: Lesson) -> None:
        """One lesson in full."""
        self._fields(
            lesson,
            {
                "id": lesson.id,
                "namespace": ", ".join(lesson.namespace),
                "status": _status(lesson),
                "version": f"{lesson.version}, by {lesson.created_by}, {_time(lesson.updated_at)}",
                "when": lesson.when,
                "do": lesson.do,
                "because": lesson.because,
                "task": lesson.task,
                "sources": ", ".join(lesson.sources) or "added by hand",
                "held back for": ", ".join(lesson.held),
                "shown": f"in {lesson.shown} episodes, mean reward {_reward(lesson.shown_reward)}",
            },
        )

    def episodes(self, found: Sequence[Episode]) -> None:
        """A list of episodes."""
        rows = [
            (e.id, _time(e.started_at), e.status, _reward(e.reward), len(e.trajectory), e.agent, e.task) for e in found
        ]
        columns = ("id", "started", "status", "reward", "steps", "agent", "task")
        self._list(found, columns, rows, nothing="No episodes.")

    def episode(self, episode: Episode) -> None:
        """One episode in full."""
        rewards = [f"{r.value:g} {r.source}/{r.key} {r.comment}".rstrip() for r in episode.rewards]
        shown = [f"{x.lesson_id} v{x.version}" for x in episode.exposures if x.shown]
        fields = {
            "id": episode.id,
            "namespace": ", ".join(episode.namespace),
            "agent": episode.agent,
            "thread": episode.thread_id,
            "status": f"{episode.status} {episode.error}".rstrip(),
            "started": _time(episode.started_at),
            "task": episode.task,
            "output": episode.output,
            "rewards": "\n".join(rewards) or "none",
            "lessons shown": "\n".join(shown) or "none",
            "reflection": episode.reflection_id or episode.dead_letter or "waiting",
        }
        steps = {f"step {number}": _step(step) for number, step in enumerate(episode.trajectory, 1)}
        self._fields(episode, fields | steps)

    def reflections(self, found: Sequence[ReflectionRecord]) -> None:
        """A list of reflections."""
        columns = ("id", "started", "status", "episodes", "accepted", "rejected", "tokens", "error")
        rows = [_reflection_row(record) for record in found]
        self._list(found, columns, rows, nothing="No reflections.")

    def reports(self, found: Sequence[ReflectionReport]) -> None:
        """What a worker did."""
        columns = ("namespace", "episodes", "accepted", "rejected", "tokens", "error")
        self._list(found, columns, [_report_row(report) for report in found], nothing="Nothing is due.")

    def report(self, report: ReflectionReport) -> None:
        """One reflection of a worker that goes on."""
        space, episodes, accepted, rejected, tokens, error = _report_row(report)
        said = f"failed: {error}" if error else f"{accepted} edits accepted, {rejected} rejected, {tokens} tokens"
        self.say(f"{space}: {episodes} episodes read, {said}", **report.model_dump(mode="json"))

    def consolidated(self, report: ReflectionReport) -> None:
        """What a consolidation did."""
        done, data = report.consolidation, report.model_dump(mode="json")
        if report.error or done is None:
            self.say(f"failed: {report.error}" if report.error else "Nothing to merge, and nothing fades.", **data)
            return
        was, is_ = done.before, done.after
        self.say(
            f"{was.lessons} lessons of {was.tokens} tokens became {is_.lessons} of {is_.tokens}; {is_.found} of"
            f" {is_.tried} tasks find theirs (before: {was.found}); {len(report.accepted)} changes accepted,"
            f" {len(report.rejected)} rejected: reflect reflections show {report.reflections[0]}",
            **data,
        )

    def reflection(self, record: ReflectionRecord) -> None:
        """One reflection in full: what the model was asked, what it said, what became of it."""
        fields = {
            "id": record.id,
            "namespace": ", ".join(record.namespace),
            "status": f"{record.status} {record.error}".rstrip(),
            "started": f"{_time(record.started_at)}, took {record.seconds:.1f} s",
            "tokens": f"{record.input_tokens} read, {record.output_tokens} written",
            "episodes": "\n".join(record.episodes),
            "cut": "\n".join(f"{cut.episode}: {cut.text}" for cut in record.cut),
            "not read": "\n".join(f"{', '.join(skip.episodes)}: {skip.reason}" for skip in record.skipped),
            "asked by": record.way,
            "prompt": record.prompt,
            "answer": record.answer,
            "before": str(record.consolidation.before) if record.consolidation else "",
            "after": str(record.consolidation.after) if record.consolidation else "",
            "note": record.note,
        }
        edits = {f"edit {number}": _outcome(outcome) for number, outcome in enumerate(record.outcomes, 1)}
        self._fields(record, fields | edits)

    def findings(self, found: Sequence[Finding]) -> None:
        """What `doctor` found."""
        rows = [(LEVELS[f.level], f.check, f.message) for f in found]
        self._list(found, ("", "check", "finding"), rows, nothing="Nothing to check.")

    def fields(self, item: BaseModel) -> None:
        """All fields of a report that say something."""
        data = item.model_dump(mode="json")
        texts = {name: "\n".join(value) if isinstance(value, list) else str(value) for name, value in data.items()}
        self._fields(item, {name.replace("_", " "): text for name, text in texts.items() if data[name] is not None})

    def audit(self, found: Sequence[AuditEntry]) -> None:
        """What was done to the ledger as a whole."""
        rows = [(_time(e.at), e.action, json.dumps(e.details)) for e in found]
        self._list(found, ("at", "action", "details"), rows, nothing="Nothing was purged, dropped or restored.")

    def say(self, text: str, **data: Any) -> None:
        """One line, or `data` as JSON."""
        if self.as_json:
            _json(data)
        else:
            _console().print(Text(text), soft_wrap=True)

    def fail(self, text: str) -> None:
        """One line on stderr."""
        line = " ".join(text.split())
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)

    def _list(self, found: Iterable[Any], columns: Sequence[str], rows: Sequence[Sequence[Any]], nothing: str) -> None:
        if self.as_json:
            _json([_data(item) for item in found])
            return
        console = _console()
        if not console.is_terminal:
            for row in (columns, *rows):
                sys.stdout.write("\t".join(_one_line(cell) for cell in row) + "\n")
        elif rows:
            console.print(_table(columns, rows))
        else:
            console.print(nothing)

    def _fields(self, item: BaseModel, fields: Mapping[str, str]) -> None:
        if self.as_json:
            _json(_data(item))
            return
        console = _console()
        given = [(name, value) for name, value in fields.items() if value]
        if not console.is_terminal:
            sys.stdout.writelines(f"{name}: {value}\n" for name, value in given)
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in given:
            grid.add_row(name, Text(value))
        console.print(grid)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        wide = name in ("when", "do", "task", "finding", "error")
        table.add_column(name, no_wrap=not wide, overflow="fold" if wide else "ellipsis")
    for row in rows:
        cells = (_short(name, cell) for name, cell in zip(columns, row, strict=True))
        table.add_row(*(Text(_one_line(cell)) for cell in cells))
    return table


def _short(column: str, cell: Any) -> Any:
    return str(cell)[-SHORT:] if column in ("id", "by") else str(cell)[:200]


def _one_line(cell: Any) -> str:
    return " ".join(str(cell).split())


def _console() -> Console:
    return Console(highlight=False)


def _json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")


def _data(item: Any) -> Any:
    return item.model_dump(mode="json") if isinstance(item, BaseModel) else asdict(item)


def _lesson_row(lesson: Lesson) -> tuple[Any, ...]:
    return (lesson.id, _status(lesson), lesson.version, lesson.shown, lesson.when, lesson.do)


def _status(lesson: Lesson) -> str:
    notes = (
        (lesson.pinned, "pinned"),
        (lesson.always, "always"),
        (not lesson.supported, "unsupported"),
        (lesson.needs_review, "review"),
        (bool(lesson.held), "of one task"),
    )
    return " ".join([lesson.status, *(word for said, word in notes if said)])


def _step(step: Step) -> str:
    head = " ".join(part for part in (step.kind, step.name, f"({step.seconds:.2f} s)") if part)
    return "\n".join(part for part in (head, step.input, step.output, step.error) if part)


def _reward(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _outcome(outcome: EditOutcome) -> str:
    verdict = "accepted" if outcome.accepted else "rejected"
    head = " ".join(part for part in (verdict, outcome.edit.op, outcome.lesson_id, outcome.reason) if part)
    said = " - ".join(part for part in (outcome.edit.when, outcome.edit.do) if part)
    return f"{head}\n{said}" if said else head


def _report_row(report: ReflectionReport) -> tuple[Any, ...]:
    tokens = report.input_tokens + report.output_tokens
    edits = (len(report.accepted), len(report.rejected))
    return (",".join(report.namespace), len(report.episodes), *edits, tokens, report.error)


def _reflection_row(record: ReflectionRecord) -> tuple[Any, ...]:
    accepted = sum(outcome.accepted for outcome in record.outcomes)
    tokens = record.input_tokens + record.output_tokens
    rejected = len(record.outcomes) - accepted
    at = _time(record.started_at)
    return (record.id, at, record.status, len(record.episodes), accepted, rejected, tokens, record.error)
