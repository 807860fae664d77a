"""Whether a ledger kept its word: pure functions over its rows. Each gives what is wrong, in words; nothing is good."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from reflect_middleware.schema import metadata
from reflect_middleware.types import Lesson, ReflectionRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Row = dict[str, Any]
UNVERSIONED = {"needs_review": False, "shown": 0, "shown_reward": None}
"""What a lesson's row says and its versions do not."""
READ = ("aliases", "episodes", "rewards", "namespaces", "lessons", "lesson_versions", "lesson_sources", "reflections")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """What was said to be done, by those who were killed later."""

    episodes: Mapping[str, str] = field(default_factory=dict)
    """Ids of episodes, with a status that they must have; empty for any."""
    rewards: Sequence[Row] = ()
    """target, source, key, value, comment; in the order of each giver."""
    changes: Sequence[Row] = ()
    """id, version, text and status of lessons that were changed by hand."""
    reflections: Sequence[str] = ()
    """Ids that a report named without an error."""


class Rows:
    """A ledger as it is: the rows of each table."""

    def __init__(self, tables: Mapping[str, Sequence[Row]]) -> None:
        self.episodes = {row["id"]: row for row in tables["episodes"]}
        self.aliases = {row["alias"]: row["episode_id"] for row in tables["aliases"]}
        self.rewards = tables["rewards"]
        self.revisions = {row["namespace"]: row["revision"] for row in tables["namespaces"]}
        self.lessons = {row["id"]: row for row in tables["lessons"]}
        self.versions: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(tables["lesson_versions"], key=lambda row: row["version"]):
            self.versions[row["lesson_id"]].append(row)
        self.sources = {(row["episode_id"], row["lesson_id"]) for row in tables["lesson_sources"]}
        self.reflections = {row["id"]: row for row in tables["reflections"]}
        self.records = {
            i: ReflectionRecord.model_validate_json(row["body"]).model_copy(update={"status": row["status"]})
            for i, row in self.reflections.items()
        }

    @property
    def done(self) -> dict[str, ReflectionRecord]:
        """The committed reflections."""
        return {i: record for i, record in self.records.items() if record.status == "done"}


def read(url: str) -> Rows:
    """All rows of the ledger as they are at one moment."""
    embedded = url.startswith("sqlite")
    engine = sa.create_engine(url, **({} if embedded else {"isolation_level": "REPEATABLE READ"}))
    with engine.connect() as connection:
        if embedded:
            connection.exec_driver_sql("BEGIN")  # its driver begins no transaction for what only reads
        tables = {
            name: [dict(row) for row in connection.execute(sa.select(metadata.tables[name])).mappings()]
            for name in READ
        }
    engine.dispose()
    return Rows(tables)


def episodes_kept(rows: Rows, told: Acknowledged) -> Iterator[str]:
    """Every acknowledged episode is there, once, and got as far as was said."""
    for episode_id, status in told.episodes.items():
        # A run that goes on with an interrupted one while the ledger is away learns only later which episode it is.
        row = rows.episodes.get(episode_id) or rows.episodes.get(rows.aliases.get(episode_id, ""))
        if row is None:
            yield f"episode {episode_id} was acknowledged and is lost"
        elif status == "completed" and row["status"] != status:
            yield f"episode {episode_id} was acknowledged as {status} and is {row['status']}"


def consumed_once(rows: Rows) -> Iterator[str]:
    """Each episode is in at most one committed reflection, and both sides say so."""
    times = Counter(episode_id for record in rows.done.values() for episode_id in record.episodes)
    for episode_id, count in times.items():
        if count > 1:
            yield f"episode {episode_id} was consumed by {count} reflections"
    consumer = {episode_id: i for i, record in rows.done.items() for episode_id in record.episodes}
    for episode_id, row in rows.episodes.items():
        said, record = row["reflection_id"], rows.records.get(row["reflection_id"])
        if said and record is None:
            yield f"episode {episode_id} names reflection {said}, which there is not"
        elif record is not None and record.status not in ("done", "running"):
            yield f"episode {episode_id} is held by reflection {said}, which is {record.status}"
        elif consumer.get(episode_id, "") != (said if record is not None and record.status == "done" else ""):
            yield f"episode {episode_id} names reflection {said!r}, and {consumer.get(episode_id)!r} names the episode"
    for i, record in rows.done.items():
        if missing := [episode_id for episode_id in record.episodes if episode_id not in rows.episodes]:
            yield f"reflection {i} consumed {missing}, which there are not"


