"""What a practice did: success over time, before and after on what was held out, lessons, cost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import computed_field

from reflect_middleware.paired import Paired, compare
from reflect_middleware.practice_plan import FEWEST, Phase, Place, Round, Used
from reflect_middleware.types import Episode, Frozen, Lesson, Namespace

SUCCESS = 0.5
"""From this reward on a run counts as a success."""
Stopped = Literal["done", "max_episodes", "max_tokens", "max_minutes", "daily_tokens", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one rollout; all that a practice remembers of it."""

    place: Place
    episode_id: str
    namespace: Namespace
    value: float | None
    """Its reward; 0 for a run that failed and was to be judged, None where nobody judged it."""
    tokens: int
    failed: bool
    interrupted: bool
    at: float
    """When it began (epoch seconds)."""
    shown: frozenset[str]
    """Ids of the lessons in its prompt."""


class Point(Frozen):
    """Some rollouts together."""

    phase: Phase
    epoch: int
    """From 1; 0 where it measures."""
    round: int = 0
    """The training round, from 1; 0 for a whole epoch, and where it measures."""
    runs: int
    judged: int
    """Those with a reward; failed runs without one count as 0 where there is a reward callable."""
    reward: float | None
    """Their mean reward, in [0, 1]; None if none was judged."""
    success: float | None
    """The share of them with a reward of 0.5 or more; None if none was judged."""


class PracticeProgress(Frozen):
    """Where a practice stands; given to `progress=` at its start and after each rollout and reflection."""

    name: str
    phase: Phase
    epoch: int
    done: int
    """Rollouts that have ended, those of earlier calls included."""
    total: int
    """Rollouts that are planned."""
    success: float | None
    """Share of successes among the judged runs of this phase and epoch; None without any."""
    reflections: int
    """Committed reflections so far."""
    lessons: int
    """Lessons that they made or changed."""
    tokens: int
    """Of the agent and the reflector so far."""


class PracticeReport(Frozen):
    """What a practice did, whatever number of calls it took. `str()` gives the text for a terminal."""

    name: str
    """Pass it as `name=` to go on, or to do more of the same practice."""
    agent: str
    stopped: Stopped
    """Why this call ended: `done`, or the limit that was reached, `interrupted` (Ctrl-C), `failed` (reflections)."""
    tasks: int
    """Tasks to practise on."""
    held_out: int
    """Tasks to measure with, on which it never practised."""
    rollouts: int
    """Planned runs of each task, in each epoch and measurement."""
    runs: int
    """Rollouts done."""
    resumed: int
    """Those of them that earlier calls did."""
    runs_failed: int
    """Rollouts that ended in an error."""
    runs_interrupted: int
    """Rollouts that paused for a person: nobody answers in a practice, and no reflection reads them."""
    runs_unjudged: int
    """Rollouts without a reward."""
    epochs: tuple[Point, ...] = ()
    """Success in each epoch."""
    rounds: tuple[Point, ...] = ()
    """Success between two reflections."""
    before: Point | None = None
    after: Point | None = None
    measured: Paired | None = None
    """Before and after, on the held-out tasks that have a value in both; None without any."""
    reflections: tuple[str, ...] = ()
    """Ids of the committed reflections."""
    errors: tuple[str, ...] = ()
    """Why reflections failed in this call; their episodes were given back."""
    lessons: tuple[Lesson, ...] = ()
    """The lessons that they made or changed, as they are now."""
    useful: tuple[str, ...] = ()
    """Ids of those that are active and were in the prompt of a later run. Whether they help, `measured` says."""
    agent_tokens: int = 0
    reflector_tokens: int = 0
    seconds: float = 0.0
    """Of this call."""
    notes: tuple[str, ...] = ()
    """What else one should know."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_useful_lesson(self) -> float | None:
        """All tokens of the practice by its useful lessons; None without any."""
        return (self.agent_tokens + self.reflector_tokens) / len(self.useful) if self.useful else None

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Draw success over the rounds, before and after, into a PNG (or what else the file's ending says).

        Raises:
            MissingExtraError: If matplotlib is not installed: the extra `charts`.
        """
        from reflect_middleware.practice_chart import draw

        return draw(self, Path(file))

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def outcome_of(place: Place, episode: Episode, *, asked: bool) -> Outcome:
    """What is remembered of a rollout; `asked` says whether there is a reward callable."""
    failed = episode.status == "failed"
    return Outcome(
        place=place,
        episode_id=episode.id,
        namespace=episode.namespace,
        value=0.0 if episode.reward is None and failed and asked else episode.reward,
        tokens=episode.input_tokens + episode.output_tokens,
        failed=failed,
        interrupted=episode.status == "interrupted",
        at=episode.started_at.timestamp(),
        shown=frozenset(exposure.lesson_id for exposure in episode.exposures if exposure.shown),
    )


