"""What the size of a ledger costs: `make scale`.

Ledgers of several sizes are filled by bulk SQL, then the same operations are done on all of them in turns, in random
order, in one process, through the code that does them in production. A figure is a median over the turns; a ratio is
the median over the turns of largest to smallest, with a bootstrap 95 % interval. The embedder is a hashing one with as
many dimensions as the default one, cached; no model is asked. On PostgreSQL commits do not wait for the disk, as on
SQLite: what is left is the work, which the wait would hide.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from benchmarks.ledgers import Size, bytes_of
from benchmarks.operations import EVERY, Operation, Subject
from benchmarks.overhead import interval

ALLOWED = 1.3
"""Most times what an operation takes in the smallest ledger."""
WARM_UP = 5


class Place:
    """Where ledgers are made.

    Args:
        folder: For SQLite's files, and for stores.
        postgres: A server's URL, if the ledgers are to be databases there.
    """

    def __init__(self, folder: Path, postgres: str) -> None:
        self.folder, self.postgres = folder, postgres
        folder.mkdir(parents=True, exist_ok=True)

    def url(self, size: Size) -> str:
        """The ledger of a size; its database is made if there is none."""
        if not self.postgres:
            return f"sqlite:///{self.folder / size.name}.db"
        if not self._has(size.name):
            self._admin(f"CREATE DATABASE {size.name}")
            self._admin(f"ALTER DATABASE {size.name} SET synchronous_commit = off")
        return sa.make_url(self.postgres).set(database=size.name).render_as_string(hide_password=False)

    def forget(self, size: Size) -> None:
        """Remove a ledger."""
        shutil.rmtree(self.folder / size.name, ignore_errors=True)
        if self.postgres:
            self._admin(f"DROP DATABASE IF EXISTS {size.name} WITH (FORCE)")
        for file in self.folder.glob(f"{size.name}.db*"):
            file.unlink()

    def describe(self) -> str:
        """The database and its version."""
        if not self.postgres:
            return f"SQLite {sqlite3.sqlite_version}"
        return "PostgreSQL " + str(self._admin("SHOW server_version"))

    def _has(self, name: str) -> bool:
        return bool(self._admin(f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"))  # noqa: S608 - our own

    def _admin(self, command: str) -> object:
        engine = sa.create_engine(self.postgres, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.execute(sa.text(command))
            found = result.scalar() if result.returns_rows else None
        engine.dispose()
        return found


def measured(subjects: Sequence[Subject], operations: Sequence[Operation], turns: int) -> NDArray[np.float64]:
    """Milliseconds, shape (turns, operations, subjects)."""
    taken = np.zeros((turns, len(operations), len(subjects)))
    for turn in range(-WARM_UP, turns):
        for row, operation in enumerate(operations):
            for column in random.sample(range(len(subjects)), len(subjects)):
                subject = subjects[column]
                subject.turn = turn + WARM_UP
                work = operation.prepare(subject)
                start = time.perf_counter()
                work()
                taken[max(turn, 0), row, column] = 1_000 * (time.perf_counter() - start)
                subject.settle()
    return taken


def compared(place: Place, sizes: Sequence[Size], operations: Sequence[Operation], turns: int, by: str) -> list[str]:
    """Measure and print; gives the titles of the operations that take too long in the largest ledger."""
    with ExitStack() as stack:
        subjects = [Subject(size, place.url(size), place.folder / size.name, stack) for size in sizes]
        taken = measured(subjects, operations, turns)
    print("".join([f"{by:28s}", *(f"{getattr(size, by):>12,}" for size in sizes), "   largest : smallest"]))
    too_long = []
    for row, operation in enumerate(operations):
        times = interval(taken[:, row, -1] / taken[:, row, 0])
        over = operation.flat and times.median > ALLOWED
        figures = "".join(f"{median:9.3f} ms" for median in np.median(taken[:, row], axis=0))
        mark = "OVER" if over else "" if operation.flat else "may grow"
        print(f"{operation.title:28s}{figures}   {times.median:.2f} x [{times.low:.2f}, {times.high:.2f}] {mark}")
        too_long += [operation.title] if over else []
    rooms = "".join(f"{bytes_of(place.url(size)) / 1e6:9,.0f} MB" for size in sizes)
    print(f"{'on disk':28s}{rooms}\n", flush=True)
    return too_long


def main() -> int:
    """Run the benchmark; exit code 1 if an operation takes too long in a large ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=str(Path(tempfile.gettempdir()) / "reflect-scale"), help="for the ledgers")
    parser.add_argument("--postgres", default="", help="URL of a server whose user may make databases: measure there")
    parser.add_argument("--episodes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="in the ledgers")
    parser.add_argument("--namespaces", type=int, nargs="+", default=[1, 1_000], help="each in a table of its own")
    parser.add_argument("--lessons", type=int, default=100, help="of a namespace, or one for each if that is more")
    parser.add_argument("--turns", type=int, default=200, help="turns over all operations")
    parser.add_argument("--only", default="", help="only the operations whose title contains this")
    parser.add_argument("--keep", action="store_true", help="leave the ledgers for the next time")
    given = parser.parse_args()
    place = Place(Path(given.dir).absolute(), given.postgres)
    print(
        f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}, {place.describe()}", end=", "
    )
    print(f"SQLAlchemy {version('sqlalchemy')}; medians of {given.turns} turns [95 % interval]\n", flush=True)
    operations = [operation for operation in EVERY if given.only in operation.title]
    too_long: list[str] = []
    for namespaces in given.namespaces:
        lessons = max(given.lessons, 10 * namespaces if namespaces > 1 else 0)
        sizes = [Size(episodes=n, lessons=lessons, namespaces=namespaces) for n in sorted(given.episodes)]
        print(f"{namespaces:,} namespaces, {lessons:,} lessons")
        too_long += compared(place, sizes, operations, given.turns, "episodes")
        for size in sizes if not given.keep else ():
            place.forget(size)
    if too_long:
        print(f"Over {ALLOWED} x: {', '.join(too_long)}")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
