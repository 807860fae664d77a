"""What works here and what does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from reflect_middleware.types import Frozen

if TYPE_CHECKING:
    from reflect_middleware.core import Core


class Finding(Frozen):
    """One checked thing."""

    check: str
    ok: bool
    message: str
    """What was found, and what to do where it is not ok."""


def examine(core: Core) -> tuple[Finding, ...]:
    """Check ledger, embedder, store, model and what has failed so far. Opens what it checks; asks no chat model."""
    checks: tuple[tuple[str, Callable[[Core], str]], ...] = (
        ("ledger", _ledger),
        ("embedder", _embedder),
        ("store", _store),
        ("model", _model),
    )
    core.counters.settle(None)
    found = [_checked(core, name, check) for name, check in checks]
    if found[0].ok:
        found += [
            Finding(
                check=f"failures: {name}", ok=False, message=f"{x.count} so far, the last {_ago(x.at)} ago: {x.last}"
            )
            for name, x in sorted(core.parts.ledger.health.counts().items())
        ]
    return tuple(found)


def _checked(core: Core, name: str, check: Callable[[Core], str]) -> Finding:
    try:
        return Finding(check=name, ok=True, message=check(core))
    except Exception as error:  # noqa: BLE001 - whatever is wrong is the finding
        return Finding(check=name, ok=False, message=f"{type(error).__name__}: {error}")


def _ledger(core: Core) -> str:
    ledger = core.parts.ledger
    waiting = len(ledger.episodes.find(waiting=True, limit=None))
    state = "paused" if ledger.lessons.paused() else "running"
    return f"{ledger.database.url_shown}; {state}; {waiting} episodes wait for a reflection"


def _embedder(core: Core) -> str:
    vector = core.parts.embedder.embed_query("a probe sentence")
    return f"{core.parts.embedder.id}, {vector.shape[0]} dimensions"


def _store(core: Core) -> str:
    core.parts.index.open()
    return f"{core.options.store!r}; searches go over {core.parts.index.describe()}"


def _model(core: Core) -> str:
    if core.options.model is None and core.options.reflector is None:
        return "none: episodes are recorded, nothing is reflected on until a Reflection has a model"
    return f"{core.options.reflector or core.options.model!r:.80} (not asked here)"


def _ago(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"  # noqa: PLR2004 - two minutes
