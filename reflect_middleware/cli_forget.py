"""Commands that erase, keep and bring back: `episodes purge`, `audit`, `backup`, `restore`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from reflect_middleware.cli_open import opened
from reflect_middleware.cli_view import View
from reflect_middleware.errors import ConfigurationError
from reflect_middleware.reflection import Reflection

Ids = Annotated[list[str] | None, typer.Option("--id", help="Only this episode; may be given several times.")]
Principal = Annotated[str | None, typer.Option("--principal", help="Only runs on behalf of this one.")]
Thread = Annotated[str | None, typer.Option("--thread", help="Only this thread's.")]
Before = Annotated[str | None, typer.Option("--before", help="Only runs that started before, as 2026-11-22T14:00.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Erase nothing, say what would go.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Force = Annotated[bool, typer.Option("--force", help="Also while another process has a damaged ledger open.")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="Keep so many of the newest in the folder.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest first.")]
To = Annotated[Path | None, typer.Argument(help="A new file. [default: one in `backups` below the path]")]
From = Annotated[Path | None, typer.Argument(help="A backup. [default: the newest sound one below the path]")]


def register(app: typer.Typer, episodes: typer.Typer) -> None:
    """Add the commands."""
    episodes.command("purge")(opened()(purge))
    app.command("audit")(opened()(audit))
    app.command("backup")(opened()(backup))
    app.command("restore")(opened(creates=True)(restore))


def purge(
    reflection: Reflection,
    view: View,
    *,
    id: Ids = None,
    principal: Principal = None,
    thread: Thread = None,
    before: Before = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Erase runs for good, with all that was learned from them alone, and look whether anything is left.

    Give --id, --principal, --thread or --before; with several, all must hold. Exit code 1 if something is left.
    """
    wanted: dict[str, Any] = {"ids": id or None, "principal": principal, "thread_id": thread, "before": _moment(before)}
    report = reflection.episodes.purge(**wanted, namespace=view.namespace, dry_run=True)
    if not dry_run:
        _sure(f"Erase {report.episodes} episodes and {len(report.lessons)} lessons for good?", yes=yes)
        report = reflection.episodes.purge(**wanted, namespace=view.namespace)
    view.fields(report)
    if not report.complete:
        raise typer.Exit(1)


def audit(reflection: Reflection, view: View, limit: Limit = 20) -> None:
    """List what was purged, dropped by retention and restored; without content."""
    view.audit(reflection.audit(limit))


def backup(reflection: Reflection, view: View, file: To = None, *, keep: Keep = None) -> None:
    """Copy the ledger while agents run, and check the copy."""
    made = reflection.backup(file, keep=keep)
    view.say(f"The ledger is in {made}. The way back: reflect restore", file=str(made))


def restore(reflection: Reflection, view: View, file: From = None, *, yes: Yes = False, force: Force = False) -> None:
    """Put a backup in the ledger's place; the former ledger is kept beside it."""
    _sure(f"Put {file or 'the newest backup'} in the ledger's place? What came later is lost.", yes=yes)
    view.fields(reflection.restore(file, force=force))


def _sure(question: str, *, yes: bool) -> None:
    if not yes and not typer.confirm(question):
        raise typer.Exit(1)


def _moment(given: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(given).astimezone() if given else None
    except ValueError as error:
        raise ConfigurationError("--before", given, "a time such as 2026-11-22 or 2026-11-22T14:00") from error
