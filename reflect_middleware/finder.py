"""Finding a run's lessons, within a deadline, on threads of our own."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from reflect_middleware.counters import LATE, RESTING
from reflect_middleware.errors import LedgerError
from reflect_middleware.lanes import Lane
from reflect_middleware.retrieve import Choice, choose, ranked
from reflect_middleware.session import Plan
from reflect_middleware.types import Lesson, Namespace

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.store import Vector

WARM_UP_SECONDS = 15.0
"""How long the first run waits for the ledger to open, and the first with lessons to find for the embedder to load."""
BREAKER_FAILURES = 3
"""After so many failures in a row retrieval rests."""
BREAKER_SECONDS = 30.0
"""How long it rests."""
SPARE = 5
"""How many more lessons than may be shown are looked at: some are too long for the budget, or retired just now."""
BODIES = 4_096
"""Most lessons kept in memory, about 4 MB."""


Spaces = list[tuple[Namespace, int]]
"""Namespaces that have, or had, lessons, each with its revision; the run's own first."""


@dataclass(slots=True)
class _Known:
    """What is known here of a namespace at one revision."""

    bodies: dict[str, Lesson | None] = field(default_factory=dict)
    """The lessons asked for so far; None for one that is not active there."""
    always: tuple[Lesson, ...] | None = None
    """Those that apply everywhere; None while nobody has asked."""


