"""Consolidation: lessons become fewer and more general, and nothing that they said, rest on or find is lost."""

from __future__ import annotations

import json
import re
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.clusters import NEAR_CAP, clusters
from reflect_middleware.desk import Change
from reflect_middleware.due import day_of
from reflect_middleware.errors import LessonStateError
from reflect_middleware.fading import DAYS
from reflect_middleware.reflections_table import ReflectionTable
from reflect_middleware.testing import HashingEmbeddings
from reflect_middleware.types import Lesson, ReflectionReport, now

from .conftest import agent

if TYPE_CHECKING:
    from pathlib import Path

    from reflect_middleware import Reflection

    from .conftest import Maker

COLOURS = ("red", "blue", "green")


def rule(colour: str, number: int = 3) -> dict[str, Any]:
    """An edit that adds one lesson on the grip of boxes; the task's own text is its evidence."""
    return {
        "op": "add",
        "episodes": ["E1"],
        "because": f"move the {colour} box",
        "when": f"moving a {colour} box",
        "do": f"grip the {colour} box with force {number}",
    }


def merging(prompt: str) -> str:
    """A model that merges all lessons that it is shown and keeps all that they say."""
    shown = re.findall(r"(L\d+)\. when: (.*)\n    do: (.*)", prompt)
    do = "; ".join(text for _, _, text in shown)
    edit = {"op": "merge", "lessons": [h for h, _, _ in shown], "when": "; ".join(w for _, w, _ in shown), "do": do}
    return json.dumps({"edits": [edit]})


def scripted(answer: Any = merging) -> Any:
    """A model that reflects by learning its task's rule, and merges by `answer`."""

    def reply(messages: Any) -> str:
        text = messages[-1].text
        if "<episode" in text:
            return json.dumps({"edits": [rule(colour, n) for n, colour in enumerate(COLOURS, 3) if colour in text]})
        return str(answer(text))

    return testing.ScriptedChatModel(reply)


def learned(make: Any, model: Any = None, colours: tuple[str, ...] = COLOURS, **settings: Any) -> Reflection:
    """A Reflection that has learned one lesson of each of these tasks."""
    given = {"every": 1, "consolidate_every": None, "embeddings": HashingEmbeddings()} | settings
    reflection: Reflection = make(model or scripted(), **given)
    graph = reflection.wrap(agent())
    for colour in colours:
        graph.invoke({"messages": [("user", f"move the {colour} box")]})
    assert len(reflection.lessons.list(status="active")) == len(colours)
    return reflection


def test_lessons_become_one_that_says_all_of_them(make: Maker) -> None:
    reflection = learned(make)
    old = reflection.lessons.list(status="active")
    report = reflection.consolidate()
    assert (report.error, len(report.accepted), report.rejected) == ("", 1, ())
    (merged,) = reflection.lessons.list(status="active")
    assert set(merged.replaces) == {lesson.id for lesson in old}
    assert set(merged.sources) == {source for lesson in old for source in lesson.sources}
    assert all(lesson.because in merged.because for lesson in old)
    assert merged.created_by == report.reflections[0]
    assert {lesson.id for lesson in reflection.lessons.list(status="retired")} == {lesson.id for lesson in old}
    done = report.consolidation
    assert done is not None
    assert (done.before.lessons, done.after.lessons) == (3, 1)
    assert done.after.tokens < done.before.tokens
    assert done.after.found == done.before.found == done.before.tried > 0
    record = reflection.reflections.get(report.reflections[0])
    assert (record.status, record.episodes, record.consolidation) == ("done", (), done)
    assert "moving a red box" in record.prompt
    assert reflection.lessons.search("move the red box")[0].lesson.id == merged.id
    assert reflection.consolidate().consolidation is None  # one lesson has no relatives


