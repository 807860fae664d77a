"""One reflection: a claimed batch of episodes becomes edits, and the edits become committed lessons."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from reflect_middleware import telemetry
from reflect_middleware.batch import Batch
from reflect_middleware.curate import Limits, Plan, curate, texts_to_embed
from reflect_middleware.errors import ConfigurationError, ReflectError, ReflectorError
from reflect_middleware.reflect import Answer, ModelReflector, UnusableAnswerError
from reflect_middleware.reflections_table import Claim
from reflect_middleware.types import Edit, Episode, Lesson, Namespace, ReflectionRecord, ReflectionReport, now

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from reflect_middleware.core import Core
    from reflect_middleware.store import Vector

logger = logging.getLogger(__name__)
RELATED = 30
"""Most existing lessons shown to the reflector."""


class Reflecting:
    """Does reflections, one at a time."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.options = core.options
        self.claim: Claim | None = None
        """The batch in hand."""
        self._model_reflector: ModelReflector | None = None

    def run(self, claim: Claim) -> ReflectionReport:
        """Reflect on a claimed batch. A failure gives the batch back and is in the report's `error`."""
        clock = time.monotonic()
        record = ReflectionRecord(id=claim.id, namespace=claim.namespace, status="running", episodes=claim.episodes)
        answer, failure = Answer(), None
        with telemetry.reflecting(claim.namespace, claim.id, claim.episodes) as workflow:
            try:
                with self._holding(claim):
                    batch = self._batch(claim)
                    answer = self._ask(batch)
                    report = self._commit(claim, batch, answer, lambda: _filled(record, answer, clock))
            except Exception as error:  # noqa: BLE001 - a model, an embedder or a ledger; the batch goes back
                answer, failure = error.answer if isinstance(error, UnusableAnswerError) else answer, error
                report = self._failed(claim, _filled(record, answer, clock), error)
            workflow.end(report, answer, failure)
        self._tell(report)
        return report

    def _batch(self, claim: Claim) -> Batch:
        table = self.core.parts.ledger.episodes
        episodes = table.many(claim.episodes)
        recent = self.core.parts.ledger.reflections.find(claim.namespace, limit=5)
        related = self._related(claim.namespace, episodes)
        return Batch(
            namespace=claim.namespace,
            episodes=episodes,
            lessons=related,
            earlier=table.rewards({source for lesson in related if lesson.needs_review for source in lesson.sources}),
            rejected=tuple(o for past in recent for o in past.outcomes if not o.accepted)[:10],
        )

    def _related(self, namespace: Namespace, episodes: Sequence[Episode]) -> tuple[Lesson, ...]:
        """The standing lessons that these episodes may touch: all if they are few, else the nearest."""
        table = self.core.parts.ledger.lessons
        standing = table.find(namespace, standing=True)
        if len(standing) <= RELATED:
            return standing
        revision, _ = table.state(namespace)
        best: dict[str, float] = {e.lesson_id: 2.0 for episode in episodes for e in episode.exposures if e.shown}
        for episode in episodes:
            vector = self.core.parts.embedder.embed_query(episode.task)
            for lesson_id, score in self.core.parts.index.search(namespace, revision, vector, RELATED):
                best[lesson_id] = max(best.get(lesson_id, -1.0), score)
        ranked = sorted(standing, key=lambda x: (not x.needs_review, -best.get(x.id, -1.0)))
        return tuple(ranked[:RELATED])

    def _ask(self, batch: Batch) -> Answer:
        reflector = self.options.reflector or self._default_reflector()
        given = reflector(batch)
        if inspect.isawaitable(given):
            given = asyncio.run(_await(given))
        if isinstance(given, Answer):
            return given
        return Answer(edits=tuple(Edit.model_validate(edit) for edit in given))

    def _default_reflector(self) -> ModelReflector:
        if self.options.model is None:
            raise ConfigurationError(
                "model", None, "a chat model or a name such as 'openai:gpt-5-mini'", "Reflecting needs one."
            )
        if self._model_reflector is None:
            self._model_reflector = ModelReflector(
                self._model,
                budget_tokens=self.options.reflector_budget,
                count_tokens=self.options.count_tokens,
                prompt=self.options.prompt,
            )
        return self._model_reflector

    def _model(self) -> BaseChatModel:
        model = self.options.model
        if isinstance(model, str):
            from langchain.chat_models import init_chat_model

            return init_chat_model(model)
        return cast("BaseChatModel", model() if not hasattr(model, "invoke") else model)

    def _commit(
        self, claim: Claim, batch: Batch, answer: Answer, filled: Callable[[], ReflectionRecord]
    ) -> ReflectionReport:
        vectors, embedder = self._vectors(answer.edits, batch)
        plan = self._curated(claim, batch, answer, vectors, embedder)
        record = filled().model_copy(update={"status": "done", "outcomes": plan.outcomes})
        reviewed = [lesson.id for lesson in batch.lessons if lesson.needs_review]
        with telemetry.changing() as changed:
            written = self.core.parts.ledger.reflections.commit(
                claim, record, plan.changes, embedder, reviewed=reviewed, read=batch.rewards
            )
            changed.extend(written or ())
        if written is None:
            raise ReflectorError("The claim's lease ended before the reflection did; another one reads the episodes.")
        self.core.parts.index.sync_later(claim.namespace)
        kept = {change.lesson.id for change in written}
        lost = {change.lesson.id for change in plan.changes} - kept
        accepted = tuple(o for o in plan.outcomes if o.accepted and o.lesson_id not in lost)
        return ReflectionReport(
            namespace=claim.namespace,
            reflections=(claim.id,),
            episodes=claim.episodes,
            accepted=accepted,
            rejected=tuple(o for o in plan.outcomes if o not in accepted),
            lessons=tuple(change.lesson for change in written),
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
        )

    def _curated(
        self, claim: Claim, batch: Batch, answer: Answer, vectors: Mapping[str, Vector], embedder: str
    ) -> Plan:
        import numpy as np

        table = self.core.parts.ledger.lessons
        known = {row.id: row.vector for row in table.indexed(claim.namespace, 0, embedder)}
        existing = [
            (lesson, np.frombuffer(raw, dtype=np.float32) if (raw := known.get(lesson.id)) else None)
            for lesson in table.find(claim.namespace, standing=True)
        ]
        return curate(
            answer.edits,
            batch,
            existing=existing,
            vectors=vectors,
            limits=Limits(lessons=self.options.max_lessons),
            approval="human" if self.options.approval == "human" else "auto",
            reflection_id=claim.id,
            clock=now,
        )

    def _vectors(self, edits: Sequence[Edit], batch: Batch) -> tuple[dict[str, Vector], str]:
        """Vectors of the texts that may become lessons; without a working embedder they are made later."""
        texts = texts_to_embed(edits, batch)
        try:
            made = self.core.parts.embedder.embed_documents(texts) if texts else []
            return dict(zip(texts, made, strict=True)), self.core.parts.embedder.id
        except ReflectError as error:
            self.core.failed("embed", error)
            return {}, ""

    def _failed(self, claim: Claim, record: ReflectionRecord, error: Exception) -> ReflectionReport:
        reason = f"{type(error).__name__}: {error}"
        self.core.failed("reflect", error)
        with contextlib.suppress(Exception):  # a dead ledger: the lease ends by itself
            if isinstance(error, ConfigurationError):
                self.core.parts.ledger.reflections.release(claim)
            else:
                failed = record.model_copy(update={"status": "failed", "error": reason})
                self.core.parts.ledger.reflections.fail(claim, failed, reason)
        return ReflectionReport(
            namespace=claim.namespace,
            reflections=(claim.id,),
            error=reason,
            input_tokens=record.input_tokens,
            output_tokens=record.output_tokens,
        )

    @contextlib.contextmanager
    def _holding(self, claim: Claim) -> Iterator[None]:
        """Renew the claim's lease while the block runs."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.options.lease / 3):
                with contextlib.suppress(Exception):  # tried again; a lost claim shows at the commit
                    self.core.parts.ledger.reflections.renew(claim, self.options.lease)

        self.claim = claim
        threading.Thread(target=renew, name="reflect-lease", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self.claim = None

    def _tell(self, report: ReflectionReport) -> None:
        if not report.error:
            logger.info(
                "reflect: %d episodes read, %d edits accepted, %d rejected, %d + %d tokens (namespace %s, id %s)",
                len(report.episodes),
                len(report.accepted),
                len(report.rejected),
                report.input_tokens,
                report.output_tokens,
                "/".join(report.namespace),
                ", ".join(report.reflections),
            )
        if self.options.on_reflection is not None:
            try:
                self.options.on_reflection(report)
            except Exception as error:  # noqa: BLE001 - the user's callback
                self.core.failed("on_reflection", error)


def _filled(record: ReflectionRecord, answer: Answer, clock: float) -> ReflectionRecord:
    """The record with what the reflector was asked and said."""
    return record.model_copy(
        update={
            "prompt": answer.prompt,
            "answer": answer.raw,
            "note": answer.note,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "seconds": time.monotonic() - clock,
        }
    )


async def _await(given: Any) -> Any:
    return await given
