"""Whether a difference between pairs is more than chance: an exact sign-flip test and a paired bootstrap. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reflect_middleware.types import Frozen

EXACT = 14
"""Up to so many pairs all flips of signs are counted; 16,384 at most."""
DRAWS = 10_000
"""Random flips beyond that, and bootstrap samples."""
CONFIDENCE = 0.95
CLOSE = 1e-12
"""Means that differ by less are the same: sums of floats depend on their order."""


class Paired(Frozen):
    """What changed between two measurements of the same tasks."""

    pairs: int
    """Tasks that have a value in both."""
    before: float
    """Mean over the tasks, in [0, 1]."""
    after: float
    """Mean over the tasks, in [0, 1]."""
    difference: float
    """`after` less `before`."""
    interval: tuple[float, float] | None = None
    """95 % interval of the difference, by a paired bootstrap over tasks; None with fewer than 2 pairs."""
    p_value: float
    """Two-sided: the share of sign flips that give a mean difference at least as far from 0. With n pairs that all
    change, it is 2 / 2**n at the least: 5 pairs cannot be below 0.05."""


def compare(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Paired | None:
    """Compare two measurements, one value a task in each, in the same order; None without a pair.

    The test is Fisher's randomisation test for paired samples: were there no effect, each task's difference could as
    well have had the other sign. It assumes nothing about how values are distributed, but that tasks are independent.
    """
    if not before:
        return None
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    gaps = second - first
    rng = np.random.default_rng(seed)
    return Paired(
        pairs=len(gaps),
        before=float(first.mean()),
        after=float(second.mean()),
        difference=float(gaps.mean()),
        interval=_interval(gaps, rng),
        p_value=_p_value(gaps, rng),
    )


def _p_value(gaps: NDArray[np.float64], rng: np.random.Generator) -> float:
    changed = gaps[np.abs(gaps) > CLOSE]  # a pair without a difference says nothing, whatever its sign
    if not len(changed):
        return 1.0
    exact = len(changed) <= EXACT
    if exact:
        numbers = np.arange(2 ** len(changed))[:, None]
        signs = 1.0 - 2.0 * (numbers >> np.arange(len(changed)) & 1)
    else:
        signs = rng.choice((-1.0, 1.0), size=(DRAWS, len(changed)))
    as_far = np.abs(signs @ changed) >= abs(changed.sum()) - CLOSE * len(changed)
    if exact:
        return float(as_far.mean())
    return float((as_far.sum() + 1) / (DRAWS + 1))  # the flip that was seen is one of them


def _interval(gaps: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float] | None:
    if len(gaps) < 2:  # noqa: PLR2004 - of one pair there is no spread
        return None
    means = np.concatenate([rng.choice(gaps, size=(some, len(gaps))).mean(axis=1) for some in _portions(len(gaps))])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def _portions(pairs: int) -> list[int]:
    """The draws in portions that take a few megabytes, however many pairs there are."""
    each = max(1, 1_000_000 // pairs)
    return [min(each, DRAWS - done) for done in range(0, DRAWS, each)]
