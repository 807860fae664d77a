"""What wrapping costs: `make bench`.

An agent with a fake model, in three forms: bare, wrapped without waiting for the ledger (`durability="queue"`), wrapped
with one ledger commit per run (the default). The three run in turns, in random order, on the same tasks; a figure is a
median over the turns with a bootstrap 95 % interval. Work that a run leaves to our own threads is waited for between
two runs, outside of the timing. Embeddings of the tasks are cached, as they are from the second run of a task on.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import random
import sys
import tempfile
import time
import tracemalloc
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.agents import FIRST_TOKEN_SECONDS, Answering, one_call, six_and_five, slow_to_start, waiting
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

LESSONS = 1_000
CONCURRENT = 1_000
PAST = 5_000
GOAL = 1.10
"""Most times the bare run, whatever the durability."""
COMMITTED = 1.20
"""What is reached of it with a model that answers at once: the commit is a quarter of a millisecond in SQLite alone."""
ALMOST = 1.15
"""The same with a model that takes a millisecond per call."""
ENOUGH_SECONDS = 0.005
"""How long a model call takes where the goal is kept."""
MODEL_SECONDS = (0.001, ENOUGH_SECONDS, 0.02)
HOW: tuple[tuple[Literal["invoke", "ainvoke"], str], ...] = (("invoke", ""), ("ainvoke", ", async"))
TASKS = [f"file the travel claim number {number} for the night train" for number in range(8)]
PACKAGES = ("reflect-middleware", "langgraph", "langchain-core", "chromadb", "sqlalchemy", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure, and what is allowed without the ledger's commit and with it."""

    title: str
    agent: Callable[[], Any]
    how: Literal["invoke", "ainvoke", "first token"] = "invoke"
    store: str = "exact"
    lessons: int = 0
    milliseconds: float | None = None
    """Most extra milliseconds at the median."""
    ratio: float | None = None
    """Most times the bare run at the median."""
    committed: float | None = None
    """As `ratio`, for a run that waits for its commit."""
    share: int = 1
    """One turn is measured of so many: of a run that mostly waits for its model, fewer tell as much."""


