"""A namespace goes back as a whole, is compared with itself and others, and is copied."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.errors import ConfigurationError, LessonCapError, LessonFileError, ReflectionNotFoundError
from reflect_middleware.types import now
from tests.loop.conftest import adding, agent

if TYPE_CHECKING:
    from pathlib import Path

    from reflect_middleware import Reflection
    from tests.loop.conftest import Maker

STAGING = ("staging",)


def standing(reflection: Reflection, **where: Any) -> dict[str, str]:
    return {lesson.do: lesson.status for lesson in reflection.lessons.list(**where)}


def changed_after(reflection: Reflection) -> datetime:
    """Three lessons, then a time, then one edited, one retired, one new."""
    lessons = reflection.lessons
    kept, gone, _ = (lessons.add(when=f"case {n}", do=f"do {n}") for n in range(3))
    at = now()
    lessons.edit(kept.id, do="do 0 twice")
    lessons.retire(gone.id)
    lessons.add(when="case 3", do="do 3")
    return at


def test_rollback_and_the_way_back(make: Maker) -> None:
    reflection = make()
    at = changed_after(reflection)
    later, before = now(), standing(reflection)
    planned = reflection.lessons.rollback(to=at, dry_run=True)
    assert standing(reflection) == before
    changed = reflection.lessons.rollback(to=at)
    assert [(x.do, x.status, x.version) for x in changed] == [(x.do, x.status, x.version) for x in planned]
    assert standing(reflection) == {"do 0": "active", "do 1": "active", "do 2": "active", "do 3": "retired"}
    assert reflection.lessons.diff(at).empty
    assert {hit.lesson.do for hit in reflection.lessons.search("case", k=9)} == {"do 0", "do 1", "do 2"}
    assert len(reflection.lessons.rollback(to=later)) == 3
    assert standing(reflection) == before
    assert reflection.lessons.diff(later).empty
    assert [len(reflection.lessons.history(x.id)) for x in reflection.lessons.list()] == [4, 4, 1, 3]


def test_rollback_to_a_reflection(make: Maker) -> None:
    model = testing.ScriptedChatModel([adding(), "no answer", adding(do="never")])
    reflection = make(model, every=99)
    wrapped = reflection.wrap(agent(testing.ScriptedChatModel(lambda _: "needs a manager above 200 EUR")))
    wrapped.invoke({"messages": "refund order 7"})
    done = reflection.reflect().reflections[0]
    (lesson,) = reflection.lessons.list()
    reflection.lessons.edit(lesson.id, do="wrong")
    (changed,) = reflection.lessons.rollback(to=done)
    assert changed.do == "ask a manager above 200 EUR"
    assert reflection.lessons.diff(done).empty
    with pytest.raises(ConfigurationError, match=r'The reflection is "done, of .*allowed: one that was done, of '):
        reflection.lessons.rollback(to=done, namespace=("other",))
    with pytest.raises(ReflectionNotFoundError):
        reflection.lessons.diff("no such id")


def test_a_reflection_under_way_is_decided_anew_on_what_a_rollback_left(make: Maker) -> None:
    times: list[datetime] = []

    def reflector(batch: Any) -> list[dict[str, Any]]:
        """Edits the lesson that a rollback takes away meanwhile."""
        reflection.lessons.rollback(to=times[0])
        said = {"because": "refund order 7", "do": "ask two managers"}
        return [{"op": "edit", "lessons": ["L1"], "episodes": ["E1"], **said}]

    reflection = make(reflector=reflector, every=99)
    times.append(now())
    reflection.lessons.add(when="refunding", do="ask a manager")
    reflection.wrap(agent()).invoke({"messages": "refund order 7"})
    report = reflection.reflect()
    assert [outcome.reason for outcome in report.rejected] == [
        "lesson L1 was changed or retired while the reflector read it"
    ]
    assert standing(reflection) == {"ask a manager": "retired"}


def test_a_rollback_keeps_the_cap_unless_there_were_more(make: Maker) -> None:
    reflection = make(max_lessons=2)
    lessons = reflection.lessons
    ids = [lessons.add(when=f"case {n}", do=f"do {n}").id for n in range(3)]
    at = now()
    for lesson_id in ids:
        lessons.retire(lesson_id)
    with pytest.raises(LessonCapError, match="3 active lessons; allowed: max_lessons=2"):
        lessons.rollback(to=at)
    assert set(standing(reflection).values()) == {"retired"}
    for lesson_id in ids:
        lessons.approve(lesson_id)
    lessons.edit(ids[0], do="wrong")
    assert len(lessons.rollback(to=at)) == 1


def test_diff_of_two_times(make: Maker) -> None:
    reflection = make()
    at = changed_after(reflection)
    diff = reflection.lessons.diff(at)
    assert ([x.do for x in diff.added], [x.do for x in diff.removed]) == (["do 3"], ["do 1"])
    assert [(x.before.do, x.after.do, x.fields) for x in diff.changed] == [("do 0", "do 0 twice", ("do",))]
    text = str(diff)
    assert text.startswith("1 added, 1 removed, 1 changed\n+ [")
    assert "    - do: do 0\n    + do: do 0 twice" in text
    back = reflection.lessons.diff(now(), at)
    assert (len(back.added), len(back.removed), len(back.changed)) == (1, 1, 1)
    assert str(reflection.lessons.diff(None, now() + timedelta(days=1))) == "No difference."


def test_diff_of_files_and_the_ledger(make: Maker, tmp_path: Path) -> None:
    reflection, file = make(), tmp_path / "lessons.jsonl"
    at = changed_after(reflection)
    reflection.lessons.export(file)
    assert reflection.lessons.diff(file).empty
    assert len(reflection.lessons.diff(at, file).added) == 1
    file.write_text('{"when": "case 2", "do": "do 2"}\n')
    assert len(reflection.lessons.diff(file).added) == 2
    with pytest.raises(LessonFileError):
        reflection.lessons.diff(tmp_path / "missing")


def test_fork_then_diff_then_home_again(make: Maker) -> None:
    reflection = make()
    lessons = reflection.lessons
    changed_after(reflection)
    copies = lessons.fork(STAGING)
    assert [x.do for x in copies] == ["do 0 twice", "do 2", "do 3"]
    assert lessons.diff(None, STAGING).empty
    assert lessons.diff(STAGING).empty
    assert lessons.search("case 2", k=1, namespace=STAGING)[0].lesson.id == copies[1].id
    lessons.edit(copies[1].id, do="do 2 better")
    lessons.retire(copies[2].id)
    diff = lessons.diff(None, STAGING)
    assert [(x.before.do, x.after.do) for x in diff.changed] == [("do 2", "do 2 better")]
    assert ([x.do for x in diff.removed], diff.added) == (["do 3"], ())
    assert standing(reflection)["do 2"] == "active"
    lessons.add(when="case 4", do="do 4", namespace=STAGING)
    for changed, added in ((["do 2 better"], ["do 4"]), ([], [])):
        home = lessons.import_(lessons.export(namespace=STAGING), any_namespace=True, on_conflict="replace")
        assert ([x.after.do for x in home.changed], [x.do for x in home.added]) == (changed, added)


def test_a_fork_keeps_where_a_lesson_came_from(make: Maker) -> None:
    reflection = make(testing.ScriptedChatModel([adding("refund order 7")]), every=1)
    reflection.wrap(agent()).invoke({"messages": "refund order 7"})
    (lesson,) = reflection.lessons.list()
    (copy,) = reflection.lessons.fork(STAGING)
    assert copy.task == "refund order 7"
    for name in ("sources", "because", "task", "created_by", "created_at", "version"):
        assert getattr(copy, name) == getattr(lesson, name)
    reflection.episodes.purge(lesson.sources[0])
    assert reflection.lessons.list(namespace=STAGING) == ()


def test_a_fork_again_where_the_former_one_has_retired(make: Maker) -> None:
    reflection = make()
    lessons = reflection.lessons
    lessons.add(when="a", do="b")
    (copy,) = lessons.fork(STAGING)
    with pytest.raises(ConfigurationError, match=r"to is \('staging',\).*no lesson stands\. 1 do: retire"):
        lessons.fork(STAGING)
    lessons.retire(copy.id)
    (again,) = lessons.fork(STAGING)
    assert (again.id, again.version, again.status) == (copy.id, 3, "active")
    assert len(lessons.history(copy.id)) == 3


async def test_async_twins(make: Maker, tmp_path: Path) -> None:
    lessons = make().lessons
    await lessons.aadd(when="a", do="b")
    text = await lessons.aexport(tmp_path / "lessons.jsonl")
    assert len((await lessons.aimport_(text)).unchanged) == 1
    assert (await lessons.adiff(now())).empty
    assert len(await lessons.afork(STAGING)) == 1
    assert await lessons.arollback(to=now()) == ()
