"""The long storm: `make soak`.

Or `python -m tests.faults.soak --kills 300 --ledger postgres --store chroma --seed 7`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.storm import Result, Storm
from tests.postgres import CannotRunError, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

LEDGERS = ("sqlite", "postgres")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storms that were asked for; gives 1 if one of them broke something."""
    given = _parser().parse_args(arguments)
    ledgers = LEDGERS if given.ledger == "both" else (given.ledger,)
    results = [storm(ledger, given.store, given.kills, given.seed, given.crashes) for ledger in ledgers]
    return int(any(result.wrong for result in results))


def storm(ledger: str, store: str, kills: int, seed: int, crashes: int) -> Result:
    """One storm on one database, in a folder of its own that stays if something broke."""
    folder = Path(tempfile.mkdtemp(prefix="reflect-soak-"))
    print(f"{ledger}, store {store}, {kills} kills, seed {seed}, in {folder}", flush=True)
    with ExitStack() as stack:
        url, trouble = None, None
        if ledger == "postgres":
            server = Server()
            stack.callback(server.close)
            url = server.url(server.fresh())
            trouble = Crashes(server, crashes, kills, seed)
        weather = Storm(folder, ledger=url, store=store, seed=seed, say=lambda text: print(f"  {text}", flush=True))
        weather.direct()
        weather.rage(max(0, kills - weather.kills), trouble=trouble and (lambda: trouble(weather.kills)))
        result = weather.finish()
        tell(result, trouble.done if trouble else 0)
    if not result.wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return result


class Crashes:
    """Ends a database server without warning, a few times in a storm, and starts it again.

    Args:
        server: The server.
        count: How often.
        kills: In a storm of so many kills.
        seed: Of the choice of how.
    """

    def __init__(self, server: Server, count: int, kills: int, seed: int) -> None:
        self.server = server
        self.at = [kills * number // (count + 1) for number in range(1, count + 1)] if not server.given else []
        self.rng = random.Random(seed)
        self.done = 0

    def __call__(self, kills: int) -> bool:
        """Crash, if so many kills make it time for the next one, and say so."""
        if self.done == len(self.at) or kills < self.at[self.done]:
            return False
        self.done += 1
        crash(self.server, self.rng.choice((signal.SIGKILL, signal.SIGQUIT)))
        return True


def crash(server: Server, how: int) -> None:
    """End the server: SIGKILL to its first process, or its immediate shutdown (SIGQUIT); then start it again."""
    os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), how)
    server.stop()
    end = time.monotonic() + 60
    while True:
        try:
            server.start()
        except CannotRunError:  # orphans of the killed one still hold its memory
            if time.monotonic() > end:
                raise
        else:
            return


def tell(result: Result, crashes: int) -> None:
    """Print what happened."""
    told = result.told
    print(f"  {result.kills} kills at {len(result.places)} places, {crashes} crashes of the server,")
    print(f"  {len(told.episodes)} episodes, {len(told.rewards)} rewards and {len(told.changes)} changes acknowledged,")
    print(f"  reflections {dict(result.statuses)}, {result.lessons} lessons in {result.versions} versions,")
    print(f"  {result.seconds:.0f} s; said to have failed: {dict(result.failures)}")
    for place, count in sorted(result.places.items(), key=lambda item: -item[1]):
        print(f"  {count:5} {place}")
    print("  BROKEN:" if result.wrong else "  nothing lost, nothing twice", *result.wrong[:50], sep="\n    ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="processes to kill on each database (default: 300)")
    parser.add_argument("--ledger", choices=(*LEDGERS, "both"), default="both")
    parser.add_argument("--store", choices=("exact", "chroma"), default="chroma")
    parser.add_argument("--crashes", type=int, default=4, help="crashes of the PostgreSQL server (default: 4)")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of all chance (default: another)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
