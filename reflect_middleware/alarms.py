"""Reminders, one for each key, on one thread of ours however many there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Alarms(Generic[K]):
    """Calls back at set times. The thread starts with the first one and ends when none is left.

    Args:
        ring: Called with the key, on the alarms' thread; must neither block nor raise.
    """

    def __init__(self, ring: Callable[[K], object]) -> None:
        self._ring = ring
        self._times: dict[K, float] = {}
        self._changed = threading.Condition()
        self._runs = False

    def set(self, key: K, seconds: float | None) -> None:
        """Remind of a key once, in so many seconds, instead of what was set for it; None: not at all."""
        with self._changed:
            if seconds is None:
                self._times.pop(key, None)
                return
            self._times[key] = time.monotonic() + seconds
            if self._runs:
                self._changed.notify()
            else:
                self._runs = True
                threading.Thread(target=self._run, name="reflect-alarms", daemon=True).start()

    def clear(self) -> None:
        """Forget all of them."""
        with self._changed:
            self._times.clear()
            self._changed.notify()

    def __len__(self) -> int:
        return len(self._times)

    def _run(self) -> None:
        while (due := self._next()) is not None:
            for key in due:
                self._ring(key)

    def _next(self) -> list[K] | None:
        """Wait for what is due; None if nothing is left to wait for."""
        with self._changed:
            while self._times:
                wait = min(self._times.values()) - time.monotonic()
                if wait <= 0:
                    over = time.monotonic()
                    due = sorted((k for k, at in self._times.items() if at <= over), key=self._times.__getitem__)
                    for key in due:
                        del self._times[key]
                    return due
                self._changed.wait(min(wait, threading.TIMEOUT_MAX))
            self._runs = False
            return None
