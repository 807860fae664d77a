"""Purging: the order in which everything that came from some episodes is erased, and the look for what is left."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect_middleware import residue
from reflect_middleware.backup import FOLDER
from reflect_middleware.erase import PROBED, Eraser, Tally, erase
from reflect_middleware.errors import ConfigurationError, ReflectError
from reflect_middleware.filling import clear_folder, folder_of, outdated
from reflect_middleware.forget_table import Criteria
from reflect_middleware.ledger import Ledger
from reflect_middleware.names_table import names_of
from reflect_middleware.outage import SPOOL
from reflect_middleware.registry import STORES, installed
from reflect_middleware.types import Frozen, Namespace

if TYPE_CHECKING:
    from reflect_middleware.core import Core

logger = logging.getLogger(__name__)
SMALL = 512 * 1024 * 1024
"""Bytes up to which a SQLite file is always written anew after a purge; a larger one only if something is left."""


class PurgeReport(Frozen):
    """What a purge erased, and what it found afterwards."""

    dry_run: bool = False
    """True if nothing was erased: the counts say what would have been."""
    episodes: int = 0
    rewards: int = 0
    exposures: int = 0
    lessons: tuple[str, ...] = ()
    """Ids of the lessons that were erased with all their versions."""
    lessons_changed: tuple[str, ...] = ()
    """Ids of the lessons that lost a source or a quote and wait to be examined again."""
    reflections: int = 0
    """Records of reflections that read nothing else, erased."""
    reflections_emptied: int = 0
    """Records of reflections that read others, too: without prompt, answer and texts now."""
    spooled: int = 0
    """Records that were waiting in the spool, erased."""
    backups: int = 0
    """Backups that were purged alike."""
    looked_at: tuple[str, ...] = ()
    """Where the verification looked afterwards."""
    left: tuple[str, ...] = ()
    """What is left, where, and what to do; empty after a complete purge."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left."""
        return not self.left


def criteria(ids: Any, principal: Any, thread_id: Any, before: Any, namespace: Namespace | None) -> Criteria:
    """Check what a purge was asked for.

    Raises:
        ConfigurationError: If nothing is named, or a value is not allowed.
    """
    if ids is None and principal is None and thread_id is None and before is None:
        raise ConfigurationError(
            "episodes.purge", "nothing", "ids=, principal=, thread_id= or before=", "For all: before=now, in UTC."
        )
    for name, text in (("principal", principal), ("thread_id", thread_id)):
        if text is not None and not _text(text):
            raise ConfigurationError(name, text, "a text that is not empty")
    if before is not None and (not isinstance(before, datetime) or before.tzinfo is None):
        raise ConfigurationError("before", before, "a datetime with a time zone", "Try datetime.now(UTC).")
    named = (ids,) if isinstance(ids, str) else tuple(ids or ())
    if ids is not None and not (named and all(map(_text, named))):
        raise ConfigurationError("ids", ids, "one or more ids of episodes")
    at = before.timestamp() if before is not None else None
    return Criteria(ids=named, principal=principal, thread_id=thread_id, before=at, namespace=namespace)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


