"""The storm: processes that produce, reflect and curate on one ledger, and are killed at all points of their lives."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from reflect_middleware.namespaces import to_key
from reflect_middleware.testing import HashingEmbeddings
from tests.faults import judge
from tests.faults.child import SHOP, USERS, Orders, main
from tests.faults.judge import Acknowledged
from tests.faults.tripwire import Trip

SIGKILLED = -9
HANGS = 120.0
"""A child that neither ends nor dies within so many seconds hangs."""
LOOKS = 25
"""After so many kills the judge looks at the ledger, while the others are at work."""
ROLES = ("produce", "produce", "reflect", "curate", "reflect")

DIRECTED: Sequence[tuple[str, str, int]] = (
    ("produce", "EpisodeTable.put:statement", 2),
    ("produce", "EpisodeTable.put:commit", 3),
    ("produce", "EpisodeTable.put:committed", 3),
    ("produce", "EpisodeTable.reward:statement", 2),
    ("produce", "EpisodeTable.reward:commit", 1),
    ("produce", "EpisodeTable.reward:committed", 1),
    ("reflect", "ReflectionTable.claim:commit", 1),
    ("reflect", "ReflectionTable.claim:committed", 1),
    ("reflect", "model:asked", 1),
    ("reflect", "model:answered", 1),
    ("reflect", "ReflectionTable.commit:statement", 1),
    ("reflect", "ReflectionTable.commit:statement", 4),
    ("reflect", "ReflectionTable.commit:statement", 8),
    ("reflect", "ReflectionTable.commit:commit", 1),
    ("reflect", "ReflectionTable.commit:committed", 1),
    ("reflect", "store:before", 1),
    ("reflect", "store:after", 1),
    ("curate", "LessonTable.save_all:statement", 4),
    ("curate", "LessonTable.save_all:statement", 7),
    ("curate", "LessonTable.save_all:commit", 2),
    ("curate", "LessonTable.save_all:committed", 2),
)
"""Role, place, and how often it is passed: before, in and after each transaction, on both sides of model and store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a storm did, and what the judge says."""

    kills: int
    places: Counter[str]
    """Where children killed themselves; `by the clock` for those that were killed from outside."""
    told: Acknowledged
    statuses: Counter[str]
    """Of the reflections."""
    failures: Counter[str]
    """What the package said that it could not do, by kind."""
    lessons: int
    versions: int
    seconds: float
    wrong: list[str]


@dataclass(slots=True)
class Life:
    """A child and its fate."""

    orders: Orders
    process: Any
    ends_at: float
    """When it is killed from outside."""
    born: float = field(default_factory=time.monotonic)


class Storm:
    """Children on one ledger.

    Args:
        folder: For stores, notes and an embedded ledger.
        ledger: A server's URL; None for SQLite in the folder.
        store: Which store the children use.
        seed: Of all chance in it.
        lease: Seconds for which a dead reflector's batch is not touched.
        say: Told what is going on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ledger: str | None = None,
        store: str = "exact",
        seed: int = 0,
        lease: float = 1.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.ledger, self.store, self.lease, self.say = folder, ledger, store, lease, say
        self.url = ledger or f"sqlite:///{folder / 'ledger.db'}"
        self.seed, self.rng = seed, random.Random(seed)
        self.kills = 0
        self.outage = False
        """Whether the ledger was away at some time."""
        self.pace = 1.0
        """How much longer than on an idle computer everything takes, children's lives included."""
        self.wrong: list[str] = []
        self.began = time.monotonic()
        self._number = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.child", "chromadb"])
        (folder / "notes").mkdir(parents=True, exist_ok=True)

    # One child.

    def start(self, role: str, *, trip: Trip | None = None, lives: float = HANGS, **more: Any) -> Life:
        """Give birth to a child that is killed after `lives` seconds, if it lives so long."""
        self._number += 1
        name = f"{role[0]}{self._number}"
        orders = Orders(
            role=role,
            name=name,
            path=str(self.folder),
            ledger=self.ledger,
            store=self.store,
            notes=str(self.folder / "notes" / f"{name}.jsonl"),
            seed=self.rng.randrange(2**32),
            lease=self.lease,
            trip=trip,
        )
        orders = replace(orders, **more)
        process = self._context.Process(target=main, args=(orders,), daemon=True)
        process.start()
        return Life(orders, process, time.monotonic() + lives)

    def end(self, life: Life) -> int:
        """Wait for a child's end, kill it when it is time; gives its exit code."""
        while not wait([life.process.sentinel], max(0.0, life.ends_at - time.monotonic())):
            life.process.kill()
            life.ends_at += HANGS
        life.process.join()
        code = int(life.process.exitcode)
        if code == SIGKILLED:
            self.kills += 1
            if time.monotonic() - life.born >= HANGS:
                self.wrong.append(f"{life.orders.role} {life.orders.name} hung at {life.orders.trip}")
        elif code:
            crash = [note["text"] for note in self.notes("crashed") if note["child"] == life.orders.name]
            self.wrong.append(f"{life.orders.role} {life.orders.name} ended with {code}: {crash}")
        return code

    def run(self, role: str, **more: Any) -> int:
        """A child from birth to end."""
        return self.end(self.start(role, **more))

    # Many.

    def rage(self, kills: int, *, at_once: int = 4, trouble: Callable[[], bool] | None = None) -> None:
        """Keep so many children alive, and kill until it is enough.

        Args:
            kills: What is enough.
            at_once: How many are alive.
            trouble: Called between kills; says whether it has taken the ledger away.
        """
        alive: list[Life] = []
        goal, told = self.kills + kills, self.kills
        while self.kills < goal:
            while len(alive) < at_once:
                alive.append(self._doomed(ROLES[self._number % len(ROLES)]))
            first = min(life.ends_at for life in alive)
            wait([life.process.sentinel for life in alive], max(0.0, first - time.monotonic()))
            for life in [x for x in alive if not x.process.is_alive() or time.monotonic() >= x.ends_at]:
                alive.remove(life)
                self.end(life)
            if trouble is not None:
                self.outage = trouble() or self.outage
            if self.kills - told >= LOOKS:
                told = self.kills
                self.look()
                self.say(f"{self.kills} kills, {time.monotonic() - self.began:.0f} s")
        for life in alive:
            life.ends_at = time.monotonic()
            self.end(life)

    def direct(self) -> None:
        """Kill once at each place of the list that a child of this store passes."""
        began = time.monotonic()
        for _ in range(2):
            self.run("produce", rounds=20, reflects=False)
        self.pace = max(1.0, (time.monotonic() - began) / 2)
        for role, place, nth in DIRECTED:
            if place.startswith("store:") and self.store == "exact":
                continue
            if not self._died(role, Trip(place=place, nth=nth)):
                self.wrong.append(f"no {role} passes {place} {nth} times")

    def _died(self, role: str, trip: Trip) -> bool:
        """Whether a child gets there; where nothing was left to reflect on, there is more for the next one."""
        for _ in range(3):
            if self.run(role, trip=trip, rounds=200) == SIGKILLED:
                return True
            self.run("produce", rounds=20, reflects=False)
        return False

    def _doomed(self, role: str) -> Life:
        """A child with a death: at a place, at any place, or by the clock."""
        draw = self.rng.random()
        if draw < 0.4:
            places = [place for who, place, _ in DIRECTED if who == role]
            trip: Trip | None = Trip(place=self.rng.choice(places), nth=self.rng.randint(1, 6))
        elif draw < 0.7:
            event, most = self.rng.choice((("statement", 120), ("commit", 12), ("committed", 12)))
            trip = Trip(place=f"*:{event}", nth=self.rng.randint(1, most))
        else:
            trip = None
        lives = 0.3 + self.rng.expovariate(1 / (3.0 if trip else 1.2))
        return self.start(role, trip=trip, lives=lives * self.pace)

    # The end.

    def notes(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What the children have said, each in its order; `child` is whose word it is."""
        found = []
        for file in sorted((self.folder / "notes").iterdir()):
            lines = file.read_text().splitlines(keepends=True)
            found += [json.loads(line) | {"child": file.stem} for line in lines if line.endswith("\n")]
        return [note for note in found if kind is None or note["kind"] == kind]

    def told(self) -> Acknowledged:
        """All that was acknowledged so far."""
        episodes: dict[str, str] = {}
        for note in self.notes("episode"):
            status = note.get("status", "")
            episodes[note["id"]] = "completed" if "completed" in (status, episodes.get(note["id"])) else status
        return Acknowledged(
            episodes=episodes,
            rewards=self.notes("reward"),
            changes=self.notes("change"),
            reflections=[note["id"] for note in self.notes("reflection")],
        )

    def look(self) -> None:
        """What the judge says while others may still be at work."""
        told = self.told()  # first: what is said later may not be in the rows yet
        self.wrong += judge.at_any_time(judge.read(self.url), told, outage=self.outage)

    def finish(self) -> Result:
        """A restart finishes what is left; then the judge speaks."""
        self.look()
        self.run("finish")
        rows, told = judge.read(self.url), self.told()
        embed = HashingEmbeddings().embed_query
        wrong = [*self.wrong, *judge.after_a_restart(rows, told, embed), *self._searches(rows)]
        return Result(
            kills=self.kills,
            places=self._places(),
            told=told,
            statuses=Counter(row["status"] for row in rows.reflections.values()),
            failures=Counter(note["where"] for note in self.notes("failed")),
            lessons=len(rows.lessons),
            versions=sum(map(len, rows.versions.values())),
            seconds=time.monotonic() - self.began,
            wrong=list(dict.fromkeys(wrong)),
        )

    def _searches(self, rows: judge.Rows) -> list[str]:
        """A fresh process finds by the store what another one finds exactly."""
        self.run("search", store="exact")
        exactly = [note for note in self.notes("found") if note["child"] == f"s{self._number}"]
        if self.store == "exact":
            return [] if exactly or not rows.lessons else ["a fresh process finds nothing"]
        self.run("search")
        mine = [note for note in self.notes() if note["child"] == f"s{self._number}"]
        wrong = [*judge.same_answers(exactly, [note for note in mine if note["kind"] == "found"])]
        stored = {note["user"]: note["vectors"] for note in mine if note["kind"] == "stored"}
        for user in USERS:
            wrong += judge.store_is_ledger(rows, to_key((SHOP, user)), stored.get(user, {}))
        return wrong

    def _places(self) -> Counter[str]:
        died = Counter(note["place"] for note in self.notes("died"))
        died["by the clock"] = self.kills - sum(died.values())
        return died
