"""What a process of the storm does until it is killed: it produces, reflects, curates, finishes or searches.

Everything in it is real: wrapped graphs, a Reflection with its threads, ledger and store. Only the models are scripted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from reflect_middleware import Reflection, views
from reflect_middleware.cadence import EveryEpisodes
from reflect_middleware.errors import LedgerError, LessonStateError, ReflectError
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel
from reflect_middleware.types import now
from tests.faults.tripwire import Trip, Tripwire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USERS = ("ann", "bob")
SHOP = "shop"
K = 3
LESSONS = 30
"""Most active lessons of a namespace: few, so that reflections must make room."""
COLOURS = ("red", "blue", "green", "black", "white", "amber", "violet", "silver")
PATIENCE = 60.0
"""Seconds for which a run waits for its commit here, so that a busy machine does not excuse one that is missing."""
TRUE_SPAN = re.compile(r'<episode id="(E\d+)">\ntask: (.+)')
HANDLE = re.compile(r"^(L\d+): When", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a child is told."""

    role: str
    name: str
    """Of no other child of this ledger."""
    path: str
    ledger: str | None
    store: str
    notes: str
    """The file in which it says what was acknowledged."""
    seed: int
    rounds: int = 1_000
    lease: float = 1.5
    trip: Trip | None = None
    reflects: bool = True
    """Whether a producer may reflect itself, by chance; else it leaves all for others."""


class Notes:
    """One line at a time, each by one write: what was written outlives the process."""

    def __init__(self, file: str) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(self, kind: str, **what: Any) -> None:
        os.write(self._fd, (json.dumps({"kind": kind, **what}) + "\n").encode())


class Failures(logging.Handler):
    """What the package says that it could not do; the first one of each kind is noted."""

    def __init__(self, notes: Notes) -> None:
        super().__init__(logging.DEBUG)
        self.notes = notes
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if "failed" in str(record.msg) and isinstance(record.args, tuple) and len(record.args) > 1:
            where, text = str(record.args[0]), str(record.args[1])
            self.counts[where] += 1
            if self.counts[where] == 1:
                self.notes.tell("failed", where=where, text=text[:300])

    @property
    def unsaved(self) -> int:
        """How often a run returned without its commit, and said so."""
        return self.counts["record"] + self.counts["waiting for the record"]


class Child:
    """A process under orders."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.rng = random.Random(orders.seed)
        self.notes = Notes(orders.notes)
        self.wire = Tripwire(orders.trip, lambda place: self.notes.tell("died", place=place))
        self.failures = Failures(self.notes)
        logger = logging.getLogger("reflect_middleware")
        logger.addHandler(self.failures)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False

    def reflection(self, **settings: Any) -> Reflection:
        """A Reflection on the common path, or on the common server."""
        defaults: dict[str, Any] = {
            "path": self.orders.path,
            "ledger": self.orders.ledger,
            "store": self.orders.store,
            "every": K,
            "namespace": (SHOP, "{user}"),
            "embeddings": HashingEmbeddings(),
            "min_similarity": -1.0,
            "run": "external",
            "lease": self.orders.lease,
            "max_lessons": LESSONS,
            "exit_timeout": 5.0,
        }
        made = Reflection(self.model(), **defaults | settings)
        if made._core.keeper.timeout is not None:
            made._core.keeper.timeout = PATIENCE
        return made

    def model(self) -> ScriptedChatModel:
        """A reflector that takes its time and quotes what it was shown."""

        def answer(messages: list[Any]) -> str:
            self.wire.passing("model:asked")
            threading.Event().wait(self.rng.random() * 0.1)
            said = edits(str(messages[-1].content), self.rng)
            self.wire.passing("model:answered")
            return said

        return ScriptedChatModel(answer)

    def rounds(self) -> Iterator[int]:
        """As often as it was told to."""
        return iter(range(self.orders.rounds))

    def try_to(self, act: Callable[[], Any]) -> Any:
        """What an operator's call gives; None where another was faster, or the database is away."""
        try:
            return act()
        except (LessonStateError, LedgerError) as error:
            self.notes.tell("refused", text=f"{type(error).__name__}: {error}"[:300])
            return None


def edits(prompt: str, rng: random.Random) -> str:
    """Additions with words of the episodes as evidence; sometimes an old lesson is edited, merged or retired."""
    tasks, old = TRUE_SPAN.findall(prompt), HANDLE.findall(prompt)
    handle, task = rng.choice(tasks)
    order, colour = task.split()[2], rng.choice(COLOURS)
    shown = {"episodes": [handle], "because": task}
    words = {"when": f"order {order} or one like it", "do": f"put {order} into the {colour} box"}
    found: list[dict[str, Any]] = [{"op": "add", **shown, **words}]
    rng.shuffle(old)
    if old and rng.random() < 0.5:
        found.append({"op": "edit", "lessons": [old.pop()], **shown, "do": f"seal {order} with {colour} tape"})
    if len(old) > 1 and rng.random() < 0.4:
        merged = {"when": f"two orders such as {order}", "do": f"send {order} twice, {colour} first"}
        found.append({"op": "merge", "lessons": [old.pop(), old.pop()], **shown, **merged})
    if old and rng.random() < 0.3:
        found.append({"op": "retire", "lessons": [old.pop()], **shown})
    return json.dumps({"edits": found})