CASES = (
    Case(title="1 model call, no lessons", agent=one_call, milliseconds=0.25),
    Case(title="1 model call, 1,000 lessons, exact", agent=one_call, lessons=LESSONS, milliseconds=0.5),
    Case(
        title="1 model call, 1,000 lessons, chroma", agent=one_call, lessons=LESSONS, store="chroma", milliseconds=3.0
    ),
    Case(title="1 model call, 1,000 lessons, exact, async", agent=one_call, lessons=LESSONS, how="ainvoke"),
    Case(title="6 model and 5 tool calls, no lessons", agent=six_and_five, ratio=1.10, committed=COMMITTED),
    Case(
        title="6 model and 5 tool calls, no lessons, async",
        agent=six_and_five,
        how="ainvoke",
        ratio=1.10,
        committed=COMMITTED,
    ),
    *(
        Case(
            title=f"6 model and 5 tool calls, each model call takes {1_000 * seconds:.0f} ms (simulated){name}",
            agent=partial(six_and_five, seconds),
            how=how,
            ratio=1.10,
            committed=GOAL if seconds >= ENOUGH_SECONDS else ALMOST,
            share=3,
        )
        for seconds in MODEL_SECONDS
        for how, name in HOW
    ),
    Case(title="6 model and 5 tool calls, 1,000 lessons", agent=six_and_five, lessons=LESSONS),
    Case(title="6 model and 5 tool calls, 1,000 lessons, async", agent=six_and_five, lessons=LESSONS, how="ainvoke"),
    Case(
        title=f"first token of a model that waits {1_000 * FIRST_TOKEN_SECONDS:.0f} ms (simulated), 1,000 lessons",
        agent=slow_to_start,
        lessons=LESSONS,
        how="first token",
        ratio=1.05,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median and its bootstrap 95 % interval."""

    median: float
    low: float
    high: float


def interval(values: NDArray[np.float64]) -> Interval:
    """The median of paired differences or ratios."""
    samples = np.random.default_rng(0).choice(values, size=(2_000, values.size))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return Interval(median=float(np.median(values)), low=float(low), high=float(high))


def teach(path: Path, lessons: int) -> None:
    """Fill a ledger; every task finds its five nearest lessons among all of them."""
    with Reflection(
        None, path=str(path), store="exact", embeddings=HashingEmbeddings(), max_lessons=LESSONS
    ) as reflection:
        for number in range(lessons):
            reflection.lessons.add(
                when=f"filing a travel claim number {number}", do=f"write the form {number} in cents"
            )


def opened(path: Path, store: str = "exact", durability: Literal["queue", "commit"] = "commit") -> Reflection:
    """A Reflection whose reflections are never due; after each run it looks whether one is."""
    return Reflection(
        Answering(),
        path=str(path),
        store=store,
        embeddings=HashingEmbeddings(),
        every=1_000_000,
        durability=durability,
    )


class Bench:
    """Three forms of one agent, run in turns."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        teach(path, case.lessons)
        self.case = case
        self.reflections = [stack.enter_context(opened(path, case.store, how)) for how in ("queue", "commit")]
        bare = case.agent()
        self.forms = [bare, *(reflection.wrap(bare) for reflection in self.reflections)]
        self.runner = stack.enter_context(asyncio.Runner())

    def measure(self, turns: int) -> NDArray[np.float64]:
        """Milliseconds of one run, shape (turns, 3): bare, queued, committed."""
        for task in 3 * TASKS:
            self._turn(task)
        for reflection in self.reflections:
            shown = sum(lesson.shown for lesson in reflection.preview({"messages": TASKS[0]}).lessons)
            if shown != min(5, self.case.lessons):
                sys.exit(f"The benchmark measures nothing: {shown} lessons are shown.")
        return np.array([self.measure_once(turn) for turn in range(turns)])

    def measure_once(self, turn: int) -> list[float]:
        """One turn, in milliseconds."""
        return [1_000 * seconds for seconds in self._turn(TASKS[turn % len(TASKS)])]

    def _turn(self, task: str) -> list[float]:
        taken = [0.0] * len(self.forms)
        for index in random.sample(range(len(self.forms)), len(self.forms)):
            taken[index] = self._seconds(self.forms[index], {"messages": task})
            for reflection in self.reflections:
                reflection.flush()
        return taken

    def _seconds(self, form: Any, given: Any) -> float:
        if self.case.how == "ainvoke":
            return self.runner.run(_awaited(form, given))
        start = time.perf_counter()
        if self.case.how == "invoke":
            form.invoke(given)
            return time.perf_counter() - start
        chunks: Iterator[Any] = form.stream(given, stream_mode="messages")
        next(chunks)
        first = time.perf_counter() - start
        for _ in chunks:
            pass
        return first


async def _awaited(form: Any, given: Any) -> float:
    start = time.perf_counter()
    await form.ainvoke(given)
    return time.perf_counter() - start


def report(case: Case, turns: int) -> bool:
    """Measure and print a case; True if it is within what is allowed."""
    with ExitStack() as stack:
        bare, queued, committed = Bench(case, stack).measure(turns // case.share).T
    print(f"{case.title}: bare {np.median(bare):.3f} ms")
    good = [
        _line("wrapped    ", bare, queued, milliseconds=case.milliseconds, ratio=case.ratio),
        _line("with commit", bare, committed, milliseconds=None, ratio=case.committed),
    ]
    return all(good)


def _line(
    form: str, bare: NDArray[np.float64], other: NDArray[np.float64], *, milliseconds: float | None, ratio: float | None
) -> bool:
    extra, times = interval(other - bare), interval(other / bare)
    within = extra.median <= (milliseconds or np.inf) and times.median <= (ratio or np.inf)
    limit = f"+{milliseconds} ms" if milliseconds else f"{ratio:.2f} x" if ratio else ""
    goal = f", the goal is {GOAL:.2f} x" if ratio and ratio > GOAL else ""
    allowed = f"  allowed {limit}{goal}: {'within' if within else 'OVER'}" if limit else ""
    print(f"  {form} {_both(extra, times)}{allowed}")
    return within


def _both(extra: Interval, times: Interval) -> str:
    first = f"{extra.median:+.3f} ms [{extra.low:+.3f}, {extra.high:+.3f}]"
    return f"{first}  {times.median:.3f} x bare [{times.low:.3f}, {times.high:.3f}]"


def memory() -> None:
    """Print what one of many concurrent runs holds, bare and wrapped."""

    async def held(wrapped: bool) -> float:  # noqa: FBT001 - read where it is called
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder), durability="queue") as reflection:
            graph, arrived, go = waiting(CONCURRENT)
            graph = reflection.wrap(graph) if wrapped else graph
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            runs = [asyncio.create_task(graph.ainvoke({"messages": "hello"})) for _ in range(CONCURRENT)]
            await arrived.wait()
            gc.collect()
            kilobytes = (tracemalloc.get_traced_memory()[0] - before) / 1_024 / CONCURRENT
            go.set()
            await asyncio.gather(*runs)
        return kilobytes

    tracemalloc.start()
    asyncio.run(held(wrapped=True))  # what is loaded once is no run's
    bare, wrapped = asyncio.run(held(wrapped=False)), asyncio.run(held(wrapped=True))
    tracemalloc.stop()
    print(
        f"memory of each of {CONCURRENT:,} concurrent runs: bare {bare:.1f} KB, wrapped {wrapped:.1f} KB"
        f" ({wrapped / bare:.2f} x)"
    )


def growth(turns: int) -> bool:
    """Print whether a run costs more after many others than on a fresh ledger, in turns; True if it does not."""
    case = Case(title="", agent=one_call, lessons=LESSONS)
    with ExitStack() as stack:
        old, new = Bench(case, stack), Bench(case, stack)
        grown = _past(old)
        old.measure(8)
        new.measure(8)
        both = np.array([(*old.measure_once(turn), *new.measure_once(turn)) for turn in range(turns)])
    extra = (both[:, 2] - both[:, 0]) - (both[:, 5] - both[:, 3])
    more, usual = interval(extra), float(np.median(both[:, 5] - both[:, 3]))
    within = more.low <= usual / 10
    figure = f"{more.median:+.3f} ms [{more.low:+.3f}, {more.high:+.3f}]"
    print(f"{PAST:,} runs later: {figure} on {usual:+.3f} ms with commit,", end=" ")
    print(f"{grown:+.0f} bytes in memory per run; allowed +10 %: {'within' if within else 'OVER'}")
    return within


def _past(bench: Bench) -> float:
    """Run the agent many times; gives the bytes in memory that each run leaves."""
    graph = bench.reflections[1].wrap(bench.forms[0])
    many = [{"messages": TASKS[0]}] * 500
    graph.batch(many)
    gc.collect()
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    for _ in range(PAST // len(many)):
        graph.batch(many)
        bench.reflections[1].flush()
    gc.collect()
    grown = (tracemalloc.get_traced_memory()[0] - start) / PAST
    tracemalloc.stop()
    return grown


def main() -> int:
    """Run the benchmark; exit code 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=300, help="turns of the three forms per case, at least 200")
    parser.add_argument("--only", default="", help="only the cases whose title contains this")
    given = parser.parse_args()
    processor = platform.processor() or platform.machine()
    machine = f"{platform.system()} {platform.release()}, {processor}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}")
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
    print(f"{given.turns} turns; medians [95 % interval]\n")
    good = [report(case, given.turns) for case in CASES if given.only in case.title]
    if not given.only:
        memory()
        good.append(growth(given.turns))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
