"""What works here and what does not: brings the facts that `advice.py` judges."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from reflect_middleware import advice
from reflect_middleware.embed import PROBE
from reflect_middleware.errors import LedgerError
from reflect_middleware.filling import Difference
from reflect_middleware.finding import Finding
from reflect_middleware.frozen import findings
from reflect_middleware.registry import shown
from reflect_middleware.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.frozen import FrozenCore
    from reflect_middleware.health_table import HealthTable

__all__ = ["Finding", "examine"]
NAMESPACES = 20
"""Of so many namespaces the store is compared with the ledger."""
SETTLE_SECONDS = 5.0
"""How long the store may take to get in step before it is compared."""
Check = Callable[["Core"], Iterable[Finding]]


def examine(core: Core, *, mend: bool = False) -> tuple[Finding, ...]:
    """Check everything that can be checked without asking a chat model. Opens what it checks.

    Args:
        core: Of the Reflection.
        mend: First make the store what the ledger says.
    """
    if core.frozen:
        return findings(cast("FrozenCore", core))
    core.counters.settle(core.options.exit_timeout)
    found = _checked(core, "ledger", _ledger)
    for name, check in HERE:
        found += _checked(core, name, partial(_store, mend=True) if mend and check is _store else check)
    if found[0].ok or found[0].facts:  # else it cannot be read, which is said once
        for name, check in IN_THE_LEDGER:
            found += _checked(core, name, check)
    return tuple(found)


def _checked(core: Core, name: str, check: Check) -> list[Finding]:
    try:
        return list(check(core))
    except Exception as error:  # noqa: BLE001 - whatever is wrong is the finding
        return [Finding(check=name, level="problem", message=f"{type(error).__name__}: {error}")]


def _health(core: Core) -> HealthTable:
    return core.parts.ledger.health


def _ledger(core: Core) -> Iterable[Finding]:
    place, database = _health(core).place(), core.parts.ledger.database
    free = None
    if database.is_sqlite and (folder := Path(database.url.partition(":///")[2]).parent).is_dir():
        free = shutil.disk_usage(folder).free
    yield advice.ledger(
        database.url_shown,
        mode=place.mode,
        schema=place.schema,
        expected=SCHEMA_VERSION,
        size=place.bytes,
        paused=place.paused,
        free=free,
    )


def _embedder(core: Core) -> Iterable[Finding]:
    embedder, ledger = core.parts.embedder, core.parts.ledger
    dimensions = len(embedder.embed_query(PROBE))
    known_as, made_by, last = embedder.name, dict[str, int](), ""
    with contextlib.suppress(LedgerError):  # which has a finding of its own
        known_as = embedder.id
        made_by, last = _health(core).lacking(known_as), ledger.moves.last().embedder
    yield advice.vectors(known_as, dimensions, made_by, name=embedder.name, indexed=last)


def _store(core: Core, *, mend: bool = False) -> Iterable[Finding]:
    index, ledger = core.parts.index, core.parts.ledger
    held = index.open()
    index.lane.wait_idle(SETTLE_SECONDS)
    spaces = ledger.lessons.namespaces() if index.is_open else ()
    mended = sum((index.mend(space) for space in spaces), Difference()) if mend else None
    found = {space: index.compare(space) for space in spaces[:NAMESPACES]}
    yield advice.store(
        repr(shown(index.spec)),
        index.describe(),
        held=held,
        behind={space: x.missing + x.superfluous for space, x in found.items()},
        wrong=sum(x.wrong for x in found.values()),
        mended=None if mended is None else (mended.missing, mended.superfluous, mended.wrong),
        moved="" if index.exact or shown(index.spec) == ledger.lessons.store else ledger.lessons.store,
    )


def _model(core: Core) -> Iterable[Finding]:
    if core.options.model is None and core.options.reflector is None:
        said = "none: episodes are recorded, nothing is reflected on until a Reflection has a model"
    else:
        said = f"{core.options.reflector or core.options.model!r:.80} (not asked here)"
    yield Finding(check="model", message=said)


def _spool(core: Core) -> Iterable[Finding]:
    waits = core.keeper.outage.waiting()
    yield advice.spool(waits.count, waits.oldest, waits.dropped)


def _episodes(core: Core) -> Iterable[Finding]:
    from reflect_middleware.health_table import SAMPLE

    found = _health(core).episodes()
    yield advice.episodes(
        total=found.total,
        waiting=found.waiting,
        oldest=None if found.oldest is None else _since(found.oldest),
        interrupted=found.interrupted,
        dead=found.dead,
        reason=found.dead_reason,
        sampled_out=found.sampled_out,
        of=min(SAMPLE, found.total),
    )


def _reflections(core: Core) -> Iterable[Finding]:
    table = _health(core)
    done, failed = table.newest_reflection("done"), table.newest_reflection("failed")
    yield advice.reflections(
        done=None if done is None else _since(done[0]),
        failed=None if failed is None else _since(failed[0]),
        reason="" if failed is None else failed[1].error,
        running=[(row.namespace, row.owner, row.lease) for row in table.running()],
    )


def _resting(core: Core) -> Iterable[Finding]:
    yield advice.resting([(row.namespace, row.failures, row.seconds) for row in _health(core).resting()])


def _lessons(core: Core) -> Iterable[Finding]:
    found = _health(core).lessons()
    yield advice.lessons(found.by_status, found.needs_review, approval=core.options.approval)


def _prompt(core: Core) -> Iterable[Finding]:
    from reflect_middleware.health_table import SAMPLE

    limits = core.options.limits
    never = _health(core).never_shown()
    yield advice.prompt(never, top_k=limits.top_k, token_budget=limits.token_budget, of=SAMPLE)


def _rewards(core: Core) -> Iterable[Finding]:
    found = _health(core).delays()
    yield advice.rewards(found.late, found.seconds, reward_wait=core.options.reward_wait)


def _tokens(core: Core) -> Iterable[Finding]:
    yield advice.tokens(_health(core).spent(datetime.now(UTC).date().isoformat()), core.options.daily_tokens)


def _backup(core: Core) -> Iterable[Finding]:
    from reflect_middleware.backup import FOLDER, backups

    if core.parts.ledger.database.file is not None:
        kept = backups(core.options.path / FOLDER)
        newest = _since(kept[0].stat().st_mtime) if kept else None
        yield advice.backup(newest, kept=len(kept), episodes=_health(core).episodes().total)


def _failures(core: Core) -> Iterable[Finding]:
    for name, found in sorted(_health(core).counts().items()):
        yield advice.failure(name, found.count, found.last, _since(found.at))


def _since(at: float) -> float:
    return time.time() - at


HERE: tuple[tuple[str, Check], ...] = (
    ("embedder", _embedder),
    ("store", _store),
    ("model", _model),
    ("spool", _spool),
)
"""What this process uses."""
IN_THE_LEDGER: tuple[tuple[str, Check], ...] = (
    ("episodes", _episodes),
    ("reflections", _reflections),
    ("back-off", _resting),
    ("tokens", _tokens),
    ("lessons", _lessons),
    ("prompt", _prompt),
    ("rewards", _rewards),
    ("backup", _backup),
    ("failures", _failures),
)
"""What the ledger knows of all processes."""