class Purge:
    """One purge over everything that a Reflection keeps.

    Args:
        core: Of the Reflection.
        wanted: Which episodes.
    """

    def __init__(self, core: Core, wanted: Criteria) -> None:
        self.core = core
        self.wanted = wanted
        self.path = core.options.path
        self.left: list[str] = []
        self.looked: list[str] = []

    def preview(self) -> PurgeReport:
        """What `run` would erase from the ledger."""
        ledger, tally = self.core.parts.ledger, Tally()
        tally.ids = ledger.forget.wanted(self.wanted)
        eraser = Eraser(ledger, tally)
        readers = eraser.readers(ledger.forget.scope(tally.ids))
        for lesson, versions in eraser.concerned(readers):
            eraser.decide(lesson, versions, readers)
        emptied = sum(not eraser.gone.issuperset(record.episodes) for record in readers)
        counts = {"episodes": len(tally.ids), "reflections": len(readers) - emptied, "reflections_emptied": emptied}
        return _report(tally, dry_run=True).model_copy(update=counts)

    def run(self) -> PurgeReport:
        """Erase, then look for what is left.

        Raises:
            LedgerError: If the ledger fails; the same purge again goes on where this one stopped.
        """
        self.core.keeper.writer.wait_idle(self.core.keeper.timeout)
        self.core.counters.settle(self.core.keeper.timeout)
        with self._own_ledger() as ledger:
            spooled = self._spool(ledger)
            tally = erase(ledger, self.wanted)
            tally.ids += spooled
            ledger.audit.purged(self._entry(tally, len(spooled)), rebuild=bool(tally.erased))
            self._compact(ledger, tally)
            backups = self._backups(tally)
            self._stores(tally)
            self._verify(ledger, tally)
        found = {"spooled": len(spooled), "backups": backups, "looked_at": tuple(self.looked)}
        report = _report(tally).model_copy(update={**found, "left": tuple(dict.fromkeys(self.left))})
        said_so = "nothing is left" if report.complete else f"left: {'; '.join(report.left)}"
        logger.info("reflect: purged %d episodes, %d lessons; %s", report.episodes, len(report.lessons), said_so)
        return report

    @contextlib.contextmanager
    def _own_ledger(self) -> Iterator[Ledger]:
        """A connection that overwrites what it deletes; a ledger in memory has only the one that there is."""
        own = self.core.parts.ledger
        if own.database.is_sqlite and own.database.beside("") is None:
            yield own
            return
        with _ledger(self.core.options.ledger_url) as ledger:
            yield ledger

    def _entry(self, tally: Tally, spooled: int) -> dict[str, Any]:
        counts = {"lessons": len(tally.erased), "lessons_changed": len(tally.changed), "spooled": spooled}
        records = {"reflections": tally.records, "reflections_emptied": tally.emptied}
        return {"by": self.wanted.kinds, **tally.counts, **counts, **records}

    def _compact(self, ledger: Ledger, tally: Tally) -> None:
        """SQLite keeps deleted bytes in its file and its log: both are written anew."""
        if not ledger.database.is_sqlite:
            return
        file = ledger.database.beside("")
        size = file.stat().st_size if file is not None and file.is_file() else 0
        if vacuum := size <= SMALL or bool(self._raw(ledger, tally)):
            logger.info("reflect: writing the ledger anew (%d MB); other processes' writes wait", size // 1_000_000)
        ledger.forget.compact(vacuum=vacuum)

    def _raw(self, ledger: Ledger, tally: Tally) -> set[str]:
        """What the ledger's files still hold, in whatever form."""
        if (file := ledger.database.beside("")) is None:
            return set()
        ids, words = _needles(tally, self.wanted)
        found = residue.found_in(file, ids, words, live=True)
        return found | residue.found_in(file.with_name(f"{file.name}-wal"), ids, words)

    def _backups(self, tally: Tally) -> int:
        """Purge the backups beside the ledger, and delete what a restore put aside: it cannot be read."""
        count = 0
        for file in sorted((self.path / FOLDER).glob("*.db*")):
            if file.name.startswith("damaged-"):
                self._delete(file)
            elif file.suffix == ".db":
                count += self._backup(file, tally)
        return count

    def _backup(self, file: Path, tally: Tally) -> bool:
        try:
            with _ledger(f"sqlite:///{file}") as old:
                also = erase(old, self.wanted)
                more = erase(old, Criteria(ids=tuple(tally.ids))) if tally.ids else Tally()
                old.audit.purged({"by": self.wanted.kinds}, rebuild=False)
                old.forget.compact(vacuum=True)
                for place, word in old.forget.holding(_needles(also, self.wanted)[1]):
                    self._note_left(f"{file}: {place}", word, also)
        except ReflectError as error:
            self.left.append(f"{file}: it cannot be read ({error}); delete it")
            return False
        finally:  # what opening it has made, such as a copy of one with an older schema
            shutil.rmtree(file.parent / FOLDER, ignore_errors=True)
            for beside in file.parent.glob(f"{file.name}-*"):
                self._delete(beside)
        tally.ids += sorted(set(also.ids) - set(tally.ids))
        tally.erased |= also.erased | more.erased
        return bool(also.ids or more.ids)

    def _delete(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            self.left.append(f"{file}: it cannot be deleted ({error}); delete it")

    def _spool(self, ledger: Ledger) -> tuple[str, ...]:
        """Erase what waits for the ledger in this machine's spool; gives the ids of the episodes."""
        outage = self.core.keeper.outage
        if not (self.path / SPOOL).is_file() and not outage.waiting().count:
            return ()
        names = names_of(ledger.database, ledger.forget.wanted(self.wanted))
        try:
            return outage.spool.purge(lambda record: self.wanted.fits(record.episode), names)
        except (OSError, sqlite3.Error) as error:
            self.left.append(f"{self.path / SPOOL}: it cannot be written ({error}); purge again when it can")
            return ()

    def _stores(self, tally: Tally) -> None:
        """Empty the stores: what they delete stays in their files. They fill again as they are searched."""
        generation, own = self.core.parts.ledger.lessons.read_generation(), self.core.parts.index.spec
        name = folder_of(own)
        spaces = sorted({lesson.namespace for lesson in tally.erased.values()})
        if spaces or outdated(self.path / name, generation):
            self._note_store(name, self.core.parts.index.rebuild(spaces))
        for other in sorted(installed(STORES).keys() - {name}):
            if outdated(self.path / other, generation):
                self._note_store(other, clear_folder(other, self.path / other, generation))

    def _note_store(self, name: str, why: str) -> None:
        if why:
            self.left.append(
                f"the store {name!r} may have ids and vectors of erased lessons: {why} A process that holds it empties"
                " it at its next run; purge again then, to verify."
            )

    # Looking for what is left.

    def _verify(self, ledger: Ledger, tally: Tally) -> None:
        ids, words = _needles(tally, self.wanted)
        held = set(ids[:PROBED]) | set(words)
        if ledger.database.is_sqlite:
            self.looked.append(f"{ledger.database.url_shown}: every byte")
            held = self._raw(ledger, tally)
        else:
            self.looked.append(f"{ledger.database.url_shown}: every text of every table")
        for place, word in ledger.forget.holding(sorted(held)):
            self._note_left(place, word, tally)
        for file in self._files(ledger):
            self.looked.append(str(file))
            live = file.parent == self.path and not file.name.endswith("-wal")
            try:
                held = residue.found_in(file, ids, () if file.parent.name == FOLDER else words, live=live)
            except OSError as error:
                self.left.append(f"{file}: it cannot be read ({error}); see whether it is still needed")
                continue
            if held:
                self.left.append(f"{file}: bytes of what was purged")

    def _note_left(self, place: str, word: str, tally: Tally) -> None:
        """Other episodes may say the same in their own right; nothing else may."""
        table = place.rpartition(" ")[2].partition(".")[0]
        if table not in ("episodes", "rewards", "aliases") or word in tally.ids:
            kind = "a person wrote it there" if table.startswith("lesson") else "see where it comes from"
            self.left.append(f"{place} names {self._named(word)}: {kind}")

    def _named(self, word: str) -> str:
        known = {self.wanted.principal: "the principal", self.wanted.thread_id: "the thread"}
        return known.get(word, "something of a purged episode")

    def _files(self, ledger: Ledger) -> Iterator[Path]:
        """All files of ours but the ledger's own."""
        own = ledger.database.beside("")
        for file in sorted(self.path.rglob("*")):
            locks = file.suffix == ".lock" or file.name.endswith("-shm")
            if locks or not file.is_file():  # to close a file of locks, which has no content, would release them
                continue
            if own is None or not file.name.startswith(own.name) or file.parent != own.parent:
                yield file


def _needles(tally: Tally, wanted: Criteria) -> tuple[list[str], list[str]]:
    words = [word for word in (wanted.principal, wanted.thread_id) if word]
    return [*tally.ids, *tally.erased], [*words, *sorted(tally.probes)]


def _report(tally: Tally, *, dry_run: bool = False) -> PurgeReport:
    return PurgeReport(
        dry_run=dry_run,
        **tally.counts,
        lessons=tuple(tally.erased),
        lessons_changed=tuple(tally.changed),
        reflections=tally.records,
        reflections_emptied=tally.emptied,
    )


@contextlib.contextmanager
def _ledger(url: str) -> Iterator[Ledger]:
    """A ledger of our own whose SQLite overwrites what is deleted."""
    ledger = Ledger(url, fsync=True, erases=True)
    try:
        yield ledger
    finally:
        ledger.close()
