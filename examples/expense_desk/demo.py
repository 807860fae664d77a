"""`reflect demo`: an agent learns an expense desk's house rules from rejections, and is then put to the test."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from expense_desk.arms import EVERY, TOKEN_BUDGET, Experiment
from expense_desk.errors import DemoError, UsedFolderError
from expense_desk.models import Models, chosen
from expense_desk.outcome import ARMS, Outcome
from expense_desk.report import Screen, save_json, save_plot, show_banner, show_result

PRACTICE = 15
HELD_OUT = 12


def main(argv: list[str]) -> int:
    """Run the demo; gives the exit status."""
    given = parse(argv)
    console = Console()
    try:
        with chosen(given.model, scripted=given.scripted, console=console) as models:
            run(given, models, console)
    except DemoError as error:
        console.print(f"[red]{type(error).__name__}[/]: {error}", highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="reflect demo", description=__doc__)
    parser.add_argument(
        "--model",
        metavar="PROVIDER:NAME",
        help="a provider's model (default: one whose key is set, else the local one)",
    )
    parser.add_argument("--scripted", action="store_true", help="a scripted model: seconds, no download, no network")
    parser.add_argument("--seed", type=int, default=1, help="which office and claims (default 1)")
    parser.add_argument("--seeds", type=seed_list, metavar="1,2,3", help="several seeds, one after the other")
    parser.add_argument(
        "--tasks", type=positive, default=HELD_OUT, help=f"held-out claims per arm (default {HELD_OUT})"
    )
    parser.add_argument("--practice", type=positive, default=PRACTICE, help=f"practice claims (default {PRACTICE})")
    parser.add_argument("--out", type=Path, help="folder for ledgers, plot and results (default reflect-demo/<time>)")
    return parser.parse_args(argv)


def seed_list(text: str) -> list[int]:
    """`1,2,3` as numbers."""
    return [int(part) for part in text.split(",")]


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return number


def run(given: argparse.Namespace, models: Models, console: Console) -> None:
    """All seeds, then the table, the plot and the results file."""
    started = time.monotonic()
    out = (given.out or Path("reflect-demo") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")).absolute()
    show_banner(console, models.banner)
    outcomes = [run_seed(seed, given, models, out, console) for seed in given.seeds or [given.seed]]
    show_result(console, outcomes, model=models.label, banner=models.banner)
    about = {"model": models.label, "scripted": bool(models.banner), "arms": ARMS, "every": EVERY}
    about |= {"token_budget": TOKEN_BUDGET, "seconds": round(time.monotonic() - started, 1)}
    plot = save_plot(out / "learning_curve.png", outcomes, model=models.label, banner=models.banner)
    results = save_json(out / "results.json", outcomes, about)
    console.print(f"{time.monotonic() - started:.0f} s in all. Plot: {plot}\nResults: {results}", highlight=False)
    console.print(
        f"The lessons: reflect lessons --path {out / f'seed-{outcomes[-1].seed}' / 'practice'}", highlight=False
    )


def run_seed(seed: int, given: argparse.Namespace, models: Models, out: Path, console: Console) -> Outcome:
    """One seed, in a fresh folder."""
    folder = out / f"seed-{seed}"
    if folder.exists():
        raise UsedFolderError(
            f"{str(folder)!r} holds an earlier run, whose lessons would be a head start. Name another --out."
        )
    folder.mkdir(parents=True)
    steps = given.practice + len(ARMS) * given.tasks
    with Screen(console, models.banner, seed, steps) as screen:
        experiment = Experiment(seed, models, folder, screen)
        return experiment.run(practice=given.practice, held_out=given.tasks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
