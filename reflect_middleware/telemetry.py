"""OpenTelemetry spans, metrics and events, by the GenAI conventions. See docs/observability.md.

No span of ours is ever current in the user's code, and no failure in here reaches anybody.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from reflect_middleware.signals import (
    FAILURES,
    OPERATION_SECONDS,
    SCOPE,
    TOKEN_USAGE,
    WORKFLOW_SECONDS,
    captures,
    inside,
    instruments,
    provider_of,
    quiet,
    tracer_of,
    traces,
)
from reflect_middleware.types import Lesson, Namespace, Reward

if TYPE_CHECKING:
    from reflect_middleware.desk import Change
    from reflect_middleware.reflect import Answer
    from reflect_middleware.session import Plan, Session
    from reflect_middleware.types import ReflectionReport

T = TypeVar("T")

WORKFLOW = "reflect"
RUNS = 1_000
"""Of so many latest runs the span is known, so that a reward can point at it."""

OPERATION = "gen_ai.operation.name"
STORE_ID = "gen_ai.memory.store.id"
RECORD_ID = "gen_ai.memory.record.id"
RECORD_COUNT = "gen_ai.memory.record.count"
ERROR = "error.type"

_runs: dict[str, Any] = {}


@quiet
def remember(episode_id: str, span_context: Any) -> None:
    """Keep which span a run was part of, for its rewards and its reflection; the oldest are forgotten."""
    if span_context is None:
        return
    _runs[episode_id] = span_context
    if len(_runs) > RUNS:
        _runs.pop(next(iter(_runs)), None)


# Retrieval.


class Search:
    """Around one run's retrieval: `search_memory` under the caller's span, which stays the current one."""

    __slots__ = ("_api", "_error", "_session", "_span", "_started")

    def __init__(self, session: Session) -> None:
        self._session, self._error = session, cast("BaseException | None", None)
        self._api: Any = None
        self._span: Any = None
        self._started = time.perf_counter()
        if (api := traces()) is not None:
            self._api = api
            self._begin(api, session.plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._session.plan.use_lessons:
            self._end(error or self._error)

    def failed(self, error: Exception) -> None:
        """The run goes on without lessons."""
        self._error = error

    def inside(self, job: Callable[[], T]) -> Callable[[], T]:
        """The job, to be run on a thread of ours as a part of this search."""
        return job if self._span is None else inside(self._api, self._span, job)

    @quiet
    def _begin(self, api: Any, plan: Plan) -> None:
        context = api.get_current_span().get_span_context()
        self._session.span_context = context if context.is_valid else None
        if not plan.use_lessons:
            return
        given = {
            OPERATION: "search_memory",
            STORE_ID: "/".join(plan.namespace),
            "gen_ai.agent.name": plan.spec.agent,
        }
        if plan.thread_id:
            given["gen_ai.conversation.id"] = plan.thread_id
        self._span = tracer_of(api.get_tracer_provider()).start_span("search_memory", attributes=given)

    @quiet
    def _end(self, error: BaseException | None) -> None:
        try:
            if (meters := instruments()) is not None:
                seconds = time.perf_counter() - self._started
                labels = {OPERATION: "search_memory"} | _failed(error)
                meters[OPERATION_SECONDS].record(seconds, labels)
            if (span := self._span) is not None and span.is_recording():
                _mark(self._api, span, error)
                span.set_attributes(_found(self._session))
        finally:
            if self._span is not None:
                self._span.end()


def _found(session: Session) -> dict[str, Any]:
    choice, task, clean = session.choice, session.plan.task, session.core.options.redact
    shown = [(lesson, score) for lesson, score, reason in choice.verdicts if not reason]
    found: dict[str, Any] = {
        RECORD_COUNT: len(shown),
        "reflect.memory.record.ids": [lesson.id for lesson, _ in shown],
        "reflect.memory.considered": len(choice.verdicts),
        "reflect.memory.tokens": choice.tokens,
    }
    if captures("SPAN"):
        found["gen_ai.memory.query.text"] = clean(task) if clean else task
        found["gen_ai.memory.records"] = _records(shown)
    return found


def _records(lessons: Iterable[tuple[Lesson, float | None]]) -> str:
    """The conventions' JSON for memory records."""
    return json.dumps(
        [
            {"id": lesson.id, "content": {"when": lesson.when, "do": lesson.do}}
            | ({} if score is None else {"score": round(score, 4)})
            for lesson, score in lessons
        ],
        ensure_ascii=False,
    )


# Changes of lessons.


@contextlib.contextmanager
def changing() -> Iterator[list[Change]]:
    """Around a commit: put the changes that it wrote into the list, and each becomes a span of that time."""
    written: list[Change] = []
    started, clock = time.time_ns(), time.perf_counter()
    yield written
    _changed(written, started, time.perf_counter() - clock)


@quiet
def _changed(written: Sequence[Change], started: int, seconds: float) -> None:
    api, meters = traces(), instruments()
    for change in written:
        operation = _operation(change)
        if meters is not None:
            meters[OPERATION_SECONDS].record(seconds, {OPERATION: operation})
        if api is None:
            continue
        lesson = change.lesson
        given = {
            OPERATION: operation,
            STORE_ID: "/".join(lesson.namespace),
            RECORD_ID: lesson.id,
            RECORD_COUNT: 1,
            "reflect.lesson.version": lesson.version,
            "reflect.lesson.status": lesson.status,
            "reflect.lesson.by": lesson.created_by,
        }
        if captures("SPAN"):
            given["gen_ai.memory.records"] = _records([(lesson, None)])
        tracer = tracer_of(api.get_tracer_provider())
        span = tracer.start_span(operation, attributes=given, start_time=started)
        span.end(started + int(seconds * 1e9))


