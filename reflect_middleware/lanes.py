"""Daemon threads of our own.

Executors are no use here: they refuse work at interpreter exit and inside a cancelled scope, and a user's busy
default executor would hold up our records. A lane is a queue and one or more daemon threads, started on first use in
each process.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Future[Any]", "frozenset[Lane]"]


class Lane:
    """Runs jobs on daemon threads, in order if there is one thread. Usable again after a fork."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name = name
        self.threads = threads
        self._pid = 0
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._turn = 0
        """Counts the threads that gave up their place; those of an earlier turn end with the job they are in."""

    @property
    def here(self) -> bool:
        """Whether this is one of its own threads, where waiting for a job of it would never end."""
        return getattr(_thread, "lane", None) is self

    @property
    def within(self) -> bool:
        """Whether this is work that one of its jobs has begun, on whatever thread: that job may be waiting for it."""
        return self in _lanes.get()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job; never blocks. It takes no lock, so that a garbage collection may end a run at any point."""
        future: Future[T] = Future()
        if self._pid != os.getpid():
            self._start()
        self._queue.put((job, future, _lanes.get()))
        return future

    def current(self) -> Future[Any] | None:
        """The future of the job that this thread of ours is in; None on any other thread."""
        return getattr(_thread, "future", None) if self.here else None

    def relieve(self, stuck: Future[Any], job: Callable[[], Any]) -> None:
        """Let another thread go on, which first does this job in place of the one that is stuck.

        For lanes of one thread. The stuck thread ends once its own job does, whose result is dropped.
        """
        self._turn += 1
        self._spawn(self._queue, (job, stuck, _lanes.get()))

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until every job submitted so far has run; False if `timeout` seconds passed first.

        For lanes of one thread: a job of no content, put behind the others, says that they are done. False at once
        inside of what one of its jobs has begun, which that job may be waiting for.
        """
        if self._pid != os.getpid():
            return True
        if self.within:
            return False
        try:
            self.submit(lambda: None).result(timeout)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """Let the threads end once they have run what is queued."""
        if self._pid == os.getpid():
            self._pid = 0
            for _ in range(self.threads):
                self._queue.put(None)

    def _start(self) -> None:
        pid = os.getpid()
        with _starting:
            if self._pid == pid:
                return
            queue: SimpleQueue[Job | None] = SimpleQueue()
            for _ in range(self.threads):
                self._spawn(queue)
            if self._pid != pid:  # else a garbage collection has come in between and started it
                self._queue, self._pid = queue, pid

    def _spawn(self, queue: SimpleQueue[Job | None], first: Job | None = None) -> None:
        name = f"reflect-{self.name}-{next(_numbers)}"
        threading.Thread(target=self._run, args=(queue, self._turn, first), name=name, daemon=True).start()

    def _run(self, queue: SimpleQueue[Job | None], turn: int, first: Job | None) -> None:
        _thread.lane = self
        item = first or queue.get()
        while item is not None:
            job, future, lanes = item
            _thread.future = future
            try:
                # A fresh context: nothing of the submitting run (callbacks, tracing) may leak into our work.
                result = contextvars.Context().run(_within, lanes | {self}, job)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the future
                settle: Callable[[Any], None] = future.set_exception
                result = error
            else:
                settle = future.set_result
            if turn != self._turn:
                return
            _settle(settle, result)
            _thread.future = None
            del item, job, future, settle, result
            item = queue.get()


def once(name: str, job: Callable[[], T]) -> Future[T]:
    """Run one job on a thread of its own, which ends with it."""
    lane = Lane(name)
    done = lane.submit(job)
    lane.stop()
    return done


def _within(lanes: frozenset[Lane], job: Callable[[], T]) -> T:
    _lanes.set(lanes)
    return job()


def _settle(setter: Callable[[Any], None], value: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # an async waiter was cancelled and took its future with it
        setter(value)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def awaited(future: Future[T], seconds: float | None = None) -> T:
    """Wait for a lane's future on an event loop. Cancelling the waiter leaves the job running.

    Args:
        future: What to wait for.
        seconds: How long at most; None: however long it takes. Not by `asyncio.wait_for`: its task would be set up
            while the job runs, and two threads that both run Python wait for each other.

    Raises:
        TimeoutError: If the time has passed first.
        BaseException: What the job raised.
    """
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def tell(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the waiter was cancelled, and its loop is closed by now
            loop.call_soon_threadsafe(_wake, over)

    future.add_done_callback(tell)
    timer = None if seconds is None else loop.call_later(seconds, _wake, over)
    try:
        await over
    finally:
        if timer is not None:
            timer.cancel()
    if not future.done():
        raise TimeoutError
    return future.result()


_numbers = itertools.count()
_starting = threading.RLock()
_thread = threading.local()
_lanes: contextvars.ContextVar[frozenset[Lane]] = contextvars.ContextVar("reflect_lanes", default=frozenset())
"""Whose jobs this work belongs to: the lane's that runs it, and theirs that submitted it from a job of their own."""


def _renew() -> None:
    global _starting  # noqa: PLW0603 - a lock that another thread held at the fork is never released in the child
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def on_a_loop() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
