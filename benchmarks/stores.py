"""What a search costs in each store: `make stores`.

Each store is filled with one namespace of each size and asked, in a process of its own. Every query is also asked of
plain numpy over the same vectors, in turns: this floor is slowed by a busy machine as the store is, so read the ratios.
A p50 is the median over five rounds of a round's median. Then the retrieve step as a whole, with the local embedder.
What takes too long is stopped, and the table says so. PostgreSQL is the wheel that the tests use, without fsync and
with 32 MB of shared buffers, or the server that REFLECT_TEST_POSTGRES names. Ends with 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.store_kinds import KINDS, LIMITED, Kind
from benchmarks.store_retrieve import Retrieved
from benchmarks.store_run import Job, Result
from tests.postgres import CannotRunError, Server

ROOT = Path(__file__).parents[1]
HEAD = (
    "| store | p50, ms | p99, ms | p50 : floor | p99 : floor | computed, ms | recall@10 "
    "| built in, s | memory, MB | disk, MB | load |"
)
RETRIEVE_HEAD = (
    "| store | lessons | embed a new task | search | same task again | vector cached | new task | the floor |"
)
Measured = Mapping[tuple[str, int], Result | str]
"""By store and size; where it is text, the reason why not."""


class Bench:
    """Starts a process for each measurement.

    Args:
        given: The command line.
        stack: Stops the PostgreSQL server, if one is started.
    """

    def __init__(self, given: argparse.Namespace, stack: ExitStack) -> None:
        self.given, self._stack = given, stack
        self._server: Server | None = None

    def stores(self, kinds: Sequence[Kind]) -> Measured:
        """Each store at each size. Once one took too long, larger sizes are not tried."""
        done: dict[tuple[str, int], Result | str] = {}
        for kind in kinds:
            failed = ""
            for size in sorted(self.given.sizes):
                done[kind.title, size] = found = failed or self._result(kind, size)
                if isinstance(found, str) and not failed:
                    failed = f"not measured: {size:,} lessons were not either"
                print(f"{kind.title}, {size:,}: {found}", file=sys.stderr, flush=True)
        return done

    def retrievals(self, kinds: Sequence[Kind]) -> list[Retrieved | str]:
        """The whole step on these stores, at the sizes for which there are limits."""
        done: list[Retrieved | str] = []
        for kind in kinds:
            for size in sorted(size for size in self.given.sizes if size <= LIMITED):
                told = self._run("benchmarks.store_retrieve", kind, size)
                done.append(f"{kind.title}, {size:,}: {told}" if isinstance(told, str) else Retrieved(**told))
                print(done[-1], file=sys.stderr, flush=True)
        return done

    def _result(self, kind: Kind, size: int) -> Result | str:
        told = self._run("benchmarks.store_run", kind, size)
        return told if isinstance(told, str) else Result(**told)

    def _run(self, module: str, kind: Kind, size: int) -> dict[str, Any] | str:
        """What a process of its own printed, or why it did not."""
        given, server, database = self.given, None, ""
        try:
            if kind.on_postgres:
                server = self._postgres()
                database = server.fresh()
            job = Job(
                store=kind.title,
                size=size,
                dim=given.dim,
                queries=given.queries,
                seconds=given.seconds,
                vectors=given.vectors,
                postgres=server.url(database) if server else "",
            )
            return _told([sys.executable, "-m", module, json.dumps(asdict(job))], given.budget)
        except (CannotRunError, ImportError) as error:
            return f"not measured: {error}"
        finally:
            if server:
                server.give_back(database)

    def _postgres(self) -> Server:
        if self._server is None:
            self._server = Server()
            self._stack.callback(self._server.close)
            self._server.execute("CREATE EXTENSION IF NOT EXISTS vector", "template1")
        return self._server


def _told(command: Sequence[str], budget: float) -> dict[str, Any] | str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=budget, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"not measured: not done within {budget:.0f} s"
    if done.returncode:
        return f"not measured: {(done.stderr.strip() or f'it ended with {done.returncode}').splitlines()[-1]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(measured: Measured, kinds: Sequence[Kind], size: int) -> str:
    """One size's table, as Markdown."""
    rows = [f"### {size:,} lessons", "", HEAD, "| --- |" + " ---: |" * 10]
    found = [one for (_, held), one in measured.items() if held == size and isinstance(one, Result)]
    if any(not math.isnan(one.p99) for one in found):
        p50, p99 = ([getattr(one, name) for one in found] for name in ("floor_p50", "floor_p99"))
        spans = " | ".join(f"{np.nanmin(times):.2f} to {np.nanmax(times):.2f}" for times in (p50, p99))
        rows.append(f"| *the floor: plain numpy* | {spans} | 1 | 1 | | 1 | | | | |")
    return "\n".join([*rows, *(_row(kind, measured[kind.title, size]) for kind in kinds)])


