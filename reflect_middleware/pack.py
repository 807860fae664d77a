"""Put every rollout of a batch, with its rewards, into one text that fits a token budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflect_middleware.batch import COUNTED
from reflect_middleware.digest import digest
from reflect_middleware.evidence import plain
from reflect_middleware.fit import EARLIER, FEW_CLIPS, Rollout, fenced, fit_episode, line, reward_lines, shorten
from reflect_middleware.groups import Group, diverge, grouped, nothing_new
from reflect_middleware.prompts import (
    ALIKE_TASKS,
    AS_GIVEN,
    BEST_FIRST,
    EARLIER_TURNS,
    HELD,
    LEFT_OUT,
    LESSONS_SO_FAR,
    NO_LESSONS,
    NO_REWARD,
    REFUSED_BEFORE,
    SAME_TASK,
    WHAT_WAS_TOLD,
)
from reflect_middleware.segments import Note, condensed

if TYPE_CHECKING:
    from reflect_middleware.batch import Batch
    from reflect_middleware.types import Cut, EditOutcome, Lesson, Reward, Skipped

__all__ = ["Count", "Packed", "approximate_tokens", "fit_episode", "pack", "render", "shorten"]

Count = Callable[[str], int]
"""Text to its number of tokens."""

LATE = 3
"""Most rewards shown with a lesson that came after it was learned."""
REJECTED = 10
"""Most refused edits that are repeated to the reflector."""
ROOMY = 800
"""Characters an episode must have before refused edits are repeated at all."""
WIDE = 40
"""Characters a token has at most, when a text is so long that counting all of it would take its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A batch as text, and what the text lacks."""

    text: str
    handles: tuple[str, ...] = ()
    """Of the episodes that are in it."""
    cut: tuple[Cut, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def approximate_tokens(text: str) -> int:
    """A cautious guess without a tokenizer: three bytes of UTF-8 a token."""
    return -(-len(text.encode("utf-8", "replace")) // 3)


def _standing(lesson: Lesson) -> str:
    marks = [lesson.status, f"{len(lesson.sources)} episodes" if lesson.sources else "written by hand"]
    if lesson.shown:
        earned = "" if lesson.shown_reward is None else f" with mean reward {lesson.shown_reward:.3g}"
        more = "" if lesson.shown < COUNTED else " or more"
        marks.append(f"shown in {lesson.shown}{more}{earned}")
    marks += ["pinned: leave it"] if lesson.pinned else []
    marks += [HELD.format(values=", ".join(lesson.held))] if lesson.held else []
    marks += ["look again: a reward came after it was learned"] if lesson.needs_review else []
    return ", ".join(marks)


def _lesson(handle: str, lesson: Lesson, late: Sequence[Reward], limit: int) -> str:
    half = max(limit // 2, 1)
    said = f"{handle}: When {shorten(lesson.when, half)}: {shorten(lesson.do, half)}"
    came = [f"  since then, {line}" for reward in late[-LATE:] for line in reward_lines(reward, limit // 3)]
    return "\n".join([said, f"  {_standing(lesson)}", *line("  because", lesson.because, limit // 3), *came])


def _refusal(outcome: EditOutcome, limit: int) -> str:
    edit = outcome.edit
    said = f"{edit.op} {edit.when}: {edit.do}" if edit.do else edit.op
    return "\n".join(line("-", f"{said} ({outcome.reason})", limit))


@dataclass(frozen=True, slots=True)
class _Side:
    """Rollouts that stand side by side, under one heading where there are several."""

    heading: str
    task: str
    """The task of all of them; empty where each has its own."""
    earlier: str
    """The turns before it, likewise."""
    rollouts: tuple[Rollout, ...]

    def texts(self, limit: int) -> list[str]:
        """The heading, with the task where it is the same, and each rollout."""
        task = line("task", self.task, max(limit, FEW_CLIPS[-1]))
        before = line(EARLIER_TURNS, self.earlier, min(limit, EARLIER), head=1 / 3)
        heading = ["\n".join([self.heading, *task, *before])] if self.heading else []
        return [*heading, *(rollout.fit(limit).text for rollout in self.rollouts)]


def _side_by_side(group: Group, known: Mapping[str, Rollout]) -> _Side:
    rollouts = [known[handle] for handle in group.handles]
    best, worst = rollouts[0], rollouts[-1]
    if best is worst:
        return _Side("", "", "", (best,))
    marked = [_marked(rollout, worst if rollout is best else best) for rollout in rollouts]
    order = BEST_FIRST if best.episode.reward != worst.episode.reward else AS_GIVEN
    heading = (SAME_TASK if group.same else ALIKE_TASKS).format(count=len(rollouts), order=order)
    if len({(plain(rollout.task), plain(rollout.earlier)) for rollout in rollouts}) > 1:
        return _Side(heading, "", "", tuple(marked))
    return _Side(heading, best.task, best.earlier, tuple(replace(rollout, task="", earlier="") for rollout in marked))


def _marked(rollout: Rollout, other: Rollout) -> Rollout:
    parted = diverge(rollout.beats, other.beats)
    return rollout.parting(parted[0], other.handle) if parted else rollout


@dataclass(frozen=True, slots=True)
class _Page:
    """All that is to be written, with everything done that does not depend on the room there is."""

    batch: Batch
    sides: list[_Side]
    skipped: tuple[Skipped, ...]
    told: tuple[str, ...]
    """What the agent was told in these runs, a line for each statement."""

    @staticmethod
    def of(batch: Batch, notes: Mapping[str, Sequence[Note]]) -> _Page:
        skipped = nothing_new(batch)
        gone = {episode for skip in skipped for episode in skip.episodes}
        read = {handle: episode for handle, episode in batch.episode_handles.items() if episode.id not in gone}
        known = {handle: Rollout.of(handle, episode) for handle, episode in read.items()}
        groups = [group for group in grouped(batch) if group.handles[0] in known]
        sides = [_side_by_side(group, known) for group in groups]
        told = tuple(fenced(statement.line) for statement in digest(read, groups))
        if notes:
            sides = [
                replace(side, rollouts=tuple(condensed(r, notes.get(r.handle, ())) for r in side.rollouts))
                for side in sides
            ]
        return _Page(batch, sides, skipped, told)

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for side in self.sides for rollout in side.rollouts]

    @property
    def left_out(self) -> list[str]:
        handle = self.batch.handle
        return [
            LEFT_OUT.format(handles=", ".join(map(handle, skip.episodes)), reason=skip.reason) for skip in self.skipped
        ]

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
            *(text for side in self.sides for text in side.texts(limit)),
            "\n".join(self.left_out),
            "\n".join([WHAT_WAS_TOLD, *self.told]) if self.told and limit >= ROOMY else "",
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
        lessons = [f"{handle}: {shorten(lesson.text, limit)}" for handle, lesson in standing]
        return "\n".join([*lines, *self.left_out, *lessons])

    def packed(self, text: str, limit: int) -> Packed:
        """The text with an account of what it lacks."""
        cuts = (rollout.cut(rollout.fit(limit)) for rollout in self.rollouts)
        return Packed(
            text=text,
            handles=tuple(rollout.handle for rollout in self.rollouts),
            cut=tuple(cut for cut in cuts if cut),
            skipped=self.skipped,
        )


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number found in [low, high] that fits, by bisection; `low` is taken to fit."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def pack(
    batch: Batch, budget_tokens: int, count_tokens: Count, notes: Mapping[str, Sequence[Note]] | None = None
) -> Packed:
    """All rollouts with their rewards, and the related lessons, as one text of at most `budget_tokens`.

    Rollouts of one task stand side by side, the best first, with a mark where they part; groups that say nothing new
    are left out by name. Short episodes stay whole; the others share what is left evenly. Tasks, rewards with their
    words, errors, the first and last steps and those at which rollouts part outlive the rest, and each cut is named.
    Where even the shortest forms do not fit, they are truncated: every episode and its rewards are still named, even
    if that takes more than the budget.

    Args:
        batch: Episodes and lessons.
        budget_tokens: Most tokens of the text.
        count_tokens: Text to its number of tokens.
        notes: By handle, what the model noted of episodes that it read in segments before.
    """
    page = _Page.of(batch, notes or {})
    full = max([2_400, *(len(e.task) for e in batch.episodes), *(rollout.size for rollout in page.rollouts)])
    most = WIDE * max(budget_tokens, 100)
    if full <= most or len(page.text(full)) <= most:
        if count_tokens(text := page.text(full)) <= budget_tokens:
            return page.packed(text, full)
    else:
        full = most
    if count_tokens(page.text(0)) <= budget_tokens:
        limit = _largest(0, full, lambda limit: count_tokens(page.text(limit)) <= budget_tokens)
        return page.packed(page.text(limit), limit)
    limit = _largest(0, full, lambda limit: count_tokens(page.roll(limit)) <= budget_tokens)
    return page.packed(page.roll(limit), 0)


def render(batch: Batch, budget_tokens: int, count_tokens: Count) -> str:
    """The text of `pack`."""
    return pack(batch, budget_tokens, count_tokens).text
