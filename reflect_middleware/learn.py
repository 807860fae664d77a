"""From K ready episodes to better lessons: claim, reflect, curate, commit."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from reflect_middleware.batch import Batch
from reflect_middleware.curate import Limits, Plan, curate, texts_to_embed
from reflect_middleware.errors import ConfigurationError, ReflectError, ReflectorError
from reflect_middleware.lanes import Lane
from reflect_middleware.reflect import Answer, ModelReflector, UnusableAnswerError
from reflect_middleware.reflections_table import Claim
from reflect_middleware.types import (
    Edit,
    Episode,
    Lesson,
    Namespace,
    ReflectionRecord,
    ReflectionReport,
    new_id,
    now,
)

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from reflect_middleware.core import Core
    from reflect_middleware.store import Vector

logger = logging.getLogger(__name__)
RELATED = 30
"""Most existing lessons shown to the reflector."""
SETTLE_SECONDS = 0.25
"""How long a due reflection holds back in the background, so that a reward given right after a run is read with it."""
ABANDON_SECONDS = 60.0
"""How often it is checked whether an interrupted episode counts as abandoned."""
BACK_OFF = (5.0, 600.0)
"""Seconds after a failed reflection before the namespace is tried again: doubled each time, from and to."""


class Learner:
    """Runs reflections on a thread of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.options = core.options
        self.lane = Lane("reflect")
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
        self._queued: set[Namespace] = set()
        self._timers: dict[Namespace, threading.Timer] = {}
        self._failures: dict[Namespace, tuple[int, float]] = {}
        self._claim: Claim | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._abandon_at = 0.0
        self._model_reflector: ModelReflector | None = None

    def poke(self, namespace: Namespace) -> None:
        """An episode may have become ready: look, in the background, whether a reflection is due."""
        if self.options.run != "background" or not self.options.learn:
            return
        with self._lock:
            if namespace in self._queued:
                return
            self._queued.add(namespace)
        self.lane.submit(lambda: self._poked(namespace))

    def rewarded(self, namespace: Namespace) -> None:
        """A reward came, which may have made an episode ready."""
        if self.options.run == "inline":
            self.run_due_and_wait(namespace)
        else:
            self.poke(namespace)

    def run_due_and_wait(self, namespace: Namespace) -> None:
        """Run what is due now and wait for it."""
        self.lane.submit(lambda: self._run_due(namespace)).result()

    def reflect(self, namespace: Namespace) -> ReflectionReport:
        """Reflect on everything that has ended, in batches of the cadence's size, and wait for it."""
        return self.lane.submit(lambda: self._reflect_on_all(namespace)).result()

    def close(self) -> None:
        """Give back an unfinished batch; it counts as no try."""
        self._closing.set()
        with self._lock:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            claim = self._claim
        if claim is not None:
            logger.info("reflect: an unfinished reflection on %d episodes is released", len(claim.episodes))
            self.core.parts.ledger.reflections.release(claim)
        self.lane.stop()

    # On the lane.

    def _poked(self, namespace: Namespace) -> None:
        with self._lock:
            self._queued.discard(namespace)
        try:
            if self.options.cadence.due(self.core.parts.ledger.reflections.ready(namespace)):
                self._closing.wait(SETTLE_SECONDS)
            self._run_due(namespace)
            self._wake_up_later(namespace)
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread
            self.core.failed("reflect", error)

    def _run_due(self, namespace: Namespace) -> None:
        table = self.core.parts.ledger.reflections
        self._abandon()
        while not self._resting(namespace) and not self.core.parts.ledger.lessons.paused():
            if not self.options.cadence.due(table.ready(namespace)):
                return
            claim = self._claimed(namespace, at_least=1, whatever=False)
            if claim is None or self._reflect_on(claim).error:
                return

    def _abandon(self) -> None:
        """Now and then: interrupted episodes that nobody resumed are over."""
        if time.monotonic() >= self._abandon_at:
            self._abandon_at = time.monotonic() + ABANDON_SECONDS
            self.core.parts.ledger.episodes.abandon(time.time() - self.options.resume_within)

    def _reflect_on_all(self, namespace: Namespace) -> ReflectionReport:
        reports: list[ReflectionReport] = []
        self._abandon()
        while (claim := self._claimed(namespace, at_least=1, whatever=True)) is not None:
            reports.append(self._reflect_on(claim))
            if reports[-1].error:
                break
        return _joined(namespace, reports)

    def _claimed(self, namespace: Namespace, *, at_least: int, whatever: bool) -> Claim | None:
        return self.core.parts.ledger.reflections.claim(
            namespace,
            self.owner,
            at_least=at_least,
            at_most=self.options.cadence.batch,
            lease=self.options.lease,
            whatever=whatever,
        )

    def _reflect_on(self, claim: Claim) -> ReflectionReport:
        started = time.monotonic()
        record = ReflectionRecord(id=claim.id, namespace=claim.namespace, status="running", episodes=claim.episodes)
        answer = Answer()
        try:
            with self._holding(claim):
                batch = self._batch(claim)
                answer = self._ask(batch)
                report = self._commit(claim, batch, answer, record, started)
            self._failures.pop(claim.namespace, None)
        except Exception as error:  # noqa: BLE001 - a model, an embedder or a ledger; the batch goes back
            answer = error.answer if isinstance(error, UnusableAnswerError) else answer
            report = self._failed(claim, answer, record, error, started)
        self._tell(report)
        return report

    def _batch(self, claim: Claim) -> Batch:
        episodes = self.core.parts.ledger.episodes.many(claim.episodes)
        recent = self.core.parts.ledger.reflections.find(claim.namespace, limit=5)
        return Batch(
            namespace=claim.namespace,
            episodes=episodes,
            lessons=self._related(claim.namespace, episodes),
            rejected=tuple(o for past in recent for o in past.outcomes if not o.accepted)[:10],
        )

    def _related(self, namespace: Namespace, episodes: Sequence[Episode]) -> tuple[Lesson, ...]:
        """The standing lessons that these episodes may touch: all if they are few, else the nearest."""
        table = self.core.parts.ledger.lessons
        standing = [x for x in table.find(namespace) if x.status != "retired"]
        if len(standing) <= RELATED:
            return tuple(standing)
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
        self, claim: Claim, batch: Batch, answer: Answer, record: ReflectionRecord, started: float
    ) -> ReflectionReport:
        ledger = self.core.parts.ledger
        vectors, embedder = self._vectors(answer.edits, batch)
        plan = self._curated(claim, batch, answer, vectors, embedder)
        done_record = record.model_copy(
            update={
                "status": "done",
                "prompt": answer.prompt,
                "answer": answer.raw,
                "outcomes": plan.outcomes,
                "input_tokens": answer.input_tokens,
                "output_tokens": answer.output_tokens,
                "seconds": time.monotonic() - started,
                "error": answer.note,
            }
        )
        written = ledger.reflections.commit(claim, done_record, plan.changes, embedder)
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
            for lesson in table.find(claim.namespace)
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

    def _failed(
        self, claim: Claim, answer: Answer, record: ReflectionRecord, error: Exception, started: float
    ) -> ReflectionReport:
        reason = f"{type(error).__name__}: {error}"
        count, _ = self._failures.get(claim.namespace, (0, 0.0))
        pause = min(BACK_OFF[0] * 2**count, BACK_OFF[1])
        self._failures[claim.namespace] = (count + 1, time.monotonic() + pause)
        failed = record.model_copy(
            update={
                "status": "failed",
                "prompt": answer.prompt,
                "answer": answer.raw,
                "input_tokens": answer.input_tokens,
                "output_tokens": answer.output_tokens,
                "seconds": time.monotonic() - started,
                "error": reason,
            }
        )
        self.core.failed("reflect", error)
        with contextlib.suppress(Exception):  # a dead ledger: the lease ends by itself
            if isinstance(error, ConfigurationError):
                self.core.parts.ledger.reflections.release(claim)
            else:
                self.core.parts.ledger.reflections.fail(claim, failed, reason)
        return ReflectionReport(
            namespace=claim.namespace,
            reflections=(claim.id,),
            error=reason,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
        )

    @contextlib.contextmanager
    def _holding(self, claim: Claim) -> Iterator[None]:
        """Renew the claim's lease while the block runs."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.options.lease / 3):
                with contextlib.suppress(Exception):  # tried again; a lost claim shows at the commit
                    self.core.parts.ledger.reflections.renew(claim, self.options.lease)

        self._claim = claim
        threading.Thread(target=renew, name="reflect-lease", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self._claim = None

    def _resting(self, namespace: Namespace) -> bool:
        return time.monotonic() < self._failures.get(namespace, (0, 0.0))[1]

    def _wake_up_later(self, namespace: Namespace) -> None:
        """Look again when the next episode stops waiting for its reward, or a failure's rest is over."""
        at = self.core.parts.ledger.reflections.next_ready_at(namespace)
        wait = None if at is None else max(0.0, at - time.time()) + 0.01
        if self._resting(namespace):
            rest = self._failures[namespace][1] - time.monotonic()
            wait = rest if wait is None else max(wait, rest)
        if wait is None or self.core.closed:
            return
        timer = threading.Timer(wait, self.poke, (namespace,))
        timer.daemon = True
        with self._lock:
            if (old := self._timers.get(namespace)) is not None:
                old.cancel()
            self._timers[namespace] = timer
        timer.start()

    def _tell(self, report: ReflectionReport) -> None:
        if not report.error:
            logger.info(
                "reflect: %d episodes read, %d edits accepted, %d rejected, %d + %d tokens (namespace %s, reflection %s)",
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


def _joined(namespace: Namespace, reports: Sequence[ReflectionReport]) -> ReflectionReport:
    """One report over several reflections."""
    return ReflectionReport(
        namespace=namespace,
        reflections=tuple(i for r in reports for i in r.reflections),
        episodes=tuple(i for r in reports for i in r.episodes),
        accepted=tuple(o for r in reports for o in r.accepted),
        rejected=tuple(o for r in reports for o in r.rejected),
        lessons=tuple({lesson.id: lesson for r in reports for lesson in r.lessons}.values()),
        input_tokens=sum(r.input_tokens for r in reports),
        output_tokens=sum(r.output_tokens for r in reports),
        error=next((r.error for r in reports if r.error), ""),
    )


async def _await(given: Any) -> Any:
    return await given