class Finder:
    """Retrieval with its cache and its breaker."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.lane = Lane("retrieve", threads=4)
        self.renew()

    def renew(self) -> None:
        """Start afresh, in a new process."""
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Namespace, int], _Known] = OrderedDict()
        self._failures, self._rest_until = 0, 0.0

    def fetches(
        self, plan: Plan, inside: Callable[[Callable[[], Any]], Callable[[], Any]]
    ) -> Iterator[tuple[Callable[[], Future[Any]], float]]:
        """What a run waits for before it starts, with its deadline: first, once, the embedder; then its lessons.

        Args:
            plan: Of the run.
            inside: Makes a job for another thread a part of the run's search, in traces.
        """
        if not plan.use_lessons and plan.resume is None:
            return
        if self._resting():
            self.core.counters.add(RESTING)
            return
        if self.nothing_to_find(plan):
            return
        parts, deadline = self.core.parts, self.core.options.retrieve_timeout
        if plan.use_lessons and not parts.opened("embedder"):
            found: list[Spaces] = []
            look = inside(lambda: found.append(self._spaces(plan)[0]))
            yield lambda: self.lane.submit(look), deadline if parts.opened("ledger") else WARM_UP_SECONDS
            if found[0]:
                yield lambda: self.lane.submit(inside(self._warm_up)), WARM_UP_SECONDS
                yield lambda: self.lane.submit(inside(self._identify)), deadline
        yield lambda: self.lane.submit(inside(lambda: self.find(plan))), deadline

    def at_once(self, plan: Plan) -> tuple[Choice, str] | None:
        """As `find`, on the caller's own thread; None if that might wait for an embedder, a server or a lock.

        A run in sync code whose ledger is a local file saves two changes of threads.
        """
        parts = self.core.parts
        if not plan.use_lessons or plan.resume is not None or self._resting():
            return None
        if not (parts.opened("ledger") and self.core.options.ledger_url.startswith("sqlite")):
            return None
        spaces, paused = self._spaces(plan)
        if not spaces or paused:
            return Choice(), ""
        local = parts.opened("index") and parts.index.exact
        if not local or (vector := parts.embedder.peek_query(plan.task)) is None:
            return None
        return self._choose(plan, vector, spaces), ""

    def nothing_to_find(self, plan: Plan) -> bool:
        """Whether it is known, without asking the ledger, that the run gets no lessons and goes on with nothing."""
        if plan.resume is not None or not self.core.parts.opened("ledger"):
            return False
        table = self.core.parts.ledger.lessons
        states = [table.known_state(namespace) for namespace in (plan.namespace, *plan.read)]
        known = [state for state in states if state is not None]
        return len(known) == len(states) and (known[0][1] or not any(revision for revision, _ in known))

    def find(self, plan: Plan) -> tuple[Choice, str]:
        """The run's lessons, and the interrupted episode that it goes on with, if any."""
        ledger, resumed = self.core.parts.ledger, None
        if plan.resume is not None and plan.thread_id:
            # In async code the middleware cannot hold a run until its record is written: it may still be queued.
            self.core.keeper.writer.wait_idle(self.core.options.retrieve_timeout / 2)
            resumed = ledger.episodes.interrupted(plan.spec.agent, plan.thread_id, plan.checkpoint_ns)
        if resumed is not None:  # by another user, perhaps, such as the one who approves
            plan = replace(plan, namespace=resumed.namespace, read=resumed.read, task=resumed.task)
        spaces, paused = self._spaces(plan)
        choice = Choice()
        if plan.use_lessons and spaces and not paused and (resumed or plan.task or plan.resume is None):
            vector = self.core.parts.embedder.embed_query(plan.task)
            choice = self._choose(plan, vector, spaces)
        self._failures = 0
        return choice, resumed.id if resumed else ""

    def failed(self, error: BaseException) -> None:
        """Note that a run got no lessons; retrieval rests when that happens in a row."""
        self._failures += 1
        if self._failures >= BREAKER_FAILURES:
            self._rest_until = time.monotonic() + BREAKER_SECONDS
        outage = self.core.keeper.outage
        if isinstance(error, TimeoutError):
            self.core.counters.add(LATE, f"not within retrieve_timeout={self.core.options.retrieve_timeout} s")
            outage.doubt()
        elif isinstance(error, LedgerError) and error.temporary:
            outage.lost(error)
        self.core.failed("retrieve", error)

    def _resting(self) -> bool:
        return time.monotonic() < self._rest_until or self.core.keeper.outage.unreachable

    def _warm_up(self) -> None:
        """Build the embedder: reading a model takes its time, once; asking it must not."""
        _ = self.core.parts.embedder.name

    def _identify(self) -> None:
        _ = self.core.parts.embedder.id

    def _spaces(self, plan: Plan) -> tuple[Spaces, bool]:
        """Where a run's lessons are looked for, and whether everything is paused."""
        table = self.core.parts.ledger.lessons
        revision, paused = table.state(plan.namespace)
        revisions = [revision, *(table.revisions(plan.read) if plan.read else ())]
        return [pair for pair in zip((plan.namespace, *plan.read), revisions, strict=True) if pair[1]], paused

    def _choose(self, plan: Plan, vector: Vector, spaces: Spaces) -> Choice:
        parts, options = self.core.parts, self.core.options
        shown = parts.ledger.episodes.shown_in_thread(plan.namespace, plan.thread_id) if plan.thread_id else []
        found: list[list[tuple[Lesson, float]]] = []
        always: list[Lesson] = []
        bodies: dict[str, Lesson] = {}
        for namespace, revision in spaces:
            hits = parts.index.search(namespace, revision, vector, options.limits.top_k + len(shown) + SPARE)
            wanted = [*(lesson_id for lesson_id, _ in hits), *(i for i in shown if i not in bodies)]
            bodies |= self._active(namespace, revision, wanted)
            found.append([(bodies[i], score) for i, score in hits if i in bodies])
            always += self._always(namespace, revision)
        earlier = [bodies[i] for i in shown if i in bodies]
        own = plan.namespace if plan.read else None
        return choose(ranked(found), earlier, options.limits, options.count_tokens, always=always, own=own)

    def _active(self, namespace: Namespace, revision: int, ids: list[str]) -> dict[str, Lesson]:
        """Bodies from the ledger: whatever an index says, a retired lesson or another namespace's never comes back."""
        with self._lock:
            known = self._known.setdefault((namespace, revision), _Known()).bodies
            held = {i: known[i] for i in ids if i in known}
        if missing := [i for i in dict.fromkeys(ids) if i not in held]:
            found = {x.id: x for x in self.core.parts.ledger.lessons.many(missing)}
            usable = {i: x for i, x in found.items() if x.status == "active" and x.namespace == namespace}
            held |= {i: usable.get(i) for i in missing}
            with self._lock:
                known |= held
                while len(self._known) > 1 and sum(len(x.bodies) + 1 for x in self._known.values()) > BODIES:
                    self._known.popitem(last=False)
        return {i: lesson for i, lesson in held.items() if lesson is not None}

    def _always(self, namespace: Namespace, revision: int) -> tuple[Lesson, ...]:
        """The lessons of a namespace that apply everywhere; the ledger is asked once a revision."""
        with self._lock:
            known = self._known.setdefault((namespace, revision), _Known())
        if known.always is None:
            known.always = self.core.parts.ledger.lessons.always(namespace)
        return known.always
