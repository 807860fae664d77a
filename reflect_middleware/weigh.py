"""Before a reflection: what can be said of the episodes that nobody has rewarded, by comparing them, by the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from reflect_middleware.assess import assess, unjudged
from reflect_middleware.hints import agreement
from reflect_middleware.reflect import Answer, ModelReflector
from reflect_middleware.types import Episode, Reward

if TYPE_CHECKING:
    from reflect_middleware.batch import Batch
    from reflect_middleware.core import Core

MARK = "\n\n--- then the reflection ---\n\n"


def weighed(core: Core, reflection_id: str, batch: Batch, model: Callable[[], ModelReflector]) -> tuple[Batch, Answer]:
    """The batch with what was found out, which is in the ledger then; and what asking the model took.

    A failure is noted: the reflection goes on without it.
    """
    if "agreement" in core.options.signals:
        try:
            agreed = {name: (reward,) for name, reward in agreement(batch.episodes).items()}
            batch = _noted(core, reflection_id, batch, agreed)
        except Exception as error:  # noqa: BLE001 - the reflection goes on without it
            core.failed("signals", error)
    return _assessed(core, reflection_id, batch, model) if core.options.assess else (batch, Answer())


def joined(first: Answer, then: Answer) -> Answer:
    """Both as one: what was asked, said and used in all."""
    if not first.prompt:
        return then
    return replace(
        then,
        prompt=MARK.join(filter(None, (first.prompt, then.prompt))),
        raw=MARK.join(filter(None, (first.raw, then.raw))),
        input_tokens=first.input_tokens + then.input_tokens,
        output_tokens=first.output_tokens + then.output_tokens,
        note="; ".join(filter(None, (first.note, then.note))),
    )


def _assessed(
    core: Core, reflection_id: str, batch: Batch, model: Callable[[], ModelReflector]
) -> tuple[Batch, Answer]:
    options, asked, answer = core.options, unjudged(batch.episodes), Answer()
    if not asked:
        return batch, answer
    try:
        done = assess(asked, model().reply, budget_tokens=options.reflector_budget, count_tokens=options.count_tokens)
        answer = done.answer
        rewards = {name: (core.keeper.cleaned(reward),) for name, reward in done.rewards.items()}
        batch = _noted(core, reflection_id, batch, rewards)
    except Exception as error:  # noqa: BLE001 - the reflection goes on without it
        core.failed("assess", error)
    return batch, answer


def _noted(core: Core, reflection_id: str, batch: Batch, given: Mapping[str, tuple[Reward, ...]]) -> Batch:
    """Write rewards, and read what stands then."""
    if not given:
        return batch
    table = core.parts.ledger.episodes
    table.note(reflection_id, given)
    standing = table.rewards(given)

    def now(episode: Episode) -> Episode:
        return episode.model_copy(update={"rewards": tuple(standing.get(episode.id, episode.rewards))})

    return replace(batch, episodes=tuple(map(now, batch.episodes)))
