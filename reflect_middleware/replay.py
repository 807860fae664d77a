"""Writing to the ledger what has waited. Doing it twice, or in several processes at once, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reflect_middleware.episodes_table import Record
from reflect_middleware.errors import TargetError
from reflect_middleware.recording import again_step
from reflect_middleware.spool import Entry, Given, Opened, Run
from reflect_middleware.types import Episode, Reward

if TYPE_CHECKING:
    from reflect_middleware.ledger import Ledger

Decided = Callable[[Episode, Any], tuple[Reward, ...]]
"""The reviewer's decisions in an answer, as `(answer,)`, to what an interrupted episode had asked."""
Seen = Callable[[Episode], tuple[Reward, ...]]
"""What an ended episode says of itself."""


def write(ledger: Ledger, entry: Entry, decided: Decided, seen: Seen) -> tuple[Episode, ...]:
    """Write what waited; gives the episodes that it is about.

    Raises:
        TargetError: If a reward's target is unknown, now that the ledger can say so.
        LedgerError: If the ledger cannot be written.
    """
    match entry.item:
        case Run() as run:
            return (_write_run(ledger, run, decided, seen),)
        case Given() as given:
            return ledger.episodes.many(_give(ledger, given, entry.at))
        case Opened() as opened:
            ledger.episodes.open_for_reflection(opened.episode_id, opened.ready_at)
            return ledger.episodes.many([opened.episode_id])


def usable(found: Sequence[Episode]) -> Episode | None:
    """The episode that a run goes on with; it is a new one if that was purged, or has been reflected on."""
    return next((e for e in found if e.status == "interrupted" or not (e.reflection_id or e.dead_letter)), None)


def joined(earlier: Episode, part: Episode, answer: tuple[Any, ...] | None) -> Episode:
    """An episode and its rest, which was recorded while the ledger could not be read."""
    again = again_step(earlier, answer, str)
    return earlier.model_copy(
        update={
            name: getattr(part, name) for name in ("output", "metadata", "status", "error", "exposures", "ended_at")
        }
        | {
            "task_key": part.task_key or earlier.task_key,
            "run_ids": tuple(dict.fromkeys([*earlier.run_ids, *part.run_ids])),
            "trajectory": (*earlier.trajectory, again, *part.trajectory),
        }
    )


def _write_run(ledger: Ledger, run: Run, decided: Decided, seen: Seen) -> Episode:
    record = _whole(ledger, run, decided, seen) if run.part else run.record
    if record is None:
        return ledger.episodes.many(ledger.episodes.resolve(run.record.episode.id))[0]
    ledger.episodes.put(record, again=True)
    return record.episode


def _whole(ledger: Ledger, run: Run, decided: Decided, seen: Seen) -> Record | None:
    """The record together with what came before it; None if it is written."""
    part, episodes = run.record.episode, ledger.episodes
    if episodes.resolve(part.id):
        return None
    if run.earlier:
        found = episodes.many([run.earlier])
    else:
        open_one = episodes.interrupted(part.agent, part.thread_id, run.record.checkpoint_ns)
        found = () if open_one is None else (open_one,)
    if (earlier := usable(found)) is None:
        return run.record
    answer = (run.answer,) if run.answered else None
    whole = joined(earlier, part, answer)
    return replace(run.record, episode=whole, rewards=(*seen(whole), *decided(earlier, answer)))


def _give(ledger: Ledger, given: Given, at: float) -> list[str]:
    """Give a reward to the episodes that are meant; gives their ids."""
    episodes, found = ledger.episodes, list[str]()
    if given.thread_id:
        latest = episodes.latest(given.thread_id, given.namespace, before=at)
        found = [] if latest is None else [latest]
    for name in given.names:
        found = episodes.resolve(name)
        if len(found) > 1 and name.startswith("out:"):
            raise TargetError(f"{len(found)} runs gave the result that a reward was given to; it is dropped.")
        if found:
            break
    for episode_id in found:
        episodes.reward(episode_id, given.reward, given_at=at)
    if found or given.unknown:
        return found or episodes.reward_later(given.names[0], given.reward, given_at=at)
    raise TargetError(
        f"A reward was given to {given.thread_id or given.names!r}, which names no episode; it is dropped."
    )
