"""The experiment: practise with learning on, then file held-out claims with learning off, in four arms."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from langchain_core.messages import HumanMessage
from langgraph.graph.state import CompiledStateGraph

from expense_desk.agent import build_agent
from expense_desk.desk import Desk, Filed, Rules, draw_rules
from expense_desk.models import Models
from expense_desk.outcome import LEARNED, NONE, PLACEBO, RAW, Learned, Meter, Outcome
from expense_desk.placebo import unrelated
from expense_desk.tasks import HELD_OUT, PRACTICE, Claim, draw_claims
from reflect_middleware import Reflection, ReflectionReport

NAME = "expense-desk"
EVERY = 5
"""A reflection is due after so many claims."""
SUBMISSIONS = 2
"""How often one claim may be submitted in practice."""
TOKEN_BUDGET = 600
"""Most tokens of advice in any arm's prompt, by the library's cautious estimate."""
TOP_K = 16
"""Most lessons shown: an office has few rules, so all may be shown."""
REWARD_WAIT = 3_600.0
"""Seconds that an ended claim waits for its reward, which is given right after it."""


class Watcher(Protocol):
    """Told what happens, as it happens."""

    def filed(self, phase: str, filed: Filed) -> None:
        """A claim was filed in the practice or in an arm."""

    def reflected(self, report: ReflectionReport) -> None:
        """A reflection ended."""


class Experiment:
    """One seed's run.

    Args:
        seed: Draws the office's rules and the claims.
        models: The models.
        folder: Where ledgers and vector stores go.
        watcher: Told about each claim and reflection.
    """

    def __init__(self, seed: int, models: Models, folder: Path, watcher: Watcher) -> None:
        self.rules: Rules = draw_rules(seed)
        self.models, self.folder, self.watcher = models, folder, watcher
        self.outcome = Outcome(seed=seed)

    def run(self, *, practice: int, held_out: int) -> Outcome:
        """Practise on `practice` claims, then file the same `held_out` claims in each arm."""
        started = time.monotonic()
        with self._reflection("practice", learn=True) as learner, self._reflection("placebo", learn=False) as other:
            self._practise(learner, draw_claims(PRACTICE, practice, self.outcome.seed))
            for when, do in unrelated([lesson.text for lesson in self.outcome.lessons]):
                other.lessons.add(when=when, do=do)
            claims = draw_claims(HELD_OUT, held_out, self.outcome.seed)
            notes = raw_rejections(self.outcome.practice)
            self._evaluate(NONE, claims, None)
            self._evaluate(PLACEBO, claims, other)
            self._evaluate(RAW, claims, None, notes)
            self._evaluate(LEARNED, claims, learner)
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _reflection(self, name: str, *, learn: bool) -> Reflection:
        return Reflection(
            self.models.reflector,
            every=EVERY,
            path=self.folder / name,
            embeddings=self.models.embeddings,
            top_k=TOP_K,
            token_budget=TOKEN_BUDGET,
            min_similarity=-1,
            reward_wait=REWARD_WAIT,
            run="inline",
            learn=learn,
            on_reflection=self._reflected,
        )

    def _practise(self, reflection: Reflection, claims: Sequence[Claim]) -> None:
        desk = Desk(self.rules)
        agent = reflection.wrap(build_agent(self.models.agent, desk, submissions=SUBMISSIONS), name=NAME)
        meter = self._meter("practice")
        for number, claim in enumerate(claims):
            result, filed = file_claim(agent, desk, f"practice-{number}", claim, meter)
            self.outcome.practice.append(filed)
            self.watcher.filed("practice", filed)
            reflection.reward(result, float(filed.accepted), source="outcome", comment=filed.answer)
        reflection.flush()
        self.outcome.lessons = [
            Learned(when=lesson.when, do=lesson.do, because=lesson.because, episodes=len(lesson.sources))
            for lesson in reflection.lessons.list(status="active")
        ]

    def _evaluate(self, arm: str, claims: Sequence[Claim], reflection: Reflection | None, notes: str = "") -> None:
        """File the held-out claims; only the first submission counts, so there is only one."""
        desk = Desk(self.rules)
        agent = build_agent(self.models.agent, desk, submissions=1, notes=notes)
        if reflection is not None:
            agent = reflection.wrap(agent, name=NAME)
        self.outcome.held_out[arm] = []
        meter = self._meter(arm)
        for number, claim in enumerate(claims):
            _, filed = file_claim(agent, desk, f"{arm}-{number}", claim, meter, learn=False)
            self.outcome.held_out[arm].append(filed)
            self.watcher.filed(arm, filed)

    def _meter(self, phase: str) -> Meter:
        meter = Meter()
        self.outcome.agent[phase] = meter.tokens
        return meter

    def _reflected(self, report: ReflectionReport) -> None:
        self.outcome.reflections += len(report.reflections)
        self.outcome.reflector.add(report.input_tokens, report.output_tokens)
        if report.error:
            self.outcome.problems.append(report.error)
        self.watcher.reflected(report)


def raw_rejections(practice: Sequence[Filed]) -> str:
    """The practice's rejections as they came, the first ones first, as many as the lessons' token budget holds."""
    text = "What the desk answered to this agent's earlier claims:"
    for filed in practice:
        longer = f"{text}\n- {filed.answer}"
        if not filed.accepted and len(longer) <= TOKEN_BUDGET * 3:
            text = longer
    return text


def file_claim(
    agent: CompiledStateGraph[Any], desk: Desk, thread_id: str, claim: Claim, meter: Meter, *, learn: bool = True
) -> tuple[Any, Filed]:
    """Run the agent on one claim; gives the run's result and the first submission."""
    desk.expect(thread_id, claim.facts)
    result = agent.invoke(
        {"messages": [HumanMessage(claim.text)]},
        {"configurable": {"thread_id": thread_id, "reflect": {"learn": learn}}, "callbacks": [meter]},
    )
    return result, desk.first(thread_id, claim.text)
