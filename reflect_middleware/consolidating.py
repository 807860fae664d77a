"""Consolidation: related lessons become fewer, more general ones, and what is never used fades."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from reflect_middleware import nearby, telemetry, use_table
from reflect_middleware.batch import Batch
from reflect_middleware.clusters import clusters, consolidation_due, left_alone, named
from reflect_middleware.coverage import Shelf, Trial
from reflect_middleware.curate import curate
from reflect_middleware.desk import Limits, Plan
from reflect_middleware.errors import LessonStateError, QuotaError, ReflectorError
from reflect_middleware.fading import EPISODES, fading, idle
from reflect_middleware.merging import (
    Decided,
    Handles,
    Merger,
    Scene,
    fate,
    merged_lesson,
    merged_text,
    prepared,
    retired,
    wrong,
)
from reflect_middleware.prompts import MERGE, MERGE_EXAMPLE, MERGE_EXAMPLE_ANSWER, ONE_LESSON, merge_schema
from reflect_middleware.reflect import Answer, UnusableAnswerError
from reflect_middleware.reflecting import DECISIONS, Reflecting, filled_in
from reflect_middleware.retrieve import block_of
from reflect_middleware.types import (
    Consolidation,
    Edit,
    Footprint,
    Lesson,
    Namespace,
    ReflectionRecord,
    ReflectionReport,
    now,
)

if TYPE_CHECKING:
    from reflect_middleware.due import Quota
    from reflect_middleware.reflections_table import Claim
    from reflect_middleware.store import Vector

logger = logging.getLogger(__name__)
SOURCES = 3
"""Of how many of its newest sources a lesson must still be found for the task."""
NEXT_MARK = "\n\n--- next lessons ---\n\n"


class Consolidating(Reflecting):
    """Reflects, and consolidates what reflections have written. On the caller's thread."""

    def due(self, namespace: Namespace) -> bool:
        """Whether a namespace is to be consolidated."""
        if not (every := self.options.consolidate_every):
            return False
        ledger = self.core.parts.ledger
        since = ledger.reflections.since_consolidation(namespace, every)
        active = ledger.lessons.standing(namespace).get("active", 0)
        return consolidation_due(every, since, active, self.options.max_lessons)

    def look(self, namespace: Namespace) -> Scene:
        """What there is to do. Reads only."""
        ledger, at = self.core.parts.ledger, now()
        active = ledger.lessons.find(namespace, "active")
        oldest = set(ledger.lessons.least_changed(namespace, nearby.FEW))
        some = [lesson for lesson in active if lesson.id in oldest]
        looked = use_table.eligible(ledger.database, namespace, EPISODES)
        unused = idle(some, looked, at)
        there = use_table.kept(ledger.database, {source for x in unused for source in x.sources})
        gone = {lesson.id for lesson in unused if there.isdisjoint(lesson.sources)}
        faded = fading(unused, looked, gone, at)
        vectors = self._known_vectors(active) if self.options.model is not None else {}
        waiting = {old for x in ledger.lessons.find(namespace, "candidate") for old in x.replaces}
        out = waiting.union(lesson.id for lesson, _ in faded)
        said = self._said([x for x in some if x.id in vectors and x.id not in out])
        before = [r.consolidation for r in ledger.reflections.consolidations(namespace) if r.consolidation is not None]
        asked = {group for figures in before for group in figures.clusters}
        return Scene(active=active, vectors=vectors, clusters=clusters(said, asked=asked), fading=tuple(faded))

    def consolidate(self, namespace: Namespace, owner: str, quota: Quota) -> ReflectionReport:
        """Do it, if there is anything to do. A failure changes nothing and is in the report's `error`."""
        scene = self.look(namespace)
        if not scene.worth:
            return ReflectionReport(namespace=namespace)
        table = self.core.parts.ledger.reflections
        try:
            claim = table.claim_lessons(namespace, owner, lease=self.options.lease, quota=quota)
        except QuotaError as full:
            return ReflectionReport(namespace=namespace, error=str(full))
        if claim is None:
            busy = "A reflection of this namespace is under way; consolidate when it is done."
            return ReflectionReport(namespace=namespace, error=busy)
        return self._consolidated(claim, scene)

    def _consolidated(self, claim: Claim, scene: Scene) -> ReflectionReport:
        clock, answer, failure = time.monotonic(), Answer(), None
        record = ReflectionRecord(id=claim.id, namespace=claim.namespace, status="running")
        with telemetry.reflecting(claim.namespace, claim.id, ()) as workflow:
            try:
                with self._holding(claim):
                    answer = self._proposed(claim, scene)
                    report = self._settled(claim, scene, answer, filled_in(record, answer, clock))
            except Exception as error:  # noqa: BLE001 - a model, an embedder or a ledger
                answer, failure = error.answer if isinstance(error, UnusableAnswerError) else answer, error
                report = self._failed(claim, filled_in(record, answer, clock), error)
            workflow.end(report, answer, failure)
        self._tell(report)
        return report

    # Asking.

    def _proposed(self, claim: Claim, scene: Scene) -> Answer:
        """What the model would merge, cluster by cluster, as long as the day's tokens last."""
        left = self.core.parts.ledger.work.tokens_left(self.options.quota)
        whole = Answer()
        for handles in scene.handles:
            used = (whole.input_tokens + whole.output_tokens) or self.options.count_tokens(whole.prompt + whole.raw)
            if claim.id in self._given_up or (left is not None and used >= left):
                break
            try:
                whole = _and(whole, self._asked(handles))
            except UnusableAnswerError as error:  # what cannot be read leaves its lessons as they are
                whole = _and(whole, replace(error.answer, edits=(), note=str(error)))
                if error.__cause__ is not None:  # the model failed, and would with the next ones
                    raise UnusableAnswerError(str(error.__cause__), whole) from error
        return whole

    def _asked(self, handles: Handles) -> Answer:
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

        limits = Limits()
        system = MERGE.format(when=limits.when, do=limits.do)
        text = "\n".join(ONE_LESSON.format(handle=h, when=x.when, do=x.do) for h, x in handles.items())
        if self.options.count_tokens(f"{system}\n\n{MERGE_EXAMPLE}\n\n{text}") > self.options.reflector_budget:
            return Answer(note=f"{', '.join(handles)} are not asked about: more than reflector_budget")
        messages = [SystemMessage(system), HumanMessage(MERGE_EXAMPLE), AIMessage(MERGE_EXAMPLE_ANSWER)]
        return self._default_reflector().ask(
            [*messages, HumanMessage(text)], merge_schema(handles), lambda edits: wrong(edits, handles, limits)
        )

    # Deciding and committing.

    def _settled(self, claim: Claim, scene: Scene, answer: Answer, record: ReflectionRecord) -> ReflectionReport:
        edits = [prepared(edit, scene.all_handles) for edit in answer.edits]
        vectors = self._embedded(edits)
        trials = self._trials(scene) if edits else ()
        for _ in range(DECISIONS):
            decided = self._decided(claim, scene, edits, vectors, trials)
            with contextlib.suppress(LessonStateError):  # somebody was faster: all is decided again
                self._commit_decided(claim, record, decided)
                break
        else:
            raise LessonStateError("The lessons changed all the time while they were consolidated; nothing was done.")
        self.core.parts.index.sync_later(claim.namespace)
        return ReflectionReport(
            namespace=claim.namespace,
            reflections=(claim.id,),
            accepted=tuple(o for o in decided.outcomes if o.accepted),
            rejected=tuple(o for o in decided.outcomes if not o.accepted),
            lessons=tuple(change.lesson for change in decided.changes),
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            consolidation=decided.figures,
        )

    def _commit_decided(self, claim: Claim, record: ReflectionRecord, decided: Decided) -> None:
        final = record.model_copy(
            update={"status": "done", "outcomes": decided.outcomes, "consolidation": decided.figures}
        )
        with telemetry.changing() as changed:
            table, embedder = self.core.parts.ledger.reflections, self.core.parts.embedder.id
            changes = self._findable(decided.changes)
            if not table.commit(claim, final, changes, embedder, tokens=self._tokens(final)):
                raise ReflectorError("The claim's lease ended before the consolidation did; a later one begins anew.")
            changed.extend(decided.changes)

    def _decided(
        self,
        claim: Claim,
        scene: Scene,
        edits: Sequence[Edit],
        vectors: Mapping[str, Vector],
        trials: Sequence[Trial],
    ) -> Decided:
        """What to write, by the lessons as they are now."""
        parts, options, at = self.core.parts, self.options, now()
        batch = Batch(namespace=claim.namespace, episodes=(), lessons=tuple(scene.all_handles.values()))
        existing, more = nearby.existing(parts, batch, vectors) if edits else ([], {})
        limits = Limits(lessons=options.max_lessons)

        def judged(some: Sequence[Edit]) -> Plan:
            return curate(
                some,
                batch,
                existing=existing,
                more=more,
                vectors=vectors,
                limits=limits,
                approval="human" if options.approval == "human" else "auto",
                reflection_id=claim.id,
                clock=lambda: at,
            )

        as_now = {lesson.id: lesson for lesson in parts.ledger.lessons.many([x.id for x, _ in scene.fading])}
        still = [(x, reason) for x, reason in scene.fading if as_now.get(x.id) == x]
        faded = () if options.approval == "human" else tuple(x for x, _ in still)
        shelf = Shelf(vectors=scene.vectors, trials=trials, limits=options.limits)
        merger = Merger(
            curate=judged,
            vectors=self._searched(edits, scene.all_handles),
            shelf=shelf.without(x.id for x in faded),
            limits=limits,
        )
        for edit in edits:
            merger.take(edit, scene.cluster_of(edit))
        return Decided(
            changes=(*merger.changes, *(retired(x, scene.vectors.get(x.id), by=claim.id, at=at) for x in faded)),
            outcomes=(*merger.outcomes, *(fate(x, reason, accepted=x in faded) for x, reason in still)),
            figures=Consolidation(
                before=self._footprint(scene.active, shelf),
                after=self._footprint(merger.standing(scene.active, faded), merger.shelf),
                clusters=tuple(map(named, scene.clusters)),
            ),
        )

    def _footprint(self, lessons: Sequence[Lesson], shelf: Shelf) -> Footprint:
        tokens = self.options.count_tokens(block_of(lessons)) if lessons else 0
        return Footprint(lessons=len(lessons), tokens=tokens, found=len(shelf.found()), tried=len(shelf.trials))

    def _embedded(self, edits: Sequence[Edit]) -> dict[str, Vector]:
        """Vectors of the merged lessons, by their text."""
        texts = [merged_text(edit) for edit in edits]
        return dict(zip(texts, self.core.parts.embedder.embed_documents(texts), strict=True)) if texts else {}

    def _searched(self, edits: Sequence[Edit], known: Handles) -> dict[str, Vector]:
        """The vectors by which tasks would find the merged lessons, by their text."""
        texts = [merged_lesson(edit, known, Limits()).searched for edit in edits]
        made = self.core.parts.embedder.embed_documents(texts) if texts else []
        return dict(zip(map(merged_text, edits), made, strict=True))

    def _said(self, lessons: Sequence[Lesson]) -> list[tuple[Lesson, Vector]]:
        """The lessons that may be merged, with vectors of what they say: one task may have taught many."""
        free = [lesson for lesson in lessons if not left_alone(lesson)]
        vectors = nearby.compared(self.core.parts, free)
        return [(lesson, vectors[lesson.id]) for lesson in free if lesson.id in vectors]

    def _known_vectors(self, lessons: Sequence[Lesson]) -> dict[str, Vector]:
        import numpy as np

        known = self.core.parts.ledger.lessons.vectors([x.id for x in lessons], self.core.parts.embedder.id)
        return {lesson_id: np.frombuffer(raw, dtype=np.float32) for lesson_id, raw in known.items()}

    def _trials(self, scene: Scene) -> tuple[Trial, ...]:
        """The tasks from which the lessons came, as far as they are kept, and the situations that they name."""
        parts, lessons = self.core.parts, scene.all_handles.values()
        wanted = list(dict.fromkeys(source for x in lessons for source in x.sources[-SOURCES:]))
        tasks = {episode.id: episode.task for episode in parts.ledger.episodes.many(wanted)}
        pairs = [(text, x.id) for x in lessons for text in (x.when, *(tasks.get(s, "") for s in x.sources[-SOURCES:]))]
        asked = dict.fromkeys(pair for pair in pairs if pair[0].strip())
        return tuple(Trial(text=text, vector=parts.embedder.embed_query(text), lesson=i) for text, i in asked)

    def _tell(self, report: ReflectionReport) -> None:
        if (done := report.consolidation) is not None:
            logger.info(
                "reflect: consolidated %s: %d lessons of %d tokens became %d of %d, %d of %d tasks find theirs"
                " (before: %d)",
                "/".join(report.namespace),
                *(done.before.lessons, done.before.tokens, done.after.lessons, done.after.tokens),
                *(done.after.found, done.after.tried, done.before.found),
            )
        super()._tell(report)


def _and(whole: Answer, part: Answer) -> Answer:
    """Two answers as one."""
    return Answer(
        edits=(*whole.edits, *part.edits),
        prompt=NEXT_MARK.join(filter(None, (whole.prompt, part.prompt))),
        raw=NEXT_MARK.join(filter(None, (whole.raw, part.raw))),
        input_tokens=whole.input_tokens + part.input_tokens,
        output_tokens=whole.output_tokens + part.output_tokens,
        way=part.way or whole.way,
        note="; ".join(filter(None, (whole.note, part.note))),
    )
