"""What agents were told, each statement once."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from reflect_middleware import digest as digesting
from reflect_middleware.batch import Batch
from reflect_middleware.digest import MOST, NAMED, Statement, digest
from reflect_middleware.groups import grouped
from reflect_middleware.types import Episode, Reward, Step

NS = ("shop",)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def told(number: int, *texts: str, task: str = "", tools: tuple[str, ...] = (), **fields: Any) -> Episode:
    """A run with reward 0 whose last result says this, after calls of these tools."""
    steps = [Step(kind="tool", name=name, input="{}", output="42") for name in tools]
    steps += [Step(kind="tool", name="send", input="{}", output=text) for text in texts]
    return Episode(
        id=f"id-{number}",
        namespace=NS,
        status="completed",
        started_at=AT,
        task=task or f"Send parcel {1000 + number} to {('Rome', 'Oslo', 'Kiev', 'Bonn')[number % 4]}",
        **{"rewards": (Reward(value=0),), "trajectory": tuple(steps), **fields},
    )


def listed(*episodes: Episode) -> list[str]:
    batch = Batch(namespace=NS, episodes=episodes)
    return [statement.line for statement in digest(batch.episode_handles, grouped(batch))]


def test_each_statement_stands_once_with_the_runs_that_heard_it_rules_first():
    assert listed(
        told(1, "rejected: count is wrong; zone must be FG18 for food"),
        told(2, "rejected: Zone must be FG18 for food; carrier must be PS35"),
        told(3, "rejected: count is wrong; carrier must be PS35; zone must be FG18 for food"),
    ) == [
        "- zone must be FG18 for food (E1, E2, E3)",
        "- carrier must be PS35 (E2, E3)",
        "- count is wrong (E1, E3)",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ERROR: query refused. hint must be KD47. limit must be 40.", ["hint must be KD47", "limit must be 40"]),
        ("tag must be A1, and desk must be B2", ["tag must be A1", "desk must be B2"]),
        ("it must be written as 09h30, with an h between", ["it must be written as 09h30, with an h between"]),
        ("ValueError: amount must be at most 200", ["amount must be at most 200"]),
    ],
)
def test_what_is_said_is_taken_apart_where_one_rule_ends(text, parts):
    lines = listed(told(1, text), told(2, text))
    assert [line for part in parts for line in lines if line == f"- {part} (E1, E2)"] == [
        f"- {part} (E1, E2)" for part in parts
    ]


def test_a_comment_a_correction_and_an_error_count_praise_and_runs_that_went_well_do_not():
    failed = Step(kind="tool", name="send", input="{}", error="TimeoutError: use port 8443 only")
    runs = (
        told(1, rewards=(Reward(value=0, source="user", comment="it needs a stamp", correction="put a stamp on it"),)),
        told(2, rewards=(Reward(value=0, source="implicit", comment="the tool said no"),)),
        told(3, "all is as it should be", rewards=(Reward(value=1, comment="very well done"),)),
        told(4, rewards=()).model_copy(update={"trajectory": (failed,)}),
    )
    assert listed(*runs) == ["- it needs a stamp (E1)", "- use port 8443 only (E4)", "- put a stamp on it (E1)"]


def test_a_tool_that_sets_runs_of_the_same_task_apart_is_named():
    def pair(number: int, task: str) -> tuple[Episode, Episode]:
        guessed = told(number, "rejected: the sum is wrong; hint must be KD47", task=task)
        return guessed, told(number + 1, "rejected: hint must be KD47", task=task, tools=("add_up",))

    assert listed(*pair(1, "add up the first bill"), *pair(3, "add up the second bill")) == [
        "- hint must be KD47 (E1, E2, E3, E4)",
        "- the sum is wrong (E1, E3; not E2, E4, which did the same and called add_up)",
    ]


def test_an_agent_that_calls_its_tools_by_itself_is_read_too():
    def alone(number: int, answer: str, *tools: str) -> Episode:
        calls = [{"type": "ai", "content": "", "tool_calls": [{"name": name, "args": {}}]} for name in tools]
        output = json.dumps({"messages": [*calls, {"type": "tool", "content": answer}]})
        return told(number, task="count the letters", trajectory=(), output=output)

    runs = (alone(1, "rejected: count is wrong; room must be PL33"), alone(2, "rejected: room must be PL33", "count"))
    assert listed(*runs) == [
        "- room must be PL33 (E1, E2)",
        "- count is wrong (E1; not E2, which did the same and called count)",
    ]


def test_no_tool_is_named_that_runs_on_both_sides_called_or_that_only_other_tasks_called():
    both = (told(1, "the sum is wrong", task="a", tools=("add_up",)), told(2, task="a", tools=("add_up",)))
    assert listed(*both) == ["- the sum is wrong (E1)"]
    apart = (told(1, "the sum is wrong", task="a"), told(2, task="b", tools=("add_up",)))
    assert listed(*apart) == ["- the sum is wrong (E1)"]


def test_what_belongs_to_one_task_only_is_left_out():
    lines = listed(told(1, "parcel 1001 was lost; label must be in capitals"), told(2, "label must be in capitals"))
    assert lines == ["- label must be in capitals (E1, E2)"]


def test_what_every_run_heard_and_no_rule_is_tells_nothing():
    runs = (told(1, "The chef says no. pan must be LS47"), told(2, "The chef says no. cook must be DH16"))
    assert listed(*runs) == ["- pan must be LS47 (E1)", "- cook must be DH16 (E2)"]
    assert listed(told(1, "The chef says no."), told(2, "The chef says no.")) == ["- The chef says no (E1, E2)"]


def test_one_run_has_no_list_and_a_long_list_ends():
    assert listed(told(1, "hint must be KD47")) == []
    rules = "; ".join(f"field {chr(97 + n)}{chr(97 + n)} must be in capitals" for n in range(20))
    more = "; ".join(f"field {chr(97 + n)}z must be in small letters" for n in range(9))
    runs = (told(n, rules[:380].rpartition(";")[0]) for n in (1, 2))
    assert len(listed(*runs, *(told(n, more) for n in (3, 4)), *(told(n, rules[-380:]) for n in (5, 6)))) == MOST


def test_many_runs_are_counted_not_named():
    statement = Statement(text="no", told=tuple(f"E{n}" for n in range(1, NAMED + 3)))
    assert statement.line == "- no (E1, E2, E3, E4, E5, E6, E7, E8 and 2 more)"


def test_a_result_that_was_read_is_no_answer_to_the_agent():
    assert listed(told(1, "the page must say " * 40), told(2, "the page must say " * 40)) == []


def test_of_thousands_of_errors_few_are_looked_at(monkeypatch):
    asked: list[str] = []

    def counted(name: str, real: Any) -> Any:
        return lambda *given: asked.append(name) or real(*given)

    monkeypatch.setattr(digesting, "last_words", counted("words", digesting.last_words))
    monkeypatch.setattr(digesting.Tasks, "particular", counted("particular", digesting.Tasks.particular))
    names = [f"{a}{b}{c}" for a in "kmnp" for b in "aeiou" for c in "rstv"]
    errors = tuple(Step(kind="tool", name="t", error=f"field {name} must be in capitals") for name in names)
    runs = tuple(told(n, task="the same", trajectory=(*errors[n:], *errors[:n])) for n in (1, 2))
    assert len(listed(*runs)) == MOST
    assert (asked.count("words"), asked.count("particular")) == (2 * len(runs), MOST)
