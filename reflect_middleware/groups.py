"""Which rollouts are of one task, what they say, and where they part. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflect_middleware.alike import alike, telling
from reflect_middleware.evidence import plain
from reflect_middleware.rollout import turns
from reflect_middleware.types import Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reflect_middleware.batch import Batch
    from reflect_middleware.rollout import Beat
    from reflect_middleware.store import Vector
    from reflect_middleware.types import Episode, Reward

SIMILAR = 0.92
"""Cosine from which two tasks of the same numbers, codes and order of words read alike.

With all-MiniLM-L6-v2, 7 of 10 pairs of rewordings lie above it and 1 of 24 pairs that differ in one word that matters
("open" and "close the garage door", .98). So tasks that read alike stand side by side, each with its own words, and
are never taken for the same.
"""

_TROUBLE = re.compile(
    r"\b(errors?|exception|traceback|fail\w*|invalid|denied|refused|rejected|forbidden|missing|cannot"
    r"|not (found|allowed))\b",
    re.IGNORECASE,
)
_DOING = ("call ", "interrupt", "resume", "retry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rollouts that stand side by side."""

    handles: tuple[str, ...]
    """The best first; those without a reward last, else in the order of the batch."""
    same: bool
    """True for one task by its key or its words, False where the tasks only read alike."""


def grouped(batch: Batch) -> list[Group]:
    """The batch in groups, each at the place of its first episode; most have one member.

    Rollouts are of one task if they are of the same agent and have the same `task_key`, or, without one, the same words
    and the same turns before them. What is left joins a group whose task reads alike, if there are vectors.
    """
    known = batch.episode_handles
    sets: dict[tuple[object, ...], list[str]] = {}
    for handle, episode in known.items():
        sets.setdefault(_name(handle, episode), []).append(handle)
    joined: dict[str, list[str]] = {}
    alike_only = set[str]()
    for members in sets.values():
        near = (first for first in joined if _near(known[first], known[members[0]], batch.vectors))
        if len(members) == 1 and (first := next(near, "")):
            joined[first] += members
            alike_only.add(first)
        else:
            joined[members[0]] = members
    return [
        Group(handles=_best_first(members, known), same=first not in alike_only) for first, members in joined.items()
    ]


def side_by_side(batch: Batch) -> Batch:
    """The batch with its episodes in the order in which groups show them, so that handles count up down the page."""
    known = batch.episode_handles
    return replace(batch, episodes=tuple(known[handle] for group in grouped(batch) for handle in group.handles))


def to_compare(episodes: Sequence[Episode]) -> tuple[str, ...]:
    """The tasks of which vectors may show that they read alike; none where all are known to be the same or not."""
    alone: dict[tuple[object, ...], dict[str, None]] = {}
    for episode in episodes:
        if _comparable(episode):
            kind = (episode.agent, bool(episode.parent_id), telling(episode.task))
            alone.setdefault(kind, {})[episode.task] = None
    return tuple(task for tasks in alone.values() if len({plain(task) for task in tasks}) > 1 for task in tasks)


def nothing_new(batch: Batch) -> tuple[Skipped, ...]:
    """Groups of two or more rollouts of one task, all judged the same, that say nothing beside it.

    Runs that went well say something by an error, a comment, a correction or a person's words; runs that did not, also
    by any tool's result and by the right answer. Without a reward nothing is known, and nothing is skipped; nor where
    all would be skipped but lessons need review.
    """
    known = batch.episode_handles
    found = []
    for group in grouped(batch):
        members = [known[handle] for handle in group.handles]
        if group.same and len(members) > 1 and (reason := _silent(members)):
            found.append(Skipped(episodes=tuple(episode.id for episode in members), reason=reason))
    all_of_them = sum(len(skip.episodes) for skip in found) == len(batch.episodes)
    return () if all_of_them and any(lesson.needs_review for lesson in batch.lessons) else tuple(found)


def diverge(one: Sequence[Beat], other: Sequence[Beat]) -> tuple[int, int] | None:
    """The first beats, as indexes, in which two rollouts differ; what follows the last common one if one does no more.

    What was done counts first (calls with their arguments, answers of people, whether it failed), because results and
    words differ for reasons that decide nothing. Only where all that was done is the same do results count, then words.
    """
    for signature in (_done, _came, _said):
        if (parted := _parted(one, other, signature)) is not None:
            return parted
    return None