def point(phase: Phase, epoch: int, outcomes: Iterable[Outcome], *, number: int = 0) -> Point:
    """Some rollouts together."""
    found = list(outcomes)
    values = [outcome.value for outcome in found if outcome.value is not None]
    return Point(
        phase=phase,
        epoch=epoch,
        round=number,
        runs=len(found),
        judged=len(values),
        reward=sum(values) / len(values) if values else None,
        success=sum(value >= SUCCESS for value in values) / len(values) if values else None,
    )


def points(rounds: Sequence[Round], outcomes: Mapping[str, Outcome]) -> dict[str, tuple[Point, ...]]:
    """The curves, by field of the report."""
    of_round: list[Point] = []
    of_epoch: dict[int, list[Outcome]] = {}
    ends: dict[Phase, tuple[Point, ...]] = {"before": (), "after": ()}
    for found in rounds:
        done = [outcomes[place.name] for place in found.places if place.name in outcomes]
        if done and found.phase == "train":
            of_round.append(point("train", found.epoch, done, number=found.number))
            of_epoch.setdefault(found.epoch, []).extend(done)
        elif done:
            ends[found.phase] = (point(found.phase, 0, done),)
    epochs = tuple(point("train", epoch, done) for epoch, done in of_epoch.items())
    return {"rounds": tuple(of_round), "epochs": epochs, "before": ends["before"], "after": ends["after"]}


def measured(rounds: Sequence[Round], outcomes: Mapping[str, Outcome]) -> Paired | None:
    """Before and after, each held-out task's mean over its rollouts; only complete measurements are compared."""
    means: dict[Phase, dict[str, float]] = {"before": {}, "after": {}}
    for found in rounds:
        if found.phase == "train":
            continue
        if not all(place.name in outcomes for place in found.places):
            return None
        values: dict[str, list[float]] = {}
        for place in found.places:
            if (value := outcomes[place.name].value) is not None:
                values.setdefault(place.key, []).append(value)
        means[found.phase] = {key: sum(given) / len(given) for key, given in values.items()}
    both = [key for key in means["before"] if key in means["after"]]
    return compare([means["before"][key] for key in both], [means["after"][key] for key in both])


def used_of(outcomes: Iterable[Outcome], *, seconds: float = 0.0) -> Used:
    """What some rollouts cost."""
    found = list(outcomes)
    return Used(episodes=len(found), tokens=sum(outcome.tokens for outcome in found), seconds=seconds)


def share(value: float | None) -> str:
    """A share for people."""
    return "-" if value is None else f"{100 * value:.0f} %"


def _lines(report: PracticeReport) -> list[str]:
    epochs = ", ".join(f"{share(found.success)} in epoch {found.epoch}" for found in report.epochs) or "-"
    agent, reflector = f"{report.agent_tokens:,}", f"{report.reflector_tokens:,}"
    lines = [
        f"Practice {report.name!r} of {report.agent!r}: {_ending(report)}",
        f"  runs          {report.runs} ({_counts(report)}), {report.tasks} tasks, {report.held_out} held out",
        f"  success       {epochs}",
        f"  held out      {_comparison(report)}",
        f"  lessons       {len(report.lessons)} from {len(report.reflections)} reflections, {len(report.useful)} used",
        f"  cost          {agent} tokens of the agent, {reflector} of the reflector{_each(report)}",
        f"  time          {report.seconds:.1f} s",
    ]
    lines += [f"    {lesson.status}: {lesson.text}" for lesson in report.lessons]
    return (
        lines + [f"  failed        {error}" for error in report.errors] + [f"  note          {n}" for n in report.notes]
    )


def _ending(report: PracticeReport) -> str:
    again = f"go on with name={report.name!r}"
    said = {
        "done": "done",
        "daily_tokens": f"stopped, the day's tokens are spent; {again} tomorrow",
        "interrupted": f"stopped by you, what was done is kept; {again}",
        "failed": f"stopped, reflections failed; {again} when that is mended",
    }
    return said.get(report.stopped, f"stopped, {report.stopped} is reached; {again} and a higher limit")


def _counts(report: PracticeReport) -> str:
    counts = {
        "by earlier calls": report.resumed,
        "failed": report.runs_failed,
        "paused": report.runs_interrupted,
        "without a reward": report.runs_unjudged,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "all judged"


def _comparison(report: PracticeReport) -> str:
    found = report.measured
    if found is None:
        if not report.held_out:
            return f"nothing (a share takes {FEWEST} tasks; or name some: held_out=[…])"
        return "not measured to the end"
    spread = "" if found.interval is None else f" (95 % {_signed(found.interval)})"
    tasks = f"{found.pairs} task{'s' * (found.pairs != 1)}"
    change = f"{100 * found.difference:+.0f} points{spread}"
    return f"reward {found.before:.2f} before, {found.after:.2f} after: {change}, p = {found.p_value:.3g}, {tasks}"


def _signed(interval: Sequence[float]) -> str:
    return " to ".join(f"{100 * end:+.0f}" for end in interval)


def _each(report: PracticeReport) -> str:
    each = report.tokens_per_useful_lesson
    return "" if each is None else f"; {each:,.0f} tokens a lesson used"
