"""What a process remembers of its latest runs: the objects that they gave, and the attempts that failed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from reflect_middleware.session import Plan, Session
from reflect_middleware.types import EpisodeStatus

RESULTS = 64
"""Of how many latest runs the result object itself is known."""
ATTEMPTS = 1_000
"""Most failed runs of nodes that are remembered in case a RetryPolicy runs them again."""


class Lately:
    """Known here and now only: the ledger knows results by what is in them, and no attempts."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a garbage collection inside the lock may end an abandoned run
        self._results: OrderedDict[int, tuple[Any, str]] = OrderedDict()
        self._failed: OrderedDict[tuple[str, ...], tuple[str, str]] = OrderedDict()

    def note(self, session: Session, status: EpisodeStatus) -> None:
        """A run is over."""
        result, session.last = _result_of(session.last), None
        if result is not None and not isinstance(result, (str, int, float, bool)):
            with self._lock:
                self._results[id(result)] = (result, session.episode_id)
                while len(self._results) > RESULTS:
                    self._results.popitem(last=False)
        plan = session.plan
        if status == "failed" and plan.execution:
            with self._lock:
                self._failed[*plan.execution, plan.task] = (plan.attempt, session.episode_id)
                while len(self._failed) > ATTEMPTS:
                    self._failed.popitem(last=False)

    def result(self, given: Any) -> str | None:
        """The episode whose run gave exactly this object."""
        with self._lock:
            held = self._results.get(id(given))
        return held[1] if held is not None and held[0] is given else None

    def failed_attempt(self, plan: Plan) -> str:
        """The failed episode of which this run is another attempt; empty for none."""
        key = (*plan.execution, plan.task)
        if not plan.execution or key not in self._failed:
            return ""
        with self._lock:
            attempt, episode_id = self._failed.get(key, (plan.attempt, ""))
            if attempt == plan.attempt:
                return ""
            self._failed.pop(key, None)  # one run goes on with it
            return episode_id


def _result_of(chunk: Any) -> Any:
    """The state in a `values` chunk of any stream form: plain, (mode, state), (namespace, mode, state), or a part."""
    if isinstance(chunk, tuple) and chunk:
        return chunk[-1]
    if isinstance(chunk, Mapping) and set(chunk) >= {"type", "ns", "data"}:
        return chunk["data"]
    return chunk
