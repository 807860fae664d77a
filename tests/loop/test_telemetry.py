"""Spans, metrics and events, seen through OpenTelemetry's own SDK."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from langchain.agents import create_agent
from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import _internal as logs_internal
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reflect_middleware import signals, telemetry, testing

from .conftest import Maker, adding, agent

ASKED = "Refund order 1182, please"


class Seen:
    """What the SDK was told."""

    def __init__(self) -> None:
        self.exporter, self.reader, self.logs = (
            InMemorySpanExporter(),
            InMemoryMetricReader(),
            InMemoryLogRecordExporter(),
        )
        self.tracers, self.meters, self.loggers = TracerProvider(), MeterProvider([self.reader]), LoggerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.tracer = self.tracers.get_tracer("user")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def events(self) -> list[Any]:
        return [data.log_record for data in self.logs.get_finished_logs()]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
        return [(dict(point.attributes), point) for metric in found for point in metric.data.data_points]

    def close(self) -> None:
        for provider in (self.tracers, self.meters, self.loggers):
            provider.shutdown()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Providers that are set for one test: the API's own setters work once per process."""
    made = Seen()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.tracers)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", made.meters)
    monkeypatch.setattr(logs_internal, "_LOGGER_PROVIDER", made.loggers)
    monkeypatch.delenv(signals.CAPTURE, raising=False)
    yield made
    made.close()


@pytest.fixture
def make() -> Any:
    """On SQLite alone: what is told does not depend on the database."""
    made = Maker(None)
    yield made
    made.close()


def one_lesson() -> Any:
    return testing.ScriptedChatModel(lambda _: adding("Refund order"))


def attributes(span: Any) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_search_hangs_under_the_callers_span(seen: Seen, make: Any, run: Callable[..., Any]) -> None:
    reflection = make(namespace=("acme", "support"))
    lesson = reflection.lessons.add(when="refunding an order", do="ask")
    graph = reflection.wrap(agent(), name="refunds")
    with seen.tracer.start_as_current_span("request") as outer:
        await run(graph, ASKED, config={"configurable": {"thread_id": "t1"}})
        assert trace.get_current_span() is outer
    span = seen.one("search_memory")
    assert span.parent is not None
    assert (span.parent.span_id, span.kind) == (outer.get_span_context().span_id, trace.SpanKind.INTERNAL)
    assert attributes(span) == {
        "gen_ai.operation.name": "search_memory",
        "gen_ai.memory.store.id": "acme/support",
        "gen_ai.memory.record.count": 1,
        "gen_ai.agent.name": "refunds",
        "gen_ai.conversation.id": "t1",
        "reflect.memory.record.ids": (lesson.id,),
        "reflect.memory.considered": 1,
        "reflect.memory.tokens": attributes(span)["reflect.memory.tokens"],
    }
    assert attributes(span)["reflect.memory.tokens"] > 0
    ((labels, point),) = [x for x in seen.points("gen_ai.client.operation.duration") if "search" in str(x[0])]
    assert (labels, point.count) == ({"gen_ai.operation.name": "search_memory"}, 1)


