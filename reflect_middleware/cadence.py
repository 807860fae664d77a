"""The rules that say when a reflection is due. They look at a namespace's backlog and at nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from reflect_middleware.errors import ConfigurationError

DEFAULT_BATCH = 20
"""Most episodes of one reflection where no rule names a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The ready episodes of one namespace, as far as rules need to know them."""

    ready: int = 0
    """How many there are; counted up to 1,000 or the cadence's batch, whichever is more."""
    oldest: float = 0.0
    """Seconds since the oldest of them ended; 0 without any."""
    failures: int = 0
    """How many of the newest, in a row, failed or have a reward below 0.5; counted up to the cadence's `streak`."""
    closing: bool = False
    """Whether the Reflection is being closed."""


@runtime_checkable
class Cadence(Protocol):
    """When a reflection is due. Subclass it: `batch` and `due` are needed, the rest has defaults.

    Rules combine: `EveryEpisodes(5) | AfterSeconds(3600)` is due when one of them is, `&` when both are.
    """

    @property
    def batch(self) -> int:
        """Most episodes that one reflection reads, at least 1."""

    def due(self, backlog: Backlog) -> bool:
        """Whether a reflection of this backlog is due."""

    def next_look(self, backlog: Backlog) -> float | None:
        """Seconds after which this backlog may be due though nothing is added to it; None if time changes nothing."""
        return None

    @property
    def streak(self) -> int:
        """How many of the newest episodes are looked at for `Backlog.failures`; each costs a look at its rewards."""
        return 0

    @property
    def closes(self) -> bool:
        """Whether it wants to be asked when the Reflection is closed."""
        return False

    def __or__(self, other: Cadence) -> Cadence:
        return AnyOf((self, other))

    def __and__(self, other: Cadence) -> Cadence:
        return AllOf((self, other))


@dataclass(frozen=True)
class EveryEpisodes(Cadence):
    """A reflection after every `k` ready episodes of a namespace."""

    k: int

    def __post_init__(self) -> None:
        _whole("EveryEpisodes", self.k)

    @property
    def batch(self) -> int:
        """Most episodes that one reflection reads."""
        return self.k

    def due(self, backlog: Backlog) -> bool:
        """Whether `k` episodes are ready."""
        return backlog.ready >= self.k


class _Unsized(Cadence):
    """A rule that does not say how many episodes a reflection reads."""

    @property
    def batch(self) -> int:
        """Most episodes that one reflection reads: 20, unless it is combined with a rule that names a number."""
        return DEFAULT_BATCH


@dataclass(frozen=True)
class AfterSeconds(_Unsized):
    """A reflection once the oldest ready episode ended so many seconds ago, above 0, however few there are."""

    seconds: float

    def __post_init__(self) -> None:
        given: Any = self.seconds
        if not isinstance(given, (int, float)) or isinstance(given, bool) or not 0 < given < float("inf"):
            raise ConfigurationError("AfterSeconds", given, "seconds, a number above 0")

    def due(self, backlog: Backlog) -> bool:
        """Whether the oldest ready episode has waited long enough."""
        return backlog.ready > 0 and backlog.oldest >= self.seconds

    def next_look(self, backlog: Backlog) -> float | None:
        """When the oldest one will have waited long enough."""
        return max(0.0, self.seconds - backlog.oldest) if backlog.ready else None


@dataclass(frozen=True)
class OnFailures(_Unsized):
    """A reflection when the newest `n` ready episodes all failed or have a reward below 0.5."""

    n: int

    def __post_init__(self) -> None:
        _whole("OnFailures", self.n)

    @property
    def streak(self) -> int:
        """The newest `n` are looked at."""
        return self.n

    def due(self, backlog: Backlog) -> bool:
        """Whether the streak is that long."""
        return min(backlog.failures, backlog.ready) >= self.n


@dataclass(frozen=True)
class OnClose(_Unsized):
    """A reflection on all that has ended when the Reflection is closed, within its `exit_timeout`.

    With `run="external"` nothing closes: a worker has no part in the end of your process.
    """

    @property
    def closes(self) -> bool:
        """It does."""
        return True

    def due(self, backlog: Backlog) -> bool:
        """Whether this is the end, and something is there."""
        return backlog.closing and backlog.ready > 0


@dataclass(frozen=True)
class _Several(Cadence):
    """What `|` and `&` have in common."""

    rules: tuple[Cadence, ...]

    @property
    def batch(self) -> int:
        """The most that a rule names."""
        named = [rule.batch for rule in _flat(self.rules) if not isinstance(rule, _Unsized)]
        return max(named, default=DEFAULT_BATCH)

    @property
    def streak(self) -> int:
        """The longest that a rule needs."""
        return max(rule.streak for rule in self.rules)

    @property
    def closes(self) -> bool:
        """Whether one of them does."""
        return any(rule.closes for rule in self.rules)


@dataclass(frozen=True)
class AnyOf(_Several):
    """Due when one of the rules is. Written `a | b`."""

    def due(self, backlog: Backlog) -> bool:
        """Whether one of them is."""
        return any(rule.due(backlog) for rule in self.rules)

    def next_look(self, backlog: Backlog) -> float | None:
        """The first time that one of them names."""
        return min((at for rule in self.rules if (at := rule.next_look(backlog)) is not None), default=None)


@dataclass(frozen=True)
class AllOf(_Several):
    """Due when all of the rules are. Written `a & b`."""

    def due(self, backlog: Backlog) -> bool:
        """Whether all of them are."""
        return all(rule.due(backlog) for rule in self.rules)

    def next_look(self, backlog: Backlog) -> float | None:
        """The last time that those name which are not due; None if one of them waits for something else."""
        times = [rule.next_look(backlog) for rule in self.rules if not rule.due(backlog)]
        known = [at for at in times if at is not None]
        return max(known) if known and len(known) == len(times) else None


def cadence(every: Any) -> Cadence:
    """Check an `every=` argument: a whole number from 1 on, or a Cadence.

    Raises:
        ConfigurationError: If it is neither.
    """
    if isinstance(every, int) and not isinstance(every, bool):
        if every >= 1:
            return EveryEpisodes(every)
    elif isinstance(every, Cadence) and not isinstance(every, type):
        return every
    raise ConfigurationError("every", every, "a whole number of episodes from 1 on, or a Cadence", "The default is 5.")


def _whole(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(what, value, "a whole number of episodes from 1 on")


def _flat(rules: Sequence[Cadence]) -> list[Cadence]:
    return [leaf for rule in rules for leaf in (_flat(rule.rules) if isinstance(rule, _Several) else [rule])]
