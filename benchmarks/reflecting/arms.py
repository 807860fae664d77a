"""The ways to learn that are compared: each gets the same rollouts and the same model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from langgraph.graph.state import CompiledStateGraph

from benchmarks.reflecting.agent import Rollout, build_agent, run_task
from benchmarks.reflecting.judge import Verdict, judged, stated
from benchmarks.reflecting.players import Players
from benchmarks.reflecting.rivals import NotInstalledError, optimized, playbook, sentences
from benchmarks.reflecting.world import HELD_OUT, PRACTICE, Rule, World
from benchmarks.reflecting.worlds import WORLDS
from reflect_middleware import Reflection
from reflect_middleware.retrieve import estimate_tokens

OURS: Final = "ours"
EACH: Final = "ours, per episode"
ALL_SHOWN: Final = "ours, all shown"
"""The same lessons, but every run sees all of them: what choosing among them costs or saves."""
UNREWARDED: Final = "ours, rewards hidden"
RAW: Final = "raw rejections"
PLAYBOOK: Final = "ACE-style playbook"
LANGMEM: Final = "LangMem optimizer"
NONE: Final = "no lessons"
RULES: Final = "rules given"
ARMS: Final = (NONE, OURS, ALL_SHOWN, EACH, UNREWARDED, RAW, LANGMEM, PLAYBOOK, RULES)
SHORT: Final = dict(
    zip(("none", "ours", "all", "each", "unrewarded", "raw", "langmem", "ace", "rules"), ARMS, strict=True)
)
"""What the command line calls them."""
LEARNERS: Final = (OURS, ALL_SHOWN, EACH, UNREWARDED)
TOKEN_BUDGET: Final = 600
"""Most tokens of learned text in any arm's prompt, which is the product's default, by its cautious estimate."""
MOST_SHOWN: Final = 24
WAIT: Final = 3_600.0
"""Seconds that an ended run waits for its reward, which is given right after it."""


class OutOfTimeError(RuntimeError):
    """The budget of minutes is used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is played in one world and seed."""

    practice: int
    """Practice tasks; each is tried once per habit of the world."""
    held_out: int
    """Held-out tasks in each arm."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one arm did in one world with one seed."""

    world: str
    seed: int
    arm: str
    verdicts: Sequence[Verdict] = ()
    shown: float = 0.0
    """Share of the hidden rules that the practice broke: only these can be learned."""
    stated: float = 0.0
    """Share of the hidden rules that are stated, from 0 to 1."""
    fields: float = 0.0
    """Share of ruled fields that are right in held-out tasks."""
    tasks: float = 0.0
    """Share of held-out tasks that are right altogether."""
    tokens: int = 0
    """Read and written by the reflecting model, in all."""
    reflections: int = 0
    refused: Sequence[str] = ()
    """Ours: why edits were refused or wait."""
    seconds: float = 0.0
    problem: str = ""
    """Why the arm learned nothing, or is left out."""
    left_out: bool = False

    @property
    def useful(self) -> int:
        """Learned texts that state a rule that none before them states."""
        return sum(verdict.kind == "useful" for verdict in self.verdicts)


@dataclass(kw_only=True)
class Learned:
    """What an arm has learned: texts, and how they get into a prompt."""

    texts: Sequence[str] = ()
    system: str = ""
    """The instructions, learned text included; empty where the product adds it by itself, or for none."""
    wrap: Callable[[CompiledStateGraph[Any]], CompiledStateGraph[Any]] = lambda agent: agent
    reflections: int = 0
    refused: list[str] = field(default_factory=list)
    problem: str = ""


