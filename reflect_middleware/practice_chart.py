"""A practice's curve as a picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from reflect_middleware.errors import MissingExtraError

if TYPE_CHECKING:
    from reflect_middleware.practice_report import PracticeReport


def draw(report: PracticeReport, to: Path) -> Path:
    """Draw success over the rounds, with the two measurements as lines.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("PracticeReport.save", "charts") from error
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    known = [found for found in report.rounds if found.reward is not None]
    axes.plot([p.round for p in known], [100 * (p.reward or 0.0) for p in known], marker="o", label="practice")
    for name, found, style in (("before", report.before, ":"), ("after", report.after, "--")):
        if found is not None and found.reward is not None:
            axes.axhline(100 * found.reward, linestyle=style, color="grey", label=f"held out, {name}")
    for last, first in pairwise(report.rounds):
        if last.epoch != first.epoch:
            axes.axvline((last.round + first.round) / 2, color="lightgrey", linewidth=1)
    axes.set(xlabel="round (a reflection after each)", ylabel="mean reward, %", ylim=(-4, 104))
    test = "" if report.measured is None else f", p = {report.measured.p_value:.3g}"
    axes.set_title(f"Practice {report.name} · {report.agent}{test}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(to, dpi=120)
    return to
