"""What a small model learns of hidden rules, in eight small worlds and in nine ways: `make bench-reflect`.

Every answer of the model is remembered in --cache, so a killed run goes on where it was; with the same cache a second
run asks nothing. `docs/bench-reflect.md` says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.reflecting.arms import (
    ARMS,
    EACH,
    LANGMEM,
    OURS,
    PLAYBOOK,
    SHORT,
    UNREWARDED,
    Cell,
    OutOfTimeError,
    Result,
    Size,
    as_json,
)
from benchmarks.reflecting.players import Players, served
from benchmarks.reflecting.table import report
from benchmarks.reflecting.worlds import TUNING, WORLDS

ACT_SECONDS, REFLECT_SECONDS, EACH_SECONDS = 5.0, 70.0, 25.0
"""What the local model takes on two cores for a form, for lessons of a whole practice, for those of one episode."""
At = tuple[str, int, str]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reflecting", description=__doc__)
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=[], help="default: all")
    parser.add_argument("--tuning-only", action="store_true", help="without the worlds that are held out from tuning")
    parser.add_argument("--arms", nargs="+", choices=list(SHORT), default=list(SHORT), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--practice", type=int, default=8, help="practice tasks of a world and seed (default 8)")
    parser.add_argument("--tasks", type=int, default=8, help="held-out tasks in each arm (default 8)")
    parser.add_argument("--at-once", type=int, default=1, help="worlds that are played side by side (default 1)")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="stop after so long; go on later")
    parser.add_argument("--cache", type=Path, default=Path("reflect-bench"), help="folder of answers and results")
    parser.add_argument("--fresh", action="store_true", help="ask again what is remembered")
    parser.add_argument("--base-url", default="", help="a server of the OpenAI protocol (default: the local model)")
    parser.add_argument("--model", default="local", help="the model's name there; OPENAI_API_KEY has its key")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, print the tables, keep the results."""
    given = parse(argv)
    wanted = cells(given)
    print(estimate(wanted, given), flush=True)
    key = os.environ.get("OPENAI_API_KEY", "")
    answers = given.cache / "answers"
    with served(given.base_url, given.model, key, answers, fresh=given.fresh, at_once=given.at_once) as players:
        results = played(wanted, players, given)
    print(f"\nModel: {players.label}\n{report(results, wanted)}")
    if players.answers:
        print(f"Answers: {players.answers.asked} asked, {players.answers.known} remembered in {given.cache}.")
    about = {"model": players.label, "practice": given.practice, "tasks": given.tasks}
    kept = {**about, "results": [as_json(result) for result in results]}
    (given.cache / "results.json").write_text(json.dumps(kept, indent=1), "utf-8")
    return 0


def cells(given: argparse.Namespace) -> list[At]:
    """World, seed and arm of all that is to be run, seed by seed, so that a run cut short has whole seeds."""
    names = given.worlds or list(WORLDS)
    worlds = [name for name in names if name in TUNING or not given.tuning_only]
    arms = [arm for arm in ARMS if arm in {SHORT[short] for short in given.arms}]
    return [(world, seed, arm) for seed in given.seeds for world in worlds for arm in arms]


def estimate(wanted: Sequence[At], given: argparse.Namespace) -> str:
    """How long it takes with nothing remembered."""
    places = {(world, seed) for world, seed, _ in wanted}
    learning = {OURS: REFLECT_SECONDS, UNREWARDED: REFLECT_SECONDS, LANGMEM: REFLECT_SECONDS}
    learning |= {EACH: given.practice * EACH_SECONDS, PLAYBOOK: given.practice * EACH_SECONDS}
    seconds = len(places) * given.practice * ACT_SECONDS
    seconds += sum(given.tasks * ACT_SECONDS + learning.get(arm, 0.0) for _, _, arm in wanted)
    return (
        f"{len(wanted)} cells, {len(places)} worlds and seeds: about {seconds / 3600:.1f} h with the local 1.5 B model"
        " on two cores of its own, less what is remembered."
    )


def played(wanted: Sequence[At], players: Players, given: argparse.Namespace) -> list[Result]:
    """Run all cells, those of one world and seed one after the other, until the budget of minutes is used up."""
    until = time.monotonic() + 60 * given.budget_minutes
    places: dict[tuple[str, int], list[str]] = {}
    for world, seed, arm in wanted:
        places.setdefault((world, seed), []).append(arm)
    size = Size(practice=given.practice, held_out=given.tasks)
    results: dict[At, Result] = {}
    over = threading.Event()

    def play(place: tuple[str, int]) -> None:
        cell = Cell(*place, players.apart(), size, until)
        for arm in places[place]:
            if over.is_set():
                return
            try:
                results[(*place, arm)] = result = cell.run(arm)
                print(line(result), flush=True)
            except OutOfTimeError as error:
                over.set()
                print(error, flush=True)
            except Exception as error:  # noqa: BLE001 - a cell that fails is missing in the table; the others go on
                print(f"{place[0]}, seed {place[1]}, {arm}: failed: {type(error).__name__}: {error}"[:500], flush=True)

    with ThreadPoolExecutor(max(1, given.at_once)) as pool:
        try:
            list(pool.map(play, places))
        except KeyboardInterrupt:
            over.set()
            print("Stopped; the same command goes on from here.", flush=True)
    return [results[at] for at in wanted if at in results]


def line(result: Result) -> str:
    """One result as it comes."""
    learned = f"{len(result.verdicts)} texts, {result.useful} useful, {100 * result.stated:.0f} % of the rules"
    done = f"fields {100 * result.fields:.0f} %, tasks {100 * result.tasks:.0f} %"
    what = result.problem if result.left_out else f"{learned}; {done}; {result.tokens} tokens, {result.seconds:.0f} s"
    return f"{result.world}, seed {result.seed}, {result.arm}: {what}"


if __name__ == "__main__":
    raise SystemExit(main())
