"""Ledgers of any size, filled by bulk SQL with rows such as runs leave: bodies of 3 KB, ids that grow with time."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import sqlalchemy as sa

from reflect_middleware import schema
from reflect_middleware.database import Database
from reflect_middleware.embed import Embedder
from reflect_middleware.episodes_table import Record
from reflect_middleware.ledger import Ledger
from reflect_middleware.namespaces import to_key
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.types import Episode, Exposure, Lesson, Namespace, ReflectionRecord, Reward, Step

K = 10
UNREAD = 3
"""Of each namespace, so many of the latest episodes wait for a reflection."""
DAYS = 30.0
PORTION = 5_000
AGENT = "clerk"
DIMENSIONS = 384
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a ledger holds. Each standing lesson has a retired one beside it."""

    episodes: int
    lessons: int
    namespaces: int

    @property
    def name(self) -> str:
        """As a file or a database is called."""
        return f"reflect_scale_{self.episodes}_{self.lessons}_{self.namespaces}"

    def namespace(self, number: int) -> Namespace:
        """The namespace of an episode or a lesson with this number."""
        return ("scale", f"user {number % self.namespaces}")


def embeddings() -> HashingEmbeddings:
    """As many dimensions as the default embedder has, without a model."""
    return HashingEmbeddings(DIMENSIONS)


def run_id(at: float, chance: random.Random) -> str:
    """An id as LangChain makes them (UUID 7): it grows with time."""
    number = int(at * 1_000) << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)
    return str(UUID(int=number))


def random_id(chance: random.Random) -> str:
    """An id as users and messages have them (UUID 4)."""
    return str(UUID(int=chance.getrandbits(128), version=4))


_WORDS = [
    a + b + c for a in ("ba", "ke", "li", "mo", "su", "ta") for b in ("ra", "ne", "vi", "do") for c in ("n", "s", "t")
]


def prose(words: int, chance: random.Random) -> str:
    """Text of about five characters a word that no compression shrinks to nothing."""
    return " ".join(chance.choices(_WORDS, k=words))


def _template(chance: random.Random) -> str:
    steps = (
        Step(kind="model", name="m", node="agent", input=prose(45, chance), output=prose(20, chance), run_id="@1@"),
        Step(kind="tool", name="look", node="tools", input=prose(15, chance), output=prose(100, chance), run_id="@2@"),
        Step(kind="model", name="m", node="agent", input=prose(20, chance), output=prose(40, chance), run_id="@3@"),
    )
    at = datetime.now(UTC)
    episode = Episode(
        id="@id@",
        run_ids=("@id@",),
        root_run_id="@root@",
        agent=AGENT,
        namespace=("scale", "@space@"),
        thread_id="@thread@",
        task=prose(45, chance),
        input=prose(50, chance),
        output=prose(45, chance),
        status="completed",
        trajectory=steps,
        started_at=at,
        ended_at=at,
    )
    return episode.model_dump_json(exclude={"rewards", "exposures", "reflection_id", "dead_letter"})


