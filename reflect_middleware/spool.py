"""What waits while the ledger cannot be written: records of runs, rewards and marks, in order, in a bounded local file.

The file is `spool.db` in the Reflection's folder, shared by all processes of that path. What waits there is written to
the ledger by `drain.py`; writing it twice changes nothing, so that a kill at any point, or several processes that
drain at once, do no harm. Where the file cannot be written either, entries wait in memory.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from reflect_middleware.episodes_table import Record
from reflect_middleware.spool_table import SpoolTable
from reflect_middleware.types import Namespace, Reward

logger = logging.getLogger(__name__)

MAX_ENTRIES = 10_000
"""Most entries that wait in the file; beyond that the oldest are dropped, counted and logged."""
MAX_BYTES = 256 * 1024 * 1024
"""Most bytes of all entries in the file, 256 MB; beyond that the oldest are dropped, counted and logged."""
MAX_MEMORY = 1_000
"""Most entries that wait in memory while not even the file can be written."""
PAGE = 100
"""How many entries are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's record as it waits."""

    record: Record
    earlier: str = ""
    """The episode that it goes on with, which could not be read; empty for none that is known."""
    resumed: bool = False
    """Whether it goes on with the interrupted episode of its thread, if there is one."""
    answered: bool = False
    """Whether a person's answer came with it."""
    answer: Any = None
    """That answer, as JSON data, redacted."""

    @property
    def part(self) -> bool:
        """Whether it is the rest of an episode, to be put together with what came before."""
        return bool(self.earlier) or self.resumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A reward as it waits."""

    reward: Reward
    names: tuple[str, ...] = ()
    """Under which the ledger may know the episode, the best first."""
    unknown: bool = False
    """Whether it may wait in the ledger for an episode that is not known yet."""
    thread_id: str = ""
    """Instead of names: the thread whose latest episode is meant."""
    namespace: Namespace | None = None
    """With a thread: only in this namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The mark that an episode's reward callable has answered, so that it counts, as it waits."""

    episode_id: str
    ready_at: float


Item = Run | Given | Opened
_KINDS: dict[str, type[Item]] = {"run": Run, "reward": Given, "open": Opened}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that waits."""

    kind: str
    target: str
    """Which episode it is about, as far as that is known: an episode's or a run's id."""
    body: str
    """The item as JSON."""
    at: float
    """When it came, in epoch seconds."""
    seq: int = 0
    """Its place in the file; 0 in memory."""

    @property
    def item(self) -> Item:
        """What waits."""
        found: Item = _adapter(self.kind).validate_json(self.body)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How much waits for one ledger."""

    count: int
    """Entries: records of runs, rewards and marks."""
    bytes: int
    oldest: float | None
    """Age of the oldest entry in seconds; None if nothing waits."""
    dropped: int
    """Entries that this folder's spool has dropped for want of room, ever."""


