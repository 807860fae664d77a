"""What `reflect doctor` says about what it found: facts in, findings out. Pure; the caller brings the facts.

Here: what the ledger knows of all processes. What this process uses is judged in `advice_here.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reflect_middleware.advice_here import spool, store, vectors
from reflect_middleware.finding import Finding, Level, ago, as_size, percent, rounded, shortened, spelled, worse
from reflect_middleware.types import Namespace

__all__ = [
    "REMEDIES",
    "Finding",
    "Level",
    "ago",
    "backup",
    "episodes",
    "failure",
    "ledger",
    "lessons",
    "prompt",
    "reflections",
    "resting",
    "rewards",
    "spool",
    "store",
    "tokens",
    "vectors",
]

LEAST_DISK = 200 * 2**20
"""Free bytes below which the ledger will soon not be writable."""
LITTLE_DISK = 2**30
LONG_WAIT = 3_600.0
"""Seconds after which an episode that waits says that nobody reflects."""
LATE_SHARE, LATE_LEAST = 0.1, 10
"""From this share of late rewards on, among so many, it is worth while to wait for them."""
RECENT = 86_400.0
"""Seconds for which a failure is a problem; an older one is history."""
BACKUP_AGE = 7 * 86_400.0
REMEDIES: Mapping[str, str] = {
    "assess": "runs were reflected on without the model's judgement (reward='self'): see the check `reflections`",
    "begin": "the run went on unseen: check namespace= and the run's config",
    "checkpoint": "SQLite's log grows meanwhile: see the check `ledger` and its free disk",
    "close": "a process ended before its work was done: see its debug log",
    "consolidate": "lessons stay as they are, and it is tried again: see `reflect reflections list`",
    "decision": "check the callable given as decision=",
    "embed": "lessons without a vector are embedded once the embedder works: check its key, network and name",
    "end": "a run's end was not recorded: please report it with its debug log",
    "inject": "a model call got no lessons: check inject=",
    "namespace": "give these runs the named value in context or configurable, or take the field out of namespace=",
    "ledger": "it was away; what was recorded waits in the spool until it is back: see the checks `ledger` and `spool`",
    "listen": "the run of a RemoteGraph was recorded in part: please report it with its debug log",
    "node": "the visible reflect node started nothing: see the checks `ledger` and `model`",
    "on_reflection": "check the callable given as on_reflection=",
    "progress": "check the callable given as progress= of a practice, which goes on",
    "read": "runs went on without the lessons of a namespace in read=: check the callable that names it",
    "record": "records wait in memory until the ledger takes them: see the check `ledger`, and redact=",
    "reflect": "the batch went back and is tried again: see `reflect reflections list`",
    "retention": "more is kept than retention= says: see the check `ledger`",
    "retrieve": "these runs went on without lessons: see the checks `ledger`, `embedder` and `store`",
    "retrieve.resting": "retrieval rests for 30 s after failures in a row: see the check `failures: retrieve`",
    "retrieve.timeout": "a slow embedder or ledger: raise retrieve_timeout=, or use a local embedder",
    "reward": "check the callable given as reward=: its episodes count without a reward",
    "signals": "runs were recorded without the signs found in them: please report it with its debug log",
    "spool": "an entry could not be written to the ledger: see its debug log",
    "spool full": "entries were lost: mend the ledger, whose outage outlasted the spool's room",
    "store": "searches go over the ledger's vectors meanwhile: see the check `store`",
    "task": "the default text served: check the callable given as task=",
    "worker": "a worker could not use the ledger and goes on trying: see the check `ledger`",
    "waiting for the record": "the ledger was slow: see the check `ledger`",
}
"""What to do about each counter, by its name."""


def ledger(
    url: str, *, mode: str, schema: int, expected: int, size: int, paused: bool, free: int | None = None
) -> Finding:
    """Where the ledger lives and how.

    Args:
        url: Without its password.
        mode: SQLite's journal mode as read back, or the server's version.
        schema: The ledger's version.
        expected: This program's.
        size: Bytes.
        paused: Whether `pause` was called.
        free: Free bytes on its disk; None for a server.
    """
    level: Level = "advice" if paused else "ok"
    said = [url, f"{as_size(size)}, {mode.upper() if url.startswith('sqlite') else mode}, schema {schema}"]
    said.append(
        "PAUSED: runs get no lessons, nothing is reflected on; `reflect resume` ends it" if paused else "running"
    )
    if url.startswith("sqlite") and mode not in ("wal", "memory"):
        level = "problem"
        said.append(
            "not in WAL mode, as on a network file system: use a local disk, or ledger='postgresql+psycopg://…'"
        )
    if schema != expected:
        level = "problem"
        newer = "install the version that wrote it" if schema > expected else "run `reflect migrate`"
        said.append(f"this program expects schema {expected}: {newer}")
    if free is not None and free < LITTLE_DISK:
        level = "problem" if free < LEAST_DISK else worse(level, "advice")
        said.append(f"{as_size(free)} free on its disk: make room, or purge old episodes")
    facts = {"url": url, "mode": mode, "schema": schema, "bytes": size, "free_bytes": free, "paused": paused}
    return Finding(check="ledger", level=level, message="; ".join(said), facts=facts)


def episodes(
    *,
    total: int,
    waiting: int,
    oldest: float | None,
    interrupted: int,
    dead: int,
    reason: str,
    sampled_out: int,
    of: int,
) -> Finding:
    """How many episodes wait, are open, or could not be used.

    Args:
        total: All.
        waiting: Ended, unread.
        oldest: Seconds since the first of those ended.
        interrupted: Open.
        dead: Dead-lettered.
        reason: Of the newest of those.
        sampled_out: Of the newest ones, those that nobody will read unless they are rewarded.
        of: How many of the newest were looked at.
    """
    level: Level = "ok"
    since = "" if oldest is None else f", the first for {ago(oldest)}"
    said = [f"{total:,} recorded; {waiting:,} wait for a reflection{since}; {interrupted:,} interrupted"]
    if sampled_out:
        said.append(f"{percent(sampled_out, of)} of the last {of:,} are sampled out")
    if oldest is not None and oldest > LONG_WAIT:
        level = "advice"
        said.append("nobody reflects: is a process with a model alive, or `reflect worker` for run='external'?")
    if dead:
        level = "advice"
        said.append(f"{dead:,} dead-lettered, the newest because of: {shortened(reason)}; mend that, then retry them")
    facts = {
        "total": total,
        "waiting": waiting,
        "oldest_waiting_seconds": oldest,
        "interrupted": interrupted,
        "dead_lettered": dead,
        "dead_letter_reason": reason,
        "sampled_out": sampled_out,
        "sampled_of": min(of, total),
    }
    return Finding(check="episodes", level=level, message="; ".join(said), facts=facts)


def reflections(
    *, done: float | None, failed: float | None, reason: str, running: Sequence[tuple[Namespace, str, float]]
) -> Finding:
    """How reflecting goes.

    Args:
        done: Seconds since the newest committed one began; None for none.
        failed: The same for the newest one that failed.
        reason: Why it failed.
        running: Namespace, owner, and seconds until the lease ends of each one under way.
    """
    level: Level = "ok"
    said = ["none yet" if done is None else f"the last one {ago(done)} ago"]
    if failed is not None:
        since = done is None or failed < done
        level = "problem" if since and failed < RECENT else "ok"
        said.append(
            f"the last failure {ago(failed)} ago{' and none has succeeded since' if since else ''}: {shortened(reason)}"
        )
    for namespace, owner, lease in running:
        if lease >= 0:
            said.append(f"one under way in {spelled(namespace)} by {owner}, lease for another {ago(lease)}")
        else:
            level = worse(level, "advice")
            said.append(
                f"one in {spelled(namespace)} by {owner}, which died {ago(-lease)} ago: the next one takes over"
            )
    facts = {
        "last_done_seconds": done,
        "last_failed_seconds": failed,
        "last_failure": reason,
        "running": [
            {"namespace": list(namespace), "owner": owner, "lease_seconds": lease}
            for namespace, owner, lease in running
        ],
    }
    return Finding(check="reflections", level=level, message="; ".join(said), facts=facts)


def lessons(by_status: Mapping[str, int], needs_review: int, *, approval: str) -> Finding:
    """How many lessons there are."""
    counts = {status: by_status.get(status, 0) for status in ("active", "candidate", "retired")}
    said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    waits = counts["candidate"] > 0 and approval == "human"
    if needs_review:
        said += f"; {needs_review:,} to be looked at again by the next reflection, since a reward came later"
    if waits:
        said += "; candidates wait for `reflect lessons approve`"
    facts = counts | {"needs_review": needs_review}
    return Finding(check="lessons", level="advice" if waits else "ok", message=said, facts=facts)


def prompt(never: Sequence[str], *, top_k: int, token_budget: int, of: int) -> Finding:
    """Lessons that fit tasks and never get into the prompt."""
    facts = {"never_shown": list(never), "top_k": top_k, "token_budget": token_budget}
    if not never:
        return Finding(check="prompt", message="every lesson that fits gets into some prompt", facts=facts)
    message = (
        f"{len(never)} lessons fitted tasks of the last {of:,} episodes and had no room in any prompt (top_k={top_k},"
        f" token_budget={token_budget}): raise these, or shorten or retire the lessons: {', '.join(never[:5])}"
    )
    return Finding(check="prompt", level="advice", message=message, facts=facts)


def rewards(late: int, seconds: Sequence[float], *, reward_wait: float) -> Finding:
    """Whether rewards come in time to be read by the reflection on their episodes.

    Args:
        late: How many came after it.
        seconds: From the end of the episode to each reward, ascending.
        reward_wait: The setting.
    """
    total = len(seconds)
    ninetieth = seconds[min(total - 1, int(0.9 * total))] if total else None
    facts = {"rewards": total, "late": late, "p90_delay_seconds": ninetieth, "reward_wait": reward_wait}
    if ninetieth is None:
        return Finding(check="rewards", message="none yet", facts=facts)
    said = f"{percent(late, total)} of the last {total:,} rewards came after their reflection"
    if late < LATE_LEAST or late < LATE_SHARE * total:
        return Finding(check="rewards", message=said, facts=facts)
    wanted = rounded(ninetieth)
    said += (
        f", 90 % come within {ago(ninetieth)} of the run's end: set reward_wait={wanted:.0f} (it is {reward_wait:g})"
    )
    return Finding(check="rewards", level="advice", message=said, facts=facts)


def tokens(today: int, budget: int | None) -> Finding:
    """What reflections have used today (UTC)."""
    facts = {"today": today, "budget": budget}
    if budget is None:
        return Finding(check="tokens", message=f"{today:,} used by reflections today (UTC), no limit", facts=facts)
    said = f"{today:,} of {budget:,} used by reflections today (UTC)"
    if today < budget:
        return Finding(check="tokens", message=said, facts=facts)
    said += ": nothing is reflected on until midnight UTC; raise the limit if that is too early"
    return Finding(check="tokens", level="advice", message=said, facts=facts)


def resting(namespaces: Sequence[tuple[Namespace, int, float]]) -> Finding:
    """Namespaces that rest after failed reflections: each with its failures in a row and the seconds left."""
    facts = {
        "resting": [{"namespace": list(name), "failures": n, "seconds": left} for name, n, left in namespaces[:20]],
        "namespaces": len(namespaces),
    }
    if not namespaces:
        return Finding(check="back-off", message="no namespace rests", facts=facts)
    name, failures, left = max(namespaces, key=lambda row: row[1])
    said = (
        f"{len(namespaces):,} namespaces rest after failed reflections, {spelled(name)} after {failures} in a row for"
        f" another {ago(left)}: see the check `reflections` for the reason"
    )
    return Finding(check="back-off", level="advice", message=said, facts=facts)


def backup(newest: float | None, *, kept: int, episodes: int) -> Finding:
    """The age of the newest backup in seconds, how many there are, and what there is to lose."""
    facts = {"newest_seconds": newest, "kept": kept}
    if newest is None:
        level: Level = "advice" if episodes else "ok"
        return Finding(check="backup", level=level, message="none here: `reflect backup` makes one", facts=facts)
    old = newest > BACKUP_AGE
    said = f"{kept} kept, the newest {ago(newest)} old" + (": make a newer one with `reflect backup`" if old else "")
    return Finding(check="backup", level="advice" if old else "ok", message=said, facts=facts)


def failure(name: str, count: int, last: str, seconds: float) -> Finding:
    """A counter of something that went wrong: how often, what was said the last time, and how long ago."""
    recent = seconds < RECENT
    said = f"{count:,} so far, the last {ago(seconds)} ago" + (f": {shortened(last)}" if last else "")
    if recent and (remedy := REMEDIES.get(name)):
        said += f"; {remedy}"
    facts = {"count": count, "last_seconds": seconds, "last": last}
    level: Level = "ok" if not recent else "advice" if name in ("namespace", "retrieve.timeout") else "problem"
    return Finding(check=f"failures: {name}", level=level, message=said, facts=facts)
