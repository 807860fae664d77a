"""What drives a practice: threads for sync graphs, an event loop for async ones."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from reflect_middleware.lanes import Lane, awaited, once

if TYPE_CHECKING:
    from reflect_middleware.practice import Course
    from reflect_middleware.practice_plan import Place

logger = logging.getLogger(__name__)
T = TypeVar("T")


def drive(course: Course, concurrency: int, *, use_async: bool | None = None) -> None:
    """Do a practice from sync code; on an event loop of its own if that is asked for, or if the graph is async only.

    The first Ctrl-C lets what is under way come to its end, the second one is raised.
    """
    inside = contextvars.copy_context().run
    if async_only(course.job.graph) if use_async is None else use_async:
        _wait(course, [once("practice", lambda: inside(asyncio.run, adrive(course, concurrency)))])
        return
    lane, rounds = Lane("practice", threads=concurrency), course.rounds()
    try:
        while (found := _wait(course, [lane.submit(lambda: next(rounds, None))])[0]) is not None:
            jobs = [functools.partial(contextvars.copy_context().run, _one, course, place) for place in found.places]
            _wait(course, [lane.submit(job) for job in jobs])
            _wait(course, [lane.submit(functools.partial(course.ended, found))])
    finally:
        lane.stop()


async def adrive(course: Course, concurrency: int) -> None:
    """Do a practice on the running event loop; nothing but the agent itself runs on it."""
    gate, rounds = asyncio.Semaphore(concurrency), course.rounds()

    async def one(place: Place) -> None:
        async with gate:
            try:
                await course.arollout(place, away)
            except Exception:
                course.stop("failed")
                raise

    while (found := await away(lambda: next(rounds, None))) is not None:
        ended = await asyncio.gather(*map(one, found.places), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error
        await away(functools.partial(course.ended, found))


async def away(job: Callable[[], T]) -> T:
    """Do blocking work on a thread of its own."""
    return await awaited(once("practice", job))


def async_only(graph: Any) -> bool:
    """Whether a node of a graph has no sync form."""
    nodes = getattr(graph, "nodes", None) or {}
    bound = [getattr(node, "bound", None) for node in nodes.values()]
    return any(getattr(b, "func", b) is None and getattr(b, "afunc", None) is not None for b in bound)


def _one(course: Course, place: Place) -> None:
    try:
        course.rollout(place)
    except Exception:
        course.stop("failed")
        raise


def _wait(course: Course, futures: Sequence[Future[Any]]) -> list[Any]:
    """Wait for all of them, then raise the first error, or give what they gave."""
    for future in futures:
        while not future.done():
            try:
                future.exception()
            except KeyboardInterrupt:
                if course.stopped == "interrupted":
                    raise
                course.stop("interrupted")
                logger.warning("reflect: practice: what is under way is finished; Ctrl-C again leaves at once")
    return [future.result() for future in futures]