def test_all_of_it_can_be_undone(tmp_path: Path) -> None:
    make = _Plain(tmp_path)
    reflection = learned(make)
    before = reflection.reflections.list()[0].id
    old = {lesson.id: lesson.text for lesson in reflection.lessons.list(status="active")}
    reflection.consolidate()
    first = next(iter(old))
    assert reflection.lessons.approve(first).status == "active"
    reflection.lessons.rollback(to=before)
    assert {lesson.id: lesson.text for lesson in reflection.lessons.list(status="active")} == old


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ({"do": "grip each box with force 3, 4 or 5", "lessons": ["L1"]}, "two or more"),
        ({"do": "grip each box with force 3 or 4"}, "drops '5'"),
        ({"do": "grip each box with force 3, 4, 5 or 9"}, "'9', which none"),
        ({"do": "grip the box, force 3, 4, 5", "lessons": ["L1", "L2", "L3", "L9"]}, "L9 is not among"),
        ({"do": "do not grip the box with force 3, 4, 5"}, "forbids"),
        ({"do": "grip the box with force 3, 4, 5", "when": "w" * 300}, "300 characters"),
        ({"do": "grip the red, blue, green box: force 3, 4, 5", "when": "at work"}, "no longer find"),
        ({"do": "grip the box with force 3, 4, 5", "when": "moving a box"}, "which case"),
        ({"op": "retire", "lessons": ["L1"]}, "only merge"),
    ],
)
def test_what_would_lose_something_is_refused(tmp_path: Path, merge: dict[str, Any], says: str) -> None:
    edit = {"op": "merge", "lessons": ["L1", "L2", "L3"], "when": "moving a red, blue or green box"} | merge
    model = scripted(lambda _: json.dumps({"edits": [edit]}))
    reflection = learned(_Plain(tmp_path), model, top_k=1, min_similarity=0.3)
    before = reflection.lessons.list()
    report = reflection.consolidate()
    assert report.accepted == ()
    assert says in report.rejected[0].reason
    assert reflection.lessons.list() == before
    record = reflection.reflections.get(report.reflections[0])
    assert record.outcomes == report.rejected
    assert record.consolidation is not None
    assert record.consolidation.before == record.consolidation.after
    assert reflection.consolidate().consolidation is None  # the same lessons are not asked about again
    reflection.close()


@pytest.mark.parametrize("garbage", ["", "no", '{"edits": 3}', '{"edits": [{"op": "merge"}]}', '{"edits": []}'])
def test_garbage_changes_nothing(tmp_path: Path, garbage: str) -> None:
    asked: list[str] = []

    def answer(text: str) -> str:
        asked.append(text)
        return garbage

    reflection = learned(_Plain(tmp_path), scripted(answer))
    before = reflection.lessons.list()
    report = reflection.consolidate()
    assert (report.error, report.accepted) == ("", ())
    assert len(asked) == (1 if garbage == '{"edits": []}' else 2)  # once more, with the reason
    assert reflection.lessons.list() == before
    reflection.close()


def test_a_model_told_why_may_mend_its_merge(tmp_path: Path) -> None:
    answers: list[str] = []

    def answer(text: str) -> str:
        if text.startswith("L1"):
            answers.append(merging(text))
            return json.dumps({"edits": [json.loads(answers[0])["edits"][0] | {"do": "grip well"}]})
        assert "drops" in text
        return answers[0]

    reflection = learned(_Plain(tmp_path), scripted(answer))
    assert len(reflection.consolidate().accepted) == 1
    reflection.close()


def test_a_failing_model_changes_nothing_and_lets_no_reflection_rest(make: Maker) -> None:
    def fail(_: str) -> str:
        raise RuntimeError("away")

    reflection = learned(make, scripted(fail))
    before = reflection.lessons.list()
    report = reflection.consolidate()
    assert "away" in report.error
    assert reflection.lessons.list() == before
    assert reflection.reflections.get(report.reflections[0]).status == "failed"
    assert reflection._core.parts.ledger.health.resting() == ()


def test_people_approve_merges(tmp_path: Path) -> None:
    make = _Plain(tmp_path)
    learned(make).close()
    settings: dict[str, Any] = {"consolidate_every": None, "embeddings": HashingEmbeddings()}
    again = make(scripted(), approval="human", **settings)
    report = again.consolidate()
    (waiting,) = again.lessons.list(status="candidate")
    assert set(waiting.replaces) == {lesson.id for lesson in again.lessons.list(status="active")}
    assert len(waiting.replaces) == 3
    assert report.consolidation is not None
    assert report.consolidation.after.lessons == 1  # as it would be
    assert again.consolidate().consolidation is None  # what waits is not asked about again
    again.lessons.approve(waiting.id)
    assert [lesson.id for lesson in again.lessons.list(status="active")] == [waiting.id]


def test_every_n_reflections_in_the_background(make: Maker) -> None:
    done = threading.Event()

    def tell(report: Any) -> None:
        if report.consolidation:
            done.set()

    reflection = make(scripted(), every=1, consolidate_every=3, run="background", on_reflection=tell,
                      embeddings=HashingEmbeddings())  # fmt: skip
    graph = reflection.wrap(agent())
    for colour in COLOURS:
        graph.invoke({"messages": [("user", f"move the {colour} box")]})
        reflection.flush()
        assert done.is_set() == (colour == COLOURS[-1])
    assert len(reflection.lessons.list(status="active")) == 1


