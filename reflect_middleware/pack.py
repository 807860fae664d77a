"""Put every rollout of a batch, with its rewards, into one text that fits a token budget. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from reflect_middleware.prompts import CUT_STEPS, CUT_TEXT, NO_REWARD

if TYPE_CHECKING:
    from reflect_middleware.batch import Batch
    from reflect_middleware.types import EditOutcome, Episode, Lesson, Reward, Step

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
REJECTED = 10
"""Most refused edits that are repeated to the reflector."""
ROOMY = 800
"""Characters an episode must have before refused edits are repeated at all."""

_FENCE = re.compile(r"<(?=/?\s*(?:episode|lessons)\b)", re.IGNORECASE)


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
    return [f"{label}: {shorten(body, limit)}"] if body and limit > 0 else []


def _reward_lines(reward: Reward, limit: int) -> list[str]:
    head = f"Reward {reward.value:.2f} from {reward.source} ({reward.key})"
    comment = _line(head, reward.comment, limit) or [head]
    return comment + _line("  Correction", reward.correction, limit)


def _head(handle: str, episode: Episode, clip: int) -> list[str]:
    """What is never left out: the name, the rewards, the task, and how it ended."""
    vital = clip * VITAL
    rewards = [line for reward in episode.rewards for line in _reward_lines(reward, vital)]
    return [
        f'<episode name="{handle}">',
        *_line("Task", episode.task, vital),
        *(rewards or [f"Reward: {NO_REWARD}"]),
        *_line("Right answer", episode.reference, vital),
        *_line("Ended", " ".join(filter(None, (episode.status, episode.error))), vital),
    ]


def _step(number: int, step: Step, seen: set[str], clip: int) -> str:
    """One step; what an earlier step already showed is not said again."""
    given = "" if step.input.strip() in seen else step.input
    seen.update((step.input.strip(), step.output.strip()))
    lines = [
        f"Step {number}: {step.kind} {step.name}".rstrip(),
        *_line("  in", given, clip),
        *_line("  out", step.output, clip),
        *_line("  ERROR", step.error, clip * VITAL),
    ]
    return "\n".join(lines)


def _steps(episode: Episode, clip: int) -> list[str]:
    seen = {episode.task.strip()}
    return [_step(number, step, seen, clip) for number, step in enumerate(episode.trajectory, 1)]


def _lone_steps(episode: Episode, clip: int) -> list[str]:
    """The steps for a text in which any of them may be missing: each tells all of itself."""
    task = episode.task.strip()
    return [_step(number, step, {task}, clip) for number, step in enumerate(episode.trajectory, 1)]


def _order(trajectory: Sequence[Step]) -> tuple[list[int], int]:
    """Indexes of the steps, those to keep longest first, and how many of them say what no other does.

    These are the last step, the first, and the last one with each different error; then come the other errors, then
    the rest from both ends inward.
    """
    last = len(trajectory) - 1
    errors = [i for i in range(last, -1, -1) if trajectory[i].error]
    different = {trajectory[i].error: i for i in reversed(errors)}.values()
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


def _join(head: Sequence[str], steps: Sequence[str], episode: Episode, clip: int) -> str:
    shown = any(episode.output.strip() == step.output.strip() for step in episode.trajectory)
    output = [] if shown else _line("Output", episode.output, clip)
    return "\n".join([*head, *steps, *output, "</episode>"])


def smallest(handle: str, episode: Episode) -> str:
    """The minimal form: everything that is never left out, each text at its shortest, no step."""
    clip = FEW_CLIPS[-1] // VITAL
    return _join(_head(handle, episode, clip), _with_gaps([""] * len(episode.trajectory), ()), episode, 0)


def fit_episode(handle: str, episode: Episode, limit: int) -> str:
    """The fullest form of an episode in at most `limit` characters; the minimal form where none is that short."""
    for clip in (max(limit, 1), *(clip for clip in CLIPS if clip < limit)):
        text = _join(_head(handle, episode, clip), _steps(episode, clip), episode, clip)
        if len(text) <= limit:
            return text
    order, vital = _order(episode.trajectory)
    for clip in FEW_CLIPS:
        head, texts = _head(handle, episode, clip), _lone_steps(episode, clip)
        room = limit - len(_join(head, [], episode, clip)) - GAP
        kept = _choose(texts, order, room)
        text = _join(head, _with_gaps(texts, kept), episode, clip)
        if len(text) <= limit and (set(order[:vital]) <= set(kept) or clip == FEW_CLIPS[-1]):
            return text
    return smallest(handle, episode)


def _evidence(lesson: Lesson) -> str:
    marks = [lesson.status, f"from {len(lesson.sources)} episodes" if lesson.sources else "written by hand"]
    if lesson.shown:
        earned = "" if lesson.shown_reward is None else f" with mean reward {lesson.shown_reward:.2f}"
        marks.append(f"shown in {lesson.shown}{earned}")
    marks += ["pinned: leave it"] if lesson.pinned else []
    marks += ["look again: a reward came after it was learned"] if lesson.needs_review else []
    return ", ".join(marks)


def _lesson(handle: str, lesson: Lesson, limit: int) -> str:
    half = max(limit // 2, 1)
    lines = [f"{handle} ({_evidence(lesson)})", *_line("  when", lesson.when, half), *_line("  do", lesson.do, half)]
    return "\n".join([*lines, *_line("  because", lesson.because, limit // 3)])


def _refusal(outcome: EditOutcome, limit: int) -> str:
    edit = outcome.edit
    said = f"{edit.op} {edit.when}: {edit.do}" if edit.do else edit.op
    return "\n".join(_line("-", f"{said} ({outcome.reason})", limit))


def _page(batch: Batch, limit: int) -> str:
    """The whole text with at most about `limit` characters for each episode and a part of that for each lesson."""
    lessons = [_lesson(handle, lesson, max(limit // 4, 60)) for handle, lesson in batch.lesson_handles.items()]
    refused = [_refusal(outcome, limit // 8) for outcome in batch.rejected[-REJECTED:]] if limit >= ROOMY else []
    episodes = [fit_episode(handle, episode, limit) for handle, episode in batch.episode_handles.items()]
    blocks = [
        "\n".join(["<lessons>", *lessons, "</lessons>"]) if lessons else "There are no lessons yet.",
        "\n".join(["Refused earlier, do not propose again:", *refused]) if refused else "",
        *episodes,
    ]
    return "\n\n".join(filter(None, blocks))


def _roll(batch: Batch, limit: int) -> str:
    """The last resort: every episode and its reward values by name, and what `limit` characters of each hold."""
    lines = []
    for handle, episode in batch.episode_handles.items():
        values = ", ".join(f"{reward.value:.2f} from {reward.source}" for reward in episode.rewards) or NO_REWARD
        rest = f" {shorten(' '.join(smallest(handle, episode).split()[2:]), limit)}" if limit else ""
        lines.append(f"{handle} reward {values}{rest}")
    return "\n".join([*lines, *(f"{h} {shorten(lesson.text, limit)}" for h, lesson in batch.lesson_handles.items())])


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
    full = max([2_400, *map(_size, batch.episodes)])
    if count_tokens(text := _page(batch, full)) <= budget_tokens:
        return text
    if count_tokens(_page(batch, 0)) <= budget_tokens:
        return _page(batch, _largest(0, full, lambda limit: count_tokens(_page(batch, limit)) <= budget_tokens))
    return _roll(batch, _largest(0, full, lambda limit: count_tokens(_roll(batch, limit)) <= budget_tokens))