def all_consumed(rows: Rows) -> Iterator[str]:
    """After a restart nothing that ended is left: it was consumed, or dead-lettered with a reason."""
    for episode_id, row in rows.episodes.items():
        if row["status"] != "interrupted" and not row["reflection_id"] and not row["dead_letter"]:
            yield f"episode {episode_id} ({row['status']}) still waits"


def rewards_kept(rows: Rows, told: Acknowledged) -> Iterator[str]:
    """Every acknowledged reward is there, and of each source and key one stands."""
    present: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows.rewards:
        present[row["target"], row["source"], row["key"]].append(row)
    for name, given in present.items():
        standing = sum(bool(row["current"]) for row in given if not row["waiting"])
        if standing != 1 and not all(row["waiting"] for row in given):
            yield f"{standing} rewards {name} stand"
    for reward in told.rewards:
        given = present[reward["target"], reward["source"], reward["key"]]
        bodies = [json.loads(row["body"]) for row in given]
        if not any((b["value"], b["comment"]) == (reward["value"], reward["comment"]) for b in bodies):
            yield f"reward {reward} was acknowledged and is lost"
        elif reward["target"] in rows.episodes and any(row["waiting"] for row in given):
            yield f"reward {reward} still waits for an episode that is there"


def edits_whole(rows: Rows) -> Iterator[str]:
    """A lesson's row is its newest version, versions have no gap, and every source is noted."""
    for lesson_id in {*rows.lessons, *rows.versions}:
        row, versions = rows.lessons.get(lesson_id), rows.versions.get(lesson_id, [])
        numbers = [version["version"] for version in versions]
        if row is None:
            yield f"lesson {lesson_id} has versions {numbers} and no row"
            continue
        if numbers != list(range(1, row["version"] + 1)):
            yield f"lesson {lesson_id} is at version {row['version']} and has versions {numbers}"
            continue
        yield from _newest_is_the_row(row, versions[-1])
        if row["revision"] > rows.revisions.get(row["namespace"], 0):
            yield f"lesson {lesson_id} has a revision {row['revision']} that its namespace has not reached"
        for version in versions:
            lesson = _lesson(version)
            if missing := [source for source in lesson.sources if (source, lesson_id) not in rows.sources]:
                yield f"lesson {lesson_id} version {version['version']} has sources {missing} that are not noted"


def _newest_is_the_row(row: Row, newest: Row) -> Iterator[str]:
    lesson, version = _lesson(row), _lesson(newest)
    if lesson != version:
        yield f"lesson {row['id']} is not what its version {newest['version']} says: {lesson!r} and {version!r}"
    if (row["status"], row["version"]) != (lesson.status, lesson.version):
        yield f"lesson {row['id']} has columns {row['status']}, {row['version']} and a body that says otherwise"


def _lesson(row: Row) -> Lesson:
    return Lesson.model_validate_json(row["body"]).model_copy(update=UNVERSIONED)


def outcomes_whole(rows: Rows) -> Iterator[str]:
    """A committed reflection's accepted edits were all written, and those of any other left nothing."""
    written: dict[str, dict[str, Lesson]] = defaultdict(dict)
    for versions in rows.versions.values():
        for version in versions:
            written[version["by"]][version["lesson_id"]] = _lesson(version)
    for i, record in rows.records.items():
        if record.status != "done" and written.get(i):
            yield f"reflection {i} is {record.status} and wrote lessons {list(written[i])}"
        for outcome in record.outcomes if record.status == "done" else ():
            if not outcome.accepted:
                continue
            made = written[i].get(outcome.lesson_id)
            if made is None:
                yield f"reflection {i} says that it wrote lesson {outcome.lesson_id} ({outcome.edit.op}) and did not"
                continue
            left = [parent for parent in made.replaces if parent not in written[i]]
            if left and outcome.edit.op == "merge" and made.status != "candidate":
                yield f"reflection {i} merged {left} into {made.id} and did not retire them"


def approvals_whole(rows: Rows) -> Iterator[str]:
    """Where a candidate was approved by hand, what it replaces retired with it."""
    for versions in rows.versions.values():
        bodies = [_lesson(version) for version in versions]
        for before, after in pairwise(bodies):
            if (before.status, after.status, after.created_by) != ("candidate", "active", "human"):
                continue
            for parent in after.replaces:
                told = [_lesson(version) for version in rows.versions.get(parent, [])]
                if told and not any(lesson.status == "retired" or lesson.pinned for lesson in told):
                    yield f"lesson {after.id} was approved, and lesson {parent}, which it replaces, never retired"