def agent(*, asks: bool) -> Any:
    """A graph of one model call; one that asks a person first."""
    model = ScriptedChatModel(lambda _: "it is done")

    def answer(state: MessagesState) -> dict[str, Any]:
        if asks:
            interrupt("may I?")
        return {"messages": [model.invoke(state["messages"])]}

    async def aanswer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", RunnableLambda(answer, aanswer) if not asks else answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=InMemorySaver() if asks else None)


class Producer:
    """Runs agents and judges the runs; what returned is acknowledged."""

    def __init__(self, child: Child) -> None:
        self.child, self.rng, self.notes = child, child.rng, child.notes
        judged = self.rng.random() < 0.3
        self.reflection = child.reflection(
            run=self.rng.choice(("external", "background", "inline")) if child.orders.reflects else "external",
            reward=(lambda episode: len(episode.task) % 2) if judged else None,
        )
        self.plain = self.reflection.wrap(agent(asks=False), name="plain")
        self.asking = self.reflection.wrap(agent(asks=True), name="asking")
        self.ids: list[str] = []
        self.number = 0

    def work(self) -> None:
        acts = (self.run, self.run, self.run_together, self.run_judged, self.run_judged_before, self.ask, self.judge)
        for _ in self.child.rounds():
            self.rng.choice(acts)()
        self.reflection.close()

    def given(self) -> dict[str, Any]:
        self.number += 1
        order = f"{self.child.orders.name}n{self.number}"
        return {"messages": f"Refund order {order} since the {self.rng.choice(COLOURS)} box broke"}

    def config(self, **more: Any) -> dict[str, Any]:
        return {"configurable": {"user": self.rng.choice(USERS), **more}}

    def acknowledged(self, act: Callable[[], Any], **what: Any) -> Any:
        """Run something; its episodes are acknowledged if nothing said that their commit is missing."""
        unsaved = self.child.failures.unsaved
        with self.reflection.track() as track:
            result = act()
        if unsaved == self.child.failures.unsaved:
            for episode_id in track.episode_ids:
                self.notes.tell("episode", id=episode_id, **what)
                self.ids.append(episode_id)
        return result

    def run(self) -> Any:
        return self.acknowledged(lambda: self.plain.invoke(self.given(), self.config()))

    def run_together(self) -> None:
        async def three() -> None:
            await asyncio.gather(*(self.plain.ainvoke(self.given(), self.config()) for _ in range(3)))

        self.acknowledged(lambda: asyncio.run(three()))

    def run_judged(self) -> None:
        result = self.run()
        self.reward(result, self.ids[-1] if self.ids else "", key="reward")

    def run_judged_before(self) -> None:
        run_id = uuid4()
        self.reward(str(run_id), str(run_id), key="early")
        self.acknowledged(lambda: self.plain.invoke(self.given(), self.config() | {"run_id": run_id}))

    def ask(self) -> None:
        """An interrupted run, and its end."""
        config = self.config(thread_id=str(uuid4()))
        self.acknowledged(lambda: self.asking.invoke(self.given(), config), status="interrupted")
        self.acknowledged(lambda: self.asking.invoke(Command(resume="yes"), config), status="completed")

    def judge(self) -> None:
        """A late reward for anybody's episode, also for one that was reflected on long ago."""
        found = self.child.try_to(lambda: self.reflection.episodes.list(limit=30))
        if found:
            chosen = self.rng.choice(found).id
            self.reward(chosen, chosen, key=f"late-{self.child.orders.name}")

    def reward(self, target: Any, name: str, *, key: str) -> None:
        value, comment = self.rng.random(), f"a {self.rng.choice(COLOURS)} box, said {uuid4()}"

        def give() -> bool:
            self.reflection.reward(target, value, source="user", key=key, comment=comment)
            return True

        try:
            given = self.child.try_to(give)
        except ReflectError:  # the run itself may not be in the ledger while that is away
            return
        if given and name:
            self.notes.tell("reward", target=name, source="user", key=key, value=value, comment=comment)


def produce(child: Child) -> None:
    Producer(child).work()


