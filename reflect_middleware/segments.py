"""A trajectory of hours in parts: what is read of it first, and how notes stand in its place. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflect_middleware.fit import EARLIER, Rollout, beat_text, line, shorten, vital
from reflect_middleware.prompts import EARLIER_TURNS, NO_NOTES, NOTES_ON, NOTES_PART
from reflect_middleware.rollout import Beat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reflect_middleware.types import Cut

SHARE = 0.1
"""An episode longer than the whole prompt, of which less than this share would be shown, is read in segments first."""
MOST_SEGMENTS = 100
"""Most segments read in one reflection; what lies beyond is said to be cut. At 16,000 tokens each, 1.6 million."""
NOTE_CHARS = (240, 2_000)
"""Characters that one segment's notes may have, from and to."""
VERBATIM = 12
"""Steps of a long trajectory that stand beside its notes: different errors, people's words, the parting."""
STEP_CHARS = 16_000
"""Characters of one step that a segment may show; recorded steps have fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of an episode's steps that is read at once."""

    handle: str
    first: int
    """Number of its first step, from 1."""
    last: int
    of: int
    """Steps of the whole episode."""
    text: str
    """The task and the steps, as the model gets them."""

    @property
    def place(self) -> str:
        """Which steps these are."""
        return f"{self.handle}. {NOTES_PART.format(first=self.first, last=self.last, of=self.of)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What the model noted on a segment."""

    first: int
    last: int
    text: str


def too_long(cuts: Sequence[Cut], page: int) -> list[str]:
    """Ids of the episodes that are longer than a page of so many characters, and of which it shows too little.

    Short episodes of which there are too many for one page are cut, not read one by one.
    """
    long = (cut for cut in cuts if cut.of_characters > page)
    return [cut.episode for cut in long if cut.of_characters - cut.characters < SHARE * cut.of_characters]


def segments(rollout: Rollout, room: int, count: Callable[[str], int]) -> list[Segment]:
    """The whole trajectory in parts of at most about `room` tokens, the task included; every step is in one of them."""
    head = [*line("task", rollout.task, EARLIER), *line(EARLIER_TURNS, rollout.earlier, EARLIER // 2, head=1 / 3)]
    left = max(room - count("\n".join(head)) - 20, 50)
    found: list[Segment] = []
    texts: list[str] = []
    used, first, total = 0, 1, len(rollout.beats)

    def close(last: int) -> None:
        part = NOTES_PART.format(first=first, last=last, of=total)
        text = "\n".join([*head, part, *texts])
        found.append(Segment(handle=rollout.handle, first=first, last=last, of=total, text=text))

    for number, beat in enumerate(rollout.beats, 1):
        text, tokens = _within(beat_text(beat, STEP_CHARS), left, count)
        if texts and used + tokens > left:
            close(number - 1)
            texts, used, first = [], 0, number
        texts.append(text)
        used += tokens
    if texts:
        close(total)
    return found


def _within(text: str, room: int, count: Callable[[str], int]) -> tuple[str, int]:
    """The text in at most `room` tokens where it can be cut to that, and that number with one for a new line."""
    tokens = count(text)
    while tokens >= room and len(text) > 1:
        text = shorten(text, min(len(text) * (room - 1) // max(tokens, 1), len(text) - 1))
        tokens = count(text)
    return text, tokens + 1


def chosen(found: Mapping[str, Sequence[Segment]], most: int) -> list[Segment]:
    """The segments that are read if not all may be: an even part of each episode, of its beginning and its end."""
    left, kept = most, list[Segment]()
    for number, parts in enumerate(sorted(found.values(), key=len)):
        share = min(len(parts), left // (len(found) - number))
        left -= share
        tail = share // 2
        kept += [*parts[: share - tail], *parts[len(parts) - tail :]]
    return kept


def note_chars(room: int, segments: int) -> int:
    """How long the notes on one segment may be if all of them are to have `room` characters together."""
    least, most = NOTE_CHARS
    return max(least, min(most, room // max(segments, 1)))


def note(segment: Segment, said: str, limit: int) -> Note:
    """The model's answer as a note of at most `limit` characters."""
    return Note(first=segment.first, last=segment.last, text=shorten(said.strip() or NO_NOTES, limit))


def condensed(rollout: Rollout, notes: Sequence[Note]) -> Rollout:
    """The rollout with notes between its first and its last step; a few steps of which each word counts stay.

    What no note covers is said to be cut.
    """
    if not notes:
        return rollout
    total = len(rollout.beats)
    words = [i for i in vital(rollout.beats, rollout.split) if 0 < i < total - 1]
    words = sorted(words[:VERBATIM])
    beats: list[Beat] = []
    places: dict[int, int] = {}

    def stay(indexes: Iterable[int]) -> None:
        for index in indexes:
            places[index] = len(beats)
            beats.append(replace(rollout.beats[index], steps=0))

    stay([0])
    for first, last, text in _covered(notes, total):
        label = NOTES_ON.format(first=first, last=last)
        lines = ((label, text),) if text else ()
        beats.append(Beat(lines=lines, steps=last - first + 1, noted=True))
        stay(i for i in words if first <= i + 1 <= last)
    if total > 1:
        stay([total - 1])
    split = None if rollout.split is None else len(beats) if rollout.split >= total else places.get(rollout.split)
    return replace(rollout, beats=tuple(beats), split=split, whole=rollout.size, segments=len(notes))


def _covered(notes: Sequence[Note], total: int) -> list[tuple[int, int, str]]:
    """All steps from 1 to `total` as (first, last, notes), in order; without words where nobody has read them."""
    found: list[tuple[int, int, str]] = []
    done = 0
    for item in sorted(notes, key=lambda item: item.first):
        if item.first > done + 1:
            found.append((done + 1, item.first - 1, ""))
        found.append((item.first, item.last, item.text))
        done = item.last
    return [*found, (done + 1, total, "")] if done < total else found
