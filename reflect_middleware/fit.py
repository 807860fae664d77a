"""One rollout as text of any length: what matters most outlives the rest, and each cut is named. Pure."""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from reflect_middleware.prompts import CUT_STEPS, CUT_TEXT, DIVERGED, EARLIER_TURNS, NO_REWARD
from reflect_middleware.rollout import Beat, last_words, told
from reflect_middleware.types import Cut

if TYPE_CHECKING:
    from reflect_middleware.types import Episode, Reward

CLIPS = (8_000, 5_000, 3_200, 2_000, 1_300, 800, 500, 320)
"""Characters left of one text while all steps are kept, tried in this order."""
FEW_CLIPS = (320, 200, 120, 60)
"""Characters left of one text once steps are cut as well."""
VITAL = 4
"""A task, error, note, comment, correction or person's word may be this many times longer than any other text."""
CALL = 2
"""A tool's arguments may be this many times longer than a result."""
EARLIER = 2_000
"""Most characters of a conversation's earlier turns: they are context."""
GAP = 24
"""Characters allowed for each mention of cut steps."""
MISSES = 300
"""After so many steps that do not fit no others are tried: a trajectory may have thousands."""

_FENCE = re.compile(r"<(?=/?\s*episode\b)", re.IGNORECASE)


def shorten(text: str, limit: int, head: float = 2 / 3) -> str:
    """At most `limit` characters of the text: its beginning and its end, with the cut named where there is room.

    Args:
        text: Any text.
        limit: Most characters, from 0.
        head: The share of what is kept that comes from the beginning.
    """
    if len(text) <= limit:
        return text
    longest = len(CUT_TEXT.format(count=len(text)))
    named = longest * 3 <= limit
    room = limit - longest if named else max(limit - 1, 0)
    mark = CUT_TEXT.format(count=len(text) - room) if named else "…"[:limit]
    first = math.ceil(room * head - 1e-9)
    return text[:first] + mark + text[len(text) - room + first :]


def fenced(text: str) -> str:
    """The text, safe to stand inside our tags."""
    return _FENCE.sub("\u2039", text.strip())


def line(label: str, text: str, limit: int, head: float = 2 / 3) -> list[str]:
    """`label: text`, safe to stand inside our tags; nothing for an empty text."""
    body = fenced(text)
    mark = " " if label.startswith("call ") else ": "
    return [f"{label}{mark}{shorten(body, limit, head)}"] if body and limit > 0 else []


def reward_lines(reward: Reward, limit: int) -> list[str]:
    """A reward with its words."""
    by = "" if reward.source == "outcome" else f" by {reward.source}"
    of = "" if reward.key == "reward" else f" for {reward.key}"
    comment = line("", reward.comment, limit)
    said = f" ({comment[0][2:]})" if comment else ""
    return [f"reward{by}{of}: {reward.value:.3g}{said}", *line("correction", reward.correction, limit)]


def _length_of(label: str, clip: int) -> int:
    """How long a line of this kind may be where an ordinary one may have `clip` characters."""
    if label.startswith("call "):
        return clip * CALL
    return clip * VITAL if label.startswith(("error", "notes", "human", "resume")) else clip


def beat_text(beat: Beat, clip: int) -> str:
    """One beat as text; steps that nobody read are mentioned."""
    if not beat.lines:
        return CUT_STEPS.format(count=beat.steps)
    return "\n".join(part for label, text in beat.lines for part in line(label, text, _length_of(label, clip)))


def _inward(count: int) -> list[int]:
    """Indexes from both ends inward, the last one first."""
    last = count - 1
    return [i for pair in zip(range(last, -1, -1), range(last + 1), strict=True) for i in pair]