def reflect(child: Child) -> None:
    """Reflects on what there is, again and again."""
    reflection = child.reflection(approval=child.rng.choice(("auto", "auto", "human")))
    for _ in child.rounds():
        done = False
        for user in child.rng.sample(USERS, len(USERS)):
            report = child.try_to(lambda user=user: reflection.reflect(namespace=(SHOP, user)))
            if report is not None and not report.error:
                done = done or bool(report.reflections)
                for reflection_id in report.reflections:
                    child.notes.tell("reflection", id=reflection_id, edits=len(report.accepted))
        if not reflection.flush(10) or not done:
            threading.Event().wait(0.05)
    reflection.close()


def curate(child: Child) -> None:
    """An operator: adds, edits, approves, retires and rolls back by hand."""
    reflection, rng = child.reflection(), child.rng
    for number in child.rounds():
        space = (SHOP, rng.choice(USERS))
        lessons = child.try_to(lambda space=space: reflection.lessons.list(namespace=space)) or ()
        change = _change(reflection.lessons, lessons, f"{child.orders.name}c{number}", space, rng)
        changed = child.try_to(change)
        for lesson in changed if isinstance(changed, tuple) else (changed,):
            if lesson is not None:
                child.notes.tell("change", id=lesson.id, version=lesson.version, text=lesson.text, status=lesson.status)
    reflection.close()


def _change(
    lessons: views.Lessons, standing: tuple[Any, ...], token: str, space: tuple[str, ...], rng: random.Random
) -> Callable[[], Any]:
    """What the operator does next."""
    if not standing or rng.random() < 0.2:
        colour = rng.choice(COLOURS)
        return lambda: lessons.add(when=f"hand-made rule {token}", do=f"take {token} {colour}", namespace=space)
    chosen, draw = rng.choice(standing), rng.random()
    if draw < 0.15:
        return lambda: lessons.rollback(to=now() - timedelta(seconds=rng.random() * 2), namespace=space)
    waiting = [lesson for lesson in standing if lesson.status == "candidate" and lesson.replaces]
    if waiting and draw < 0.5:
        return lambda: lessons.approve(waiting[0].id)
    if chosen.status != "active":
        return lambda: lessons.approve(chosen.id)
    if draw < 0.7:
        return lambda: lessons.edit(chosen.id, do=f"use tape {token} {token}", pinned=rng.random() < 0.1)
    return lambda: lessons.retire(chosen.id)


def finish(child: Child) -> None:
    """A restart: it goes on until nothing waits and nobody holds a batch any more."""
    reflection, until = child.reflection(), time.monotonic() + 60
    ledger = reflection._core.parts.ledger
    while time.monotonic() < until:
        for user in USERS:
            report = reflection.reflect(namespace=(SHOP, user))
            if report.error:
                child.notes.tell("failed", where="finish", text=report.error)
        running = any(record.status == "running" for record in ledger.reflections.find(limit=None))
        if not running and not ledger.work.standings(EveryEpisodes(1)):
            break
        threading.Event().wait(child.orders.lease / 4)
    reflection.close()


def search(child: Child) -> None:
    """A fresh process: what it finds, and what its store holds."""
    reflection = child.reflection()
    index = reflection._core.parts.index
    for user in USERS:
        space = (SHOP, user)
        lessons = reflection.lessons.list("active", namespace=space)
        if not lessons:
            continue
        for _ in range(2):  # the second search of a process opens the store
            reflection.lessons.search("order", namespace=space)
            reflection.flush(30)
        for lesson in lessons[:10]:
            found = reflection.lessons.search(lesson.text, k=10, namespace=space)
            child.notes.tell(
                "found",
                by=index.describe(),
                query=lesson.text,
                user=user,
                hits=[(item.lesson.id, round(item.similarity, 4)) for item in found],
            )
        if index._store is not None:
            with index._store._using("judging", index._space(space)) as collections:
                collection = collections.found(index._space(space))
                held = collection.get(include=["embeddings"])
            pairs = zip(held["ids"], held["embeddings"], strict=True)
            vectors = {name: [float(x) for x in vector] for name, vector in pairs}
            child.notes.tell("stored", user=user, vectors=vectors)
    reflection.close()


ROLES: dict[str, Callable[[Child], None]] = {
    "produce": produce,
    "reflect": reflect,
    "curate": curate,
    "finish": finish,
    "search": search,
}


def main(orders: Orders) -> None:
    """A child's whole life."""
    os.environ.pop("REFLECT_PATH", None)
    child = Child(orders)
    child.wire.arm()
    if orders.store == "chroma":
        from reflect_adapters.chroma import ChromaStore

        child.wire.around(ChromaStore, "upsert", "store")
    try:
        ROLES[orders.role](child)
    except BaseException:
        child.notes.tell("crashed", text=traceback.format_exc()[-3_000:])
        raise
