"""Reading trajectories of hours: the model takes notes, segment by segment, before it is asked for lessons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reflect_middleware.answer import without_thoughts
from reflect_middleware.errors import ReflectorError
from reflect_middleware.fit import Rollout
from reflect_middleware.prompts import NOTES
from reflect_middleware.segments import Note, Segment, chosen, note, note_chars, segments

if TYPE_CHECKING:
    from collections.abc import Collection

    from langchain_core.messages import BaseMessage

    from reflect_middleware.batch import Batch

Invoke = Callable[["list[BaseMessage]"], "BaseMessage"]
"""Messages to the model's reply; raises what the model raises."""

CHARS = 6
"""Characters of a word and the space after it, on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was noted, and what it took."""

    notes: Mapping[str, tuple[Note, ...]] = field(default_factory=dict)
    """By the episode's handle."""
    calls: int = 0
    prompt: str = ""
    """What was asked, once, and for each call which steps it was asked of; the steps are in the episode."""
    raw: str = ""
    """The model's own words."""
    input_tokens: int = 0
    output_tokens: int = 0
    error: Exception | None = None
    """What the model raised; nothing was read after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How much may be read."""

    budget: int
    """Most tokens of one prompt."""
    count: Callable[[str], int]
    most: int
    """Most calls."""

    def read(self, batch: Batch, ids: Collection[str], invoke: Invoke) -> Reading:
        """Notes on the segments of these episodes, as far as calls and the day's tokens allow."""
        most = self._calls(batch)
        long = {handle: episode for handle, episode in batch.episode_handles.items() if episode.id in ids}
        if not long or most < 1:
            return Reading()
        room = self.budget - self.count(NOTES)
        parts = {handle: segments(Rollout.of(handle, episode), room, self.count) for handle, episode in long.items()}
        wanted = chosen(parts, most)
        limit = note_chars(self.budget, len(wanted))
        question = NOTES.format(words=limit // CHARS)
        so_far = Reading(prompt=question)
        for segment in wanted:
            if batch.released():
                return replace(so_far, error=ReflectorError("The batch was given back while it was read."))
            try:
                so_far = self._noted(so_far, segment, question, limit, invoke)
            except Exception as error:  # noqa: BLE001 - any model, any provider; the batch goes back
                return replace(so_far, error=error)
        return so_far

    def _calls(self, batch: Batch) -> int:
        """How many calls there may be, if the last question is still to be asked and answered."""
        if batch.tokens_left is None:
            return self.most
        return min(self.most, (batch.tokens_left - 2 * self.budget) // self.budget)

    def _noted(self, so_far: Reading, segment: Segment, question: str, limit: int, invoke: Invoke) -> Reading:
        from langchain_core.messages import HumanMessage, SystemMessage

        reply = invoke([SystemMessage(question), HumanMessage(segment.text)])
        said = without_thoughts(str(reply.text))
        usage = used(reply)
        if not any(usage):
            usage = self.count(f"{question}\n{segment.text}"), self.count(said)
        notes = (*so_far.notes.get(segment.handle, ()), note(segment, said, limit))
        return Reading(
            notes={**so_far.notes, segment.handle: notes},
            calls=so_far.calls + 1,
            prompt=f"{so_far.prompt}\n{segment.place}",
            raw=f"{so_far.raw}{segment.place}\n{said}\n",
            input_tokens=so_far.input_tokens + usage[0],
            output_tokens=so_far.output_tokens + usage[1],
        )


def used(reply: BaseMessage) -> tuple[int, int]:
    """Tokens read and written, as the provider says; zeros where it says nothing."""
    usage = getattr(reply, "usage_metadata", None) or {}
    return int(usage.get("input_tokens") or 0), int(usage.get("output_tokens") or 0)
