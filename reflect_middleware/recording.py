"""From a session to the episode that is stored: rendered, redacted, bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from langchain_core.messages import BaseMessage, SystemMessage

from reflect_middleware.briefing import briefing
from reflect_middleware.episodes_table import Record
from reflect_middleware.record import Noted, Recorder, message_key
from reflect_middleware.render import (
    STEP_CHARS,
    VALUE_CHARS,
    clip,
    is_a,
    message_line,
    messages_in,
    plain,
    shortened,
    shortened_and_named,
)
from reflect_middleware.session import Plan, Session
from reflect_middleware.types import Episode, EpisodeStatus, Step

Redact = Callable[[str], str] | None

_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_CUT_OFF = {"length", "max_tokens", "max_output_tokens"}


def record_of(
    session: Session,
    status: EpisodeStatus,
    error: BaseException | None,
    ended: datetime,
    *,
    earlier: Episode | None,
    wait: float,
    asked: bool,
    redact: Redact,
) -> Record:
    """The record of a run that has ended or paused.

    Args:
        session: The run.
        status: How it ended.
        error: What it raised, if anything.
        ended: When.
        earlier: The interrupted or failed episode that it goes on with, if any.
        wait: Seconds until it counts towards K.
        asked: Whether a reward callable is to judge it.
        redact: The user's filter; every text passes through it.
    """
    plan, recorder, clean = session.plan, session.recorder, cleaner(redact)
    again = (again_step(earlier, plan.resume, clean),) if earlier else ()
    steps = _steps(recorder, clean)
    has_output, interrupted = recorder.output is not None, status == "interrupted"
    output, name = shortened_and_named(recorder.output, VALUE_CHARS, clean) if has_output else ("", "")
    known = {
        "task_key": plan.task_key or (earlier.task_key if earlier else ""),
        "run_ids": _unique([*(earlier.run_ids if earlier else ()), session.run_id]),
        "output": output,
        "metadata": _metadata(plan.metadata, clean),
        "status": status,
        "error": _described(error, clean) if status == "failed" else "",
        "instructions": briefing(list(recorder.steps.values()), session.block, clean)
        or (earlier.instructions if earlier else ""),
        "trajectory": (*(earlier.trajectory if earlier else ()), *again, *steps),
        "exposures": session.choice.exposures,
        "ended_at": None if interrupted else ended,
    }
    episode = earlier.model_copy(update=known) if earlier else Episode(**_begun(session, clean), **known)
    return Record(
        episode=episode,
        checkpoint_ns=plan.checkpoint_ns,
        ready_at=None if interrupted else (ended.timestamp() + wait if wait else 0.0),
        asked=asked,
        aliases=_unique(
            [*recorder.message_ids, *_answers(recorder.output), name, *(step.run_id for step in steps), *_place(plan)]
        ),
    )


def _begun(session: Session, clean: Callable[[str], str]) -> dict[str, Any]:
    """What an episode has from its first run on."""
    plan = session.plan
    return {
        "id": session.episode_id,
        "root_run_id": plan.root_run_id or session.run_id,
        "parent_id": plan.parent_id,
        "agent": plan.spec.agent,
        "namespace": plan.namespace,
        "read": plan.read,
        "thread_id": plan.thread_id,
        "principal": plan.principal,
        "task": clean(plan.task),
        "input": shortened(plan.graph_input, VALUE_CHARS, clean),
        "reference": shortened(plan.reference, VALUE_CHARS, clean) if plan.reference is not None else "",
        "started_at": session.started,
    }


def cleaner(redact: Redact) -> Callable[[str], str]:
    """What every text passes through: the user's filter, then what no database can hold is replaced."""

    def clean(text: str) -> str:
        if redact is not None:
            text = redact(text)
            if not isinstance(text, str):
                raise TypeError(f"redact returned {type(text).__name__}; it must return the text to keep")
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()
        return text.replace("\0", "\ufffd")

    return clean