class Traced(testing.HashingEmbeddings):
    """An embedder that is instrumented, as a provider's client is."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer

    def embed_query(self, text: str) -> list[float]:
        with self.tracer.start_as_current_span("embeddings"):
            return super().embed_query(text)


async def test_what_the_embedder_tells_is_part_of_the_search(seen: Seen, make: Any, run: Callable[..., Any]) -> None:
    reflection = make(embeddings=Traced(seen.tracer))
    reflection.lessons.add(when="refunding an order", do="ask")
    with seen.tracer.start_as_current_span("request"):
        await run(reflection.wrap(agent()), ASKED)
    parents = [span.parent and span.parent.span_id for span in seen.spans("embeddings")]
    assert parents[-1] == seen.one("search_memory").context.span_id  # the first ones were for the lesson


@pytest.mark.parametrize("asynchronous", ["sync", "async"])
async def test_the_middleware_searches_under_the_callers_span(asynchronous: str, seen: Seen, make: Any) -> None:
    reflection = make()
    reflection.lessons.add(when="refunding an order", do="ask")
    made = create_agent(testing.ScriptedChatModel(lambda _: "refunded"), [], middleware=[reflection.middleware()])
    with seen.tracer.start_as_current_span("request") as outer:
        if asynchronous == "async":
            await made.ainvoke({"messages": [("user", ASKED)]})
        else:
            made.invoke({"messages": [("user", ASKED)]})
    span = seen.one("search_memory")
    assert (span.parent and span.parent.span_id) == outer.get_span_context().span_id
    assert attributes(span)["gen_ai.memory.record.count"] == 1


async def test_reflecting_on_demand_hangs_under_the_callers_span(seen: Seen, make: Any) -> None:
    reflection = make(one_lesson(), every=99)
    reflection.wrap(agent()).invoke({"messages": ASKED})
    with seen.tracer.start_as_current_span("admin") as outer:
        await reflection.areflect()
        assert trace.get_current_span() is outer
    span = seen.one("invoke_workflow reflect")
    assert (span.parent and span.parent.span_id) == outer.get_span_context().span_id


async def test_i2_no_span_of_ours_is_current_in_the_users_nodes(seen: Seen, make: Any, run: Callable[..., Any]) -> None:
    here: list[Any] = []

    def look(_: Any) -> str:
        here.append(trace.get_current_span())
        return "refunded"

    reflection = make(one_lesson(), every=1)
    with seen.tracer.start_as_current_span("request") as outer:
        for _ in range(2):
            await run(reflection.wrap(agent(testing.ScriptedChatModel(look))), ASKED)
    assert here == [outer] * 2
    assert not attributes(outer)


async def test_a_search_that_fails_says_so_without_words(seen: Seen, make: Any, run: Callable[..., Any]) -> None:
    class Fails(testing.HashingEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            raise ConnectionError(text)

    reflection = make(embeddings=Fails())
    reflection.lessons.add(when="refunding an order", do="ask")
    await run(reflection.wrap(agent()), ASKED)
    span = seen.one("search_memory")
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "EmbedderError")
    assert attributes(span)["error.type"] == "EmbedderError"
    assert ASKED not in span.to_json()
    assert ({"reflect.failure": "retrieve"}, 1) in [(labels, p.value) for labels, p in seen.points("reflect.failures")]


def test_a_reflection_is_a_workflow_with_its_model_call_and_changes_inside(seen: Seen, make: Any) -> None:
    def answer(_: Any) -> str:
        with seen.tracer.start_as_current_span("chat"):
            return adding("Refund order")

    reflection = make(testing.ScriptedChatModel(answer), every=1)
    with seen.tracer.start_as_current_span("request") as outer:
        reflection.wrap(agent()).invoke({"messages": ASKED})
    (record,) = reflection.reflections.list()
    (lesson,) = reflection.lessons.list()
    flow, chat, made = seen.one("invoke_workflow reflect"), seen.one("chat"), seen.one("create_memory")
    assert flow.parent is None, "it reads many runs, and belongs to none"
    assert [link.context.span_id for link in flow.links] == [outer.get_span_context().span_id]
    assert chat.parent is not None
    assert made.parent is not None
    assert {chat.parent.span_id, made.parent.span_id} == {flow.context.span_id}
    told = attributes(flow)
    assert told == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "reflect",
        "gen_ai.memory.store.id": "default",
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "reflect.reflection.id": record.id,
        "reflect.episodes.count": 1,
        "reflect.edits.accepted": 1,
        "reflect.edits.rejected": 0,
    }
    assert attributes(made) == {
        "gen_ai.operation.name": "create_memory",
        "gen_ai.memory.store.id": "default",
        "gen_ai.memory.record.id": lesson.id,
        "gen_ai.memory.record.count": 1,
        "reflect.lesson.version": 1,
        "reflect.lesson.status": "active",
        "reflect.lesson.by": record.id,
    }
    ((labels, point),) = seen.points("gen_ai.invoke_workflow.duration")
    assert (labels, point.count) == ({"gen_ai.workflow.name": "reflect"}, 1)
    used = {labels["gen_ai.token.type"]: point.sum for labels, point in seen.points("gen_ai.client.token.usage")}
    assert used == {k: v for k, v in (("input", record.input_tokens), ("output", record.output_tokens)) if v}


def test_tokens_of_a_reflection_are_told(seen: Seen, make: Any) -> None:
    from reflect_middleware.reflect import Answer

    reflection = make(None, every=1, reflector=lambda _: Answer(input_tokens=700, output_tokens=30))
    reflection.wrap(agent()).invoke({"messages": ASKED})
    used = {
        labels["gen_ai.token.type"]: (labels, point.sum) for labels, point in seen.points("gen_ai.client.token.usage")
    }
    assert {kind: tokens for kind, (_, tokens) in used.items()} == {"input": 700, "output": 30}
    assert used["input"][0]["gen_ai.provider.name"] == "reflect_middleware"


def test_a_reflection_that_fails_is_an_error_without_words(seen: Seen, make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: "no idea"), every=1)
    reflection.wrap(agent()).invoke({"messages": ASKED})
    span = seen.one("invoke_workflow reflect")
    assert attributes(span)["error.type"] == span.status.description == "UnusableAnswerError"
    assert "no idea" not in span.to_json()
    assert seen.spans("create_memory") == []
    ((labels, _),) = seen.points("gen_ai.invoke_workflow.duration")
    assert labels["error.type"] == "UnusableAnswerError"


async def test_every_change_by_hand_names_its_record_under_the_callers_span(seen: Seen, make: Any) -> None:
    reflection = make()
    with seen.tracer.start_as_current_span("admin") as outer:
        lesson = reflection.lessons.add(when="refunding", do="ask")
        await reflection.lessons.aedit(lesson.id, do="ask a manager")
        reflection.lessons.retire(lesson.id)
        await reflection.lessons.aapprove(lesson.id)
    spans = [span for span in seen.exporter.get_finished_spans() if span.name.endswith("_memory")]
    assert [span.name for span in spans] == ["create_memory", "update_memory", "delete_memory", "update_memory"]
    assert {attributes(span)["gen_ai.memory.record.id"] for span in spans} == {lesson.id}
    assert [attributes(span)["reflect.lesson.version"] for span in spans] == [1, 2, 3, 4]
    assert {span.parent and span.parent.span_id for span in spans} == {outer.get_span_context().span_id}
    timed = {labels["gen_ai.operation.name"]: p.count for labels, p in seen.points("gen_ai.client.operation.duration")}
    assert timed == {"create_memory": 1, "update_memory": 2, "delete_memory": 1}


def test_a_change_that_is_refused_is_no_span(seen: Seen, make: Any) -> None:
    reflection = make()
    with pytest.raises(LookupError):
        reflection.lessons.retire("unknown")
    assert seen.exporter.get_finished_spans() == ()


async def test_a_reward_is_an_evaluation_of_the_run_it_judges(seen: Seen, make: Any, run: Callable[..., Any]) -> None:
    reflection = make(namespace=("acme",))
    graph = reflection.wrap(agent())
    with seen.tracer.start_as_current_span("request") as outer:
        result = await run(graph, ASKED)
    await reflection.areward(result, 0.0, source="user", key="correct", comment="needs a manager")
    reflection.reward(result, 0.5, key="tone")
    first, second = seen.events()
    (episode,) = reflection.episodes.list()
    assert first.event_name == second.event_name == "gen_ai.evaluation.result"
    assert dict(first.attributes) == {
        "gen_ai.evaluation.name": "correct",
        "gen_ai.evaluation.score.value": 0.0,
        "gen_ai.evaluation.score.label": "fail",
        "reflect.episode.id": episode.id,
        "reflect.reward.source": "user",
    }
    assert "gen_ai.evaluation.score.label" not in second.attributes
    assert {first.span_id, second.span_id} == {outer.get_span_context().span_id}


def test_what_a_reward_callable_says_is_an_evaluation_too(seen: Seen, make: Any) -> None:
    reflection = make(None, reward=lambda _: True)
    reflection.wrap(agent()).invoke({"messages": ASKED})
    reflection.flush()
    (event,) = seen.events()
    assert event.attributes["gen_ai.evaluation.score.label"] == "pass"
    assert not event.span_id, "the caller had no span"


def test_without_a_logger_provider_an_evaluation_goes_to_the_current_span(
    seen: Seen, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_internal, "_LOGGER_PROVIDER", None)
    reflection = make()
    result = reflection.wrap(agent()).invoke({"messages": ASKED})
    with seen.tracer.start_as_current_span("feedback"):
        reflection.reward(result, 1.0)
    assert [event.name for event in seen.one("feedback").events] == ["gen_ai.evaluation.result"]


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("", ""),
        ("NO_CONTENT", ""),
        ("nonsense", ""),
        ("SPAN_ONLY", "spans"),
        ("EVENT_ONLY", "events"),
        ("span_and_event", "spans and events"),
        ("true", "spans and events"),
    ],
)
def test_content_is_told_only_where_the_environment_says_so(
    mode: str, told: str, seen: Seen, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_spans, in_events = "spans" in told, "events" in told
    monkeypatch.setenv(signals.CAPTURE, mode)
    reflection = make(one_lesson(), every=1, redact=lambda text: text.replace("1182", "[order]"))
    graph = reflection.wrap(agent())
    for _ in range(2):
        result = graph.invoke({"messages": ASKED})
    reflection.reward(result, 0.0, comment="order 1182 needs a manager")
    searches, (made, *_) = seen.spans("search_memory"), seen.spans("create_memory")
    flow = attributes(seen.spans("invoke_workflow reflect")[0])
    last = attributes(searches[-1])
    assert (last.get("gen_ai.memory.query.text") == "Refund order [order], please") is in_spans
    for found in (last, attributes(made)):
        assert ("gen_ai.memory.records" in found) is in_spans
    assert ("gen_ai.input.messages" in flow and "gen_ai.output.messages" in flow) is in_spans
    (event,) = [event for event in seen.events() if event.attributes["gen_ai.evaluation.score.value"] == 0.0]
    assert (event.attributes.get("gen_ai.evaluation.explanation") == "order [order] needs a manager") is in_events
    everything = " ".join(span.to_json() for span in seen.exporter.get_finished_spans()) + str(event.attributes)
    assert not re.search(r"(?<![0-9a-f-])1182(?![0-9a-f])", everything)  # not by chance in an id or a time
    if in_spans:
        (record,) = json.loads(last["gen_ai.memory.records"])
        assert set(record) == {"id", "content", "score"}
        assert json.loads(flow["gen_ai.input.messages"])[0]["parts"][0]["type"] == "text"
    elif not in_events:
        assert "manager" not in everything


def test_an_unsampled_trace_costs_no_attributes(seen: Seen, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    monkeypatch.setattr(telemetry, "_found", lambda _: pytest.fail("attributes of a span that nobody records"))
    make(one_lesson(), every=1).wrap(agent()).invoke({"messages": ASKED})
    assert seen.exporter.get_finished_spans() == ()


async def test_i8_a_provider_that_raises_is_nobodys_failure(
    make: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the exporter is gone")

    for module, name in (
        (trace, "_TRACER_PROVIDER"),
        (metrics_internal, "_METER_PROVIDER"),
        (logs_internal, "_LOGGER_PROVIDER"),
    ):
        monkeypatch.setattr(module, name, Broken())
    reflection = make(one_lesson(), every=1)
    result = await run(reflection.wrap(agent()), ASKED)
    reflection.reward(result, 1.0)
    assert result["messages"][-1].content == "refunded"
    assert len(reflection.lessons.list()) == 1
    assert not [finding for finding in reflection.doctor() if not finding.ok]


def test_spans_of_runs_are_remembered_up_to_a_limit() -> None:
    for number in range(telemetry.RUNS + 10):
        telemetry.remember(f"run {number}", SimpleNamespace())
    assert len(telemetry._runs) <= telemetry.RUNS
    telemetry._runs.clear()


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


RUN = """
from reflect_middleware import testing
from tests.loop.conftest import adding, agent
with testing.reflection(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1) as reflection:
    reflection.reward(reflection.wrap(agent()).invoke({"messages": "Refund order 1"}), 1.0)
"""


@pytest.mark.process
def test_without_a_provider_nothing_of_opentelemetry_is_imported_by_us() -> None:
    blocked = "import sys; sys.modules['opentelemetry'] = None\n"  # as where it is not installed
    assert python(blocked + RUN + "print([m for m in sys.modules if m.startswith('opentelemetry.')])") == "[]"


@pytest.mark.process
def test_a_provider_set_the_public_way_is_used() -> None:
    setting = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
"""
    out = python(setting + RUN + "print(sorted(span.name for span in exporter.get_finished_spans()))")
    assert out == "['create_memory', 'invoke_workflow reflect', 'search_memory']"


def test_the_apis_own_providers_tell_nobody_and_are_not_asked() -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert (signals.traces(), signals.instruments()) == (None, None)
    assert signals.provider_of("opentelemetry._logs", "get_logger_provider") is None
    assert metrics.get_meter_provider() is not None
    assert _logs.get_logger_provider() is not None