def test_sooner_near_the_cap_and_by_workers(tmp_path: Path) -> None:
    make = _Plain(tmp_path)
    reflection = make(scripted(), every=1, consolidate_every=4, max_lessons=int(3 / NEAR_CAP), run="external",
                      embeddings=HashingEmbeddings())  # fmt: skip
    graph = reflection.wrap(agent())
    for colour in COLOURS:
        graph.invoke({"messages": [("user", f"move the {colour} box")]})
    reflection.work()
    assert len(reflection.lessons.list(status="active")) == 1


def test_one_at_a_time_and_a_dead_one_is_taken_up(make: Maker) -> None:
    reflection = learned(make)
    ledger, space = reflection._core.parts.ledger, ("default",)
    quota = reflection._options.quota
    dead = ledger.reflections.claim_lessons(space, "dead", lease=60.0, quota=quota)
    assert dead is not None
    assert "under way" in reflection.consolidate().error
    ledger.reflections.renew(dead, -5.0)  # its process has died, and the lease ends
    assert reflection.consolidate().consolidation is not None
    assert len(reflection.lessons.list(status="active")) == 1
    assert ledger.reflections.get(dead.id).status == "released"
    assert not any(s.owed for s in ledger.work.standings(reflection._options.cadence))


def test_pinned_and_handwritten_lessons_are_left_alone(tmp_path: Path) -> None:
    make = _Plain(tmp_path)
    reflection = learned(make, colours=("red", "blue"))
    red, blue = reflection.lessons.list()
    own = reflection.lessons.add(when="moving a green box", do="grip the green box with force 3")
    reflection._core.parts.ledger.lessons.save_all([_change(red.model_copy(update={"pinned": True, "version": 2}))], "")
    assert reflection.consolidate().consolidation is None
    assert {lesson.id for lesson in reflection.lessons.list(status="active")} == {red.id, blue.id, own.id}


def test_one_task_that_taught_many_makes_them_no_relatives(make: Maker) -> None:
    """Lessons are found by their task, and compared by what they say."""
    matters = (("greeting somebody", "say hello first"), ("closing a ticket", "write down the cause"))
    known = {"op": "add", "episodes": ["E1"], "because": "move the red box"}
    reply = json.dumps({"edits": [{**known, "when": when, "do": do} for when, do in matters]})
    reflection = make(testing.ScriptedChatModel(lambda _: reply), every=1, consolidate_every=None)
    reflection.wrap(agent()).invoke({"messages": [("user", "move the red box to the north wall")]})
    one, other = reflection.lessons.list(status="active")
    assert one.task == other.task == "move the red box to the north wall"
    found_by = reflection._core.parts.embedder.embed_documents([one.searched, other.searched])
    assert clusters(list(zip((one, other), found_by, strict=True))) == ((one, other),), "or the task glues nothing here"
    assert reflection.consolidate().reflections == ()


def test_a_merged_lesson_is_found_by_the_tasks_of_its_parents(make: Maker) -> None:
    reflection = learned(make)
    reflection.consolidate()
    (merged,) = reflection.lessons.list(status="active")
    assert merged.task == "move the red box move the blue box move the green box"


def test_the_days_tokens_bound_it(make: Maker) -> None:
    reflection = learned(make, daily_tokens=1_000_000)
    with reflection._core.parts.ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE spent SET input_tokens = 2000000")
    assert "daily_tokens" in reflection.consolidate().error
    assert len(reflection.lessons.list(status="active")) == 3


