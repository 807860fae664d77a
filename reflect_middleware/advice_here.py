"""What `reflect doctor` says about what this process uses: embedder, store and spool. Pure, as `advice.py`."""

from __future__ import annotations

from collections.abc import Mapping

from reflect_middleware.finding import Finding, Level, ago, spelled
from reflect_middleware.types import Namespace


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
            f"{sum(out.values()):,} lessons behind the ledger, most in {spelled(worst)}: the next search there brings"
            " it in step, and until then answers come from the ledger"
        )
    if wrong:
        said.append(f"{wrong:,} of a sample are not found by their own vector")
    return "; ".join([*said, "`reflect doctor --mend` makes it what the ledger says, at once"])


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
