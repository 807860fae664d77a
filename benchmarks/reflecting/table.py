"""The tables of a run: what was measured, what is missing, and where we lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import mean, stdev

from benchmarks.reflecting.arms import ARMS, NONE, OURS, RULES, Result
from benchmarks.reflecting.judge import KINDS
from benchmarks.reflecting.worlds import HELD_OUT_WORLDS

Figure = Callable[[Sequence[Result]], float]


def share_of(kind: str) -> Figure:
    """The share of learned texts that are of a kind."""
    return lambda results: _ratio(
        sum(verdict.kind == kind for r in results for verdict in r.verdicts), sum(len(r.verdicts) for r in results)
    )


def tokens_each(results: Sequence[Result]) -> float:
    """Tokens of the reflecting model for each useful text; not a number without one."""
    return _ratio(sum(r.tokens for r in results), sum(r.useful for r in results))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


FIGURES: dict[str, Figure] = {
    "shown": lambda results: mean(r.shown for r in results),
    "stated": lambda results: mean(r.stated for r in results),
    **{kind: share_of(kind) for kind in KINDS},
    "fields": lambda results: mean(r.fields for r in results),
    "tasks": lambda results: mean(r.tasks for r in results),
    "tokens each": tokens_each,
}


def report(results: Sequence[Result], wanted: Sequence[tuple[str, int, str]]) -> str:
    """All tables as text."""
    good = [result for result in results if not result.left_out]
    lines = [*_overall(good), "", *_by_world(good), "", *_losses(good), "", *_missing(results, wanted)]
    return "\n".join(lines)


def _overall(results: Sequence[Result]) -> Iterator[str]:
    yield "All worlds: mean over the seeds ± standard deviation between seeds; % but for tokens"
    yield f"{'':22}{'n':>4}" + "".join(f"{name:>13}" for name in FIGURES)
    for arm in ARMS:
        mine = [result for result in results if result.arm == arm]
        if mine:
            yield f"{arm:22}{len(mine):>4}" + "".join(f"{_spread(mine, name):>13}" for name in FIGURES)


def _spread(results: Sequence[Result], name: str) -> str:
    """Mean and spread of a figure over the seeds."""
    seeds = sorted({result.seed for result in results})
    each = [FIGURES[name]([result for result in results if result.seed == seed]) for seed in seeds]
    known = [value for value in each if value == value]  # noqa: PLR0124 - not a number is unlike itself
    if not known:
        return "-"
    scale = 1 if name.startswith("tokens") else 100
    middle = f"{scale * mean(known):,.0f}"
    return f"{middle} ± {scale * stdev(known):,.0f}" if len(known) > 1 else middle


def _by_world(results: Sequence[Result]) -> Iterator[str]:
    arms = [arm for arm in ARMS if any(result.arm == arm for result in results)]
    yield "Each world: rules stated / ruled fields right / tasks right, %, mean over the seeds (* held out from tuning)"
    yield f"{'':12}" + "".join(f"{arm:>22}" for arm in arms)
    for world in dict.fromkeys(result.world for result in results):
        mark = "*" if world in HELD_OUT_WORLDS else ""
        yield f"{world + mark:12}" + "".join(f"{_cell(results, world, arm):>22}" for arm in arms)


def _cell(results: Sequence[Result], world: str, arm: str) -> str:
    mine = [result for result in results if (result.world, result.arm) == (world, arm)]
    return " / ".join(f"{100 * FIGURES[n](mine):.0f}" for n in ("stated", "fields", "tasks")) if mine else "missing"


def _losses(results: Sequence[Result]) -> Iterator[str]:
    """Where another way to learn does better than ours on the same worlds and seeds."""
    ours = {(result.world, result.seed): result for result in results if result.arm == OURS}
    lost = []
    for arm in ARMS:
        pairs = [(ours[at], r) for r in results if r.arm == arm and (at := (r.world, r.seed)) in ours]
        if arm in (OURS, RULES) or not pairs:
            continue
        for name in ("stated", "fields", "tasks"):
            worlds = sorted({b.world for a, b in pairs if getattr(b, name) > getattr(a, name)})
            gap = 100 * mean(getattr(b, name) - getattr(a, name) for a, b in pairs)
            if worlds and not (arm == NONE and name == "stated"):
                lost.append(f"  {arm}, {name}: better in {', '.join(worlds)}; over all {gap:+.0f} points")
    yield "Where we lose:" if lost else "Where we lose: nowhere in what was run."
    yield from lost


def _missing(results: Sequence[Result], wanted: Sequence[tuple[str, int, str]]) -> Iterator[str]:
    done = {(result.world, result.seed, result.arm) for result in results}
    missing = [at for at in wanted if at not in done]
    yield f"Run: {len(done)} of {len(wanted)} cells." + (" THIS TABLE IS PARTIAL; missing:" if missing else "")
    yield from (f"  {world}, seed {seed}: {arm}" for world, seed, arm in missing)
    for result in results:
        if result.problem:
            what = "left out" if result.left_out else "learned nothing or failed once"
            yield f"  {result.arm} in {result.world}, seed {result.seed}: {what}: {result.problem}"
