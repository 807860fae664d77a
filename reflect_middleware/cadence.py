"""The rule that says when a reflection is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from reflect_middleware.errors import ConfigurationError


@runtime_checkable
class Cadence(Protocol):
    """Any object with these two; `EveryEpisodes` is the one for every K episodes."""

    @property
    def batch(self) -> int:
        """Most episodes that one reflection reads, at least 1."""

    def due(self, ready: int) -> bool:
        """Whether a reflection is due with this many ready episodes in the namespace."""


@dataclass(frozen=True, slots=True)
class EveryEpisodes:
    """A reflection after every `k` ready episodes of a namespace."""

    k: int

    @property
    def batch(self) -> int:
        """Most episodes that one reflection reads."""
        return self.k

    def due(self, ready: int) -> bool:
        """Whether `k` episodes are ready."""
        return ready >= self.k


def cadence(every: Any) -> Cadence:
    """Check an `every=` argument: a whole number from 1 on, or a Cadence.

    Raises:
        ConfigurationError: If it is neither.
    """
    if isinstance(every, int) and not isinstance(every, bool):
        if every >= 1:
            return EveryEpisodes(every)
    elif isinstance(every, Cadence):
        return every
    raise ConfigurationError("every", every, "a whole number of episodes from 1 on, or a Cadence", "The default is 5.")