class Filling:
    """The rows of a ledger, in the order in which runs would have written them.

    Args:
        size: How many.
        seed: Equal seeds give equal rows, but for the time.
    """

    def __init__(self, size: Size, seed: int = 0) -> None:
        self.size = size
        self.chance = random.Random(seed)
        self.end = time.time() - 60
        self.templates = [_template(self.chance) for _ in range(64)]
        self.known: dict[Namespace, list[str]] = defaultdict(list)
        """Ids of the standing lessons."""
        self._reflections: dict[Namespace, str] = {}

    def portions(self) -> Iterator[Rows]:
        """The rows, some thousand at a time."""
        yield from self._lessons()
        for first in range(0, self.size.episodes, PORTION):
            rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
            for number in range(first, min(first + PORTION, self.size.episodes)):
                self._episode(number, rows)
            yield rows

    def _lessons(self) -> Iterator[Rows]:
        embedder = Embedder(embeddings)
        revisions: dict[Namespace, int] = defaultdict(int)
        for first in range(0, self.size.lessons, PORTION):
            rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
            numbers = range(first, min(first + PORTION, self.size.lessons))
            for number in numbers:
                for status in ("active", "retired"):
                    self._lesson(number, status, embedder, revisions, rows)
            yield rows
        yield {"namespaces": [{"namespace": to_key(space), "revision": n} for space, n in revisions.items()]}

    def _lesson(
        self, number: int, status: Any, embedder: Embedder, revisions: dict[Namespace, int], rows: dict[str, list[Any]]
    ) -> None:
        space = self.size.namespace(number)
        revisions[space] += 1
        at = self.end - DAYS * 86_400
        sources = tuple(run_id(at, self.chance) for _ in range(3))
        lesson = Lesson(
            id=random_id(self.chance),
            namespace=space,
            when=f"{prose(8, self.chance)} number {number}",
            do=prose(20, self.chance),
            because=prose(30, self.chance),
            status=status,
            sources=sources,
            created_by=run_id(at, self.chance),
        )
        body = lesson.model_dump_json(exclude={"shown", "shown_reward"})
        shared = {"namespace": to_key(space), "version": 1, "body": body}
        vector = np.asarray(embedder.embed_documents([lesson.text])[0], dtype=np.float32).tobytes()
        made = {"vector": vector, "embedder": embedder.id, "revision": revisions[space], "status": status}
        rows["lessons"].append({"id": lesson.id, **shared, **made})
        rows["lesson_versions"].append({"lesson_id": lesson.id, **shared, "at": at, "by": lesson.created_by})
        rows["lesson_sources"] += [{"episode_id": source, "lesson_id": lesson.id} for source in sources]
        if status == "active":
            self.known[space].append(lesson.id)

    def _episode(self, number: int, rows: dict[str, list[Any]]) -> None:
        size, chance = self.size, self.chance
        space = size.namespace(number)
        at = self.end - DAYS * 86_400 * (1 - number / size.episodes)
        own, runs = run_id(at, chance), [run_id(at, chance) for _ in range(3)]
        root = own if chance.random() < 0.9 else run_id(at, chance)  # noqa: PLR2004 - one in ten runs in another
        turn = number // size.namespaces // 4 * size.namespaces + number % size.namespaces + 1  # four runs to a thread
        thread = str(UUID(int=turn * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128))
        told = {"id": own, "root": root, "thread": thread, "space": space[1], "1": runs[0], "2": runs[1], "3": runs[2]}
        template = self.templates[number % len(self.templates)]
        body = re.sub("@([a-z0-9]+)@", lambda found: told[found[1]], template)
        chosen = chance.random()
        dead = chosen > 0.9999  # noqa: PLR2004 - hardly any
        interrupted = number >= size.episodes - size.episodes // 100 and chosen < 0.02  # noqa: PLR2004 - of the last day
        status = "interrupted" if interrupted else "failed" if chosen < 0.05 else "completed"  # noqa: PLR2004
        rows["episodes"].append(
            {
                "id": own,
                "namespace": to_key(space),
                "agent": AGENT,
                "thread_id": thread,
                "root_run_id": root,
                "parent_id": "" if root == own else root,
                "principal": "" if number % 2 else f"user-{number % 999}",
                "status": status,
                "started_at": at,
                "ended_at": None if interrupted else at + 5,
                "ready_at": None if interrupted else 0.0,
                "reflection_id": "" if interrupted or dead else self._reflection(number, space, at, rows),
                "dead_letter": "the model failed" if dead else "",
                "size": len(body),
                "body": body,
            }
        )
        self._around(own, runs, space, at, rows)

    def _around(self, own: str, runs: list[str], space: Namespace, at: float, rows: dict[str, list[Any]]) -> None:
        """What is kept beside an episode."""
        chance = self.chance
        output = "out:" + f"{chance.getrandbits(256):064x}"
        names = [own, *runs, random_id(chance), output]
        rows["aliases"] += [{"alias": name, "episode_id": own, "at": at} for name in names]
        if chance.random() < 0.3:  # noqa: PLR2004 - a third is judged
            reward = Reward(value=round(chance.random(), 2), source="user", comment=prose(10, chance))
            given = {"target": own, "source": "user", "key": "reward", "current": True, "waiting": False, "at": at + 9}
            rows["rewards"].append({**given, "body": reward.model_dump_json()})
        known = self.known[space]
        for position, lesson in enumerate(chance.sample(known, min(3, len(known)))):
            shown = {"shown": position < 2, "probability": 1.0, "similarity": 0.5, "position": position}  # noqa: PLR2004
            rows["exposures"].append({"episode_id": own, "lesson_id": lesson, "version": 1, **shown})

    def _reflection(self, number: int, space: Namespace, at: float, rows: dict[str, list[Any]]) -> str:
        """The id of the reflection that read an episode; empty for the latest ones."""
        count, mine = -(-self.size.episodes // self.size.namespaces), number // self.size.namespaces
        if mine >= count - UNREAD:
            return ""
        if mine % K == 0 or space not in self._reflections:
            record = ReflectionRecord(
                id=run_id(at, self.chance),
                namespace=space,
                status="done",
                prompt=prose(900, self.chance),
                answer=prose(100, self.chance),
            )
            self._reflections[space] = record.id
            made = {"id": record.id, "namespace": to_key(space), "status": "done", "owner": "bench"}
            times = {"lease_until": at + 60, "started_at": at + 30}
            rows["reflections"].append({**made, **times, "body": record.model_dump_json()})
        return self._reflections[space]


def record(size: Size, number: int, lessons: Sequence[str], chance: random.Random) -> Record:
    """One more run, as the writer gets it."""
    now = time.time()
    own, runs = run_id(now, chance), [run_id(now, chance) for _ in range(3)]
    told = {"id": own, "root": own, "thread": random_id(chance), "space": size.namespace(number)[1]}
    told |= {"1": runs[0], "2": runs[1], "3": runs[2]}
    body = re.sub("@([a-z0-9]+)@", lambda found: told[found[1]], _template(chance))
    exposures = tuple(Exposure(lesson_id=x, version=1, shown=n < 2, position=n) for n, x in enumerate(lessons[:3]))  # noqa: PLR2004
    episode = Episode.model_validate_json(body).model_copy(update={"exposures": exposures})
    names = (*runs, f"lc_run--{runs[0]}-0", f"lc_run--{runs[2]}-0", random_id(chance))
    return Record(episode=episode, ready_at=0.0, aliases=(*names, "out:" + f"{chance.getrandbits(256):064x}"))


LATEST = (
    sa.select(schema.reflections.c.namespace, sa.func.max(schema.reflections.c.started_at))
    .where(schema.reflections.c.status == "done")
    .group_by(schema.reflections.c.namespace)
)
"""When each namespace was reflected on: what a commit notes."""


def filled(size: Size, url: str) -> None:
    """Fill the ledger at a URL, unless that was done before."""
    database = Database(url)
    done = sa.select(schema.meta.c.value).where(schema.meta.c.key == "filled")
    with database.read() as connection:
        if connection.execute(done).scalar() == size.name:
            database.close()
            return
    (_into_sqlite if database.is_sqlite else _into_postgres)(Filling(size), url)
    with database.write() as connection:
        connection.execute(schema.work.insert().from_select(["namespace", "reflected_at"], LATEST))
        connection.execute(schema.meta.insert().values(key="filled", value=size.name))
    database.close()


def _into_sqlite(filling: Filling, url: str) -> None:
    connection = sqlite3.connect(str(sa.make_url(url).database), isolation_level=None)
    for pragma in ("synchronous=OFF", "cache_size=-1000000"):
        connection.execute(f"PRAGMA {pragma}")
    for rows in filling.portions():
        connection.execute("BEGIN")
        for table, some in rows.items():
            columns = ", ".join(some[0])
            marks = ", ".join("?" for _ in some[0])
            insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - our own names
            connection.executemany(insert, [tuple(row.values()) for row in some])
        connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _into_postgres(filling: Filling, url: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for rows in filling.portions():
            with connection.transaction():
                for table, some in rows.items():
                    _copied(connection, table, some)
        connection.execute("VACUUM ANALYZE")


def _copied(connection: Any, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    command = f"COPY {table} ({', '.join(rows[0])}) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(command) as copy:
        for row in rows:
            copy.write_row(tuple(row.values()))


def known_lessons(ledger: Ledger, size: Size) -> dict[Namespace, list[str]]:
    """The active lessons of some namespaces."""
    spaces = [size.namespace(number) for number in range(min(size.namespaces, 16))]
    return {space: [lesson.id for lesson in ledger.lessons.find(space, "active")] for space in spaces}


def bytes_of(url: str) -> int:
    """How much room a ledger takes on disk."""
    database = Database(url)
    try:
        if database.is_sqlite:
            return Path(str(sa.make_url(url).database)).stat().st_size
        with database.read() as connection:
            return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())
    finally:
        database.close()