def _row(kind: Kind, one: Result | str) -> str:
    if isinstance(one, str):
        return f"| {kind.title} | {one} | | | | | | | | | |"
    few = math.isnan(one.p99)
    p99, ratio = (f"({one.queries} queries)", "") if few else (f"{one.p99:.2f}", f"{one.p99 / one.floor_p99:,.1f}")
    figures = (
        f"{one.p50:.2f}",
        p99,
        f"{one.times:,.1f}",
        ratio,
        f"{one.cpu:.2f}",
        f"{one.recall:.3f}",
        f"{one.build_seconds:,.1f}",
        f"{one.memory_mb:,.0f}",
        f"{one.disk_mb:,.0f}",
        f"{one.load:.1f}",
    )
    return f"| {kind.title} | {' | '.join(figures)} |"


def retrieve_table(done: Sequence[Retrieved | str]) -> str:
    """The retrieve step, as Markdown; milliseconds."""
    rows = ["### The retrieve step, medians in ms", "", RETRIEVE_HEAD, "| --- |" + " ---: |" * 7]
    for one in done:
        if isinstance(one, str):
            rows.append(f"| {one} | | | | | | | |")
        else:
            times = (one.embed, one.search, one.again, one.cached, one.new, one.floor)
            rows.append(f"| {one.store} | {one.size:,} | {' | '.join(f'{time:.2f}' for time in times)} |")
    return "\n".join(rows)


def over(kinds: Sequence[Kind], measured: Measured, retrieved: Sequence[Retrieved | str]) -> list[str]:
    """Print how the limits are kept; gives what is not, or could not be measured."""
    limits = {kind.title: kind.milliseconds for kind in kinds if kind.milliseconds}
    broken = []
    for (title, size), one in measured.items():
        if title in limits and size <= LIMITED:
            taken = one if isinstance(one, str) else one.p50
            broken += _judged(f"{title}, {size:,} lessons: a search", taken, limits[title])
    for step in retrieved:
        if isinstance(step, str):
            broken.append(step)
        elif step.store in limits:
            broken += _judged(f"{step.store}, {step.size:,} lessons: retrieving again", step.again, limits[step.store])
    return broken


def _judged(what: str, taken: float | str, allowed: float) -> list[str]:
    if isinstance(taken, str):
        return [f"{what}: {taken}"]
    print(f"{what} takes {taken:.2f} ms, allowed {allowed:.2f}: {'within' if taken <= allowed else 'OVER'}")
    return [what] if taken > allowed else []


def machine(kinds: Sequence[Kind]) -> str:
    """What it runs on."""
    packages = ("reflect-middleware", *dict.fromkeys(package for kind in kinds for package in kind.packages))
    processor = platform.processor() or platform.machine()
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return (
        f"{platform.system()}, {processor}, {os.cpu_count()} cores, Python {platform.python_version()}; {versions}; "
        f"load average {_load()}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    titles = sorted({kind.title.partition(",")[0] for kind in KINDS})
    parser.add_argument("--stores", nargs="+", default=titles, help=f"of {titles}, or as the tables name them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000, LIMITED, 100_000], help="lessons")
    parser.add_argument("--queries", type=int, default=500, help="for each store and size, at least 20")
    parser.add_argument("--dim", type=int, default=384, help="size of the vectors")
    parser.add_argument("--vectors", choices=["clustered", "uniform"], default="clustered", help="how they lie")
    parser.add_argument("--seconds", type=float, default=20.0, help="after so long no more queries are asked")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for one store at one size")
    parser.add_argument("--retrieve", nargs="*", default=["exact", "chroma"], help="stores for the step as a whole")
    return parser.parse_args()


def chosen(names: Sequence[str]) -> list[Kind]:
    """The stores of these names or titles."""
    known = {name for kind in KINDS for name in (kind.title, kind.title.partition(",")[0])}
    if unknown := sorted(set(names) - known):
        sys.exit(f"No store is called {', '.join(unknown)}; there are: {'; '.join(kind.title for kind in KINDS)}.")
    return [kind for kind in KINDS if {kind.title, kind.title.partition(",")[0]} & set(names)]


def main() -> int:
    """Run the benchmark; exit code 1 if a limit is passed."""
    given = arguments()
    kinds = chosen(given.stores)
    print(machine(kinds))
    asked = f"up to {given.queries} queries, the 10 nearest"
    print(f"{given.vectors} unit vectors of size {given.dim}, {asked}\n", flush=True)
    with ExitStack() as stack:
        bench = Bench(given, stack)
        measured = bench.stores(kinds)
        for size in sorted(given.sizes):
            print(table(measured, kinds, size), end="\n\n", flush=True)
        retrieved = bench.retrievals([kind for kind in kinds if kind.title in given.retrieve])
    if retrieved:
        print(retrieve_table(retrieved), end="\n\n")
    broken = over(kinds, measured, retrieved)
    print(f"load average at the end {_load()}")
    if broken:
        print(f"Over the limit: {'; '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
