"""Moving to another store or embedder: built beside the one in use, compared with an exact search, then switched to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from reflect_middleware import filling
from reflect_middleware.errors import ConfigurationError, StoreError
from reflect_middleware.index import Index
from reflect_middleware.registry import check_embedder, check_store, kept, shown
from reflect_middleware.types import Frozen, Namespace

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.store import Entry, LessonStore

logger = logging.getLogger(__name__)
BATCH = 500
"""So many entries are written between two notes of how far it has come: no more are written again after a kill."""
QUESTIONS = 10
"""So many are asked of each namespace."""
LEAST_RECALL = 0.98
"""A store that finds less than this share of the nearest lessons is not switched to."""
TRIES = 3
"""How often a namespace that changes meanwhile is looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a move has come."""

    doing: Literal["embedding", "writing"]
    done: int
    """Lessons so far; those that an earlier attempt has done are not counted again."""
    total: int
    """Lessons that there were when this step began."""


class ReindexReport(Frozen):
    """What `reindex` did."""

    store: str
    """The store that was built, without its password; a given object's class."""
    embedder: str
    """Whose vectors are in it."""
    switched: bool
    """Whether searches go over it from now on."""
    reason: str = ""
    """Why not; empty where they do."""
    todo: str = ""
    """What is left for you to do; empty for nothing."""
    namespaces: int = 0
    lessons: int = 0
    """Active lessons in the store."""
    embedded: int = 0
    """Lessons whose vectors were made now."""
    written: int = 0
    """Entries that were written now."""
    questions: int = 0
    """So many were asked of the new store and of an exact search over the ledger's vectors."""
    recall: float = 1.0
    """Which share of the ten nearest lessons it found, over all questions."""
    seconds: float = 0.0


def reindex(
    core: Core,
    store: Any,
    store_options: Mapping[str, Any] | None,
    embeddings: Any,
    progress: Callable[[Progress], Any] | None,
) -> ReindexReport:
    """Build, compare, switch; see `Reflection.reindex`."""
    if progress is not None and not callable(progress):
        raise ConfigurationError("progress", progress, "a callable that takes a Progress, or None")
    if store is not None:
        check_store(store)
    if embeddings is not None:
        check_embedder(embeddings)
    move = Move(core, store, store_options, embeddings, progress)
    try:
        return move.run()
    finally:
        move.end()


