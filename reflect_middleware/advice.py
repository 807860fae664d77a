"""What `reflect doctor` says about what it found: facts in, findings out. Pure; the caller brings the facts.

A problem stops something from working and wants somebody now; advice makes it work better, or can wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, computed_field

from reflect_middleware.types import Frozen, Namespace

Level = Literal["ok", "advice", "problem"]

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
SHORT = 300
"""Most characters of what was said by others, such as a driver."""

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


class Finding(Frozen):
    """One checked thing."""

    check: str
    """What was checked; the names are stable."""
    level: Level = "ok"
    message: str
    """What was found, and what to do where the level is not `ok`. The words may change."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """The numbers behind the message, by stable names."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether it is no problem; advice is none."""
        return self.level != "problem"


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
    said = [url, f"{_size(size)}, {mode.upper() if url.startswith('sqlite') else mode}, schema {schema}"]
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
        level = "problem" if free < LEAST_DISK else _worse(level, "advice")
        said.append(f"{_size(free)} free on its disk: make room, or purge old episodes")
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
        said.append(f"{_percent(sampled_out, of)} of the last {of:,} are sampled out")
    if oldest is not None and oldest > LONG_WAIT:
        level = "advice"
        said.append("nobody reflects: is a process with a model alive, or `reflect worker` for run='external'?")
    if dead:
        level = "advice"
        said.append(f"{dead:,} dead-lettered, the newest because of: {_cut(reason)}; mend that, then retry them")
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
            f"the last failure {ago(failed)} ago{' and none has succeeded since' if since else ''}: {_cut(reason)}"
        )
    for namespace, owner, lease in running:
        if lease >= 0:
            said.append(f"one under way in {_name(namespace)} by {owner}, lease for another {ago(lease)}")
        else:
            level = _worse(level, "advice")
            said.append(f"one in {_name(namespace)} by {owner}, which died {ago(-lease)} ago: the next one takes over")
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
    said = f"{_percent(late, total)} of the last {total:,} rewards came after their reflection"
    if late < LATE_LEAST or late < LATE_SHARE * total:
        return Finding(check="rewards", message=said, facts=facts)
    wanted = _round(ninetieth)
    said += (
        f", 90 % come within {ago(ninetieth)} of the run's end: set reward_wait={wanted:.0f} (it is {reward_wait:g})"
    )
    return Finding(check="rewards", level="advice", message=said, facts=facts)


def vectors(
    embedder: str, dimensions: int, made_by: Mapping[str, int], *, name: str = "", indexed: str = ""
) -> Finding:
    """Whether the embedder is the one that made the lessons' vectors.

    Args:
        embedder: The id of its vectors.
        dimensions: Their length.
        made_by: Active lessons of which it has made no vector, by the embedder that has.
        name: What it calls itself; another id says that a model of this name gave other vectors once.
        indexed: The embedder for which all was last indexed by `reflect reindex`; empty for never.
    """
    others = {other: count for other, count in made_by.items() if other != embedder and count}
    changed = bool(name) and name != embedder
    facts = {"id": embedder, "dimensions": dimensions, "other_vectors": sum(others.values()), "changed": changed}
    said = [f"{embedder}, {dimensions} dimensions"]
    if changed:
        said.append(f"{name} gave other vectors when it was first used here: this one's are kept apart from those")
    if indexed not in ("", embedder):
        said.append(f"all was last indexed for {indexed}: say that as embeddings=, or `reflect reindex` for this one")
    if others:
        listed = ", ".join(f"{n:,} {f'by {other}' if other else 'not made yet'}" for other, n in sorted(others.items()))
        said.append(
            f"vectors of other active lessons: {listed}. They are made anew when their namespace is next searched, or"
            " all at once by `reflect reindex`, if this is the embedder that the agents use (--app names theirs)"
        )
    level: Level = "advice" if others or indexed not in ("", embedder) else "ok"
    return Finding(check="embedder", level=level, message="; ".join(said), facts=facts)


