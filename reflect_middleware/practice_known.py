"""What is known of a practice: what became of its rollouts and reflections, in this call and in earlier ones."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from reflect_middleware.errors import ReflectError
from reflect_middleware.nearby import with_statistics
from reflect_middleware.practice_plan import Phase, Place, Plan, Round
from reflect_middleware.practice_report import (
    Outcome,
    PracticeProgress,
    PracticeReport,
    Stopped,
    measured,
    outcome_of,
    point,
    points,
    used_of,
)

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.types import Episode, Lesson, ReflectionRecord

PORTION = 50
"""Episodes that are read at once: of each, only its outcome is kept."""
UNASKED = ("implicit", "self")
"""Sources of rewards that no callable gives."""


class Known:
    """Grows while a practice runs, on many threads."""

    def __init__(self, core: Core, plan: Plan, *, asked: bool) -> None:
        self.core = core
        self.plan = plan
        self.asked = asked
        self.outcomes: dict[str, Outcome] = {}
        self.reflections: dict[str, ReflectionRecord] = {}
        self.errors: list[str] = []
        self.tokens = 0
        """Of the agent."""
        self.teaching = tuple(plan.teaching())
        """The rounds before the last measurement."""
        self._series = 1
        self._resumed = 0
        self._notes: dict[str, None] = {}
        self._lock = threading.Lock()

    def load(self, judged: Callable[[Place, Episode], Episode]) -> None:
        """Take up what earlier calls did; who was killed before it had asked for a reward asks now."""
        read: set[str] = set()
        for found in self.teaching:
            self._load(found, judged, read)
        series = 1
        while (last := self.plan.last(series)) is not None and self._load(last, judged, read):
            self._series, series = series, series + 1
        self._resumed = len(self.outcomes)
        self.know(read)

    @property
    def after(self) -> Round | None:
        """The last measurement: the one that was begun, unless something was practised since; None without any."""
        found = self.plan.last(self._series)
        began = [self.outcomes[p.name].at for p in found.places if p.name in self.outcomes] if found else []
        return self.plan.last(self._series + 1) if began and self._practised_at > min(began) else found

    def missing(self, found: Round) -> tuple[Place, ...]:
        """The places of a round that are still to be done."""
        return tuple(place for place in found.places if place.name not in self.outcomes)

    @property
    def before(self) -> Round | None:
        """The first measurement; None without any."""
        return self.teaching[0] if self.teaching[0].phase == "before" else None

    def done(self, found: Round | None) -> list[Outcome]:
        """What a round gave so far."""
        places = found.places if found else ()
        return [self.outcomes[place.name] for place in places if place.name in self.outcomes]

    def keep(self, place: Place, episode: Episode) -> None:
        """Note what became of a rollout."""
        outcome = outcome_of(place, episode, asked=self.asked)
        with self._lock:
            self.outcomes[place.name] = outcome
            self.tokens += outcome.tokens

    def know(self, ids: Iterable[str]) -> None:
        """Note what these reflections did."""
        for reflection_id in ids:
            with contextlib.suppress(ReflectError):  # purged meanwhile
                self.reflections[reflection_id] = self.core.parts.ledger.reflections.get(reflection_id)

    def note(self, text: str) -> None:
        """Something that the report should say, once."""
        with self._lock:
            self._notes[text] = None

    @property
    def reflector_tokens(self) -> int:
        """Of all reflections on its rollouts."""
        return sum(record.input_tokens + record.output_tokens for record in tuple(self.reflections.values()))

    def progress(self, phase: Phase, epoch: int) -> PracticeProgress:
        """Where it stands."""
        with self._lock:
            done = list(self.outcomes.values())
        of_phase = [o for o in done if o.place.phase == phase and o.place.epoch == epoch]
        left = sum(len(self.missing(found)) for found in (*self.teaching, *filter(None, [self.after])))
        return PracticeProgress(
            name=self.plan.name,
            phase=phase,
            epoch=epoch,
            done=len(done),
            total=len(done) + left,
            success=point(phase, epoch, of_phase).success,
            reflections=len(self._committed),
            lessons=len(self._lesson_ids),
            tokens=self.tokens + self.reflector_tokens,
        )

    def report(self, stopped: Stopped | None, seconds: float) -> PracticeReport:
        """All of it."""
        plan, done = self.plan, list(self.outcomes.values())
        rounds = (*self.teaching, *filter(None, [self.after]))
        curves, lessons = points(rounds, self.outcomes), self._lessons()
        shown = {lesson for outcome in done for lesson in outcome.shown}
        return PracticeReport(
            name=plan.name,
            agent=plan.agent,
            stopped=stopped or "done",
            tasks=len(plan.train),
            held_out=len(plan.held_out),
            rollouts=plan.rollouts,
            runs=len(done),
            resumed=self._resumed,
            runs_failed=sum(outcome.failed for outcome in done),
            runs_interrupted=sum(outcome.interrupted for outcome in done),
            runs_unjudged=sum(outcome.value is None for outcome in done),
            epochs=curves["epochs"],
            rounds=curves["rounds"],
            before=next(iter(curves["before"]), None),
            after=next(iter(curves["after"]), None),
            measured=measured(rounds, self.outcomes),
            reflections=tuple(record.id for record in self._committed),
            errors=tuple(self.errors),
            lessons=lessons,
            useful=tuple(lesson.id for lesson in lessons if lesson.status == "active" and lesson.id in shown),
            agent_tokens=used_of(done).tokens,
            reflector_tokens=self.reflector_tokens,
            seconds=seconds,
            notes=(*self._notes, *_waiting(lessons)),
        )

    def _load(self, found: Round, judged: Callable[[Place, Episode], Episode], read: set[str]) -> bool:
        """Take up a round; whether there is any of it."""
        ledger, places = self.core.parts.ledger, {place.name: place for place in found.places}
        by_id = {episode_id: places[name] for name, episode_id in ledger.practice.places(places).items()}
        wanted = list(by_id)
        for first in range(0, len(wanted), PORTION):
            for episode in ledger.episodes.many(wanted[first : first + PORTION]):
                asked = any(reward.source not in UNASKED for reward in episode.rewards)
                place = by_id[episode.id]
                self.keep(place, episode if asked else judged(place, episode))
                if place.phase == "train" and episode.reflection_id:
                    read.add(episode.reflection_id)
        return bool(by_id)

    @property
    def _practised_at(self) -> float:
        return max((o.at for o in tuple(self.outcomes.values()) if o.place.phase == "train"), default=0.0)

    @property
    def _committed(self) -> list[ReflectionRecord]:
        done = (record for record in tuple(self.reflections.values()) if record.status == "done")
        return sorted(done, key=lambda record: record.started_at)

    @property
    def _lesson_ids(self) -> tuple[str, ...]:
        outcomes = [outcome for record in self._committed for outcome in record.outcomes]
        return tuple(dict.fromkeys(outcome.lesson_id for outcome in outcomes if outcome.accepted and outcome.lesson_id))

    def _lessons(self) -> tuple[Lesson, ...]:
        return with_statistics(self.core.parts, self.core.parts.ledger.lessons.many(self._lesson_ids))


def _waiting(lessons: Iterable[Lesson]) -> tuple[str, ...]:
    """What a reader should know where lessons wait for approval."""
    count = sum(lesson.status == "candidate" for lesson in lessons)
    return (f"{count} lessons wait for approval: no run has seen them",) if count else ()