class Move:
    """One move, which may go on where an earlier one was killed."""

    def __init__(
        self,
        core: Core,
        store: Any,
        store_options: Mapping[str, Any] | None,
        embeddings: Any,
        progress: Callable[[Progress], Any] | None,
    ) -> None:
        self.core = core
        self.lessons, self.moves = core.parts.ledger.lessons, core.parts.ledger.moves
        self.lessons.read_generation()  # and where the ledger was moved to
        self.store, self.store_options, self.embeddings = store, store_options, embeddings
        self.progress = progress or (lambda _: None)
        self.began = time.monotonic()
        self.index = self._target()
        self.adopted = False
        """Whether the index that was built is in use now."""
        self.embedded = self.written = self.count = self.asked = self.total = 0
        self.found = 0.0
        """The recall of each namespace times the number of its questions."""

    def run(self) -> ReindexReport:
        """Do it."""
        spaces = self.lessons.namespaces()
        try:
            held = self.index.open()
        except StoreError as error:
            return self._report(spaces, str(error))
        if held and (self.store is not None or self.embeddings is None):
            return self._report(spaces, held)
        self._embed(spaces)
        if held:  # another process fills its store by itself, once its code names the new embedder
            return self._report(spaces, "", f"{self._switch()}; {held}")
        why = self._fill(spaces)
        return self._report(spaces, why, "" if why else self._switch())

    def end(self) -> None:
        """Close what was opened here and is not in use. A store object of the user's stays open."""
        if self.index is not self.core.parts.index and not self.adopted:
            self.index.close(store=isinstance(self.index.spec, str))

    def _target(self) -> Index:
        core, now = self.core, self.core.parts.index
        if self.store is None and self.embeddings is None and self.store_options is None:
            return now
        options = dict(self.store_options or ({} if self.store is not None else core.options.store_options))
        settings = replace(core.options, store=now.spec if self.store is None else self.store, store_options=options)
        embedder = core.parts.embedder if self.embeddings is None else core.parts.embedder_of(self.embeddings)
        return Index(self.lessons, embedder, settings, core.failed)

    @property
    def _name(self) -> str:
        """Of these notes in the ledger."""
        return f"{shown(self.index.spec)} {self.index.embedder.id}"

    def _embed(self, spaces: tuple[Namespace, ...]) -> None:
        missing = sum(len(self.lessons.without_vectors(space, self.index.embedder.id)) for space in spaces)

        def tell(some: int) -> None:
            self.embedded += some
            self._tell("embedding", self.embedded, missing)

        for space in spaces if missing else ():
            self.index.embed(space, tell)

    def _fill(self, spaces: tuple[Namespace, ...]) -> str:
        """Write and compare all namespaces; gives the reason where the store is not good enough."""
        if (store := self.index.opened()) is None:
            self.count = sum(len(self.index.vectors(space)) for space in spaces)
            return ""
        self.total = sum(self.lessons.standing(space).get("active", 0) for space in spaces)
        try:
            for space in spaces:
                # In the index's own thread: what it is told of changes and what is written here come one by one.
                if why := self.index.lane.submit(partial(self._namespace, store, space)).result():
                    return self._failed(why)
        except StoreError as error:
            return str(error)
        if self.asked and self.found / self.asked < LEAST_RECALL:
            share = f"{self.found / self.asked:.1%} of the nearest lessons ({self.asked} questions)"
            return self._failed(f"{shown(self.index.spec)} finds {share}")
        return ""

    def _failed(self, why: str) -> str:
        self.moves.forget(self._name)
        return f"{why}: it is written anew the next time"

    def _namespace(self, store: LessonStore, namespace: Namespace) -> str:
        """Bring a namespace of the store to what the ledger says; gives what is wrong with it all the same."""
        space = (*namespace, self.index.embedder.id)
        for attempt in range(TRIES):
            revision, _ = self.lessons.state(namespace)
            rows = sorted(self.lessons.indexed(namespace, 0, self.index.embedder.id), key=lambda row: row.id)
            wanted = filling.entries(rows)
            if attempt == 0:
                self._write(store, namespace, revision, {row.id: row.revision for row in rows}, wanted)
                found = filling.compare(store, space, wanted)
            else:
                found = filling.mend(store, space, wanted)
            if not found.total:
                asked = filling.questions(wanted, QUESTIONS)
                self.found += len(asked) * filling.recall(store, space, wanted, asked)
                self.asked += len(asked)
                self.count += len(wanted)
                return ""
        wrong = f"{found.missing} lessons are missing, {found.superfluous} too many, {found.wrong} wrong"
        return f"in {'/'.join(namespace)} {wrong}"

    def _write(
        self,
        store: LessonStore,
        namespace: Namespace,
        revision: int,
        revisions: Mapping[str, int],
        wanted: list[Entry],
    ) -> None:
        """Write what is not there yet: what is missing, what an earlier attempt did not reach, what changed since."""
        space, notes = (*namespace, self.index.embedder.id), store.capabilities.persistent
        begun, last = self.moves.begin(self._name, namespace, revision) if notes else (revision, "")
        there = store.ids(space)
        store.delete(space, there - {entry.id for entry in wanted})
        left = [x for x in wanted if x.id > last or x.id not in there or revisions[x.id] > begun]
        for start in range(0, len(left), BATCH):
            some = left[start : start + BATCH]
            store.upsert(space, some)
            self.written += len(some)
            if notes and some[-1].id > last:
                self.moves.advance(self._name, namespace, last := some[-1].id)
            self._tell("writing", self.count + len(wanted) - len(left) + start + len(some), self.total)

    def _switch(self) -> str:
        """Tell the ledger, and with it every process; gives what is left to do."""
        spec, embedder, todo = self.index.spec, self.index.embedder.id, list[str]()
        told = self.store is not None and not self.store_options and kept(spec)
        noted = self.embeddings is not None or self.moves.last().embedder  # else no embedder was ever asked for
        self.moves.complete(self._name, spec if told else None, embedder if noted else None)
        if self.store is not None and not (told and self.core.options.store is None):
            why = "it names another one" if told else "the ledger keeps names and URLs without secrets only"
            todo.append(f"say {f'store={spec!r}' if told else 'store='} in the code: {why}")
            if self.embeddings is None:  # this Reflection goes over to it now
                self.core.parts.replace_index(self.index)
                self.adopted = True
        if self.embeddings is not None:
            todo.append(f"say embeddings= in the code: the vectors of {embedder} are ready")
        logger.info("reflect: the lessons' index is in %s now, with vectors of %s", shown(spec), embedder)
        return "; ".join(todo)

    def _tell(self, doing: Literal["embedding", "writing"], done: int, total: int) -> None:
        self.progress(Progress(doing=doing, done=done, total=max(done, total)))

    def _report(self, spaces: tuple[Namespace, ...], why: str, todo: str = "") -> ReindexReport:
        return ReindexReport(
            store=shown(self.index.spec),
            embedder=self.index.embedder.id,
            switched=not why,
            reason=why,
            todo=todo,
            namespaces=len(spaces),
            lessons=self.count,
            embedded=self.embedded,
            written=self.written,
            questions=self.asked,
            recall=self.found / self.asked if self.asked else 1.0,
            seconds=time.monotonic() - self.began,
        )