def _operation(change: Change) -> str:
    """What a change is in the conventions' words; a retired lesson is out of use, though its history stays."""
    if change.expected_version == 0:
        return "create_memory"
    return "delete_memory" if change.lesson.status == "retired" else "update_memory"


# Reflections.


class Workflow:
    """One reflection under way; its span is the current one on the reflecting thread."""

    __slots__ = ("_api", "_clock", "_span")

    def __init__(self, api: Any, span: Any) -> None:
        self._api, self._span, self._clock = api, span, time.perf_counter()

    @quiet
    def end(self, report: ReflectionReport, answer: Answer, error: BaseException | None) -> None:
        """The reflection is committed, or has failed."""
        if (meters := instruments()) is not None:
            self._measure(meters, report, error)
        if (span := self._span) is None or not span.is_recording():
            return
        _mark(self._api, span, error)
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": report.input_tokens,
                "gen_ai.usage.output_tokens": report.output_tokens,
                "reflect.edits.accepted": len(report.accepted),
                "reflect.edits.rejected": len(report.rejected),
            }
        )
        if captures("SPAN"):
            span.set_attribute("gen_ai.input.messages", _message("user", answer.prompt))
            span.set_attribute("gen_ai.output.messages", _message("assistant", answer.raw))

    def _measure(self, meters: Mapping[str, Any], report: ReflectionReport, error: BaseException | None) -> None:
        labels = {"gen_ai.workflow.name": WORKFLOW} | _failed(error)
        meters[WORKFLOW_SECONDS].record(time.perf_counter() - self._clock, labels)
        for kind, tokens in (("input", report.input_tokens), ("output", report.output_tokens)):
            if tokens:
                labels = {
                    OPERATION: "invoke_workflow",
                    "gen_ai.provider.name": SCOPE,
                    "gen_ai.workflow.name": WORKFLOW,
                    "gen_ai.token.type": kind,
                }
                meters[TOKEN_USAGE].record(tokens, labels)


@contextlib.contextmanager
def reflecting(namespace: Namespace, reflection_id: str, episodes: Sequence[str]) -> Iterator[Workflow]:
    """Around a reflection: `invoke_workflow reflect`, with links to the runs it reads."""
    with contextlib.ExitStack() as stack:
        api = traces()
        span = None if api is None else _start_workflow(api, namespace, reflection_id, episodes)
        if span is not None:
            stack.callback(quiet(span.end))
            stack.enter_context(api.use_span(span, record_exception=False, set_status_on_exception=False))
        yield Workflow(api, span)


@quiet
def _start_workflow(api: Any, namespace: Namespace, reflection_id: str, episodes: Sequence[str]) -> Any:
    known = [context for episode in episodes if (context := _runs.get(episode)) is not None]
    return tracer_of(api.get_tracer_provider()).start_span(
        f"invoke_workflow {WORKFLOW}",
        attributes={
            OPERATION: "invoke_workflow",
            "gen_ai.workflow.name": WORKFLOW,
            STORE_ID: "/".join(namespace),
            "reflect.reflection.id": reflection_id,
            "reflect.episodes.count": len(episodes),
        },
        links=[api.Link(context) for context in known],
    )


def _message(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)


# Rewards and failures.


@quiet
def evaluated(episode_id: str, reward: Reward) -> None:
    """A reward was given: an event, in the trace of the run that it judges where this process knows that."""
    api = traces()
    given: dict[str, Any] = {
        "gen_ai.evaluation.name": reward.key,
        "gen_ai.evaluation.score.value": reward.value,
        "reflect.episode.id": episode_id,
        "reflect.reward.source": reward.source,
    }
    if reward.value in (0.0, 1.0):
        given["gen_ai.evaluation.score.label"] = "pass" if reward.value else "fail"
    if reward.comment and captures("EVENT"):
        given["gen_ai.evaluation.explanation"] = reward.comment
    if (logs := provider_of("opentelemetry._logs", "get_logger_provider")) is not None:
        context, run = None, _runs.get(episode_id)
        if api is not None and run is not None:
            context = api.set_span_in_context(api.NonRecordingSpan(run))
        logs.get_logger(SCOPE).emit(
            timestamp=time.time_ns(), context=context, event_name="gen_ai.evaluation.result", attributes=given
        )
    elif api is not None:
        api.get_current_span().add_event("gen_ai.evaluation.result", given)


@quiet
def counted(where: str, count: int) -> None:
    """Something of ours went wrong."""
    if (meters := instruments()) is not None:
        meters[FAILURES].add(count, {"reflect.failure": where})


def _failed(error: BaseException | None) -> dict[str, str]:
    return {} if error is None else {ERROR: type(error).__name__}


def _mark(api: Any, span: Any, error: BaseException | None) -> None:
    """Say that an operation failed, in no words but its type: a message can quote content."""
    if error is not None:
        span.set_attribute(ERROR, type(error).__name__)
        span.set_status(api.Status(api.StatusCode.ERROR, type(error).__name__))
