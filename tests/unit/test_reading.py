"""Trajectories of hours: read in segments, whose notes stand in the final prompt."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from reflect_middleware.batch import Batch
from reflect_middleware.cli_view import View
from reflect_middleware.evidence import quoted
from reflect_middleware.fit import Rollout
from reflect_middleware.forget import scrubbed
from reflect_middleware.pack import approximate_tokens
from reflect_middleware.reflect import ModelReflector, UnusableAnswerError
from reflect_middleware.rollout import told
from reflect_middleware.segments import MOST_SEGMENTS, chosen, segments
from reflect_middleware.testing import ScriptedChatModel
from reflect_middleware.types import Cut, Episode, ReflectionRecord, Reward, Skipped, Step

AT = datetime(2026, 1, 2, tzinfo=UTC)
NS = ("desk",)
RULE = "amount must be whole cents"
EMPTY = '{"edits": []}'


def long(number: int = 1, steps: int = 260, **fields: Any) -> Episode:
    done = [Step(kind="tool", name="run", input=f'"part {n}"', output=f"line {n} " * 60) for n in range(1, steps + 1)]
    done[steps // 2] = Step(kind="tool", name="run", input='"it"', output="", error=f"ValueError: {RULE}")
    known = {"task": f"migrate {number}", "status": "completed", "started_at": AT, "namespace": NS}
    return Episode(id=f"id-{number}", trajectory=tuple(done), rewards=(Reward(value=0),), **{**known, **fields})


def batch(*episodes: Episode, **fields: Any) -> Batch:
    return Batch(namespace=NS, episodes=episodes, **fields)


class Model:
    """Takes notes, then answers; remembers what it was asked."""

    def __init__(self, note: Any = "It said so.", answer: Any = EMPTY) -> None:
        self.note, self.answer = note, answer
        self.asked: list[str] = []

    def __call__(self, messages: list[Any]) -> Any:
        self.asked.append("\n".join(str(message.content) for message in messages))
        notes = str(messages[0].content).startswith("You read one part")
        said = self.note if notes else self.answer
        if isinstance(said, Exception):
            raise said
        return said(messages) if callable(said) else said

    def reflector(self, **settings: Any) -> ModelReflector:
        return ModelReflector(ScriptedChatModel(self), **{"budget_tokens": 5_000, **settings})


def test_every_step_is_read_once_and_each_prompt_keeps_its_budget():
    model = Model()
    answer = model.reflector()(batch(long()))
    *read, last = model.asked
    for number in range(1, 261):
        if number != 131:
            assert sum(f'"part {number}"' in text for text in read) == 1
    assert sum(RULE in text for text in read) == 1
    assert all(approximate_tokens(text) <= 5_000 for text in model.asked)
    assert last.count("It said so.") == len(read) == answer.cut[0].segments
    assert answer.cut[0].steps == 0


def test_notes_stand_between_the_first_and_the_last_step_and_errors_stay_word_for_word():
    model = Model()
    model.reflector()(batch(long()))
    *read, prompt = model.asked
    last = prompt[prompt.rindex("<episode") :]
    places = [last.index(part) for part in ('"part 1"', "notes on steps 1 to ", RULE, '"part 260"', "reward: 0\n</ep")]
    assert places == sorted(places)
    assert last.count("notes on steps") == len(read)
    assert "steps cut" not in last


def test_what_was_asked_and_said_can_be_read_back_and_every_token_counts():
    model = Model(note=lambda messages: f"'{RULE}'" if RULE in messages[1].content else "routine")
    answer = model.reflector()(batch(long()))
    assert "E1. Steps 1 to" in answer.prompt
    assert "You read one part" in answer.prompt
    assert answer.raw.count("routine") == len(model.asked) - 2
    assert answer.raw.endswith(EMPTY)
    assert answer.input_tokens == sum(len(text.split()) for text in model.asked)
    assert answer.output_tokens > len(model.asked)


def test_a_provider_that_does_not_count_is_counted_for():
    reply = AIMessage("It said so.", usage_metadata={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})
    last = AIMessage(EMPTY, usage_metadata={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})
    model = Model(note=reply, answer=last)
    answer = model.reflector()(batch(long()))
    assert answer.input_tokens > 30_000
    assert answer.output_tokens > 0


def test_a_short_episode_beside_it_is_not_read_in_segments():
    short = long(2, steps=3)
    model = Model()
    answer = model.reflector()(batch(long(), short))
    assert {cut.episode: cut.segments > 0 for cut in answer.cut}["id-1"]
    assert all("migrate 2" not in text for text in model.asked[:-1])


def test_many_episodes_that_are_short_are_not_read_one_by_one():
    model = Model()
    many = [long(n, steps=6) for n in range(60)]
    answer = model.reflector()(batch(*many))
    assert len(model.asked) == 1
    assert len(answer.cut) == 60


def test_no_more_calls_than_allowed_and_what_nobody_read_is_said():
    model = Model()
    answer = model.reflector(segments=4)(batch(long()))
    assert len(model.asked) == 5
    cut = answer.cut[0]
    assert (cut.segments, cut.of_steps) == (4, 260)
    assert 50 < cut.steps < 260
    assert f"… {cut.steps} steps cut …" in model.asked[-1]
    assert RULE in model.asked[-1]
    assert cut.text.startswith(f"{cut.steps} of 260 steps")
    assert cut.text.endswith("read before in 4 segments with notes")


@pytest.mark.parametrize(("left", "calls"), [(0, 1), (17_000, 2), (None, 11)])
def test_the_days_tokens_bound_what_is_read(left: int | None, calls: int):
    model = Model()
    answer = model.reflector()(batch(long(), tokens_left=left))
    assert abs(len(model.asked) - calls) <= (2 if left is None else 0)
    assert (answer.cut[0].steps == 0) == (left is None)


def test_without_segments_the_cut_is_said():
    model = Model()
    answer = model.reflector(segments=0)(batch(long()))
    assert len(model.asked) == 1
    assert answer.cut[0].segments == 0
    assert answer.cut[0].steps > 150
    assert "steps cut …" in model.asked[0]


def test_a_model_that_fails_while_reading_is_an_error_with_what_was_read():
    replies = iter(["first notes", ConnectionError("refused")])

    def note(_: Any) -> Any:
        said = next(replies)
        if isinstance(said, Exception):
            raise said
        return said

    with pytest.raises(UnusableAnswerError, match="raised ConnectionError: refused") as caught:
        Model(note=note).reflector()(batch(long()))
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "first notes" in caught.value.answer.raw
    assert caught.value.answer.input_tokens > 0


def test_a_batch_that_is_given_back_is_read_no_further():
    model = Model()
    with pytest.raises(UnusableAnswerError, match="given back"):
        model.reflector()(batch(long(), released=lambda: len(model.asked) == 2))
    assert len(model.asked) == 2


def test_an_unusable_answer_keeps_the_account_of_what_was_read():
    with pytest.raises(UnusableAnswerError) as caught:
        Model(answer="no").reflector()(batch(long()))
    assert "It said so." in caught.value.answer.raw
    assert caught.value.answer.cut


def test_notes_are_bounded_and_an_empty_one_is_said():
    model = Model(note=lambda messages: "much " * 5_000 if RULE in messages[1].content else "")
    model.reflector()(batch(long()))
    assert approximate_tokens(model.asked[-1]) <= 5_000
    assert "nothing to note" in model.asked[-1]


def test_a_quote_in_a_note_counts_only_if_the_episode_says_it():
    assert quoted(RULE, long())
    assert not quoted("the ledger must be locked first", long())


def test_a_step_longer_than_a_segment_is_cut_by_name():
    huge = Episode(
        id="h",
        namespace=NS,
        task="t",
        status="completed",
        started_at=AT,
        trajectory=(Step(kind="tool", output="x" * 9_000),),
    )
    (one,) = segments(Rollout.of("E1", huge), 500, approximate_tokens)
    assert "characters cut]" in one.text
    assert approximate_tokens(one.text) <= 500


def test_each_episode_gets_its_share_of_the_calls():
    parts = {
        name: segments(Rollout.of(name, long(1, n)), 1_000, approximate_tokens) for name, n in (("E1", 200), ("E2", 8))
    }
    few = chosen(parts, 10)
    assert len(few) == 10
    assert [part for part in few if part.handle == "E2"] == parts["E2"]
    mine = [part for part in few if part.handle == "E1"]
    assert (mine[0].first, mine[-1].last) == (1, 200)
    assert len(chosen(parts, MOST_SEGMENTS * 10)) == sum(map(len, parts.values()))
    assert chosen(parts, 1) != []


def test_a_purged_episode_leaves_no_account():
    record = ReflectionRecord(
        id="r",
        namespace=NS,
        status="done",
        episodes=("a", "b", "c"),
        cut=(Cut(episode="a"), Cut(episode="b")),
        skipped=(Skipped(episodes=("b", "c"), reason="same"),),
    )
    left = scrubbed(record, {"b"}, set())
    assert (left.episodes, left.cut, left.skipped) == (("a", "c"), (Cut(episode="a"),), ())


def test_the_command_line_says_what_was_cut_and_what_was_not_read(capsys):
    record = ReflectionRecord(
        id="r",
        namespace=NS,
        status="done",
        cut=(Cut(episode="a", steps=7, of_steps=9, characters=1_500, of_characters=2_000),),
        skipped=(Skipped(episodes=("b", "c"), reason="2 runs of one task"),),
    )
    View().reflection(record)
    said = capsys.readouterr().out
    assert "cut: a: 7 of 9 steps and 1,500 of 2,000 characters cut\n" in said
    assert "not read: b, c: 2 runs of one task\n" in said


def turn(given: str, task: str) -> Episode:
    step = Step(kind="model", input=given, output="ai: Done.")
    return Episode(id="t", namespace=NS, task=task, status="completed", started_at=AT, trajectory=(step,))


def test_a_task_of_several_turns_is_its_last_one():
    history = "human: hello\nai: hi\nhuman: refund order 7"
    for task in ("refund order 7", "hello\nhi\nrefund order 7"):
        story = told(turn(history, task))
        assert (story.task, story.earlier) == ("refund order 7", "human: hello\nai: hi")
        assert [line for beat in story.beats for line in beat.lines] == [("says", "Done.")]


def test_a_task_that_no_message_asks_stays_whole():
    assert told(turn("human: do this: {}", "hello\nrefund")).task == "hello\nrefund"
    story = told(turn("human: refund", "hello\nrefund"))
    assert (story.task, story.earlier) == ("refund", "hello")
