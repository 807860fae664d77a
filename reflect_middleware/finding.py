"""One thing that `reflect doctor` has checked, and the words in which its numbers are told.

A problem stops something from working and wants somebody now; advice makes it work better, or can wait.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, computed_field

from reflect_middleware.types import Frozen, Namespace

Level = Literal["ok", "advice", "problem"]
SHORT = 300
"""Most characters of what was said by others, such as a driver."""


class Finding(Frozen):
    """One checked thing."""

    check: str
    """What was checked; the names are stable."""
    level: Level = "ok"
    message: str
    """What was found, and what to do where the level is not `ok`. The words may change."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """The numbers behind the message, by stable names."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether it is no problem; advice is none."""
        return self.level != "problem"


def ago(seconds: float) -> str:
    """A length of time, as people say it."""
    for unit, name in ((172_800.0, "d"), (7_200.0, "h"), (120.0, "min")):
        if seconds >= unit:
            return f"{seconds / {'d': 86_400.0, 'h': 3_600.0, 'min': 60.0}[name]:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def rounded(seconds: float) -> float:
    """Up to two figures, so that it can be typed."""
    step = 10.0 ** max(0, len(f"{seconds:.0f}") - 2)
    return max(1.0, -(-seconds // step) * step)


def percent(part: int, whole: int) -> str:
    """A share; of nothing it is none."""
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def as_size(count: int) -> str:
    """Bytes, as people say them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1_000:  # noqa: PLR2004 - a thousand
            return f"{value:.3g} {unit}"
        value /= 1_000
    return f"{value:.3g} TB"


def spelled(namespace: Namespace) -> str:
    """A namespace, as people write it."""
    return "/".join(namespace)


def shortened(text: str) -> str:
    """Words of others in one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}…"


def worse(one: Level, two: Level) -> Level:
    """The level that wants somebody sooner."""
    order: tuple[Level, ...] = ("ok", "advice", "problem")
    return max(one, two, key=order.index)