def vital(beats: Sequence[Beat], split: int | None) -> list[int]:
    """Indexes of the beats that say what no other does, those to keep longest first.

    These are the last, the first, the one at which it parts from the other rollouts of its task, what people said,
    notes, and the last one with each different error.
    """
    ends = _inward(len(beats))[:2]
    parted = [split] if split is not None and split < len(beats) else []
    told_by = [i for i, beat in enumerate(beats) if beat.by_person]
    notes = [i for i, beat in enumerate(beats) if beat.noted and beat.lines]
    errors = {beat.error: i for i, beat in enumerate(beats) if beat.error}.values()
    return list(dict.fromkeys([*ends, *parted, *told_by, *notes, *sorted(errors, reverse=True)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A rollout at one length."""

    text: str
    steps: int
    """Steps of which nothing is shown."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """An episode ready to be written at any length."""

    handle: str
    episode: Episode
    task: str
    """Empty where the task stands above."""
    earlier: str
    beats: tuple[Beat, ...]
    output: str
    split: int | None = None
    """Index of the beat at which it parts from another rollout of its task; the number of beats: it has ended there."""
    parts_from: str = ""
    """The other's handle."""
    whole: int = 0
    """Characters of its full text, if that is not the text of these beats."""
    segments: int = 0
    """Parts in which it was read before."""

    @staticmethod
    def of(handle: str, episode: Episode) -> Rollout:
        """The rollout with its own task, in full."""
        story = told(episode)
        return Rollout(
            handle=handle,
            episode=episode,
            task=story.task,
            earlier=story.earlier,
            beats=story.beats,
            output=last_words(episode),
        )

    def parting(self, index: int, other: str) -> Rollout:
        """The same, marked where it parts from another rollout."""
        return replace(self, split=index, parts_from=other)

    @cached_property
    def size(self) -> int:
        """Characters of its full text."""
        return self.whole or len(self._join(self._texts(10**9), 10**9))

    def cut(self, fitted: Fitted) -> Cut | None:
        """What this form lacks; None for nothing."""
        missing = max(0, self.size - len(fitted.text))
        if not (missing or fitted.steps or self.segments):
            return None
        return Cut(
            episode=self.episode.id,
            steps=fitted.steps,
            of_steps=sum(beat.steps for beat in self.beats),
            characters=missing,
            of_characters=self.size,
            segments=self.segments,
        )

    def smallest(self) -> str:
        """Everything that is never left out, each text at its shortest, no step."""
        clip = FEW_CLIPS[-1] // VITAL
        return "\n".join([*self._head(clip), *self._with_gaps({}), *self._tail(clip)])

    def fit(self, limit: int) -> Fitted:
        """The fullest form in at most `limit` characters; the smallest one where none is that short."""
        unread = sum(beat.steps for beat in self.beats if not beat.lines)
        for clip in (max(limit, 1), *(clip for clip in CLIPS if clip < limit)):
            if self._least(clip) > limit:
                continue
            text = self._join(self._texts(clip), clip)
            if len(text) <= limit:
                return Fitted(text=text, steps=unread)
        first, order = self._order
        for clip in FEW_CLIPS:
            kept = self._choose(order, clip, limit - len(self._join([], clip)) - GAP)
            text = self._join(self._with_gaps(kept), clip)
            if len(text) <= limit and (first <= kept.keys() or clip == FEW_CLIPS[-1]):
                return Fitted(text=text, steps=sum(b.steps for i, b in enumerate(self.beats) if i not in kept))
        return Fitted(text=self.smallest(), steps=sum(beat.steps for beat in self.beats))

    @cached_property
    def _order(self) -> tuple[set[int], list[int]]:
        """Indexes of the beats that say what no other does, and of all, those to keep longest first."""
        first = vital(self.beats, self.split)
        errors = [i for i in range(len(self.beats) - 1, -1, -1) if self.beats[i].error]
        return set(first), list(dict.fromkeys([*first, *errors, *_inward(len(self.beats))]))

    @cached_property
    def _lengths(self) -> tuple[list[int], list[int]]:
        """How long its lines are, the shortest first, and the sums from the first one on."""
        lengths = sorted(len(text.strip()) for beat in self.beats for _, text in beat.lines)
        return lengths, [0, *accumulate(lengths)]

    def _least(self, clip: int) -> int:
        """So many characters its steps take at least: a cheap look before a long trajectory is written out."""
        lengths, sums = self._lengths
        short = bisect(lengths, clip)
        return sums[short] + (len(lengths) - short) * clip

    @property
    def _mark(self) -> str:
        return DIVERGED.format(handle=self.parts_from) if self.split is not None else ""

    def _head(self, clip: int) -> list[str]:
        before = line(EARLIER_TURNS, self.earlier, min(clip, EARLIER), head=1 / 3)
        return [f'<episode id="{self.handle}">', *line("task", self.task, clip * VITAL), *before]

    def _tail(self, clip: int) -> list[str]:
        """How it ended and what it was worth: never left out."""
        episode, most = self.episode, clip * VITAL
        ended = "" if episode.status == "completed" else f"{episode.status} {episode.error}"
        rewards = [part for reward in episode.rewards for part in reward_lines(reward, most)]
        return [
            *line("ended", ended, most),
            *line("right answer", episode.reference, most),
            *(rewards or [f"reward: {NO_REWARD}"]),
            "</episode>",
        ]

    def _join(self, steps: Sequence[str], clip: int) -> str:
        ended = [self._mark] if self.split == len(self.beats) else []
        return "\n".join([*self._head(clip), *steps, *ended, *line("output", self.output, clip), *self._tail(clip)])

    def _text(self, index: int, clip: int) -> str:
        text = beat_text(self.beats[index], clip)
        return f"{self._mark}\n{text}" if index == self.split else text

    def _texts(self, clip: int) -> list[str]:
        return [self._text(index, clip) for index in range(len(self.beats))]

    def _with_gaps(self, kept: dict[int, str]) -> list[str]:
        """The kept steps in their order, each run of cut ones replaced by a note."""
        lines: list[str] = []
        cut = 0
        for index, beat in enumerate(self.beats):
            if index not in kept:
                cut += beat.steps
                continue
            lines += [CUT_STEPS.format(count=cut), kept[index]] if cut else [kept[index]]
            cut = 0
        return [*lines, CUT_STEPS.format(count=cut)] if cut else lines

    def _choose(self, order: Iterable[int], clip: int, room: int) -> dict[int, str]:
        """The steps that fit into `room` characters, asked in this order."""
        kept: dict[int, str] = {}
        misses = 0
        for index in order:
            if misses == MISSES:
                break
            if not self.beats[index].lines:
                continue
            text = self._text(index, clip)
            size = len(text) + 1 + GAP
            if size > room:
                misses += 1
                continue
            room -= size
            kept[index] = text
        return kept


def fit_episode(handle: str, episode: Episode, limit: int) -> str:
    """The fullest form of an episode in at most `limit` characters; the smallest one where none is that short."""
    return Rollout.of(handle, episode).fit(limit).text
