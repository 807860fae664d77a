"""Which values of a lesson belong to one task only: a labelled table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from reflect_middleware.forms import number
from reflect_middleware.particular import Tasks
from reflect_middleware.types import Episode, Reward, Step

AT = datetime(2026, 1, 2, tzinfo=UTC)
OTHER = "Refund the parcel of Tuesday"


def run(task: str, said: str = "", **fields: Any) -> Episode:
    steps = (Step(kind="tool", name="refund", input="{}", output=said),) if said else ()
    known = {"id": task, "namespace": ("n",), "status": "completed", "started_at": AT, "trajectory": steps}
    return Episode(**{"task": task, **known, **fields})


def kinds(when: str, do: str, *episodes: Episode) -> list[str]:
    return [value.kind for value, _ in Tasks(episodes).particular(when, do)]


# A task, what the environment said, a lesson; the lesson has a value of that task alone.
ONE_TASK_ONLY = [
    ("Refund order 1182", "needs approval", "refunding order 1182", "ask a manager", "id"),
    ("Refund order 1182", "order 1182 not found: needs approval", "refunding order #1182", "ask a manager", "id"),
    ("Refund order ORD-99172", "denied", "refunding ORD-99172", "ask a manager", "id"),
    ("Where is parcel JJD0123 now?", "unknown", "asked for parcel JJD0123", "ask the carrier", "id"),
    ("Cancel booking X7Q2", "denied", "cancelling booking X7Q2", "check the fare first", "id"),
    ("Close ticket 77", "not resolved", "closing ticket 77", "resolve it first", "id"),
    ("Close #4711", "denied", "closing #4711", "resolve it first", "id"),
    ("Look at case no. 31-b", "denied", "working on case no. 31-b", "read the notes first", "id"),
    ("Delete user 6f1c3a52-9a4e-4d8b-9b3a-0c5d2e7f8a11", "denied", "deleting an account",
     "call delete with 6f1c3a52-9a4e-4d8b-9b3a-0c5d2e7f8a11", "id"),
    ("Erstatte Bestellung 88123", "abgelehnt", "Erstattung der Bestellung 88123", "frage die Leitung", "id"),
    ("Rembourse la commande n° 5521", "refusé", "remboursement de la commande n° 5521", "demander au chef", "id"),
    ("Devuelve el pedido 90 210", "denegado", "devolver el pedido 90", "pedir permiso", "id"),
    ("Rimborsa la fattura 774", "negato", "rimborsare la fattura 774", "chiedere al capo", "id"),
    ("Pay the bill of 84.20 EUR", "denied", "a bill of 84.20 EUR", "ask first", "amount"),
    ("Pay the bill of € 84,20", "denied", "a bill of 84.20 EUR", "ask first", "amount"),
    ("Pay 1,182.50 USD to the garage", "denied", "paying the garage", "transfer $1182.50 in one go", "amount"),
    ("Zahle 1.182,50 EUR", "abgelehnt", "eine Zahlung von 1182,50 EUR", "frage erst", "amount"),
    ("Find a flight under 450 EUR", "none found", "finding a flight under 450 EUR", "look for trains too", "amount"),
    ("Pay 12 dollars for the taxi", "denied", "a taxi of 12 dollars", "attach the receipt", "amount"),
    ("File the taxi of 5 March 2026", "denied", "filing the taxi of 2026-03-05", "attach the receipt", "date"),
    ("File the taxi of 2026-03-05", "denied", "filing a taxi", "write the date as 20260305", "date"),
    ("File the taxi of March 5th, 2026", "denied", "a taxi of 05.03.2026", "attach the receipt", "date"),
    ("File the taxi of 12/31/2025", "denied", "a taxi of 2025-12-31", "attach the receipt", "date"),
    ("Reiche das Taxi vom 5. März 2026 ein", "abgelehnt", "ein Taxi vom 5. März 2026", "hänge die Quittung an", "date"),
    ("Taxi del 5 de marzo de 2026", "denegado", "taxi del 5 de marzo de 2026", "adjuntar el recibo", "date"),
    ("Write to jane.doe@example.org", "denied", "writing to jane.doe@example.org", "be formal", "e-mail"),
    ("Invite Jane <jane.doe@example.org>", "denied", "inviting Jane Doe", "be formal", "name"),
    ("My name is Priya Patel, refund me", "denied", "a request of Priya Patel", "ask a manager", "name"),
    ("Refund Mr. Okafor", "denied", "refunding Mr. Okafor", "ask a manager", "name"),
    ("Refund customer Ana Lopez", "denied", "refunding", "ask the manager of Ana Lopez", "name"),
    ("Erstatte Frau Weber das Geld", "abgelehnt", "Erstattung an Frau Weber", "frage die Leitung", "name"),
    ("Je m'appelle Camille Roux, un billet", "refusé", "un billet pour Camille Roux", "demander au chef", "name"),
    ("Me llamo Sofía, un billete", "denegado", "un billete para Sofía", "pedir permiso", "name"),
    ("Read https://example.org/t/123?x=1", "404", "reading https://example.org/t/123?x=1", "retry once", "URL"),
    ("Summarise (https://example.org/a/b).", "empty", "asked for https://example.org/a/b", "open it twice", "URL"),
    ("Sum up /home/ana/march", "denied", "reading /home/ana/march", "list it first", "path"),
    ("Sum up report_q3.csv", "denied", "summing up report_q3.csv", "skip the header", "path"),
    (r"Open C:\Users\ana\tax", "denied", r"opening C:\Users\ana\tax", "ask first", "path"),
    ("Read ~/notes/today", "denied", "reading ~/notes/today", "ask first", "path"),
    ('How many r are in "strawberry"?', "wrong", 'counting letters in "strawberry"', "spell it out", "quoted text"),
    ("Wie oft steht e in „Erdbeere“?", "falsch", "Buchstaben zählen in „Erdbeere“", "buchstabiere", "quoted text"),
    ("Submit amount 84.2 for the taxi", "denied", "a taxi", 'call submit with {"amount": 84.20, "kind": 1}', "number"),
    ("Call 4915112345", "busy", "calling 4915112345", "try again later", "number"),
    ("退款订单 order 1182", "拒绝", "退款 order 1182", "询问经理", "id"),
]  # fmt: skip

# The same, but the lesson is good: the environment states the value, the task a rule, or the form is no instance's.
GOOD = [
    ("Refund 350 EUR", "needs a manager above 200 EUR", "a refund above 200 EUR", "ask a manager"),
    ("Refund 200 EUR", "at most 200 EUR without a manager", "a refund above 200 EUR", "ask a manager"),
    ("Pay 84.20 EUR", "amounts of 84.20 EUR must be paid in cash", "an amount of 84.20 EUR", "pay in cash"),
    ("File it", "use code GR-7 for travel", "filing travel", "use code GR-7"),
    ("File it under GR-7", "use code GR-7 for travel", "filing travel", "use code GR-7"),
    ("File the taxi", "account: must be T41 for travel", "filing a taxi", "set the account to T41"),
    ("File it for case 12", "invoice 99 is required", "filing it", "name invoice 99"),
    ("Refund order 1182", "denied", "refunding an order", "ask a manager"),
    ("Retry on 503", "503", "a 503 comes", "retry twice after 10 seconds"),
    ("Read it as UTF-8", "bad byte", "reading a file that is not UTF-8", "try CP1252"),
    ("Sign it with SHA-256", "denied", "signing with SHA-256", "add a salt"),
    ("Write dates as ISO8601", "denied", "writing a date", "use ISO8601"),
    ("Run it on Python 3.11", "denied", "running on Python 3.11", "use tomllib"),
    ("Use gpt-4o for that", "denied", "calling gpt-4o", "set a limit of tokens"),
    ("I get error E1182", "restart", "error E1182 is shown", "restart the service"),
    ("My TX-1000 blinks", "denied", "a TX-1000 blinks", "hold reset for 5 seconds"),
    ("Draw up the plan for 2026", "denied", "planning for 2026", "start with the budget"),
    ("Book a table for 4 people", "denied", "booking for 4 people or more", "call the place"),
    ("Use the form in Salesforce", "denied", "filing in Salesforce", "save twice"),
    ("Send a Purchase Order", "denied", "sending a Purchase Order", "sign it"),
    ("Prüfe die Offene Rechnung", "abgelehnt", "prüfen einer Offene Rechnung", "lies zweimal"),
    ("Fahre nach Berlin", "abgelehnt", "eine Fahrt nach Berlin", "nimm die Bahn"),
    ("Write to support@example.org", "denied", "a complaint", "forward it to support@example.org"),
    ("Use https://api.example.org", "denied", "calling https://api.example.org", "send the key"),
    ("Read /etc/hosts", "denied", "reading /etc/hosts", "ask first"),
    ("Fix src/utils/dates.py", "failed", "dates are wrong", "look into src/utils/dates.py"),
    ("Fix README.md", "failed", "changing README.md", "run the linter"),
    ("POST to /api/v1/orders", "400", "posting to /api/v1/orders", "send JSON"),
    ('Say "hello" to them', 'error: say "hello" twice', "greeting", 'say "hello" twice'),
    ('Run it with "--force"', "denied", 'asked to use "--force"', "warn first"),
    ("File the taxi of 2026-03-05", "date: must be YYYYMMDD", "writing a date", "use YYYYMMDD, e.g. 20260305"),
    ("File the taxi of 2026-03-05", "date: must be YYYYMMDD", "writing a date", "use YYYYMMDD (for example 20260305)"),
    ("Reiche das Taxi vom 05.03.2026 ein", "Form: JJJJMMTT", "ein Datum", "JJJJMMTT, z. B. 20260305"),
    ("Policy: refunds over 150 EUR must be signed. Refund it.", "denied", "refunds over 150 EUR", "have it signed"),
    ("Refund it: it needs a manager above 200 EUR", "denied", "refunding", "ask a manager above 200 EUR"),
    ("Erstatte 300 EUR", "höchstens 300 EUR erlaubt", "eine Erstattung über 300 EUR", "frage die Leitung"),
    ("Rembourse 300 EUR", "300 EUR maximal", "un remboursement de 300 EUR et plus", "demander au chef"),
    ("Devuelve 300 EUR", "hasta 300 EUR sin permiso", "devolver más de 300 EUR", "pedir permiso"),
    ("退款 300 EUR", "最多 300 EUR", "退款超过 300 EUR", "询问经理"),
    ("Refund customer VIP", "VIP customers must get priority", "a VIP customer", "answer first"),
    ("Send 10000 rows", "limit is 10000 rows", "sending rows", "send at most 10000"),
    ("Read the lines of the log", "use a limit of 65536", "reading a log", 'call read with {"limit": 65536}'),
    ("Order a taxi", "denied", "an order", "check the list first"),
    ("Mark it as done, I am Happy with it", "denied", "the user is Happy", "close it"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "said", "when", "do", "kind"), ONE_TASK_ONLY)
def test_a_value_of_one_task_is_found(task: str, said: str, when: str, do: str, kind: str):
    assert kinds(when, do, run(task, said), run(OTHER, "denied")) == [kind]
    assert kinds(when, do, run(task, said), run(task, said, id="again")) == [kind]  # rollouts of one task alone
    if kind == "quoted text":  # JSON quotes every word
        return
    as_input = run("Do as the input says", said, input=json.dumps({"messages": task}, ensure_ascii=False))
    assert kinds(when, do, as_input, run(OTHER)) == [kind]


@pytest.mark.parametrize(("task", "said", "when", "do", "kind"), ONE_TASK_ONLY)
def test_what_two_tasks_have_is_no_tasks_own(task: str, said: str, when: str, do: str, kind: str):
    assert kinds(when, do, run(task, said), run(f"{task}, please", said)) == []


@pytest.mark.parametrize(("task", "said", "when", "do"), GOOD)
def test_a_good_lesson_passes(task: str, said: str, when: str, do: str):
    assert kinds(when, do, run(task, said), run(OTHER, "denied")) == []
    assert kinds(when, do, run(task, said)) == []


@pytest.mark.parametrize("where", ["error", "comment", "correction", "ended"])
def test_a_rule_may_stand_wherever_the_environment_speaks(where: str):
    rule = "at most 200 EUR without a manager"
    said = {
        "error": {"trajectory": (Step(kind="tool", error=rule),)},
        "comment": {"rewards": (Reward(value=0, comment=rule),)},
        "correction": {"rewards": (Reward(value=0, correction=rule),)},
        "ended": {"status": "failed", "error": rule},
    }
    assert kinds("a refund of 200 EUR", "ask", run("Refund 200 EUR", **said[where])) == []
    assert kinds("a refund of 200 EUR", "ask", run("Refund 200 EUR")) == ["amount"]


def test_what_the_agent_said_is_no_rule():
    own = (Step(kind="model", output="200 EUR must be asked for"), Step(kind="tool", input="at most 200 EUR"))
    assert kinds("a refund of 200 EUR", "ask", run("Refund 200 EUR", trajectory=own)) == ["amount"]


def test_each_value_is_named_once_with_its_episode():
    here = run("Refund order 1182 to Mr. Okafor")
    found = Tasks((run(OTHER), here)).particular("order 1182 of Mr. Okafor", "refund order 1182")
    assert [(value.text, episode.id) for value, episode in found] == [("1182", here.id), ("Okafor", here.id)]


@pytest.mark.parametrize(
    ("written", "one"),
    [("1,182.50", "1182.5"), ("1.182,50", "1182.5"), ("1'182.50", "1182.5"), ("1,182", "1182"), ("84,20", "84.2"),
     ("84.200", "84200"), ("12", "12"), ("1.234.567", "1234567"), ("12345678901234567890", "12345678901234567890"),
     ("1.2.3", "12.3")],
)  # fmt: skip
def test_a_number_has_one_form(written: str, one: str):
    assert number(written) == one


def test_a_held_value_counts_until_it_is_gone_or_shown_to_be_a_rule():
    assert Tasks((run(OTHER),)).still_particular("refunding order 1182: ask", ("1182",))
    assert Tasks((run("Refund Mr. Okafor"),)).still_particular("refunding Mr. Okafor: ask", ("Okafor",))
    assert not Tasks((run("Refund order 1182"),)).still_particular("refunding an order: ask", ("1182",))
    assert not Tasks((run(OTHER, "order 1182 must be asked for"),)).still_particular(
        "refunding order 1182: ask", ("1182",)
    )
    both = (run("Refund order 1182"), run("Refund order 1182 now"))
    assert not Tasks(both).still_particular("refunding order 1182: ask", ("1182",))
