"""What the user sees: a progress bar, each lesson as it is learned, the table, the plot and the results file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from expense_desk.desk import Filed, draw_rules
from expense_desk.outcome import LEARNED, NONE, Outcome, Row, table_of
from reflect_middleware import ReflectionReport

BLOCK = 5
"""Practice claims per point of the learning curve."""


class Screen:
    """Watches one seed's run and shows it.

    Args:
        console: Where to print.
        banner: A line that every screen must carry, or empty.
        seed: The office's seed.
        steps: How many claims the run will file in all.
    """

    def __init__(self, console: Console, banner: str, seed: int, steps: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self.steps, self.banner, self.done = steps, banner, {"": 0}
        self.seed = seed

    def __enter__(self) -> Self:
        """Start the bar."""
        self.console.rule(f"office {self.seed}" + (f" · {self.banner}" if self.banner else ""))
        self.progress.start()
        self.bar = self.progress.add_task("practice", total=self.steps)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        self.progress.stop()

    def filed(self, phase: str, filed: Filed) -> None:
        """Move the bar; in practice, show what the desk said."""
        right, of = self.done.get(phase, 0) + filed.accepted, 0
        self.done[phase] = right
        of = self.done[f"{phase} of"] = self.done.get(f"{phase} of", 0) + 1
        self.progress.update(self.bar, advance=1, description=f"{phase}: {right} of {of} accepted at once")
        if phase == "practice":
            mark = "[green]accepted[/]" if filed.accepted else f"[red]{escape(filed.answer)}[/]"
            self.progress.print(f"[dim]claim {of}:[/] {escape(filed.task)}\n  {mark}")

    def reflected(self, report: ReflectionReport) -> None:
        """Show what a reflection changed."""
        if report.error:
            self.progress.print(f"[yellow]A reflection failed: {escape(report.error)}[/]")
            return
        self.progress.print(f"[bold]Reflection on {len(report.episodes)} runs[/]")
        for lesson in report.lessons:
            sign = {"active": "[green]+[/]", "retired": "[red]-[/]"}.get(lesson.status, "[yellow]?[/]")
            because = f"[dim]because: {escape(lesson.because)}[/]"
            self.progress.print(f"  {sign} [cyan]When {escape(lesson.when)}:[/] {escape(lesson.do)}  {because}")
        for outcome in report.rejected:
            self.progress.print(f"  [dim]refused: {escape(outcome.edit.do)} ({escape(outcome.reason)})[/]")


def show_result(console: Console, outcomes: Sequence[Outcome], *, model: str, banner: str) -> None:
    """Print the table, the tokens and the time."""
    seeds = ", ".join(str(outcome.seed) for outcome in outcomes)
    title = f"Held-out claims accepted at the first submission · seed {seeds} · {model}"
    table = Table(title=f"{banner}\n{title}" if banner else title, caption=banner or None)
    for column in (
        "arm",
        "first-try successes",
        "%",
        "difference to no lessons",
        "p (exact McNemar)",
        "prompt tokens per claim",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in table_of(outcomes):
        table.add_row(*cells(row), style="bold green" if row.arm == LEARNED else "")
    console.print(table)
    for outcome in outcomes:
        console.print(summary(outcome), highlight=False)


def cells(row: Row) -> list[str]:
    """The row as text."""
    base = row.arm == NONE
    share = f"{100 * row.rate:.0f} %"
    difference = "" if base else f"{row.difference:+d} ({100 * row.difference / max(row.of, 1):+.0f} points)"
    return [
        row.arm,
        f"{row.successes}/{row.of}",
        share,
        difference,
        "" if base else f"{row.p:.2g}",
        f"{row.prompt:.0f}",
    ]


def summary(outcome: Outcome) -> str:
    """One seed's cost in a line."""
    agent, reflector = outcome.agent_tokens(), outcome.reflector
    rules = draw_rules(outcome.seed).words()
    failed = f", {len(outcome.problems)} failed" if outcome.problems else ""
    return (
        f"seed {outcome.seed}: {len(outcome.lessons)} lessons from {outcome.reflections} reflections{failed};"
        f" agent {agent.read} tokens read, {agent.written} written;"
        f" reflector {reflector.read} read, {reflector.written} written; {outcome.seconds:.0f} s.\n"
        f"  The house rules were: {rules}."
    )


def save_json(to: Path, outcomes: Sequence[Outcome], about: dict[str, Any]) -> Path:
    """Write everything that was measured."""
    rows = [asdict(row) for row in table_of(outcomes)]
    text = json.dumps({**about, "table": rows, "seeds": [asdict(o) for o in outcomes]}, indent=2, ensure_ascii=False)
    to.write_text(text, encoding="utf-8")
    return to


def save_plot(to: Path, outcomes: Sequence[Outcome], *, model: str, banner: str) -> Path:
    """Plot the practice's learning curve and the held-out arms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curve, bars = figure.subplots(1, 2)
    for outcome in outcomes:
        points = learning_curve(outcome)
        ends = [min((i + 1) * BLOCK, len(outcome.practice)) for i in range(len(points))]
        curve.plot(ends, points, marker="o", label=f"seed {outcome.seed}")
    curve.set(xlabel="claims filed in practice", ylabel=f"% accepted at once, last {BLOCK} claims", ylim=(-4, 104))
    curve.set_title("practice, learning on")
    curve.legend()
    rows = table_of(outcomes)
    drawn = bars.bar([row.arm.replace(" ", "\n") for row in rows], [100 * row.rate for row in rows], color=COLOURS)
    bars.bar_label(drawn, [f"{row.successes}/{row.of}" for row in rows])
    bars.set(ylim=(0, 109), ylabel="% accepted at once")
    bars.set_title("held-out claims, learning off")
    title = f"Expense desk · {model}"
    figure.suptitle(f"{banner}\n{title}" if banner else title)
    figure.savefig(to, dpi=120)
    return to


COLOURS = ("#9aa0a6", "#c9b458", "#7a9cc6", "#2f8f5b")


def learning_curve(outcome: Outcome) -> list[float]:
    """Percent accepted at once in each block of practice claims."""
    starts = range(0, len(outcome.practice), BLOCK)
    blocks = [outcome.practice[start : start + BLOCK] for start in starts]
    return [100 * sum(filed.accepted for filed in block) / len(block) for block in blocks]


def show_banner(console: Console, banner: str) -> None:
    """Say what this is not."""
    if banner:
        console.print(Panel(banner, style="bold yellow"))