class Cell:
    """One world with one seed: its practice is shared by all arms.

    Args:
        world: The world's name.
        seed: Draws the rules and the tasks.
        players: The models.
        size: How much is played.
        until: `time.monotonic()` at which to stop.
    """

    def __init__(self, world: str, seed: int, players: Players, size: Size, until: float = float("inf")) -> None:
        self.world: World = WORLDS[world](seed)
        self.seed, self.players, self.size, self.until = seed, players, size, until

    @cached_property
    def practice(self) -> tuple[Rollout, ...]:
        """The rollouts that every arm learns from."""
        return tuple(rollout for _, rollout in self._rollouts())

    def run(self, arm: str) -> Result:
        """Learn in one way, then do the held-out tasks.

        Raises:
            OutOfTimeError: The budget of minutes is used up; what was answered is remembered.
        """
        started, before = time.monotonic(), self.players.meter.tokens
        about: dict[str, Any] = {"world": self.world.name, "seed": self.seed, "arm": arm}
        try:
            with self._learned(arm) as learned:
                tokens = self.players.meter.tokens - before
                done = self._held_out(learned)
        except NotInstalledError as error:
            return Result(**about, problem=str(error), left_out=True)
        tasks = [rollout.task for rollout in self.practice]
        verdicts = judged(self.world, learned.texts, tasks) if learned.texts else []
        return Result(
            **about,
            verdicts=verdicts,
            shown=len({cause for r in self.practice for cause in r.causes}) / len(self.world.rules),
            stated=stated(self.world, verdicts),
            fields=sum(r.fields[0] for r in done) / sum(r.fields[1] for r in done),
            tasks=sum(not r.causes for r in done) / len(done),
            tokens=tokens,
            reflections=learned.reflections,
            refused=learned.refused,
            seconds=time.monotonic() - started,
            problem=learned.problem,
        )

    def _rollouts(self, reflection: Reflection | None = None) -> Iterator[tuple[Any, Rollout]]:
        """Play the practice: the same in every arm, because nothing that is learned is shown in it."""
        switches = {"use_lessons": False, "learn": reflection is not None}
        for number, task in enumerate(self.world.tasks(PRACTICE, self.size.practice, self.seed)):
            for turn, habit in enumerate(self.world.habits):
                thread = f"practice-{number}-{turn}"
                agent = build_agent(self.players.agent, self.world, {thread: task}, habit=habit)
                wrapped = reflection.wrap(agent, name=self.world.name) if reflection else agent
                self._check()
                yield run_task(wrapped, self.world, task, thread, switches)

    def _held_out(self, learned: Learned) -> list[Rollout]:
        tasks = self.world.tasks(HELD_OUT, self.size.held_out, self.seed)
        threads = {f"held-out-{number}": task for number, task in enumerate(tasks)}
        agent = learned.wrap(build_agent(self.players.agent, self.world, threads, system=learned.system, habit={}))
        done = []
        for thread, task in threads.items():
            self._check()
            done.append(run_task(agent, self.world, task, thread, {"learn": False})[1])
        return done

    def _check(self) -> None:
        if time.monotonic() > self.until:
            raise OutOfTimeError("The budget of minutes is used up.")

    @contextmanager
    def _learned(self, arm: str) -> Iterator[Learned]:
        if arm in LEARNERS:
            with self._ours(arm) as learned:
                yield learned
            return
        self._check()
        yield self._rival(arm)

    def _rival(self, arm: str) -> Learned:
        world, model = self.world, self.players.reflector
        try:
            if arm == PLAYBOOK:
                return self._noted("The playbook of this agent:", playbook(model, world, self.practice))
            if arm == LANGMEM:
                system = optimized(model, world, self.practice)
                return Learned(texts=sentences(system, world.about), system=system)
        except NotInstalledError:
            raise
        except Exception as error:  # noqa: BLE001 - a rival's failure is a result: it has learned nothing
            return Learned(problem=f"{type(error).__name__}: {error}"[:300])
        if arm == RAW:
            answers = dict.fromkeys(rollout.answer for rollout in self.practice if rollout.causes)
            return self._noted("What was answered to this agent's earlier forms:", list(answers))
        if arm == RULES:
            return self._noted("The rules:", [rule.text for rule in self._spoken()])
        return Learned()

    def _spoken(self) -> list[Rule]:
        """The rules as somebody who knows them would say them; the letters' is that the tool counts."""
        by_tool = f"count must be right: always set tool to {self.world.tool} first"
        return [replace(r, text=by_tool) if self.world.tool and r.field == "count" else r for r in self.world.rules]

    def _noted(self, head: str, lines: Sequence[str]) -> Learned:
        """Lines under the instructions, the first ones first, as many as the budget of learned text holds."""
        notes, shown = head, []
        for line in lines:
            longer = f"{notes}\n- {line}"
            if estimate_tokens(longer) <= TOKEN_BUDGET:
                notes = longer
                shown.append(line)
        return Learned(texts=shown, system=f"{self.world.about}\n\n{notes}" if shown else "")

    @contextmanager
    def _ours(self, arm: str) -> Iterator[Learned]:
        """The product as installed, but for what the arm is about, over the practice."""
        learned, rewarded = Learned(), arm != UNREWARDED
        settings = self.players.settings | ({"top_k": MOST_SHOWN, "min_similarity": -1} if arm == ALL_SHOWN else {})

        def noted(report: Any) -> None:
            learned.reflections += len(report.reflections)
            learned.problem = report.error or learned.problem
            learned.refused += [outcome.reason for outcome in (*report.accepted, *report.rejected) if outcome.reason]

        with (
            tempfile.TemporaryDirectory() as folder,
            Reflection(
                self.players.reflector,
                every=1 if arm == EACH else len(self.practice),
                path=Path(folder),
                run="inline",
                reward_wait=WAIT if rewarded else 0,
                on_reflection=noted,
                **settings,
            ) as reflection,
        ):
            for result, rollout in self._rollouts(reflection):
                if rewarded:
                    reflection.reward(result, rollout.reward, comment=rollout.answer)
            reflection.flush()
            learned.texts = [lesson.text for lesson in reflection.lessons.list(status="active")]
            learned.wrap = lambda agent: reflection.wrap(agent, name=self.world.name)
            yield learned


def as_json(result: Result) -> Mapping[str, Any]:
    """A result as it is kept in a file."""
    kept = {
        name: getattr(result, name) for name in ("world", "seed", "arm", "shown", "stated", "fields", "tasks", "tokens")
    }
    kept |= {name: getattr(result, name) for name in ("reflections", "problem", "left_out", "useful")}
    texts = [{"text": v.text, "states": sorted(v.states), "kind": v.kind} for v in result.verdicts]
    return {**kept, "seconds": round(result.seconds, 1), "refused": list(result.refused), "texts": texts}
