"""What a run of the demo gives, and the exact paired test between two arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from expense_desk.desk import Filed

NONE, PLACEBO, RAW, LEARNED = "no lessons", "unrelated lessons", "raw rejections", "learned lessons"
ARMS = (NONE, PLACEBO, RAW, LEARNED)


@dataclass(kw_only=True)
class Tokens:
    """Tokens that a model read and wrote."""

    read: int = 0
    written: int = 0

    def add(self, read: int, written: int) -> None:
        """Count some more."""
        self.read += read
        self.written += written


class Meter(BaseCallbackHandler):
    """Adds up the agent's tokens."""

    run_inline = True

    def __init__(self) -> None:
        self.tokens = Tokens()

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Count one model call."""
        for generations in response.generations:
            usage = getattr(getattr(generations[0], "message", None), "usage_metadata", None) or {}
            self.tokens.add(usage.get("input_tokens", 0), usage.get("output_tokens", 0))


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One active lesson after the practice."""

    when: str
    do: str
    because: str
    episodes: int

    @property
    def text(self) -> str:
        """As one line, evidence included, about as the prompt has it."""
        return f'When {self.when}: {self.do} (seen: "{self.because}")'


@dataclass(kw_only=True)
class Outcome:
    """All that one seed gave."""

    seed: int
    practice: list[Filed] = field(default_factory=list)
    lessons: list[Learned] = field(default_factory=list)
    held_out: dict[str, list[Filed]] = field(default_factory=dict)
    agent: dict[str, Tokens] = field(default_factory=dict)
    """By the practice and by arm."""
    reflector: Tokens = field(default_factory=Tokens)
    reflections: int = 0
    problems: list[str] = field(default_factory=list)
    """Why reflections failed; empty if none did."""
    seconds: float = 0.0

    def successes(self, arm: str) -> list[bool]:
        """Success per held-out claim, in the same order in every arm."""
        return [filed.accepted for filed in self.held_out.get(arm, [])]

    def agent_tokens(self) -> Tokens:
        """Of all claims together."""
        parts = self.agent.values()
        return Tokens(read=sum(t.read for t in parts), written=sum(t.written for t in parts))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    arm: str
    successes: int
    of: int
    difference: int
    """Successes more than without lessons."""
    prompt: float
    """Tokens read per claim."""
    p: float
    """Exact two-sided McNemar test against no lessons; 1 for that arm itself."""

    @property
    def rate(self) -> float:
        """Share of successes, 0 to 1."""
        return self.successes / self.of if self.of else 0.0


def table_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row per arm, over all seeds together."""
    base = [x for outcome in outcomes for x in outcome.successes(NONE)]
    rows = []
    for arm in ARMS:
        got = [x for outcome in outcomes for x in outcome.successes(arm)]
        better = sum(b and not a for a, b in zip(base, got, strict=True))
        worse = sum(a and not b for a, b in zip(base, got, strict=True))
        p = mcnemar(better, worse)
        read = sum(outcome.agent[arm].read for outcome in outcomes) / max(len(got), 1)
        rows.append(Row(arm=arm, successes=sum(got), of=len(got), difference=better - worse, prompt=read, p=p))
    return rows


def mcnemar(better: int, worse: int) -> float:
    """The exact paired test: are the claims on which two arms differ evenly split?"""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0
