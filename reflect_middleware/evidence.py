"""Is a quote really in the episode? Tolerant of case, spaces and punctuation, of nothing else."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reflect_middleware.types import Episode, Step

FRAGMENT = 12
"""Characters that a part of a quote needs to count as evidence on its own."""

WELL = 0.5
"""The reward from which a run went well enough for the agent's own words to be evidence."""

_ESCAPES = re.compile(r'\\(?:[nrt"/\\])')
_NOT_WORD = re.compile(r"[\W_]+")
_QUOTED = re.compile(
    r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|`([^`]+)`|(?<!\w)[\'\u2018]([^\'\u2019]+)[\'\u2019](?!\w)'
)
_BREAK = re.compile(r"…|\.{3,}|\n|(?<=[.!?;])\s")


def plain(text: str) -> str:
    """The words of a text: case-folded, one space between them, no punctuation.

    JSON's escapes count as spaces, because episodes keep much of their text as JSON.
    """
    folded = unicodedata.normalize("NFKC", _ESCAPES.sub(" ", text)).casefold()
    return _NOT_WORD.sub(" ", folded).strip()


def episode_text(episode: Episode) -> str:
    """Everything of an episode that may be quoted, one text a line: the task, its steps, its rewards, its end.

    What the agent itself said or called in a run that went badly is no evidence of how to do it, and left out.
    """
    own = episode.reward is None or episode.reward >= WELL
    rewards = (text for reward in episode.rewards for text in (reward.comment, reward.correction))
    steps = (text for step in episode.trajectory for text in _step_text(step, own=own))
    end = (episode.output if own else "", episode.error, episode.reference)
    return "\n".join(part for part in (episode.task, *steps, *rewards, *end) if part)


def _step_text(step: Step, *, own: bool) -> tuple[str, ...]:
    """What a step says; the world's words are a model's input, a tool's output, errors and resumes."""
    input_ = step.input if own or step.kind != "tool" else ""
    output = step.output if own or step.kind != "model" else ""
    return input_, output, step.error


def fragments(because: str) -> list[str]:
    """The parts of a quote that may each stand for it, as plain words: what is in quotation marks, each sentence."""
    marked = [next(filter(None, groups)) for groups in _QUOTED.findall(because)]
    parts = [plain(part) for text in (*marked, because) for part in _BREAK.split(text)]
    whole = plain(because)
    if len(whole) < FRAGMENT:
        return [whole] if whole else []
    return [part for part in (whole, *parts) if len(part) >= FRAGMENT]


def found(because: str, text: str) -> bool:
    """True if the quote, or one part of it that is long enough, is in the text word for word."""
    words = f" {plain(text)} "
    return any(f" {part} " in words for part in fragments(because))


def quoted(because: str, episode: Episode) -> bool:
    """True if the episode says what the quote says it does."""
    return found(because, episode_text(episode))