class Spool:
    """A bounded queue in a local file, for one ledger.

    Args:
        file: Made when something has to wait for the first time.
        ledger: Names the ledger: entries for another one that share the file are left alone.
        fsync: Whether waiting things survive power loss, not only a killed process.
        dropped: Told of each entry that is dropped for want of room: how many, and where.
    """

    def __init__(self, file: Path, ledger: str, *, fsync: bool, dropped: Callable[[int, str], None]) -> None:
        self.table = SpoolTable(file, fsync=fsync)
        self.ledger = ledger
        self._dropped = dropped
        self._lost = 0
        self.renew()

    def renew(self) -> None:
        """Start afresh in a forked child: what the parent keeps in memory, the parent writes."""
        self.table.renew()
        self._lock = threading.RLock()
        self._memory: deque[Entry] = deque()

    def add(self, item: Item) -> bool:
        """Put an entry behind the others; True if it is in the file, where it survives this process."""
        entry = entry_of(item)
        with self._lock:
            self._memory.append(entry)
            try:
                self._to_file()
            except (sqlite3.Error, OSError) as error:
                logger.warning("reflect: %s cannot be written (%s); entries wait in memory", self.table.file, error)
            while len(self._memory) > MAX_MEMORY:
                self._memory.popleft()
                self._lost += 1
                self._dropped(1, "memory")
            return not self._memory

    def entries(self) -> Iterator[Entry]:
        """What waits, the oldest first; what another process takes away meanwhile may still come."""
        seq = 0
        while page := self._page(seq):
            yield from page
            seq = page[-1].seq
        with self._lock:
            held = list(self._memory)
        yield from held

    def done(self, entry: Entry) -> None:
        """An entry is written: forget it. Should that fail it is written once more, which changes nothing."""
        if entry.seq:
            try:
                self.table.delete([entry.seq])
            except (sqlite3.Error, OSError) as error:
                logger.warning("reflect: an entry of %s cannot be deleted: %s", self.table.file, error)
            return
        with self._lock:
            if entry in self._memory:
                self._memory.remove(entry)

    def empty(self) -> bool:
        """Whether nothing waits for this ledger. Without a file that is known at once."""
        return not self._memory and not self._page(0, 1)

    def waiting(self) -> Waiting:
        """How much waits for this ledger."""
        with self._lock:
            held = list(self._memory)
        try:
            count, size, oldest = self.table.totals(self.ledger)
            dropped = self.table.dropped()
        except (sqlite3.Error, OSError):
            count, size, oldest, dropped = 0, 0, None, 0
        times = [entry.at for entry in held] + ([] if oldest is None else [oldest])
        return Waiting(
            count=count + len(held),
            bytes=size + sum(len(entry.body.encode()) for entry in held),
            oldest=max(0.0, time.time() - min(times)) if times else None,
            dropped=dropped + self._lost,
        )

    def purge(self, match: Callable[[Record], bool], names: Collection[str] = ()) -> tuple[str, ...]:
        """Erase the records that match, with all rewards and marks for them, and those for `names`.

        Args:
            match: Which records go.
            names: Ids and aliases of further episodes, such as those that are being erased from the ledger.

        Returns:
            The ids of the episodes whose records were erased.

        Raises:
            sqlite3.Error: If the file cannot be written: nothing, or not all, is erased then.
        """
        gone: dict[str, set[str]] = {}
        for entry in self.entries():
            if entry.kind == "run" and isinstance(run := entry.item, Run) and match(run.record):
                episode = run.record.episode
                gone[episode.id] = {episode.id, run.earlier, *episode.run_ids, *run.record.aliases} - {""}
        unwanted = set(names).union(*gone.values())
        found = [entry for entry in self.entries() if _names(entry) & unwanted]
        self.table.delete([entry.seq for entry in found if entry.seq])
        self.table.wipe()
        with self._lock:
            self._memory = deque(entry for entry in self._memory if entry not in found)
        return tuple(gone)

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        self.table.close()

    def _page(self, after: int, limit: int = PAGE) -> list[Entry]:
        try:
            rows = self.table.after(self.ledger, after, limit)
        except (sqlite3.Error, OSError) as error:
            logger.warning("reflect: %s cannot be read: %s", self.table.file, error)
            return []
        return [Entry(seq=seq, kind=kind, target=target, at=at, body=body) for seq, kind, target, at, body in rows]

    def _to_file(self) -> None:
        """Move what is in memory to the file, in order; what is there stays there if it fails."""
        while self._memory:
            entry = self._memory[0]
            self.table.append(self.ledger, entry.kind, entry.target, entry.at, entry.body)
            self._memory.popleft()
        if number := self.table.trim(MAX_ENTRIES, MAX_BYTES):
            self._dropped(number, str(self.table.file))


def entry_of(item: Item) -> Entry:
    """The item as it is kept."""
    kind = next(kind for kind, made in _KINDS.items() if isinstance(item, made))
    match item:
        case Run():
            target = item.record.episode.id
        case Given():
            target = item.names[0] if item.names else ""
        case Opened():
            target = item.episode_id
    body = _adapter(kind).dump_json(_bare(item)).decode()
    return Entry(kind=kind, target=target, body=body, at=time.time())


def name_of(url: str) -> str:
    """A ledger's name in the spool: it tells no password, and a new password changes nothing."""
    return hashlib.sha256(re.sub(r"//[^/@]*@", "//", url).encode()).hexdigest()[:16]


def _bare(item: Item) -> Item:
    """Without what the ledger knows of an episode: it belongs to the ledger."""
    if not isinstance(item, Run):
        return item
    bare = item.record.episode.model_copy(update={"rewards": (), "reflection_id": "", "dead_letter": ""})
    return replace(item, record=replace(item.record, episode=bare))


def _names(entry: Entry) -> set[str]:
    item = entry.item
    if isinstance(item, Given):
        return {entry.target, *item.names}
    if isinstance(item, Run):
        return {entry.target, item.earlier, *item.record.episode.run_ids} - {""}
    return {entry.target}


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[kind])
