"""What a run says of itself, its user of the run before, and a reviewer of a run that waited for one.

Looked for by the thread that writes the ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflect_middleware.decisions import PREFIX, asked_in, numbered, rewards_of
from reflect_middleware.hints import HEARD, heard_in, seen_in
from reflect_middleware.render import last_said
from reflect_middleware.reward import rewards_in
from reflect_middleware.types import Episode, Reward

if TYPE_CHECKING:
    from reflect_middleware.core import Core
    from reflect_middleware.session import Plan


def seen(core: Core, episode: Episode) -> tuple[Reward, ...]:
    """The signs in a run that has ended; a failure costs these and not the record."""
    try:
        return seen_in(episode, core.options.signals)
    except Exception as error:  # noqa: BLE001 - boundary to the user's run
        core.failed("signals", error)
        return ()


def heard(core: Core, plan: Plan) -> tuple[Reward, ...]:
    """What the user's message, with which a run begins, says of the run before it in the thread."""
    names = core.options.signals
    if not plan.thread_id or plan.parent_id or plan.resume is not None or not any(name in names for name in HEARD):
        return ()

    def clean(text: str) -> str:
        from reflect_middleware.recording import cleaner

        return cleaner(core.options.redact)(text)

    try:
        return heard_in(last_said(plan.graph_input), names, clean)
    except Exception as error:  # noqa: BLE001 - boundary to the user's run
        core.failed("signals", error)
        return ()


def decided(core: Core, earlier: Episode, resume: tuple[Any, ...] | None) -> tuple[Reward, ...]:
    """The reviewer's decisions with which an interrupted run went on."""
    if not resume or resume[0] is None:
        return ()
    asked, custom = asked_in(earlier), core.options.decision
    try:
        if custom is None:
            found = rewards_of(asked, resume[0])
        else:
            answer = custom([value for _, value in asked], resume[0])
            found = rewards_in(answer, source="user", key=f"{PREFIX}custom")
        return numbered([core.keeper.cleaned(reward) for reward in found], earlier.rewards)
    except Exception as error:  # noqa: BLE001 - the user's callables
        core.failed("decision", error)
        return ()
