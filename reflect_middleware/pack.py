"""Put every rollout of a batch, with its rewards, into one text that fits a token budget. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect_middleware.prompts import CUT_STEPS, CUT_TEXT, HELD, LESSONS_SO_FAR, NO_LESSONS, NO_REWARD, REFUSED_BEFORE
from reflect_middleware.rollout import Beat, beats, last_words

if TYPE_CHECKING:
    from reflect_middleware.batch import Batch
    from reflect_middleware.types import EditOutcome, Episode, Lesson, Reward

Count = Callable[[str], int]
"""Text to its number of tokens."""

CLIPS = (8_000, 5_000, 3_200, 2_000, 1_300, 800, 500, 320)
"""Characters left of one text while all steps are kept, tried in this order."""
FEW_CLIPS = (320, 200, 120, 60)
"""Characters left of one text once steps are cut as well."""
VITAL = 4
"""A task, error, comment or correction may be this many times longer than any other text."""
GAP = 24
"""Characters allowed for each mention of cut steps."""
LATE = 3
"""Most rewards shown with a lesson that came after it was learned."""
REJECTED = 10
"""Most refused edits that are repeated to the reflector."""
ROOMY = 800
"""Characters an episode must have before refused edits are repeated at all."""

_FENCE = re.compile(r"<(?=/?\s*episode\b)", re.IGNORECASE)


def approximate_tokens(text: str) -> int:
    """A cautious guess without a tokenizer: three bytes of UTF-8 a token."""
    return -(-len(text.encode("utf-8", "replace")) // 3)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of the text: its beginning and its end, with the cut named where there is room."""
    if len(text) <= limit:
        return text
    longest = len(CUT_TEXT.format(count=len(text)))
    named = longest * 3 <= limit
    room = limit - longest if named else max(limit - 1, 0)
    mark = CUT_TEXT.format(count=len(text) - room) if named else "…"[:limit]
    head = -(-room * 2 // 3)
    return text[:head] + mark + text[len(text) - room + head :]


def _line(label: str, text: str, limit: int) -> list[str]:
    """`label: text`, safe to stand inside our tags; nothing for an empty text."""
    body = _FENCE.sub("\u2039", text.strip())
    mark = " " if label.startswith("call ") else ": "
    return [f"{label}{mark}{shorten(body, limit)}"] if body and limit > 0 else []


def _reward_lines(reward: Reward, limit: int) -> list[str]:
    by = "" if reward.source == "outcome" else f" by {reward.source}"
    of = "" if reward.key == "reward" else f" for {reward.key}"
    comment = _line("", reward.comment, limit)
    said = f" ({comment[0][2:]})" if comment else ""
    return [f"reward{by}{of}: {reward.value:.3g}{said}", *_line("correction", reward.correction, limit)]


def _head(handle: str, episode: Episode, clip: int) -> list[str]:
    return [f'<episode id="{handle}">', *_line("task", episode.task, clip * VITAL)]


def _tail(episode: Episode, clip: int) -> list[str]:
    """How it ended and what it was worth: never left out."""
    vital = clip * VITAL
    ended = "" if episode.status == "completed" else f"{episode.status} {episode.error}"
    rewards = [line for reward in episode.rewards for line in _reward_lines(reward, vital)]
    return [
        *_line("ended", ended, vital),
        *_line("right answer", episode.reference, vital),
        *(rewards or [f"reward: {NO_REWARD}"]),
        "</episode>",
    ]


def _texts(told: Sequence[Beat], clip: int) -> list[str]:
    """Each beat as text."""
    return [
        "\n".join(
            line
            for label, text in beat.lines
            for line in _line(label, text, clip * VITAL if label == "error" else clip)
        )
        for beat in told
    ]


def _order(told: Sequence[Beat]) -> tuple[list[int], int]:
    """Indexes of the beats, those to keep longest first, and how many of them say what no other does.

    These are the last, the first, and the last one with each different error; then come the other errors, then the
    rest from both ends inward.
    """
    last = len(told) - 1
    errors = [i for i in range(last, -1, -1) if told[i].error]
    different = {told[i].error: i for i in reversed(errors)}.values()
    inward = [i for pair in zip(range(last, -1, -1), range(last + 1), strict=True) for i in pair]
    vital = dict.fromkeys([*inward[:2], *sorted(different, reverse=True)])
    return list(vital | dict.fromkeys([*errors, *inward])), len(vital)


def _with_gaps(texts: Sequence[str], kept: Iterable[int]) -> list[str]:
    """The kept steps in their order, each run of cut ones replaced by a note."""
    lines: list[str] = []
    before = 0
    for index in [*sorted(kept), len(texts)]:
        if index > before:
            lines.append(CUT_STEPS.format(count=index - before))
        lines.extend(texts[index : index + 1])
        before = index + 1
    return lines


def _choose(texts: Sequence[str], order: Sequence[int], room: int) -> list[int]:
    """The steps that fit into `room` characters, asked in this order."""
    kept: list[int] = []
    for index in order:
        size = len(texts[index]) + 1 + GAP
        if size <= room:
            room -= size
            kept.append(index)
    return kept


@dataclass(frozen=True, slots=True)
class _Rollout:
    """An episode ready to be written at any length."""

    handle: str
    episode: Episode
    told: list[Beat]
    output: str

    @staticmethod
    def of(handle: str, episode: Episode) -> _Rollout:
        return _Rollout(handle, episode, beats(episode), last_words(episode))

    def join(self, steps: Sequence[str], clip: int) -> str:
        head, tail = _head(self.handle, self.episode, clip), _tail(self.episode, clip)
        return "\n".join([*head, *steps, *_line("output", self.output, clip), *tail])

    def smallest(self) -> str:
        """Everything that is never left out, each text at its shortest, no step."""
        clip = FEW_CLIPS[-1] // VITAL
        gaps = _with_gaps([""] * len(self.told), ())
        return "\n".join([*_head(self.handle, self.episode, clip), *gaps, *_tail(self.episode, clip)])

    def fit(self, limit: int) -> str:
        """The fullest form in at most `limit` characters; the smallest one where none is that short."""
        for clip in (max(limit, 1), *(clip for clip in CLIPS if clip < limit)):
            text = self.join(_texts(self.told, clip), clip)
            if len(text) <= limit:
                return text
        order, vital = _order(self.told)
        for clip in FEW_CLIPS:
            texts = _texts(self.told, clip)
            kept = _choose(texts, order, limit - len(self.join([], clip)) - GAP)
            text = self.join(_with_gaps(texts, kept), clip)
            if len(text) <= limit and (set(order[:vital]) <= set(kept) or clip == FEW_CLIPS[-1]):
                return text
        return self.smallest()


def fit_episode(handle: str, episode: Episode, limit: int) -> str:
    """The fullest form of an episode in at most `limit` characters; the smallest one where none is that short."""
    return _Rollout.of(handle, episode).fit(limit)


def _standing(lesson: Lesson) -> str:
    marks = [lesson.status, f"{len(lesson.sources)} episodes" if lesson.sources else "written by hand"]
    if lesson.shown:
        earned = "" if lesson.shown_reward is None else f" with mean reward {lesson.shown_reward:.3g}"
        marks.append(f"shown in {lesson.shown}{earned}")
    marks += ["pinned: leave it"] if lesson.pinned else []
    marks += [HELD.format(values=", ".join(lesson.held))] if lesson.held else []
    marks += ["look again: a reward came after it was learned"] if lesson.needs_review else []
    return ", ".join(marks)


def _lesson(handle: str, lesson: Lesson, late: Sequence[Reward], limit: int) -> str:
    half = max(limit // 2, 1)
    said = f"{handle}: When {shorten(lesson.when, half)}: {shorten(lesson.do, half)}"
    came = [f"  since then, {line}" for reward in late[-LATE:] for line in _reward_lines(reward, limit // 3)]
    return "\n".join([said, f"  {_standing(lesson)}", *_line("  because", lesson.because, limit // 3), *came])


def _refusal(outcome: EditOutcome, limit: int) -> str:
    edit = outcome.edit
    said = f"{edit.op} {edit.when}: {edit.do}" if edit.do else edit.op
    return "\n".join(_line("-", f"{said} ({outcome.reason})", limit))


@dataclass(frozen=True, slots=True)
class _Page:
    """All that is to be written, with everything done that does not depend on the room there is."""

    batch: Batch
    rollouts: list[_Rollout]

    def text(self, limit: int) -> str:
        """The whole with at most about `limit` characters for each episode and a part of that for each lesson."""
        standing = self.batch.lesson_handles.items()
        room, late = max(limit // 4, 60), self.batch.late
        lessons = [_lesson(handle, lesson, late(lesson), room) for handle, lesson in standing]
        refusals = self.batch.rejected[:REJECTED] if limit >= ROOMY else ()
        refused = [_refusal(outcome, limit // 8) for outcome in refusals]
        blocks = [
            "\n".join([LESSONS_SO_FAR, *lessons]) if lessons else NO_LESSONS,
            "\n".join([REFUSED_BEFORE, *refused]) if refused else "",
            *(rollout.fit(limit) for rollout in self.rollouts),
        ]
        return "\n\n".join(filter(None, blocks))

    def roll(self, limit: int) -> str:
        """The last resort: every episode and its rewards by name, and what `limit` characters of each still say."""
        lines = []
        for rollout in self.rollouts:
            values = [f"{reward.value:.3g} by {reward.source}" for reward in rollout.episode.rewards]
            rest = shorten(" ".join(rollout.smallest().split()[2:]), limit)
            lines.append(f"{rollout.handle} reward: {', '.join(values) or NO_REWARD} {rest}".rstrip())
        standing = self.batch.lesson_handles.items()
        return "\n".join([*lines, *(f"{handle}: {shorten(lesson.text, limit)}" for handle, lesson in standing)])


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number found in [low, high] that fits, by bisection; `low` is taken to fit."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _size(episode: Episode) -> int:
    texts = [len(s.input) + len(s.output) + len(s.error) + 80 for s in episode.trajectory]
    said = [len(r.comment) + len(r.correction) + 120 for r in episode.rewards]
    return sum(texts) + sum(said) + len(episode.task + episode.output + episode.error + episode.reference) + 400


def render(batch: Batch, budget_tokens: int, count_tokens: Count) -> str:
    """All rollouts with their rewards, and the related lessons, as one text of at most `budget_tokens`.

    Short episodes stay whole; the others share what is left evenly. Tasks, rewards with their words, errors and the
    first and last steps outlive the rest, and each cut is named. Where even the shortest forms do not fit, they
    are truncated: every episode and its rewards are still named, even if that takes more than the budget.
    """
    page = _Page(batch, [_Rollout.of(handle, episode) for handle, episode in batch.episode_handles.items()])
    full = max([2_400, *map(_size, batch.episodes)])
    if count_tokens(text := page.text(full)) <= budget_tokens:
        return text
    if count_tokens(page.text(0)) <= budget_tokens:
        return page.text(_largest(0, full, lambda limit: count_tokens(page.text(limit)) <= budget_tokens))
    return page.roll(_largest(0, full, lambda limit: count_tokens(page.roll(limit)) <= budget_tokens))
