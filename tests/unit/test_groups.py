from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reflect_middleware.batch import Batch
from reflect_middleware.groups import diverge, grouped, nothing_new, to_compare
from reflect_middleware.pack import approximate_tokens, pack, render
from reflect_middleware.rollout import told
from reflect_middleware.types import Episode, Lesson, Reward, Step

AT = datetime(2026, 1, 2, tzinfo=UTC)
NS = ("desk",)
TASK = "Refund order 1182"
POLITE = "Please refund order 1182"


def episode(number: int, task: str = TASK, reward: float | None = None, *steps: Step, **fields: Any) -> Episode:
    rewards = () if reward is None else (Reward(value=reward, comment=fields.pop("comment", "")),)
    known = {"status": "completed", "started_at": AT, "namespace": NS, "rewards": rewards, "trajectory": steps}
    return Episode(id=f"id-{number}", task=task, **{**known, **fields})


def call(given: str, output: str = "done", **fields: Any) -> Step:
    return Step(kind="tool", name="refund", input=given, output=output, **fields)


def says(text: str, given: str = "") -> Step:
    return Step(kind="model", input=given, output=f"ai: {text}")


def batch(*episodes: Episode, **fields: Any) -> Batch:
    return Batch(namespace=NS, episodes=episodes, **fields)


def groups(*episodes: Episode, **fields: Any) -> list[tuple[tuple[str, ...], bool]]:
    return [(group.handles, group.same) for group in grouped(batch(*episodes, **fields))]


def vectors(**cosines: float) -> dict[str, Any]:
    """Unit vectors that have these cosines to the first axis."""
    return {task: np.array([cosine, (1 - cosine**2) ** 0.5], dtype=np.float32) for task, cosine in cosines.items()}


def test_rollouts_of_the_same_words_are_one_group_the_best_first():
    found = groups(episode(1), episode(2, "another"), episode(3, "refund  ORDER 1182!", 0.2), episode(4, TASK, 1.0))
    assert found == [(("E4", "E3", "E1"), True), (("E2",), True)]


