"""What of OpenTelemetry is set up in this process: its providers, our instruments, and whether content may be told.

Nothing here imports OpenTelemetry: whoever has set a provider has imported its API, and without a provider there is
nothing to tell.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SCOPE = "reflect_middleware"
"""Instrumentation scope, and the provider of the tokens that reflections use."""
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Environment variable of the GenAI instrumentations: NO_CONTENT (default), SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT."""
OPERATION_SECONDS = "gen_ai.client.operation.duration"
WORKFLOW_SECONDS = "gen_ai.invoke_workflow.duration"
TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105 - a metric's name
FAILURES = "reflect.failures"
BOUNDS: Mapping[str, Sequence[float]] = {
    OPERATION_SECONDS: (0.001, 0.0025, 0.005, *(0.01 * 2**power for power in range(14))),
    WORKFLOW_SECONDS: (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200),
    TOKEN_USAGE: tuple(4**power for power in range(14)),
}
"""The conventions' histogram bounds, with finer ones for what takes a millisecond."""


def quiet(call: Callable[P, T]) -> Callable[P, T | None]:
    """A failure of the user's provider, processor or exporter is nobody's but ours to swallow."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return call(*args, **kwargs)
        except Exception:  # an observer's; the run, the reflection and the reward go on
            logger.debug("reflect: telemetry failed", exc_info=True)
            return None

    return guarded


def provider_of(api_name: str, getter: str) -> Any:
    """The provider that the user has set; None for none, and for the API's own, which tell nobody."""
    if (api := sys.modules.get(api_name)) is None:
        return None
    try:
        provider = getattr(api, getter)()
    except Exception:  # one that the environment names and that cannot be loaded
        logger.debug("reflect: no provider for %s", api_name, exc_info=True)
        return None
    return None if type(provider).__module__.startswith(api_name) else provider


def traces() -> Any:
    """The API of traces where a provider is set, else None."""
    name = "opentelemetry.trace"
    return None if provider_of(name, "get_tracer_provider") is None else sys.modules[name]


@functools.lru_cache(maxsize=8)
def tracer_of(provider: Any) -> Any:
    """Our tracer of a provider."""
    from reflect_middleware import __version__

    return provider.get_tracer(SCOPE, __version__)


@functools.lru_cache(maxsize=8)
def _instruments(provider: Any) -> Mapping[str, Any]:
    from reflect_middleware import __version__

    meter = provider.get_meter(SCOPE, __version__)

    def histogram(name: str, unit: str, description: str) -> Any:
        return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=BOUNDS[name])

    return {
        OPERATION_SECONDS: histogram(OPERATION_SECONDS, "s", "GenAI operation duration."),
        WORKFLOW_SECONDS: histogram(WORKFLOW_SECONDS, "s", "Duration of a reflection."),
        TOKEN_USAGE: histogram(TOKEN_USAGE, "{token}", "Number of input and output tokens used by reflections."),
        FAILURES: meter.create_counter(FAILURES, "{failure}", "What went wrong, by where."),
    }


def instruments() -> Mapping[str, Any] | None:
    """Our instruments where a provider is set, else None."""
    provider = provider_of("opentelemetry.metrics", "get_meter_provider")
    return None if provider is None else _instruments(provider)


def captures(where: str) -> bool:
    """Whether content may be told, on a `SPAN` or in an `EVENT`; `true` means both, as in older instrumentations."""
    mode = os.environ.get(CAPTURE, "").strip().upper()
    return mode in ("TRUE", "SPAN_AND_EVENT", f"{where}_ONLY")


def carried(job: Callable[[], T]) -> Callable[[], T]:
    """The job, to be run on a thread of ours with the caller's span as the parent of what it does."""
    api = traces()
    return job if api is None else inside(api, api.get_current_span(), job)


def inside(api: Any, span: Any, job: Callable[[], T]) -> Callable[[], T]:
    """The job, with `span` as the parent of what it does."""

    def done_inside() -> T:
        with api.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            return job()

    return done_inside
