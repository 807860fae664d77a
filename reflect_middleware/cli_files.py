"""Commands for the lessons as a whole: `export`, `import`, and `lessons rollback`, `diff` and `fork`."""

import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from reflect_middleware.cli_open import opened
from reflect_middleware.cli_view import View
from reflect_middleware.errors import ConfigurationError
from reflect_middleware.exchange import ExportFormat, ImportFormat, Side
from reflect_middleware.incoming import OnConflict
from reflect_middleware.reflection import Reflection
from reflect_middleware.types import LessonStatus, Namespace

MANY = 1_000
"""How far back a short id is looked for."""
NAMESPACE = "namespace:"
"""Before the parts of a namespace, where it stands beside times, ids and files."""
SIDE = "A time, a reflection's id, a file of lessons, namespace:PARTS, or now."
To = Annotated[str, typer.Option("--to", help="A reflection's id, or a time such as 2026-11-22T14:00.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, show what would change.")]
Target = Annotated[Path | None, typer.Argument(help="The file to write.  [default: standard output]")]
Source = Annotated[Path, typer.Argument(help="The file to read.")]
As = Annotated[ExportFormat, typer.Option("--format", help="What for: reviews, people, a prompt, AGENTS.md.")]
Of = Annotated[ImportFormat, typer.Option("--format", help="jsonl as exported, or patch: free text, pinned.")]
With = Annotated[LessonStatus | None, typer.Option("--status", help="Only these.  [default: active]")]
Everything = Annotated[bool, typer.Option("--all", help="Also candidates and retired ones.")]
Details = Annotated[bool, typer.Option("--details", help="Also when, by whom, and how often shown (jsonl).")]
Tasks = Annotated[bool, typer.Option("--tasks/--no-tasks", help="The tasks that taught them (jsonl).")]
Conflict = Annotated[OnConflict, typer.Option("--on-conflict", help="What was changed here and in the file.")]
New = Annotated[LessonStatus | None, typer.Option("--status", help="Of new lessons, whatever the file says.")]
Foreign = Annotated[bool, typer.Option("--any-namespace", help="Also lessons of other namespaces.")]


def register(app: typer.Typer, lessons: typer.Typer) -> None:
    """Add the commands."""
    app.command("export")(opened()(export))
    app.command("import")(opened(creates=True)(import_))
    lessons.command("rollback")(opened()(rollback))
    lessons.command("diff")(opened()(diff))
    lessons.command("fork")(opened()(fork))


def export(
    reflection: Reflection,
    view: View,
    file: Target = None,
    *,
    format: As = "jsonl",
    status: With = None,
    everything: Everything = False,
    details: Details = False,
    tasks: Tasks = True,
) -> None:
    """Write the lessons: to a file for reviews (the default), a page, a system prompt, or a section of AGENTS.md."""
    if everything and status is not None:
        raise ConfigurationError("--status", status, "none beside --all")
    only = None if everything else status or "active"
    text = reflection.lessons.export(
        file, format=format, status=only, details=details, tasks=tasks, namespace=view.namespace
    )
    if file is None:
        sys.stdout.write(text if text.endswith("\n") or not text else f"{text}\n")
    else:
        view.say(f"The lessons are in {file}.", file=str(file), format=format)


def import_(
    reflection: Reflection,
    view: View,
    file: Source,
    *,
    format: Of = "jsonl",
    on_conflict: Conflict = "error",
    status: New = None,
    any_namespace: Foreign = False,
    dry_run: DryRun = False,
) -> None:
    """Take lessons from a file: all, or none if a single line is wrong. The same file again changes nothing."""
    report = reflection.lessons.import_(
        file,
        format=format,
        on_conflict=on_conflict,
        status=status,
        any_namespace=any_namespace,
        dry_run=dry_run,
        namespace=view.namespace,
    )
    view.said(report)


def rollback(reflection: Reflection, view: View, to: To, *, dry_run: DryRun = False) -> None:
    """Put all lessons back to how a reflection left them, or to a time; prints those that changed."""
    at = moment(reflection, view, to)
    view.lessons(reflection.lessons.rollback(to=at, dry_run=dry_run, namespace=view.namespace))


def diff(
    reflection: Reflection,
    view: View,
    a: Annotated[str, typer.Argument(help=SIDE)],
    b: Annotated[str, typer.Argument(help=SIDE)] = "now",
) -> None:
    """Say what differs between the active lessons of two times, reflections, namespaces or files."""
    view.said(reflection.lessons.diff(_side(reflection, view, a), _side(reflection, view, b), namespace=view.namespace))


def fork(
    reflection: Reflection, view: View, to: Annotated[str, typer.Argument(help="Parts with commas between.")]
) -> None:
    """Copy the active lessons into another namespace, such as staging."""
    view.lessons(reflection.lessons.fork(_parts(to), namespace=view.namespace))


def full(given: str, ids: Iterable[str]) -> str:
    """The one id that ends like `given`; `given` itself if none does."""
    fits = [known for known in ids if known.endswith(given)]
    if len(fits) > 1 and given not in fits:
        raise ConfigurationError("The id", given, f"more of its characters, for it fits {len(fits)} ids")
    return fits[0] if len(fits) == 1 else given


def reflection_id(reflection: Reflection, view: View, given: str) -> str:
    """The id of a reflection by its last characters."""
    return full(given, (record.id for record in reflection.reflections.list(limit=MANY, namespace=view.namespace)))


def moment(reflection: Reflection, view: View, given: str) -> str | datetime:
    """A time, or the id of a reflection."""
    try:
        return datetime.fromisoformat(given).astimezone()
    except ValueError:
        return reflection_id(reflection, view, given)


def _side(reflection: Reflection, view: View, given: str) -> Side:
    if given == "now":
        return None
    if given.startswith(NAMESPACE):
        return _parts(given.removeprefix(NAMESPACE))
    return Path(given) if Path(given).is_file() else moment(reflection, view, given)


def _parts(given: str) -> Namespace:
    return tuple(part.strip() for part in given.split(","))