def store(
    name: str,
    how: str,
    *,
    held: str,
    behind: Mapping[Namespace, int],
    wrong: int = 0,
    mended: tuple[int, int, int] | None = None,
    moved: str = "",
) -> Finding:
    """Whether the store is open here and in step with the ledger.

    Args:
        name: As configured.
        how: Which way searches go.
        held: Why it cannot be opened here, if another process has it.
        behind: Of the namespaces looked at: how many lessons the store has too few, or too many.
        wrong: How many of a sample are not found by their own vector.
        mended: What was missing, too many and wrong before it was mended; None if it was not to be.
        moved: Where the ledger was moved to, if the code names another store.
    """
    out = {namespace: count for namespace, count in behind.items() if count}
    said = [name, f"searches go over {how}"]
    facts = {
        "store": name,
        "held_by_another": bool(held),
        "behind": sum(out.values()),
        "wrong": wrong,
        "namespaces": len(behind),
        "moved": moved,
    }
    if moved:
        said.append(f"the code says {name}, the ledger was moved to {moved!r}: say that one, or none, as store=")
    if mended is not None:
        facts["mended"] = sum(mended)
        said.append("mended: {:,} lessons were missing, {:,} too many, {:,} of a sample wrong".format(*mended))
    if held:
        said.append(held)
    elif out or wrong:
        said.append(_out_of_step(out, wrong))
    elif behind:
        said.append("in step with the ledger")
    level: Level = "advice" if moved or (not held and (out or wrong)) else "ok"
    return Finding(check="store", level=level, message="; ".join(said), facts=facts)


def _out_of_step(out: Mapping[Namespace, int], wrong: int) -> str:
    said = []
    if out:
        worst = max(out, key=lambda namespace: out[namespace])
        said.append(
            f"{sum(out.values()):,} lessons behind the ledger, most in {_name(worst)}: the next search there brings"
            " it in step, and until then answers come from the ledger"
        )
    if wrong:
        said.append(f"{wrong:,} of a sample are not found by their own vector")
    return "; ".join([*said, "`reflect doctor --mend` makes it what the ledger says, at once"])


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
        f"{len(namespaces):,} namespaces rest after failed reflections, {_name(name)} after {failures} in a row for"
        f" another {ago(left)}: see the check `reflections` for the reason"
    )
    return Finding(check="back-off", level="advice", message=said, facts=facts)


def spool(count: int, oldest: float | None, dropped: int) -> Finding:
    """What waits outside of the ledger, for how many seconds, and how much was dropped for want of room."""
    facts = {"waiting": count, "oldest_seconds": oldest, "dropped": dropped}
    said = f"{count:,} entries wait for the ledger" if count else "nothing waits for the ledger"
    if oldest is not None:
        said += f", the first for {ago(oldest)}: they are written when it is back"
    if dropped:
        said += f"; {dropped:,} were dropped for want of room"
    return Finding(
        check="spool", level="problem" if dropped else "advice" if count else "ok", message=said, facts=facts
    )


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
    said = f"{count:,} so far, the last {ago(seconds)} ago" + (f": {_cut(last)}" if last else "")
    if recent and (remedy := REMEDIES.get(name)):
        said += f"; {remedy}"
    facts = {"count": count, "last_seconds": seconds, "last": last}
    level: Level = "ok" if not recent else "advice" if name in ("namespace", "retrieve.timeout") else "problem"
    return Finding(check=f"failures: {name}", level=level, message=said, facts=facts)


def ago(seconds: float) -> str:
    """A length of time, as people say it."""
    for unit, name in ((172_800.0, "d"), (7_200.0, "h"), (120.0, "min")):
        if seconds >= unit:
            return f"{seconds / {'d': 86_400.0, 'h': 3_600.0, 'min': 60.0}[name]:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def _round(seconds: float) -> float:
    """Up to two figures, so that it can be typed."""
    step = 10.0 ** max(0, len(f"{seconds:.0f}") - 2)
    return max(1.0, -(-seconds // step) * step)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1_000:  # noqa: PLR2004 - a thousand
            return f"{value:.3g} {unit}"
        value /= 1_000
    return f"{value:.3g} TB"


def _name(namespace: Namespace) -> str:
    return "/".join(namespace)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}…"


def _worse(one: Level, two: Level) -> Level:
    order: tuple[Level, ...] = ("ok", "advice", "problem")
    return max(one, two, key=order.index)