def _steps(recorder: Recorder, clean: Callable[[str], str]) -> tuple[Step, ...]:
    """What was noted as text, in the order in which it started.

    System text is left out: the reflector must neither learn an agent's own prompt nor its lessons again.
    """
    seen: set[Any] = set()
    return tuple(_step(noted, seen, clean) for noted in list(recorder.steps.values()))


def again_step(earlier: Episode, resume: tuple[Any, ...] | None, clean: Callable[[str], str]) -> Step:
    """How a run went on: with which answer after an interrupt; after a failure with its error, unless a step has it."""
    if earlier.status == "failed":
        told = any(step.error == earlier.error for step in earlier.trajectory)
        return Step(kind="retry", input="the run was started again", error="" if told else earlier.error)
    value = resume[0] if resume else None
    return Step(kind="resume", input="" if value is None else shortened(value, STEP_CHARS, clean))


def _described(error: BaseException | str | None, clean: Callable[[str], str]) -> str:
    """An error as `Type: message`."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}" if error is not None else ""
    return shortened(text, STEP_CHARS, clean) if text else ""


def _step(noted: Noted, seen: set[Any], clean: Callable[[str], str]) -> Step:
    given = _given(noted.input, seen)
    if isinstance(noted.output, list):
        seen.update(message_key(m) for m in noted.output if is_a(m, BaseMessage))
    output = _text(noted.output)
    return Step(
        kind=noted.kind,
        name=noted.name,
        node=str(noted.node),
        depth=str(noted.place).count("|"),
        input=shortened(given, STEP_CHARS, clean) if given not in (None, "") else "",
        output=shortened(output, STEP_CHARS, clean) if output not in (None, "") else "",
        error=_described(noted.error, clean) if noted.error is not None else "",
        run_id=str(noted.run_id),
        started_at=datetime.fromtimestamp(noted.started, UTC),
        seconds=max(0.0, (noted.ended or noted.began) - noted.began),
        input_tokens=noted.usage[0],
        output_tokens=noted.usage[1],
        truncated=noted.kind == "model" and _truncated(noted.output),
    )


def _truncated(output: Any) -> bool:
    """Whether a model's answer ends because of a limit of tokens, as providers say it."""
    last = output[-1] if isinstance(output, list) and output else None
    told = vars(last).get("response_metadata") if is_a(last, BaseMessage) else None
    if not told:
        return False
    details = told.get("incomplete_details")
    reasons = [told.get(name) for name in _REASONS] + [details.get("reason") if isinstance(details, dict) else None]
    return any(isinstance(reason, str) and reason.lower() in _CUT_OFF for reason in reasons)


def _given(value: Any, seen: set[Any]) -> Any:
    """What went in; of a model's messages only those that no earlier call had."""
    if isinstance(value, list) and value and is_a(value[0], BaseMessage):
        keys = [m.id or id(m) for m in value]
        fresh = [m for m, key in zip(value, keys, strict=True) if key not in seen]
        seen.update(keys)
        return "\n".join(message_line(m) for m in fresh if not is_a(m, SystemMessage))
    return value


def _text(value: Any) -> Any:
    if isinstance(value, list) and value and is_a(value[0], BaseMessage):
        return "\n".join(message_line(m) for m in value)
    if is_a(value, BaseMessage):
        return message_line(value).partition(": ")[2]
    return value


def _metadata(metadata: Mapping[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    kept = {k: v for k, v in metadata.items() if not str(k).startswith(("__", "langgraph_", "ls_"))}
    found: dict[str, Any] = cleaned(plain(kept), clean)
    return found


def cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """JSON data with every text in it cleaned."""
    if isinstance(value, str):
        return clip(clean(value), STEP_CHARS)
    if isinstance(value, dict):
        return {clean(k): cleaned(v, clean) for k, v in value.items()}
    return [cleaned(v, clean) for v in value] if isinstance(value, list) else value


def _answers(output: Any) -> list[str]:
    """Ids of the answers in a state, for those that got theirs only there."""
    return [message.id for message in messages_in(output) if message.id and message.type in ("ai", "tool")]


def _place(plan: Plan) -> list[str]:
    """The name of a practice's rollout."""
    return [plan.slot.alias] if plan.slot is not None else []


def _unique(items: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for item in items if item))
