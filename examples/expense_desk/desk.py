"""The expense desk: house rules drawn by seed, and a clerk that answers a wrong claim tersely."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
KINDS = ("travel", "meals", "lodging")
FIELDS = ("amount", "date", "cost_centre", "account", "entity", "receipt")

ACCEPTED = "accepted"
ATTACHED = "attached"
Value = str | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What really happened: what a correct claim is computed from."""

    cents: int
    year: int
    month: int
    day: int
    cost_centre: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One office's house rules."""

    amount: str
    date: str
    affix: str
    accounts: dict[str, str]
    entity: str
    receipt_limit: int
    """Euros above which a receipt must be attached."""

    def correct(self, facts: Facts) -> dict[str, Value]:
        """The only claim that this office accepts for these facts; a field that is free is left out."""
        receipt = {"receipt": ATTACHED} if facts.cents > 100 * self.receipt_limit else {}
        return {
            "amount": amount_as(self.amount, facts.cents),
            "date": date_as(self.date, facts),
            "cost_centre": self.affix.replace("#", str(facts.cost_centre)),
            "account": self.accounts[facts.kind],
            "entity": self.entity,
            **receipt,
        }

    def words(self) -> str:
        """All house rules in one line, for the spectators; no model ever sees it."""
        accounts = ", ".join(f"{kind} on {code}" for kind, code in self.accounts.items())
        centres = self.affix.replace("#", "<number>")
        return (
            f"amounts {AMOUNT_WORDS[self.amount]}; dates {self.date}; cost centres {centres}; {accounts};"
            f" entity {self.entity}; receipts {ATTACHED} above {self.receipt_limit} euros"
        )

    def expectation(self, field: str, facts: Facts) -> str:
        """How the clerk words what a wrong field should have been."""
        return {
            "amount": f"must be {AMOUNT_WORDS[self.amount]}",
            "date": f"must be {self.date}",
            "cost_centre": f"must be {self.affix.replace('#', '<number>')}",
            "account": f"must be {self.accounts[facts.kind]} for {facts.kind}",
            "entity": f"must be {self.entity}",
            "receipt": f"must be {ATTACHED} above {self.receipt_limit} euros",
        }[field]


AMOUNT_WORDS = {
    "cents": "in cents, not euros",
    "negative": "a negative number",
}
DATE_FORMS = ("YYYYMMDD", "DD.MM.YYYY", "YYYY/MM/DD", "YYYY.MM.DD")


def amount_as(form: str, cents: int) -> float:
    """The amount as a JSON number in the office's unit and sign."""
    sign = -1 if "negative" in form else 1
    return sign * (cents if "cents" in form else cents / 100)


def date_as(form: str, facts: Facts) -> str:
    """The date in a form such as ``DD.MM.YYYY``."""
    text = form.replace("YYYY", f"{facts.year}").replace("MM", f"{facts.month:02}")
    return text.replace("DD", f"{facts.day:02}")


def draw_rules(seed: int) -> Rules:
    """The office of a seed."""
    rng = random.Random(f"office {seed}")
    letters = rng.sample("BDFGHKLMPRSVWXZ", 8)
    code = "".join(letters[:3])
    affix = rng.choice([f"{code}-#", f"{code}/#", f"#-{code}", f"#/{code}"])
    numbers = rng.sample(range(1, 10), 4)
    accounts = {k: f"{letters[3 + i]}{numbers[i]}" for i, k in enumerate(KINDS)}
    return Rules(
        amount=rng.choice(list(AMOUNT_WORDS)),
        date=rng.choice(DATE_FORMS),
        affix=affix,
        accounts=accounts,
        entity=f"{letters[6]}{letters[7]}{rng.randint(10, 99)}",
        receipt_limit=rng.choice((20, 25, 30, 50)),
    )


def review(rules: Rules, facts: Facts, claim: Mapping[str, Any]) -> list[str]:
    """The clerk's complaints, one per wrong field; empty when the claim is accepted."""
    right = rules.correct(facts)
    return [f"{f}: {rules.expectation(f, facts)}" for f in FIELDS if f in right and claim.get(f) != right[f]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """One claim: what was asked, what the agent submitted first, and what the desk said to that."""

    task: str
    claim: dict[str, Any]
    answer: str

    @property
    def accepted(self) -> bool:
        """Success: accepted at the first submission."""
        return self.answer == ACCEPTED


class Desk:
    """An office's desk: it knows the receipts and answers each submission."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._receipts: dict[str, Facts] = {}
        self._submitted: dict[str, list[tuple[dict[str, Any], str]]] = {}

    def expect(self, thread_id: str, facts: Facts) -> None:
        """Lay the receipt of a coming claim on the desk."""
        self._receipts[thread_id] = facts
        self._submitted[thread_id] = []

    def submit(self, thread_id: str, claim: dict[str, Any]) -> str:
        """Check a claim against its receipt and the house rules."""
        complaints = review(self.rules, self._receipts[thread_id], claim)
        answer = f"rejected: {'; '.join(complaints)}" if complaints else ACCEPTED
        self._submitted[thread_id].append((claim, answer))
        return answer

    def first(self, thread_id: str, task: str) -> Filed:
        """What was submitted first, and the answer."""
        claim, answer = next(iter(self._submitted[thread_id]), ({}, "nothing was submitted"))
        return Filed(task=task, claim=claim, answer=answer)