def test_what_no_task_calls_for_fades(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = learned(make, scripted(lambda _: '{"edits": []}'), min_similarity=0.9)
    graph = reflection.wrap(agent())
    monkeypatch.setattr("reflect_middleware.fading.EPISODES", 2)
    for _ in range(2):
        graph.invoke({"messages": [("user", reflection.lessons.list()[0].searched)]})
    later = now() + timedelta(days=DAYS)
    monkeypatch.setattr("reflect_middleware.consolidating.now", lambda: later)
    used = {x.lesson_id for e in reflection.episodes.list(limit=2) for x in e.exposures}
    standing = {lesson.id for lesson in reflection.lessons.list(status="active")}
    assert 0 < len(used) < len(standing)
    report = reflection.consolidate()
    assert {o.lesson_id for o in report.accepted} == standing - used
    assert all(o.reason.startswith("faded") for o in report.accepted)
    assert {lesson.id for lesson in reflection.lessons.list(status="active")} == used
    back = reflection.lessons.approve(report.accepted[0].lesson_id)
    assert back.status == "active"
    assert not any(o.lesson_id == back.id for o in reflection.consolidate().accepted)  # a person brought it back


async def test_the_async_twin(tmp_path: Path) -> None:
    reflection = learned(_Plain(tmp_path))
    assert len((await reflection.aconsolidate()).accepted) == 1
    await reflection.aclose()


def test_a_purged_source_leaves_the_merged_lesson_with_the_others(make: Maker) -> None:
    reflection = learned(make)
    reflection.consolidate()
    (merged,) = reflection.lessons.list(status="active")
    report = reflection.episodes.purge(merged.sources[0])
    assert report.complete, report.left
    left = reflection.lessons.get(merged.id)
    assert set(left.sources) == set(merged.sources[1:])
    assert (merged.task != "", left.task) == (True, "")


def test_a_lesson_that_changes_while_the_model_thinks_stays_as_it_is(tmp_path: Path) -> None:
    made: list[Any] = []

    def answer(text: str) -> str:
        made[0].lessons.edit(made[0].lessons.list()[0].id, because="a person saw it")
        return merging(text)

    made.append(learned(_Plain(tmp_path), scripted(answer)))
    report = made[0].consolidate()
    assert "was changed or retired" in report.rejected[0].reason
    assert len(made[0].lessons.list(status="active")) == 3
    made[0].close()


def test_a_change_at_the_last_moment_makes_it_decide_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = learned(_Plain(tmp_path))
    commit, late = ReflectionTable.commit, [reflection.lessons.list()[0].id]

    def slow(self: Any, *args: Any, **kwargs: Any) -> bool:
        if late:
            reflection.lessons.edit(late.pop(), because="a person saw it")
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(ReflectionTable, "commit", slow)
    report = reflection.consolidate()
    assert (report.error, report.accepted) == ("", ())
    assert len(reflection.lessons.list(status="active")) == 3
    reflection.close()


def test_lessons_that_change_all_the_time_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = learned(_Plain(tmp_path))

    def never(*_: Any, **__: Any) -> bool:
        raise LessonStateError("changed meanwhile")

    monkeypatch.setattr(ReflectionTable, "commit", never)
    assert "changed all the time" in reflection.consolidate().error
    assert len(reflection.lessons.list(status="active")) == 3
    reflection.close()


def test_what_is_released_meanwhile_has_no_effect(tmp_path: Path) -> None:
    made: list[Any] = []

    def answer(text: str) -> str:
        made[0]._core.parts.learner.release()
        return merging(text)

    made.append(learned(_Plain(tmp_path), scripted(answer)))
    assert "lease ended" in made[0].consolidate().error
    assert len(made[0].lessons.list(status="active")) == 3
    assert made[0].reflections.list(limit=1)[0].status == "released"
    made[0].close()


def test_a_question_too_large_is_not_asked(tmp_path: Path) -> None:
    learned(_Plain(tmp_path)).close()
    asked: list[str] = []
    model = scripted(asked.append)
    small = _Plain(tmp_path)(model, reflector_budget=20, embeddings=HashingEmbeddings())
    report = small.consolidate()
    assert (report.error, asked) == ("", [])
    assert "reflector_budget" in small.reflections.get(report.reflections[0]).note
    small.close()


def test_the_days_tokens_end_it_between_two_clusters(tmp_path: Path) -> None:
    reflection = learned(_Plain(tmp_path))
    table, embedder = reflection._core.parts.ledger.lessons, reflection._core.parts.embedder
    more = [Lesson(namespace=("default",), when=f"watering {x} roses at noon", do=f"pour water on {x} roses slowly",
                   because="x" * 20, created_by="r1") for x in ("old", "young")]  # fmt: skip
    vectors = embedder.embed_documents([lesson.text for lesson in more])
    pairs = zip(more, vectors, strict=True)
    table.save_all([Change(lesson=x, vector=v, expected_version=0) for x, v in pairs], embedder.id)
    used = int(reflection._core.parts.ledger.health.spent(day_of(time.time())))
    reflection.close()
    asked: list[str] = []

    def answer(text: str) -> str:
        asked.append(text)
        return merging(text)

    small = _Plain(tmp_path)(scripted(answer), daily_tokens=used + 1, embeddings=HashingEmbeddings())
    assert small.consolidate().error == ""
    assert len(asked) == 1
    small.close()


def test_without_a_model_nothing_is_merged_and_off_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned(_Plain(tmp_path)).close()
    bare = _Plain(tmp_path)(None, embeddings=HashingEmbeddings())
    assert bare.consolidate().consolidation is None
    bare.close()
    monkeypatch.setenv("REFLECT", "off")
    off = _Plain(tmp_path)(scripted(), embeddings=HashingEmbeddings())
    assert off.consolidate() == ReflectionReport(namespace=("default",))
    off.close()


def _change(lesson: Any) -> Any:
    return Change(lesson=lesson, vector=None, expected_version=lesson.version - 1)


class _Plain:
    """Makes Reflections on SQLite only, where both databases have nothing to tell apart."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __call__(self, model: Any, **settings: Any) -> Any:
        return testing.reflection(model, path=self._path, **settings)