def test_a_task_key_groups_whatever_the_words_and_parts_what_has_another():
    one, two, other = (episode(n, f"words {n}", task_key=key) for n, key in ((1, "a"), (2, "a"), (3, "b")))
    assert groups(one, two, other) == [(("E1", "E2"), True), (("E3",), True)]
    assert groups(episode(1, task_key="a"), episode(2, task_key="b"), episode(3)) == [
        ((f"E{n}",), True) for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("fields", [{"agent": "other"}, {"parent_id": "id-1"}])
def test_another_agents_run_and_a_run_inside_another_are_no_rollouts_of_it(fields: Any):
    assert len(groups(episode(1), episode(2, **fields))) == 2


def test_the_same_last_turn_in_two_conversations_is_not_the_same_task():
    asked = [says("ok", f"human: {before}\nai: shall I?\nhuman: yes") for before in ("refund 1", "close 2", "refund 1")]
    found = groups(*(episode(n, "yes", None, step) for n, step in enumerate(asked, 1)))
    assert found == [(("E1", "E3"), True), (("E2",), True)]


def test_tasks_without_a_word_are_not_grouped():
    assert len(groups(episode(1, "?"), episode(2, "?"))) == 2


def test_tasks_that_read_alike_stand_side_by_side_and_are_not_called_the_same():
    near = vectors(**{TASK: 1.0, POLITE: 0.95})
    assert groups(episode(1, reward=0.0), episode(2, POLITE, 1.0), vectors=near) == [(("E2", "E1"), False)]
    assert len(groups(episode(1), episode(2, POLITE))) == 2, "without vectors only words count"
    assert len(groups(episode(1), episode(2, POLITE), vectors=vectors(**{TASK: 1.0, POLITE: 0.9}))) == 2


def test_another_number_is_another_task_however_near():
    assert (
        len(groups(episode(1), episode(2, "Refund order 1183"), vectors=vectors(**{TASK: 1, "Refund order 1183": 1})))
        == 2
    )


def test_only_tasks_that_may_read_alike_are_embedded():
    keyed = episode(4, "Kindly refund order 1182", task_key="k")
    assert to_compare([episode(1), episode(2, POLITE), episode(3, "Refund order 1183"), keyed]) == (TASK, POLITE)
    assert to_compare([episode(1), episode(2), episode(3, "refund order 1182!")]) == ()


def beats(*steps: Step) -> Any:
    return told(episode(1, "a task", None, *steps)).beats


def test_rollouts_part_where_something_else_is_done():
    one = beats(says("I begin."), call('{"a": 1}', "id 7"), call('{"b": 1}'), says("Done."))
    other = beats(call('{"a": 1}', "id 9"), says("Hm."), call('{"b": 2}'))
    assert diverge(one, other) == (2, 2)


def test_an_error_parts_what_was_called_alike():
    one, other = beats(call("x"), call("y", "", error="no")), beats(call("x"), call("y", "fine"))
    assert diverge(one, other) == (1, 1)


def test_one_that_goes_on_parts_where_the_other_has_ended():
    assert diverge(beats(call("x")), beats(call("x"), says("Well."), call("y"))) == (1, 2)
    assert diverge(beats(says("2 letters")), beats(says("Hm."), call("y"))) == (0, 1)


def test_results_count_where_all_that_was_done_is_the_same_and_words_come_last():
    assert diverge(beats(says("a"), call("x", "1")), beats(says("b"), call("x", "2"))) == (1, 1)
    assert diverge(beats(says("a"), call("x", "1")), beats(says("b"), call("x", "1"))) == (0, 0)
    assert diverge(beats(says("a"), call("x")), beats(says("a"), call("x"))) is None


def test_a_group_is_shown_under_one_heading_with_the_task_once_and_the_parting_marked():
    good = episode(1, TASK, 1.0, call('{"id": 1}'), call('{"manager": true}'))
    bad = episode(2, TASK, 0.0, call('{"id": 1}'), call('{"amount": 300}', "too much"))
    text = render(
        batch(bad.model_copy(update={"id": "id-0"}), episode(3, "another task"), good), 5_000, approximate_tokens
    )
    assert text.splitlines()[2:] == [
        "2 runs of the same task, the best first:",
        "task: Refund order 1182",
        "",
        '<episode id="E3">',
        'call refund {"id": 1}',
        "result: done",
        "(from here on unlike E1)",
        'call refund {"manager": true}',
        "result: done",
        "reward: 1",
        "</episode>",
        "",
        '<episode id="E1">',
        'call refund {"id": 1}',
        "result: done",
        "(from here on unlike E3)",
        'call refund {"amount": 300}',
        "result: too much",
        "reward: 0",
        "</episode>",
        "",
        '<episode id="E2">',
        "task: another task",
        "reward: no reward given",
        "</episode>",
        "",
        "What the agent was told, each once:",
        "- too much (E1)",
    ]


def test_tasks_that_only_read_alike_keep_their_own_words():
    near = vectors(**{TASK: 1.0, POLITE: 0.95})
    text = render(batch(episode(1), episode(2, POLITE), vectors=near), 5_000, approximate_tokens)
    assert "2 runs of tasks that read alike, equally good:\n" in text
    assert f"task: {TASK}" in text
    assert f"task: {POLITE}" in text


def test_the_earlier_turns_of_a_group_stand_under_its_heading():
    step = says("ok", "human: refund order 1\nai: shall I?\nhuman: yes")
    pair = [episode(n, "yes", value, step) for n, value in ((1, 0.0), (2, 1.0))]
    text = render(batch(*pair), 5_000, approximate_tokens)
    assert "task: yes\nearlier turns, not the task: human: refund order 1\nai: shall I?\n" in text
    assert text.count("refund order 1") == 1


def test_a_run_that_has_ended_is_marked_at_its_end():
    pair = batch(episode(1, TASK, 0.0, call("x")), episode(2, TASK, 1.0, call("x"), call("y")))
    text = render(pair, 5_000, approximate_tokens)
    assert "result: done\n(from here on unlike E2)\nreward: 0" in text


def test_the_parting_outlives_other_steps():
    def run(number: int, reward: float, odd: str) -> Episode:
        steps = [call(f"step {n}", "filler " * 60) for n in range(60)]
        steps[23] = call(odd)
        return episode(number, TASK, reward, *steps)

    packed = pack(batch(run(1, 0.0, "took the short way"), run(2, 1.0, "asked a manager")), 700, approximate_tokens)
    for part in ("(from here on unlike E1)\ncall refund asked a manager", "unlike E2)\ncall refund took the short way"):
        assert part in packed.text
    assert "step 22" not in packed.text
    assert all(cut.steps > 40 and cut.of_steps == 60 for cut in packed.cut)


def test_equal_success_without_a_word_is_left_out_by_name():
    packed = pack(batch(episode(1, TASK, 1.0, call("x")), episode(2, "b", 0.0), episode(3, TASK, 1.0)), 5_000, len)
    assert [skip.episodes for skip in packed.skipped] == [("id-1", "id-3")]
    assert packed.handles == ("E2",)
    assert "Not shown: E1, E3 (2 runs of one task, each with reward 1, no error, comment or correction)" in packed.text
    assert '<episode id="E1">' not in packed.text


SPEAKING = [
    {"comment": "thanks"},
    {"rewards": (Reward(value=1.0, correction="say please"),)},
    {"trajectory": (call("x", "", error="ValueError: no"),)},
    {"trajectory": (call("x", "Error: the amount must be whole cents"),)},
    {"trajectory": (Step(kind="resume", input="no, ask first"),)},
    {"status": "failed", "error": "GraphRecursionError"},
    {"rewards": (Reward(value=0.9),)},
    {"rewards": (Reward(value=1.0, source="user"),)},
    {"rewards": ()},
    {"task_key": "its own"},
]


@pytest.mark.parametrize("fields", SPEAKING)
def test_success_that_differs_or_says_something_is_read(fields: Any):
    assert nothing_new(batch(episode(1, TASK, 1.0), episode(2, TASK, 1.0, **fields))) == ()


def test_equal_failures_are_read_where_a_result_or_the_right_answer_may_say_why():
    assert nothing_new(batch(episode(1, TASK, 0.0, call("x")), episode(2, TASK, 0.0))) == ()
    assert nothing_new(batch(episode(1, TASK, 0.0, reference="3"), episode(2, TASK, 0.0))) == ()
    (skip,) = nothing_new(batch(episode(1, TASK, 0.0, says("2")), episode(2, TASK, 0.0, says("2"))))
    assert "each with reward 0, no error, comment, result or right answer" in skip.reason


def test_one_rollout_alone_and_tasks_that_only_read_alike_are_read():
    assert nothing_new(batch(episode(1, TASK, 1.0))) == ()
    near = vectors(**{TASK: 1.0, POLITE: 0.95})
    assert nothing_new(batch(episode(1, TASK, 1.0), episode(2, POLITE, 1.0), vectors=near)) == ()


def test_praise_that_was_read_out_of_the_run_itself_says_nothing_new():
    def thanked(number: int, value: float) -> Episode:
        own = Reward(value=value, source="implicit", comment="the user's next message: thanks")
        return episode(number, TASK, rewards=(Reward(value=1.0), own))

    assert nothing_new(batch(thanked(1, 1.0), thanked(2, 1.0))) != ()
    assert nothing_new(batch(thanked(1, 0.5), thanked(2, 0.5))) == ()


def test_rewards_of_one_mean_and_other_keys_are_not_the_same():
    def judged(number: int, right: float, tone: float) -> Episode:
        return episode(number, rewards=(Reward(value=right, key="right"), Reward(value=tone, key="tone")))

    assert nothing_new(batch(judged(1, 1.0, 0.0), judged(2, 0.0, 1.0))) == ()
    assert nothing_new(batch(judged(1, 1.0, 0.0), judged(2, 1.0, 0.0))) != ()


def test_nothing_is_left_out_where_that_would_leave_lessons_to_review_without_episodes():
    lesson = Lesson(namespace=NS, when="a refund", do="ask", needs_review=True)
    pair = (episode(1, TASK, 1.0), episode(2, TASK, 1.0))
    assert nothing_new(batch(*pair, lessons=(lesson,))) == ()
    assert nothing_new(batch(*pair, episode(3, "b"), lessons=(lesson,))) != ()


def test_the_page_shows_what_a_prompt_looks_like():
    page = (Path(__file__).parents[2] / "docs" / "reflecting.md").read_text()
    printed = page.split("```text\n")[1].split("\n```")[0]
    look = Step(kind="tool", name="look_up", input='{"order": 1182}', output="340 EUR")
    ask = Step(kind="tool", name="ask", input='{"who": "manager"}', output="approved")
    refused = call('{"amount": 340}', "refused")
    rule = "needs a manager above 200 EUR"
    text = render(
        batch(episode(1, TASK, 0.0, look, refused, comment=rule), episode(2, TASK, 1.0, look, ask)), 5_000, len
    )
    assert text == f"Lessons so far: none\n\n{printed}"
