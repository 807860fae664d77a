"""What wrapping costs per run: `make bench`.

One agent with a fake model, in three forms: bare, wrapped without waiting for the ledger (`durability="queue"`),
wrapped with one ledger commit per run (the default). The three run in turns, in random order, on the same tasks; every
figure is a median of differences within a turn, with a bootstrap 95 % interval. Work that a run leaves to our own
threads is waited for between two runs, outside of the timing. Embeddings of the tasks are cached, as they are from the
second run of a task on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LESSONS = 1_000
TASKS = [f"file the travel claim number {number} for the night train" for number in range(8)]
SETTINGS = (("exact", LESSONS, 0.5), ("chroma", LESSONS, 3.0), ("exact", 0, 0.25))
"""(store, number of lessons, allowed extra milliseconds at the median, the ledger commit apart)."""
PACKAGES = ("reflect-middleware", "langgraph", "langchain-core", "chromadb", "sqlalchemy", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median in milliseconds and its bootstrap 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:+7.3f} ms [{self.low:+.3f}, {self.high:+.3f}]"


def agent() -> Any:
    """A real graph with one model call that answers at once."""
    model = ScriptedChatModel(lambda _: AIMessage("filed"))
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    return graph.add_edge(START, "model").add_edge("model", END).compile()


def teach(path: Path, lessons: int) -> None:
    """Fill a ledger; every task finds its five nearest lessons among all of them."""
    with Reflection(
        None, path=str(path), store="exact", embeddings=HashingEmbeddings(), max_lessons=LESSONS
    ) as reflection:
        for number in range(lessons):
            reflection.lessons.add(
                when=f"filing a travel claim number {number}", do=f"write the form {number} in cents"
            )


def opened(path: Path, store: str, durability: Literal["queue", "commit"]) -> Reflection:
    """A Reflection that only records and retrieves: its reflections are never due."""
    return Reflection(
        path=str(path), store=store, embeddings=HashingEmbeddings(), every=1_000_000, durability=durability
    )


def measure(turns: int, store: str, lessons: int, *, asynchronous: bool) -> NDArray[np.float64]:
    """Milliseconds of one run, shape (turns, 3): bare, queued, committed."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        teach(path, lessons)
        reflections = [stack.enter_context(opened(path, store, how)) for how in ("queue", "commit")]
        bare = agent()
        forms = [bare, *(reflection.wrap(bare) for reflection in reflections)]
        runner = stack.enter_context(asyncio.Runner()) if asynchronous else None
        _warm_up(forms, reflections, runner, lessons)
        return np.array([_turn(forms, reflections, runner, TASKS[i % len(TASKS)]) for i in range(turns)])


def _warm_up(forms: list[Any], reflections: list[Reflection], runner: asyncio.Runner | None, lessons: int) -> None:
    for task in 3 * TASKS:
        _turn(forms, reflections, runner, task)
    for reflection in reflections:
        shown = sum(lesson.shown for lesson in reflection.preview({"messages": TASKS[0]}).lessons)
        if shown != min(5, lessons):
            sys.exit(f"The benchmark measures nothing: {shown} lessons are shown.")


def _turn(forms: list[Any], reflections: list[Reflection], runner: asyncio.Runner | None, task: str) -> list[float]:
    taken = [0.0] * len(forms)
    for index in random.sample(range(len(forms)), len(forms)):
        taken[index] = 1_000 * (_sync(forms[index], task) if runner is None else runner.run(_async(forms[index], task)))
        for reflection in reflections:
            reflection.flush()
    return taken


def _sync(form: Any, task: str) -> float:
    start = time.perf_counter()
    form.invoke({"messages": task})
    return time.perf_counter() - start


async def _async(form: Any, task: str) -> float:
    start = time.perf_counter()
    await form.ainvoke({"messages": task})
    return time.perf_counter() - start


def interval(differences: NDArray[np.float64]) -> Interval:
    """The median of paired differences."""
    generator = np.random.default_rng(0)
    samples = generator.choice(differences, size=(2_000, differences.size))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return Interval(median=float(np.median(differences)), low=float(low), high=float(high))


def report(say: Callable[[str], None], turns: int, *, asynchronous: bool) -> bool:
    """Measure and print all settings; True if all are within what is allowed."""
    good = True
    for store, lessons, allowed in SETTINGS:
        bare, queued, committed = measure(turns, store, lessons, asynchronous=asynchronous).T
        ours = interval(queued - bare)
        within = ours.median <= allowed
        good &= within
        say(f"{store}, {lessons} lessons: bare run {np.median(bare):.3f} ms")
        say(f"  wrapped       {ours}  {np.median(queued / bare):.2f} x bare, allowed +{allowed} ms: {_word(within)}")
        say(f"  ledger commit {interval(committed - queued)}")
        say(f"  together      {interval(committed - bare)}  {np.median(committed / bare):.2f} x bare")
    return good


def _word(within: bool) -> str:  # noqa: FBT001 - it is the only argument
    return "within" if within else "OVER"


def main() -> int:
    """Run the benchmark; exit code 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=300, help="turns of the three forms per setting, at least 200")
    parser.add_argument("--async", dest="asynchronous", action="store_true", help="measure ainvoke")
    given = parser.parse_args()
    processor = platform.processor() or platform.machine()
    machine = f"{platform.system()} {platform.release()}, {processor}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}")
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
    print(f"{given.turns} turns, {'ainvoke' if given.asynchronous else 'invoke'}; medians [95 % interval]\n")
    return 0 if report(print, given.turns, asynchronous=given.asynchronous) else 1


if __name__ == "__main__":
    sys.exit(main())
