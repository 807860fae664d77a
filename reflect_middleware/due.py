"""What may be reflected on now, what must wait, and for how long. Pure: no clock, no database."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from reflect_middleware.cadence import Backlog, Cadence
from reflect_middleware.errors import ConfigurationError, LedgerError
from reflect_middleware.types import Episode, EpisodeStatus, Namespace

BACK_OFF = (5.0, 600.0)
"""Seconds after a failed reflection before the namespace is tried again: doubled each time, from and to."""
_BUSY = (401, 402, 403, 407, 408, 409, 425, 429)
"""HTTP statuses, beside those from 500 on, that speak of the provider or the account and not of what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one namespace stands, as the ledger says."""

    namespace: Namespace
    backlog: Backlog
    owed: bool = False
    """Whether a reflection of it was cut off by the end of its process."""
    next_ready: float | None = None
    """Seconds until the next episode has waited long enough for its reward; None if none waits."""
    rests: float = 0.0
    """Seconds that it rests after a failed reflection; 0 if it does not."""
    held: float = 0.0
    """Seconds that a reflection under way may hold it, unless it renews its claim; 0 if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What all processes on a ledger may use together. None: no limit."""

    daily_tokens: int | None = None
    """Tokens of reflections, read and written, in a day of UTC."""
    at_once: int | None = None
    """Reflections under way."""
    per_minute: int | None = None
    """Reflections begun within 60 seconds."""


def is_due(standing: Standing, cadence: Cadence) -> bool:
    """Whether a reflection of this namespace may begin: one is due, nothing rests and none is under way."""
    free = not standing.rests and not standing.held
    return free and _wanted(standing, cadence)


def look_again(standing: Standing, cadence: Cadence) -> float | None:
    """Seconds after which to look again though nothing is added; None if time alone changes nothing."""
    times = [0.0] if _wanted(standing, cadence) else [cadence.next_look(standing.backlog), standing.next_ready]
    if standing.held:
        times.append(standing.held)  # its process may die, and the episodes come back
    known = [at for at in times if at is not None]
    return max(min(known), standing.rests, standing.held) if known else None


def rest_after(failures: int) -> float:
    """Seconds of rest after so many failed reflections in a row, at least one."""
    first, most = BACK_OFF
    return min(first * 2.0 ** min(failures - 1, 60), most)


def lot(episode: Episode, seed: int | None) -> str:
    """What an episode draws with: its id, or under a seed what it did, because ids differ from run to run."""
    return episode.id if seed is None else f"{seed}\n{episode.task}\n{episode.output}"


def counts(status: EpisodeStatus, lot: str, *, rewarded: bool, sample: float) -> bool:
    """Whether an ended episode counts towards K: a share of the successes that nobody has judged, and all others.

    The same lot always draws the same number, whoever asks.
    """
    if status != "completed" or rewarded or sample >= 1:
        return True
    drawn = hashlib.blake2b(lot.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(drawn, "big") < sample * 2**64


def day_of(at: float) -> str:
    """The day of UTC at a time (epoch seconds), as 2026-11-22."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def until_tomorrow(at: float) -> float:
    """Seconds from a time (epoch seconds) until the next day of UTC begins."""
    now = datetime.fromtimestamp(at, UTC)
    return (datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC) - now).total_seconds()


def blameless(error: BaseException) -> bool:
    """Whether a failed reflection says nothing about its episodes: the provider was away, busy or refused the account.

    Such a failure counts as no try: an outage must not use up the tries of all that was recorded meanwhile.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        status = getattr(cause, "status_code", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status in _BUSY or status >= 500  # noqa: PLR2004 - HTTP's server errors
        if isinstance(cause, _OURS) or type(cause).__name__ in _TRANSPORT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


_OURS = (ConnectionError, TimeoutError, ConfigurationError, LedgerError)
_TRANSPORT = {
    *("APIConnectionError", "APITimeoutError", "ConnectError", "ConnectTimeout", "ReadError", "ReadTimeout"),
    *("RemoteProtocolError", "ServiceUnavailable", "TooManyRequests", "ResourceExhausted", "DeadlineExceeded"),
    *("EndpointConnectionError", "ThrottlingException"),
}
"""Names of errors that providers' clients raise for the same, without a status and with a base of their own."""


def _wanted(standing: Standing, cadence: Cadence) -> bool:
    return standing.backlog.ready > 0 and (standing.owed or cadence.due(standing.backlog))