def changes_kept(rows: Rows, told: Acknowledged) -> Iterator[str]:
    """Every acknowledged change by hand is a version as it was given back; every acknowledged reflection is done."""
    for change in told.changes:
        versions = {version["version"]: _lesson(version) for version in rows.versions.get(change["id"], [])}
        found = versions.get(change["version"])
        if found is None or (found.text, found.status) != (change["text"], change["status"]):
            yield f"change {change} was acknowledged and the ledger has {found!r}"
    for i in told.reflections:
        if i not in rows.done:
            yield f"reflection {i} was reported as done and is not"


def one_at_a_time(rows: Rows) -> Iterator[str]:
    """No namespace has two reflections under way."""
    running = Counter(row["namespace"] for row in rows.reflections.values() if row["status"] == "running")
    for namespace, count in running.items():
        if count > 1:
            yield f"{count} reflections of {namespace} run at once"


def nothing_runs(rows: Rows) -> Iterator[str]:
    """After a restart nobody holds a batch."""
    for i, row in rows.reflections.items():
        if row["status"] == "running":
            yield f"reflection {i} of {row['owner']} still runs"


def vectors_right(rows: Rows, embed: Callable[[str], Sequence[float]]) -> Iterator[str]:
    """Each active lesson has the vector of its words."""
    for i, row in rows.lessons.items():
        if row["status"] != "active":
            continue
        if row["vector"] is None:
            yield f"lesson {i} has no vector"
        elif not _near(np.frombuffer(row["vector"], dtype=np.float32), embed(_lesson(row).searched)):
            yield f"lesson {i} has the vector of other words"


def store_is_ledger(rows: Rows, namespace: str, stored: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """A store holds the ids and vectors of a namespace's active lessons, and no others."""
    wanted = {
        i: np.frombuffer(row["vector"] or b"", dtype=np.float32)
        for i, row in rows.lessons.items()
        if row["namespace"] == namespace and row["status"] == "active"
    }
    if set(wanted) != set(stored):
        missing, stray = set(wanted) - set(stored), set(stored) - set(wanted)
        yield f"the store of {namespace} misses {sorted(missing)} and has {sorted(stray)} too many"
    for i in set(wanted) & set(stored):
        if not _near(wanted[i], stored[i]):
            yield f"the store of {namespace} has another vector of lesson {i}"


def same_answers(exact: Iterable[Row], others: Iterable[Row]) -> Iterator[str]:
    """Searches over a store give what exact ones give; ties may come in any order."""
    known = {(row["user"], row["query"]): row["hits"] for row in exact}
    for row in others:
        hits = known.get((row["user"], row["query"]))
        if hits is None:
            yield f"only the store was asked for {row['query']!r}"
            continue
        last = min((score for _, score in hits), default=0.0)
        ours, theirs = ({i for i, score in given if score > last + 1e-3} for given in (hits, row["hits"]))
        scores = ([score for _, score in given] for given in (hits, row["hits"]))
        if ours != theirs or not _near(*scores):
            yield f"a search for {row['query']!r} gives {row['hits']} by {row['by']} and {hits} exactly"


def _near(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, atol=1e-3))


def at_any_time(rows: Rows, told: Acknowledged, *, outage: bool = False) -> list[str]:
    """All that holds even while others are still at work.

    Args:
        rows: The ledger.
        told: What was acknowledged before it was read.
        outage: Whether the ledger was away: episodes and rewards may then wait in a spool, to be written later.
    """
    return [
        *(() if outage else episodes_kept(rows, told)),
        *consumed_once(rows),
        *(() if outage else rewards_kept(rows, told)),
        *edits_whole(rows),
        *outcomes_whole(rows),
        *approvals_whole(rows),
        *changes_kept(rows, told),
        *one_at_a_time(rows),
    ]


def after_a_restart(rows: Rows, told: Acknowledged, embed: Callable[[str], Sequence[float]]) -> list[str]:
    """All that holds once a process has finished what the others left."""
    return [*at_any_time(rows, told), *all_consumed(rows), *nothing_runs(rows), *vectors_right(rows, embed)]
