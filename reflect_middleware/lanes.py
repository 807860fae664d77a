"""Daemon threads of our own.

Executors are no use here: they refuse work at interpreter exit and inside a cancelled scope, and a user's busy default
executor would hold up our records. A lane is a queue and one or more daemon threads, started on first use in each process.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Future[Any]"]


class Lane:
    """Runs jobs on daemon threads, in order if there is one thread. Usable again after a fork."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name = name
        self.threads = threads
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._pid = 0
        self._pending = 0
        self._queue: SimpleQueue[Job | None] = SimpleQueue()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job; never blocks, safe in garbage collection and cancellation."""
        future: Future[T] = Future()
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            self._pending += 1
        self._queue.put((job, future))
        return future

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until every job submitted so far has run; False if `timeout` seconds passed first."""
        if self._pid != os.getpid():
            return True
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout)

    def stop(self) -> None:
        """Let the threads end once they have run what is queued."""
        if self._pid == os.getpid():
            self._pid = 0
            for _ in range(self.threads):
                self._queue.put(None)

    def _start(self) -> None:
        # A lock held by another thread at fork time stays locked in the child: new ones for each process.
        pid = os.getpid()
        lock = threading.Lock()
        with _starting:
            if self._pid == pid:
                return
            self._lock, self._idle = lock, threading.Condition(lock)
            self._pending, self._queue = 0, SimpleQueue()
            for number in range(self.threads):
                threading.Thread(
                    target=self._run, args=(self._queue,), name=f"reflect-{self.name}-{number}", daemon=True
                ).start()
            self._pid = pid

    def _run(self, queue: SimpleQueue[Job | None]) -> None:
        while (item := queue.get()) is not None:
            job, future = item
            try:
                # A fresh context: nothing of the submitting run (callbacks, tracing) may leak into our work.
                result = contextvars.Context().run(job)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the future
                _settle(future.set_exception, error)
            else:
                _settle(future.set_result, result)
            del item, job, future
            with self._idle:
                self._pending -= 1
                if self._pending == 0:
                    self._idle.notify_all()


def _settle(setter: Callable[[Any], None], value: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # an async waiter was cancelled and took its future with it
        setter(value)


async def awaited(future: Future[T]) -> T:
    """Wait for a lane's future on an event loop. Cancelling the waiter leaves the job running."""
    return await asyncio.shield(asyncio.wrap_future(future))


_starting = threading.Lock()


def _renew() -> None:
    global _starting  # noqa: PLW0603 - a lock that another thread held at the fork is never released in the child
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
