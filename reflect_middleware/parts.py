"""The heavy parts: imported and opened on first use, once per process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reflect_middleware.counters import words
from reflect_middleware.forks import gate

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.embed import Embedder
    from reflect_middleware.errors import LedgerError
    from reflect_middleware.index import Index
    from reflect_middleware.learn import Learner
    from reflect_middleware.ledger import Ledger
    from reflect_middleware.store import Vector

logger = logging.getLogger(__name__)
T = TypeVar("T")
_inherited: list[dict[str, Any]] = []
"""What came with a fork: kept, so that no garbage collection closes it."""


class Parts:
    """Ledger, embedder, index and learner of one Reflection."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.renew()

    def renew(self) -> None:
        """Start afresh, in a new process: the parent's connections and locks are not ours to use or close."""
        self._lock = threading.RLock()
        if made := getattr(self, "_made", None):
            _inherited.append(made)
        self._made: dict[str, Any] = {}

    def opened(self, name: str) -> bool:
        """Whether a part has been used here."""
        return name in self._made

    @property
    def ledger(self) -> Ledger:
        """The SQL database that is the truth."""

        def make() -> Ledger:
            # The others are what threads of ours will import: here a fork waits for it.
            from reflect_middleware import learn, recording, replay, spool  # noqa: F401
            from reflect_middleware.ledger import Ledger

            made = Ledger(self.core.options.ledger_url, fsync=self.core.options.durability == "fsync")
            made.database.on_replaced = self._replaced
            return made

        return self._part("ledger", make)

    @property
    def embedder(self) -> Embedder:
        """Text to vectors."""
        return self._part("embedder", lambda: self.embedder_of(self.core.options.embeddings))

    def embedder_of(self, spec: Any) -> Embedder:
        """An embedder by name, or over an object, that the ledger knows by its vectors."""
        from reflect_middleware.registry import open_embedder

        made = open_embedder(spec)
        made.identify = self._identify
        return made

    @property
    def index(self) -> Index:
        """The lessons by vector."""

        def make() -> Index:
            from reflect_middleware.index import Index

            return Index(self.ledger.lessons, self.embedder, self.core.options, self.core.failed)

        return self._part("index", make)

    @property
    def learner(self) -> Learner:
        """The reflecting side."""

        def make() -> Learner:
            from reflect_middleware.learn import Learner

            return Learner(self.core)

        return self._part("learner", make)

    def close(self) -> None:
        """Close what was opened here, in the order in which it depends on each other."""
        for name in ("learner", "index", "ledger"):
            if name in self._made:
                try:
                    self._made[name].close()
                except Exception as error:  # a store's driver, say; the rest must be closed all the same
                    logger.warning("reflect: the %s could not be closed: %s", name, words(error))
                    logger.debug("reflect: where closing the %s failed", name, exc_info=True)

    def _identify(self, name: str, probe: Vector) -> str:
        return self.ledger.embedders.identity(name, probe)

    def _replaced(self, error: LedgerError) -> None:
        """Forget what was read from a ledger whose file is gone."""
        self.core.failed("ledger", error)
        self.core.finder.renew()
        self.ledger.lessons.forget()
        if self.opened("embedder"):
            self.embedder.forget_id()
        self.replace_index(None)

    def replace_index(self, new: Index | None) -> None:
        """Go over to another index, or to one that is made when it is needed. The former one is closed aside."""
        with self._lock:
            former = self._made.pop("index", None)
            if new is not None:
                self._made["index"] = new
        if former is not None:
            self.core.calls.submit(lambda: former.close(store=isinstance(former.spec, str)))  # an object is the user's

    def _part(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._made:
            with gate.passing(), self._lock:
                if name not in self._made:
                    self._made[name] = make()
        return cast("T", self._made[name])
