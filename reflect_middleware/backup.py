"""Backing a ledger up and restoring it: where the copies lie, which one is taken, what becomes of a damaged file."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reflect_middleware import backups_table as table
from reflect_middleware.database import Database
from reflect_middleware.errors import ConfigurationError, FrozenError, LedgerError
from reflect_middleware.ledger import Ledger
from reflect_middleware.places import alone
from reflect_middleware.types import Frozen, now

if TYPE_CHECKING:
    from reflect_middleware.core import Core

logger = logging.getLogger(__name__)
FOLDER = "backups"
"""Below `path`."""
FAR = 1_000_000
"""How far revisions move on where it is not known which ones running processes have seen."""


class RestoreReport(Frozen):
    """What a restore did."""

    file: Path
    """The backup that was taken."""
    taken_at: datetime
    """When it was made: what was recorded or learned later is lost, and what was reflected on later is so again."""
    aside: Path | None = None
    """Where the former ledger lies now; None if there was none."""
    lost: int | None = None
    """How many episodes were in the former ledger only; None if it cannot be read."""
    passed_over: tuple[str, ...] = ()
    """Newer backups that cannot be used, and why."""


def backup(core: Core, file: Path | None, keep: int | None) -> Path:
    """Copy the ledger while it is used; see `Reflection.backup`."""
    live, folder = _live(core, "backup"), core.options.path / FOLDER
    if keep is not None and keep < 1:
        raise ConfigurationError("keep", keep, "a whole number from 1 on, or None to keep all")
    if not live.is_file():
        raise LedgerError(f"There is no ledger at {str(live)!r} to back up. Runs make one; or name another path.")
    target = folder / _name("ledger") if file is None else file.expanduser().absolute()
    if target.exists():
        raise ConfigurationError("The backup's file", str(target), "a file that does not exist yet")
    table.copy(live, target)
    if keep is not None and file is None:
        for old in backups(folder)[keep:]:
            old.unlink(missing_ok=True)  # another one may be at it
    return target


def restore(core: Core, file: Path | None, *, force: bool) -> RestoreReport:
    """Put a backup in the ledger's place; see `Reflection.restore`."""
    live, folder = _live(core, "restore"), core.options.path / FOLDER
    source, passed_over = _chosen(folder, file)
    if core.parts.opened("ledger"):
        core.parts.ledger.database.release()
    taken = datetime.fromtimestamp(source.stat().st_mtime).astimezone()
    try:
        live.parent.mkdir(parents=True, exist_ok=True)
        with alone(live):  # else one that opens it meanwhile would begin a new one, whose log is not the backup's
            aside, seen, lost = _replaced(source, live, folder, force=force)
    except LedgerError:
        raise
    except OSError as error:
        raise LedgerError(f"{str(source)!r} cannot be put in the place of {str(live)!r}: {error}.") from error
    ledger = Ledger(core.options.ledger_url, fsync=True)
    try:
        ledger.audit.restored(seen, {"backup": taken.isoformat(timespec="seconds"), "episodes_lost": lost})
    finally:
        ledger.close()
    logger.warning("reflect: the ledger is restored from %s; the former one is %s", source, aside or "missing")
    return RestoreReport(file=source, taken_at=taken, aside=aside, lost=lost, passed_over=passed_over)


def _replaced(source: Path, live: Path, folder: Path, *, force: bool) -> tuple[Path | None, int, int | None]:
    """Do it; gives where the former ledger is, its last revision, and how many episodes were in it only."""
    if (aside := _former(live, folder)) is not None:
        table.pour(source, live, aside)
        return aside, table.last_revision(aside), len(table.episodes_in(aside) - table.episodes_in(source))
    unfinished = live.with_name(f"{live.name}.restoring")
    table.copy(source, unfinished)  # first of all: with a full disk what is there stays there
    try:
        aside = _put_aside(live, folder, force=force)
        unfinished.replace(live)
    finally:
        unfinished.unlink(missing_ok=True)
    return aside, FAR, None


def newest(path: Path) -> Path | None:
    """The newest backup below a Reflection's path that can be used; None if there is none."""
    return next((file for file in backups(path / FOLDER) if not table.unsound(file)), None)


def _chosen(folder: Path, file: Path | None) -> tuple[Path, tuple[str, ...]]:
    if file is not None:
        wrong = table.unsound(file) if file.is_file() else "there is no such file"
        if wrong:
            raise LedgerError(
                f"{str(file)!r} cannot be restored: {wrong}."
                f" Name another one, or none for the newest in {str(folder)!r}."
            )
        return file, ()
    passed_over: list[str] = []
    for candidate in backups(folder):
        if not (wrong := table.unsound(candidate)):
            return candidate, tuple(passed_over)
        passed_over.append(f"{candidate}: {wrong}")
    raise LedgerError(
        f"No backup in {str(folder)!r} can be restored{': ' if passed_over else ''}{'; '.join(passed_over)}."
        " `reflect backup` makes one; `reflect restore FILE` takes one from elsewhere."
    )


def _former(live: Path, folder: Path) -> Path | None:
    """A copy of the ledger so far; None if it is missing or cannot be read."""
    if not live.is_file():
        return None
    try:
        table.copy(live, aside := folder / _name("before-restore"))
    except LedgerError:
        return None
    return aside


def _put_aside(live: Path, folder: Path, *, force: bool) -> Path | None:
    """Move what is left of a damaged ledger out of the way, its log too."""
    if not force and table.in_use(live):
        raise LedgerError(
            f"Another process has the damaged ledger {str(live)!r} open and would go on writing into it."
            " Stop it first; or use `reflect restore --force` and restart it afterwards."
        )
    aside = folder / _name("damaged")
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("-wal", "-shm", ""):
        part = live.with_name(f"{live.name}{ending}")
        if part.exists():
            part.replace(aside.with_name(f"{aside.name}{ending}"))
    return aside if aside.exists() else None


def _live(core: Core, what: str) -> Path:
    """The ledger's file.

    Raises:
        ConfigurationError: If the ledger is no file.
        FrozenError: If there is none; one that lies in the folder is another's.
    """
    if core.frozen:
        raise FrozenError(core.frozen)
    file = Database(core.options.ledger_url).beside("") if core.options.ledger_url.startswith("sqlite") else None
    if file is None:
        shown = core.options.ledger_url.split("@")[-1]
        todo = "Use PostgreSQL's own pg_dump and pg_restore."
        raise ConfigurationError(f"{what} of the ledger", shown, "a SQLite file", todo)
    return file


def backups(folder: Path) -> list[Path]:
    """The newest first: their names hold the time."""
    return sorted(folder.glob("ledger-*.db"), reverse=True)


def _name(kind: str) -> str:
    return f"{kind}-{now():%Y%m%dT%H%M%S.%fZ}.db"