def _name(handle: str, episode: Episode) -> tuple[object, ...]:
    """What the rollouts of one task share; the parts of a run that other graphs did are no rollouts of it."""
    agent = (episode.agent, bool(episode.parent_id))
    if episode.task_key:
        return *agent, "key", episode.task_key
    task, earlier = turns(episode)
    words = plain(task)
    return (*agent, "words", words, plain(earlier)) if words else (*agent, "alone", handle)


def _comparable(episode: Episode) -> bool:
    return not episode.task_key and bool(plain(episode.task)) and not turns(episode)[1]


def _near(one: Episode, other: Episode, vectors: Mapping[str, Vector]) -> bool:
    if (one.agent, bool(one.parent_id)) != (other.agent, bool(other.parent_id)):
        return False
    here, there = vectors.get(one.task), vectors.get(other.task)
    if here is None or there is None or not (_comparable(one) and _comparable(other)):
        return False
    return alike(one.task, here, other.task, there, SIMILAR)


def _best_first(handles: Iterable[str], known: Mapping[str, Episode]) -> tuple[str, ...]:
    rewards = {handle: known[handle].reward for handle in handles}
    return tuple(sorted(rewards, key=lambda handle: (rewards[handle] is None, -(rewards[handle] or 0.0))))


def _silent(members: Sequence[Episode]) -> str:
    """Why these rollouts say nothing; empty if they may say something."""
    judged = {frozenset((r.source, r.key, round(r.value, 9)) for r in episode.rewards) for episode in members}
    value = members[0].reward
    if len(judged) > 1 or value is None or any(_says(episode, well=value >= 1.0) for episode in members):
        return ""
    seen = "no error, comment or correction" if value >= 1.0 else "no error, comment, result or right answer"
    return f"{len(members)} runs of one task, each with reward {value:.3g}, {seen}"


def _says(episode: Episode, *, well: bool) -> bool:
    """Whether an episode says more than its reward."""
    if any(_worded(reward) for reward in episode.rewards):
        return True
    if episode.status != "completed" or episode.error or any(step.error for step in episode.trajectory):
        return True
    if any(step.kind in ("interrupt", "resume", "retry") for step in episode.trajectory):
        return True
    results = [step.output for step in episode.trajectory if step.kind == "tool" and step.output]
    if well:
        return any(_TROUBLE.search(result) for result in results)
    return bool(results or episode.reference)


def _worded(reward: Reward) -> bool:
    """Whether a reward has words of its own; praise that was read out of the run itself is none."""
    found = reward.source in ("implicit", "self") and reward.value >= 1.0
    return bool(reward.correction or (reward.comment and not found))


def _parted(
    one: Sequence[Beat], other: Sequence[Beat], signature: Callable[[Beat], tuple[str, ...]]
) -> tuple[int, int] | None:
    first = [(index, signed) for index, beat in enumerate(one) if (signed := signature(beat))]
    second = [(index, signed) for index, beat in enumerate(other) if (signed := signature(beat))]
    for (here, mine), (there, its) in zip(first, second, strict=False):
        if mine != its:
            return here, there
    if len(first) == len(second):
        return None
    return _next(first, len(second)), _next(second, len(first))


def _next(signed: Sequence[tuple[int, tuple[str, ...]]], common: int) -> int:
    """The beat after `common` signed ones; what follows the last one where there are no more."""
    if len(signed) > common:
        return signed[common][0]
    return signed[-1][0] + 1 if signed else 0


def _done(beat: Beat) -> tuple[str, ...]:
    acts = [f"{label} {plain(text)}" for label, text in beat.lines if label.startswith(_DOING)]
    return (*acts, "failed") if beat.error else tuple(acts)


def _came(beat: Beat) -> tuple[str, ...]:
    return tuple(f"{label} {plain(text)}" for label, text in beat.lines if label != "says")


def _said(beat: Beat) -> tuple[str, ...]:
    return tuple(f"{label} {plain(text)}" for label, text in beat.lines)
