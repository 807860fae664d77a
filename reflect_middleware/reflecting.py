"""One reflection: a claimed batch of episodes becomes edits, and the edits become committed lessons."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from reflect_middleware import nearby, telemetry
from reflect_middleware.batch import Batch
from reflect_middleware.curate import Limits, Plan, curate, texts_to_embed
from reflect_middleware.due import blameless
from reflect_middleware.errors import ConfigurationError, LessonStateError, ReflectError, ReflectorError
from reflect_middleware.forks import gate
from reflect_middleware.groups import side_by_side, to_compare
from reflect_middleware.reflect import Answer, ModelReflector, UnusableAnswerError
from reflect_middleware.reflections_table import Claim
from reflect_middleware.refusals import LOOKED_AT, refused_before
from reflect_middleware.types import Edit, Namespace, ReflectionRecord, ReflectionReport, now
from reflect_middleware.weigh import joined, weighed

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from reflect_middleware.core import Core
    from reflect_middleware.desk import Change
    from reflect_middleware.store import Vector
    from reflect_middleware.types import Episode

logger = logging.getLogger(__name__)
DECISIONS = 10
"""How often an answer is checked anew, at most, because lessons change between the check and the commit."""


class Reflecting:
    """Does reflections, on the caller's thread; several threads may, each for another namespace."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.options = core.options
        self._in_hand: dict[str, Claim] = {}
        self._given_up: set[str] = set()
        self._lock = threading.Lock()
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
                    record = record.model_copy(update={"episodes": tuple(e.id for e in batch.episodes)})
                    batch, answer = weighed(self.core, claim.id, batch, self._default_reflector)
                    answer = joined(answer, self._ask(batch))
                    report = self._commit(claim, batch, answer, lambda: filled_in(record, answer, clock))
            except Exception as error:  # noqa: BLE001 - a model, an embedder or a ledger; the batch goes back
                answer, failure = (
                    joined(answer, error.answer) if isinstance(error, UnusableAnswerError) else answer,
                    error,
                )
                report = self._failed(claim, filled_in(record, answer, clock), error)
            workflow.end(report, answer, failure)
        self._tell(report)
        return report

    def give_up(self, namespaces: Collection[Namespace] | None = None) -> list[Claim]:
        """The batches in hand (of these namespaces), which are no longer ours from now on."""
        with self._lock:
            claims = [c for c in self._in_hand.values() if namespaces is None or c.namespace in namespaces]
            for claim in claims:
                del self._in_hand[claim.id]
                self._given_up.add(claim.id)
        return claims

    def _batch(self, claim: Claim) -> Batch:
        table = self.core.parts.ledger.episodes
        episodes = table.many(claim.episodes)
        recent = self.core.parts.ledger.reflections.find(claim.namespace, limit=LOOKED_AT)
        related = nearby.related(self.core.parts, claim.namespace, episodes)
        batch = Batch(
            namespace=claim.namespace,
            episodes=episodes,
            lessons=related,
            earlier=table.rewards({source for lesson in related if lesson.needs_review for source in lesson.sources}),
            rejected=refused_before(recent, related),
            vectors=self._task_vectors(episodes),
            tokens_left=self.core.parts.ledger.work.tokens_left(self.options.quota),
            released=lambda: claim.id in self._given_up,
        )
        return side_by_side(batch)

    def _task_vectors(self, episodes: Sequence[Episode]) -> dict[str, Vector]:
        """Vectors of the tasks that may read alike; without a working embedder only equal words count."""
        try:
            return {task: self.core.parts.embedder.embed_query(task) for task in to_compare(episodes)}
        except ReflectError as error:
            self.core.failed("embed", error)
            return {}

    def _ask(self, batch: Batch) -> Answer:
        reflector = self.options.reflector or self._default_reflector()
        given = reflector(batch)
        if inspect.isawaitable(given):
            given = asyncio.run(_await(given))
        if isinstance(given, Answer):
            return given
        return Answer(edits=tuple(Edit.model_validate(edit) for edit in given))

    def _default_reflector(self) -> ModelReflector:
        with self._lock:
            if self._model_reflector is None:
                self._model_reflector = ModelReflector(
                    self._model(),
                    budget_tokens=self.options.reflector_budget,
                    count_tokens=self.options.count_tokens,
                    prompt=self.options.prompt,
                    seed=self.options.seed,
                )
            return self._model_reflector

    def _model(self) -> BaseChatModel:
        model = self.options.model
        try:
            if isinstance(model, str):
                with gate.passing():
                    from langchain.chat_models import init_chat_model

                    return init_chat_model(model)
            return cast("BaseChatModel", model() if not hasattr(model, "invoke") else model)
        except Exception as error:  # a missing package or key, an unknown name: it says nothing about the episodes
            problem = f"Building it failed: {type(error).__name__}: {error}"
            raise ConfigurationError("model", model, "a chat model that can be built here", problem) from error

    def _commit(
        self, claim: Claim, batch: Batch, answer: Answer, filled: Callable[[], ReflectionRecord]
    ) -> ReflectionReport:
        with telemetry.changing() as changed:
            plan = self._committed(claim, batch, answer, filled)
            changed.extend(plan.changes if plan else ())
        if plan is None:
            raise ReflectorError("The claim's lease ended before the reflection did; another one reads the episodes.")
        self.core.parts.index.sync_later(claim.namespace)
        return ReflectionReport(
            namespace=claim.namespace,
            reflections=(claim.id,),
            episodes=claim.episodes,
            accepted=tuple(o for o in plan.outcomes if o.accepted),
            rejected=tuple(o for o in plan.outcomes if not o.accepted),
            lessons=tuple(change.lesson for change in plan.changes),
            cut=answer.cut,
            skipped=answer.skipped,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
        )

    def _committed(
        self, claim: Claim, batch: Batch, answer: Answer, filled: Callable[[], ReflectionRecord]
    ) -> Plan | None:
        """The plan that was written; None if the claim was lost."""
        vectors, embedder = self._vectors(answer.edits, batch)
        reviewed = [lesson.id for lesson in batch.lessons if lesson.needs_review]
        table, tries = self.core.parts.ledger.reflections, 0
        while True:
            plan, tries = self._curated(claim, batch, answer, vectors), tries + 1
            plan = replace(plan, changes=self._findable(plan.changes)) if embedder else plan
            record = filled().model_copy(update={"status": "done", "outcomes": plan.outcomes})
            try:
                done = table.commit(
                    claim,
                    record,
                    plan.changes,
                    embedder,
                    reviewed=reviewed,
                    read=batch.rewards,
                    tokens=self._tokens(record),
                )
            except LessonStateError:  # somebody was faster; half of a merge is worse than none, so all is decided again
                if tries == DECISIONS:
                    raise
            else:
                return plan if done else None

    def _curated(self, claim: Claim, batch: Batch, answer: Answer, vectors: Mapping[str, Vector]) -> Plan:
        existing, more = nearby.existing(self.core.parts, batch, vectors)
        return curate(
            answer.edits,
            batch,
            existing=existing,
            more=more,
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

    def _findable(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        """The changes with the vectors by which tasks find them; where none can be made now, it is made later."""
        texts = [change.lesson.searched for change in changes]
        try:
            made = self.core.parts.embedder.embed_documents(texts) if texts else []
        except ReflectError as error:
            self.core.failed("embed", error)
            return tuple(replace(change, vector=None) for change in changes)
        return tuple(replace(change, vector=vector) for change, vector in zip(changes, made, strict=True))

    def _failed(self, claim: Claim, record: ReflectionRecord, error: Exception) -> ReflectionReport:
        reason = f"{type(error).__name__}: {error}"
        if claim.id not in self._given_up:
            self.core.failed("reflect", error)
        failed = record.model_copy(update={"status": "failed", "error": reason})
        tries = None if blameless(error) else self.options.tries
        dead = 0
        with contextlib.suppress(Exception):  # a dead ledger: the lease ends by itself
            dead = self.core.parts.ledger.reflections.fail(
                claim, failed, reason, tries=tries, tokens=self._tokens(record)
            )
        if dead:
            logger.error(
                "reflect: %d episodes are given up after %d failed reflections, the last: %s (again: `reflect episodes"
                " retry`)",
                dead,
                self.options.tries,
                reason,
            )
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

        with self._lock:
            self._in_hand[claim.id] = claim
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: the lease outlasts what is left of it
            threading.Thread(target=renew, name="reflect-lease", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with self._lock:
                self._in_hand.pop(claim.id, None)

    def _tokens(self, record: ReflectionRecord) -> tuple[int, int]:
        """What a reflection used: as the provider says, else a cautious guess."""
        count = self.options.count_tokens
        return (
            record.input_tokens or (count(record.prompt) if record.prompt else 0),
            record.output_tokens or (count(record.answer) if record.answer else 0),
        )

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


def filled_in(record: ReflectionRecord, answer: Answer, clock: float) -> ReflectionRecord:
    """The record with what the reflector was asked and said."""
    return record.model_copy(
        update={
            "prompt": answer.prompt,
            "answer": answer.raw,
            "way": answer.way,
            "note": answer.note,
            "cut": answer.cut,
            "skipped": answer.skipped,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "seconds": time.monotonic() - clock,
        }
    )


async def _await(given: Any) -> Any:
    return await given
