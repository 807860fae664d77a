"""What runs say of themselves: each rule, what it leaves alone, and how often the reading of messages is right."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from reflect_middleware.hints import RULES, agreement, heard_in, judged, ours, seen_in
from reflect_middleware.phrases import verdict
from reflect_middleware.types import Episode, Reward, Step, combined, now

HERE = Path(__file__).parent
BEGAN = now()


def call(number: int, given: str = '{"day": "monday"}', got: str = "ok", error: str = "", name: str = "book") -> Step:
    """A tool call that begins when the one before has ended."""
    at = BEGAN + timedelta(seconds=number)
    return Step(kind="tool", name=name, input=given, output=got, error=error, started_at=at, seconds=1)


def says(text: str = "done", *, truncated: bool = False) -> Step:
    return Step(kind="model", output=f"ai: {text}", truncated=truncated)


def episode(*steps: Step, **also: Any) -> Episode:
    known = {"id": "1", "namespace": ("a",), "task": "book", "status": "completed", "started_at": BEGAN}
    return Episode(**known | also, trajectory=steps)


def seen(*steps: Step, **also: Any) -> dict[str, tuple[float, str]]:
    rewards = seen_in(episode(*steps, **also), tuple(RULES))
    assert all(reward.source == "implicit" and ours(reward) for reward in rewards)
    return {reward.key: (reward.value, reward.comment) for reward in rewards}


def test_a_clean_run_says_nothing() -> None:
    assert seen(says(), call(1), call(2, '{"day": "friday"}'), says()) == {}


def test_a_tool_that_failed_for_good() -> None:
    found = seen(call(1, got="", error="ValueError: no such day"), says())
    assert found == {"error": (0.25, 'book failed with {"day": "monday"}: ValueError: no such day')}


def test_the_repair_names_what_changed() -> None:
    failed = call(1, '{"day": "monday", "seats": 2}', "", "ValueError: day must be a date")
    found = seen(failed, says(), call(3, '{"day": "2026-11-23", "seats": 2, "class": 1}'), says())
    assert found == {
        "repair": (
            0.7,
            (
                'book failed: ValueError: day must be a date; it succeeded after a change of day: "monday" became'
                ' "2026-11-23", class: nothing became 1'
            ),
        )
    }


def test_a_repair_of_arguments_that_are_no_object() -> None:
    found = seen(call(1, "tomorrow", "", "no"), call(2, "2026-11-23"))
    assert found["repair"][1] == "book failed: no; it succeeded after a change of tomorrow became 2026-11-23"


@pytest.mark.parametrize(
    "later",
    [
        call(2),  # the same arguments: it was a passing error, from which nothing is to be learned
        call(2, got="ok again"),
    ],
)
def test_the_same_call_that_succeeds_later_is_no_sign(later: Step) -> None:
    assert seen(call(1, got="", error="busy"), later) == {}


def test_what_a_reviewer_rejects_is_no_error_of_a_tool() -> None:
    resumed, rejected = Step(kind="resume"), call(2, "", "", "not now")
    assert seen(says(), resumed, rejected, says(), call(4)) == {}
    assert list(seen(says(), resumed, call(2, error="no such day"), says())) == ["error"]
    assert list(seen(says(), resumed, says(), rejected, says())) == ["error"]  # an unknown tool


def test_a_call_beside_the_one_that_failed_repairs_nothing() -> None:
    beside = call(1, '{"day": "friday"}')
    assert list(seen(call(1, got="", error="full"), beside)) == ["error"]
    other = call(2, '{"day": "friday"}', name="look")
    assert list(seen(call(1, got="", error="full"), other)) == ["error"]


def test_a_loop_is_the_same_call_with_the_same_result() -> None:
    found = seen(*(call(n, got="nothing found") for n in range(4)))
    assert found == {"loop": (0.3, 'book was called 4 times with {"day": "monday"}, each time with: nothing found')}
    assert seen(*(call(n, got=f"{n} % done") for n in range(4))) == {}  # somebody waits for something
    assert seen(call(1), call(2)) == {}
    assert set(seen(*(call(n, got="", error="no") for n in range(3)))) == {"error", "loop"}


def test_failures_and_limits() -> None:
    assert seen(status="failed", error="KeyError: 'x'") == {"failed": (0.0, "the run failed: KeyError: 'x'")}
    assert list(seen(status="failed", error="GraphRecursionError: 25")) == ["limit"]
    assert list(seen(says(truncated=True))) == ["limit"]
    assert seen(says(truncated=True), says()) == {}  # only the answer counts
    assert list(seen(output="Sorry, need more steps to process this request.")) == ["limit"]
    assert seen(call(1, got="", error="KeyError: 'x'"), status="failed", error="KeyError: 'x'").keys() == {"failed"}


@pytest.mark.parametrize("status", ["interrupted", "cancelled"])
def test_a_run_that_others_ended_says_nothing(status: str) -> None:
    assert seen(call(1, got="", error="no"), status=status) == {}


def test_only_rules_that_are_on() -> None:
    steps = [call(n, got="", error="no") for n in range(3)]
    assert [r.key for r in seen_in(episode(*steps), ("loop",))] == ["loop"]
    assert seen_in(episode(*steps), ()) == ()
    assert heard_in("that's wrong", ("thanks",), str) == ()


def test_comments_are_short_and_on_one_line() -> None:
    found = seen(*(call(n, f'{{"n": {n}}}', "", f"line\nline {n} " + 900 * "x") for n in range(9)))
    assert len(found["error"][1]) < 1_200
    assert "\n" not in found["error"][1]


def test_what_the_user_says_next_is_cleaned_before_it_is_cut() -> None:
    message = "No, I meant the account of Mrs Zwetschgenbaum" + " or so" * 99
    (reward,) = heard_in(message, tuple(RULES), lambda text: text.replace("Zwetschgenbaum", "X"))
    assert (reward.key, reward.value) == ("correction", 0.1)
    assert reward.comment.startswith("the user's next message: \"No, I meant the account of Mrs X or so")
    assert len(reward.comment) < 200


def pair(*names: str) -> float:
    rewards = [Reward(value=RULES[name].value or 0.0, source="implicit", key=name) for name in names]
    return combined(rewards) or 0.0


def test_the_mean_of_two_signs_lies_on_the_side_of_the_weightier_one() -> None:
    """Signs are of one source and have one mean: below 0.5 a run went badly."""
    well = [("thanks", name) for name in ("error", "loop", "repair", "limit")] + [("repair", "loop")]
    badly = [("thanks", "failed"), ("correction", "repair"), ("error", "repair"), ("failed", "repair")]
    assert [pair(*names) >= 0.5 for names in well] == [True] * len(well)
    assert [pair(*names) < 0.5 for names in badly] == [True] * len(badly)


def messages(part: str) -> list[tuple[str, str]]:
    """Labelled messages: what each says, and the text."""
    lines = (HERE / "next_messages.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [(label, text) for where, label, _, text in rows if where == part]


def measured(part: str, label: str) -> tuple[float, float]:
    """Precision and recall."""
    rows = messages(part)
    said = [(wanted, verdict(text)) for wanted, text in rows]
    hits = sum(wanted == found == label for wanted, found in said)
    return hits / sum(found == label for _, found in said), hits / sum(wanted == label for wanted, _ in said)


def test_messages_by_which_the_rules_were_made() -> None:
    assert len(messages("rules")) > 200
    for label, recall in (("correction", 0.95), ("thanks", 0.95)):
        assert measured("rules", label)[0] == 1.0
        assert measured("rules", label)[1] >= recall


def test_messages_that_no_rule_was_made_by() -> None:
    """Written when the rules were finished, by the same hand. docs/rewards.md states these figures."""
    assert len(messages("held")) > 80
    text = (HERE.parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    for label in ("correction", "thanks"):
        precision, recall = measured("held", label)
        assert f"| `{label}` | {precision:.2f} | {recall:.2f} |" in text
        assert precision >= 0.95


def test_odd_messages_are_read_in_no_time() -> None:
    odd = [
        "",
        " ",
        "no " * 50_000,
        "thanks " * 50_000,
        "that's " * 9_000,
        "!" * 9_999,
        "\0",
        "\ud800",
        "ok, " * 70 + "x",
    ]
    start = time.process_time()
    assert [verdict(text) for text in odd] == [""] * len(odd)
    assert time.process_time() - start < 2


def rollout(id: str, answer: Any, **also: Any) -> Episode:
    output = f'{{"messages": [{{"type": "human", "content": "go"}}, {{"type": "ai", "content": {answer}}}]}}'
    return episode(id=id, output=output, **{"task": f"task of {id}", "task_key": "k"} | also)


def test_rollouts_that_agree() -> None:
    answers = ['"The total is 1,182.50 EUR."', '"the total is 1182.5 EUR"', '"The total is 12 EUR."']
    found = agreement(rollout(str(n), answer) for n, answer in enumerate(answers))
    assert {name: (round(r.value, 2), r.source, r.key) for name, r in found.items()} == {
        "0": (0.67, "implicit", "agreement"),
        "1": (0.67, "implicit", "agreement"),
        "2": (0.33, "implicit", "agreement"),
    }
    assert found["2"].comment == (
        '1 of 3 rollouts of this task gave "The total is 12 EUR."; 2 gave "The total is 1,182.50 EUR."'
    )


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("42", "42.0", True),
        ("042", "42", True),
        ("-5", "5", False),
        ("1e3", "1000", True),
        ("12345678901234567", "12345678901234568", False),
        ("Yes!", "yes", True),
        ("3 of 4", "3 of 5", False),
        ("\uff14\uff12", "42", True),
    ],
)
def test_what_is_the_same_answer(first: str, second: str, *, same: bool) -> None:
    found = agreement(episode(id=str(n), task_key="k", output=text) for n, text in enumerate([first, first, second]))
    assert {round(reward.value, 2) for reward in found.values()} == ({1.0} if same else {0.67, 0.33})


def test_where_nothing_agrees_nothing_is_said() -> None:
    three = [rollout(str(n), '"yes"') for n in range(3)]
    assert agreement(three[:2]) == {}
    assert agreement([rollout(str(n), f'"{n}"') for n in range(3)]) == {}
    assert agreement([*three, *(rollout(str(n), '"no"') for n in range(3, 6))]) == {}  # half is no majority
    assert agreement([rollout("9", '"yes"', status="failed"), *three[:2]]) == {}
    given = Reward(value=1.0, source="user")
    assert agreement([three[0].model_copy(update={"rewards": (given,)}), *three[1:]]) == {}
    assert agreement([e.model_copy(update={"task_key": e.id}) for e in three]) == {}
    assert agreement([e.model_copy(update={"task_key": "", "task": "Pay  it", "principal": e.id}) for e in three]) == {}
    assert agreement([e.model_copy(update={"output": '{"messages": []}'}) for e in three]) == {}


def test_equal_tasks_are_rollouts_without_a_key() -> None:
    three = [rollout(str(n), '"yes"', task_key="", task="Pay  it" if n else "pay it") for n in range(3)]
    assert {reward.value for reward in agreement(three).values()} == {1.0}
    blocks = [rollout(str(n), '[{"type": "text", "text": "yes"}]') for n in range(3)]
    assert {reward.value for reward in agreement(blocks).values()} == {1.0}


def test_who_has_judged() -> None:
    assert not judged(episode())
    mine = [Reward(value=0.0, source="implicit", key=key) for key in RULES]
    assert not judged(episode(rewards=(*mine, Reward(value=0.0, source="self", key="self"))))
    for reward in (Reward(value=1), Reward(value=1, source="implicit", key="copied"), Reward(value=1, source="self")):
        assert judged(episode(rewards=(*mine, reward)))


def test_the_page_holds_every_rule() -> None:
    text = (HERE.parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+|the share) \| (.+?) \|$", text, re.MULTILINE)
    told = {name: (value, seen) for name, value, seen in rows if name in RULES and not seen.replace(".", "").isdigit()}
    stated = {name: ("the share" if r.value is None else f"{r.value:g}", r.seen) for name, r in RULES.items()}
    assert told == stated
