"""From a session to the episode that is stored: rendered, redacted, bounded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from reflect_middleware.episodes_table import Record
from reflect_middleware.record import describe, resume_step
from reflect_middleware.render import VALUE_CHARS, as_json, fingerprint, plain
from reflect_middleware.session import Session
from reflect_middleware.types import Episode, EpisodeStatus, Step

Redact = Callable[[str], str] | None
TEXTS = ("input", "output", "error")


def record_of(
    session: Session,
    status: EpisodeStatus,
    error: BaseException | None,
    ended: datetime,
    *,
    earlier: Episode | None,
    wait: float,
    redact: Redact,
) -> Record:
    """The record of a run that has ended or paused.

    Args:
        session: The run.
        status: How it ended.
        error: What it raised, if anything.
        ended: When.
        earlier: The interrupted episode that it goes on with, if any.
        wait: Seconds until it counts towards K.
        redact: The user's filter; every text passes through it.
    """
    plan, recorder = session.plan, session.recorder
    clean = redact or (lambda text: text)
    steps = tuple(_clean_step(step, clean) for step in recorder.rendered())
    if earlier is not None and plan.resume is not None:
        steps = (*earlier.trajectory, _clean_step(resume_step(plan.resume[0]), clean), *steps)
    interrupted = status == "interrupted"
    episode = Episode(
        id=session.episode_id,
        run_ids=_unique([*(earlier.run_ids if earlier else ()), session.run_id]),
        root_run_id=plan.root_run_id or (earlier.root_run_id if earlier else session.run_id),
        parent_id=plan.parent_id,
        agent=plan.spec.agent,
        namespace=plan.namespace,
        thread_id=plan.thread_id,
        principal=plan.principal,
        task=earlier.task if earlier else clean(plan.task),
        task_key=plan.task_key or (earlier.task_key if earlier else ""),
        input=earlier.input if earlier else clean(as_json(plan.graph_input, VALUE_CHARS)),
        output=clean(as_json(recorder.output, VALUE_CHARS)) if recorder.output is not None else "",
        reference=clean(as_json(plan.reference, VALUE_CHARS)) if plan.reference is not None else "",
        metadata=_metadata(plan.metadata, clean),
        status=status,
        error=clean(describe(error)) if status == "failed" else "",
        trajectory=steps,
        exposures=session.choice.exposures,
        started_at=earlier.started_at if earlier else session.started,
        ended_at=None if interrupted else ended,
    )
    return Record(
        episode=episode,
        checkpoint_ns=plan.checkpoint_ns,
        ready_at=None if interrupted else (ended.timestamp() + wait if wait else 0.0),
        aliases=_unique([*recorder.message_ids, *_fingerprints(recorder.output), *_run_ids(session)]),
    )


def _clean_step(step: Step, clean: Callable[[str], str]) -> Step:
    return step.model_copy(update={name: clean(text) for name in TEXTS if (text := getattr(step, name))})


def _metadata(metadata: Any, clean: Callable[[str], str]) -> dict[str, Any]:
    kept = {str(k): plain(v) for k, v in metadata.items() if not str(k).startswith(("__", "langgraph_", "ls_"))}
    return {k: clean(v) if isinstance(v, str) else v for k, v in kept.items()}


def _fingerprints(output: Any) -> list[str]:
    if output is None:
        return []
    try:
        return [fingerprint(output)]
    except Exception:  # noqa: BLE001 - a user's object that JSON cannot hold
        return []


def _run_ids(session: Session) -> list[str]:
    return [step.run_id for step in session.recorder.steps.values()]


def _unique(items: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for item in items if item))
