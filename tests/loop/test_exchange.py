"""Lessons leave a ledger as files and come back: all of them or none, the same file twice changes nothing."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import lesson_file, testing
from reflect_middleware.errors import (
    ConfigurationError,
    LessonCapError,
    LessonFileError,
)
from reflect_middleware.types import Lesson
from tests.loop.conftest import adding, agent

if TYPE_CHECKING:
    from reflect_middleware import Reflection
    from tests.loop.conftest import Maker


def line(**given: Any) -> str:
    return json.dumps({"when": "refunding", "do": "ask"} | given)


def filled(reflection: Reflection) -> tuple[Lesson, Lesson]:
    """Two lessons; the second is pinned and has evidence."""
    lessons = reflection.lessons
    return (
        lessons.add(when="refunding an order", do="ask a manager above 200 EUR"),
        lessons.add(when="writing dates", do="use ISO 8601", because="Größe\u2028„17“", pinned=True),
    )


def state(reflection: Reflection) -> list[tuple[str, str, str, int]]:
    return [(x.id, x.do, x.status, x.version) for x in reflection.lessons.list()]


def test_a_file_goes_from_one_ledger_to_another_and_back(make: Maker, tmp_path: Path) -> None:
    staging, production = make(), make()
    one, two = filled(staging)
    file = tmp_path / "lessons.jsonl"
    text = staging.lessons.export(file)
    assert file.read_bytes().decode() == text
    assert [list(json.loads(x)) for x in text.splitlines()] == [
        ["id", "version", "status", "when", "do", "namespace"],
        ["id", "version", "status", "when", "do", "because", "pinned", "namespace"],
    ]
    assert [x.id for x in production.lessons.import_(file, dry_run=True).added] == [one.id, two.id]
    assert production.lessons.list() == ()
    report = production.lessons.import_(str(file))
    assert [x.id for x in report.added] == [one.id, two.id]
    assert production.lessons.export() == text
    again = production.lessons.import_(text)
    assert (again.added, again.changed, again.unchanged) == ((), (), (one.id, two.id))
    assert [x[3] for x in state(production)] == [1, 1]
    words = "order to refund: ask a manager above 200 EUR"
    assert [hit.lesson.id for hit in production.lessons.search(words, k=1)] == [one.id]


def test_what_learning_brought_keeps_its_sources_and_is_no_persons_word(make: Maker) -> None:
    model = testing.ScriptedChatModel([adding("refund order 7")])
    learned, fresh = make(model, every=1), make()
    learned.wrap(agent()).invoke({"messages": "refund order 7"})
    (lesson,) = learned.lessons.list()
    assert lesson.sources
    fresh.lessons.import_(learned.lessons.export())
    (copy,) = fresh.lessons.list()
    assert (copy.id, copy.sources, copy.because) == (lesson.id, lesson.sources, lesson.because)
    assert copy.task == lesson.task == "refund order 7"
    assert copy.created_by == "import"
    (edited,) = learned.lessons.import_(learned.lessons.export().replace("200", "300")).changed
    assert edited.after.do == "ask a manager above 300 EUR"
    learned.episodes.purge(lesson.sources[0])
    assert learned.lessons.list() == ()


def test_a_file_may_go_without_the_tasks_and_takes_none_away(make: Maker) -> None:
    reflection = make(testing.ScriptedChatModel([adding("refund order 7")]), every=1)
    reflection.wrap(agent()).invoke({"messages": "refund order 7 of the parrot"})
    lessons, (lesson,) = reflection.lessons, reflection.lessons.list()
    bare = lessons.export(tasks=False)
    assert json.loads(lessons.export()) == json.loads(bare) | {"task": lesson.task}
    assert "task" not in lessons.export(tasks=False, details=True)
    assert all("parrot" not in lessons.export(format=page) for page in ("markdown", "prompt", "agents.md"))
    assert lessons.import_(bare).unchanged == (lesson.id,)
    (edited,) = lessons.import_(bare.replace("200", "300")).changed
    assert (edited.after.do, edited.after.task) == ("ask a manager above 300 EUR", "refund order 7 of the parrot")
    fresh = make()
    fresh.lessons.import_(bare)
    assert fresh.lessons.list()[0].task == ""
    emptied = json.dumps(json.loads(lessons.export()) | {"task": ""})
    (change,) = lessons.import_(emptied).changed
    assert (change.fields, change.after.task) == (("task",), "")
    lessons.rollback(to=reflection.reflections.list()[0].id)
    assert lessons.list()[0].task == lesson.task


def test_an_edit_in_the_file_is_taken_over_and_history_stays(make: Maker) -> None:
    reflection = make()
    one, two = filled(reflection)
    text = reflection.lessons.export().replace("200 EUR", "500 EUR")
    report = reflection.lessons.import_(text)
    assert [(x.before.version, x.after.version, x.fields) for x in report.changed] == [(1, 2, ("do",))]
    assert "+ do: ask a manager above 500 EUR" in str(report)
    assert [x.do[-7:] for x in reflection.lessons.history(one.id)] == ["200 EUR", "500 EUR"]
    assert reflection.lessons.import_(text).unchanged == (one.id, two.id)
    assert reflection.lessons.search("refunding an order: ask a manager", k=1)[0].lesson.do.endswith("500 EUR")


def test_promotions_follow_each_other_without_conflict(make: Maker) -> None:
    staging, production = make(), make()
    one, _ = filled(staging)
    for number in range(3):
        staging.lessons.edit(one.id, do=f"ask {number}")
        staging.lessons.edit(one.id, do=f"ask {number} managers")
        production.lessons.import_(staging.lessons.export())
    assert production.lessons.get(one.id).do == "ask 2 managers"
    assert production.lessons.export() == staging.lessons.export()


def test_three_states_are_compared(make: Maker) -> None:
    reflection = make()
    one, two = filled(reflection)
    old = reflection.lessons.export()
    reflection.lessons.edit(one.id, do="ask twice")
    stale = reflection.lessons.import_(old)
    assert (stale.behind, stale.unchanged, stale.changed) == ((one.id,), (two.id,), ())
    edited = old.replace("200 EUR", "500 EUR").replace("ISO 8601", "ISO")
    with pytest.raises(LessonFileError, match=r"line 1: lesson .* is 'version 1'; allowed: version 2.*on_conflict"):
        reflection.lessons.import_(edited)
    assert reflection.lessons.get(two.id).do == "use ISO 8601"
    skipped = reflection.lessons.import_(edited, on_conflict="skip")
    assert (skipped.skipped, [x.after.id for x in skipped.changed]) == ((one.id,), [two.id])
    replaced = reflection.lessons.import_(edited, on_conflict="replace")
    assert [x.after.do for x in replaced.changed] == ["ask a manager above 500 EUR"]
    assert [x.version for x in reflection.lessons.history(one.id)] == [1, 2, 3]


def test_lines_without_an_id_are_named_by_their_words(make: Maker) -> None:
    reflection = make()
    known = reflection.lessons.add(when="refunding", do="ask")
    text = f"{line()}\n\n{line(when='paying', pinned=True)}\r\n"
    report = reflection.lessons.import_(text)
    assert (report.unchanged, [x.when for x in report.added]) == ((known.id,), ["paying"])
    assert len(reflection.lessons.import_(text).unchanged) == 2


def test_new_lessons_may_wait_for_approval(make: Maker) -> None:
    reflection = make()
    text = f"{line()}\n"
    (lesson,) = reflection.lessons.import_(text, status="candidate").added
    assert reflection.lessons.get(lesson.id).status == "candidate"
    reflection.lessons.approve(lesson.id)
    assert reflection.lessons.import_(text, status="candidate").unchanged == (lesson.id,)


def test_a_patch_is_a_pinned_lesson_for_any_task(make: Maker, tmp_path: Path) -> None:
    reflection = make()
    text = "Spell words out\nbefore counting letters.\n\n  \nNever guess."
    first, second = reflection.lessons.import_(text, format="patch").added
    assert (first.do, first.pinned) == ("Spell words out before counting letters.", True)
    assert second.do == "Never guess."
    file = tmp_path / "patch.txt"
    file.write_text(text)
    assert len(reflection.lessons.import_(file, format="patch").unchanged) == 2
    with pytest.raises(LessonFileError, match=r"line 3: do of 500 characters"):
        reflection.lessons.import_(f"short\n\n{'x' * 500}", format="patch")
    with pytest.raises(LessonFileError, match="a paragraph or more"):
        reflection.lessons.import_(" ", format="patch")


HOSTILE = [
    (b"\xff\xfe{\x00", r"line 1: the text is b'\\xff.*allowed: UTF-8"),
    (b"{}\n" + "{'when'".encode("utf-16"), "line 2: .*UTF-8"),
    (b"[1]\n", r"line 1: the line is '\[1\]'; allowed: one JSON object"),
    (b"<<<<<<< HEAD\n", "line 1: the line is '<<<<<<< HEAD'"),
    (b"[" * 200_000, "line 1: the line"),
    (b"9" * 10_000, "line 1: the line"),
    (line(when=" ").encode(), "line 1: when of 0 characters"),
    (line(do="x" * 401).encode(), "line 1: do of 401 characters .*allowed: a text of 1 to 400"),
    (line(because="\0").encode(), "line 1: because"),
    (line(task="x" * 201).encode(), "line 1: task of 201 characters"),
    (line(do="\ud800").encode(), "line 1: do"),
    (line(id="").encode(), "line 1: id"),
    (line(pinned="yes").encode(), "line 1: pinned is 'yes'; allowed: true or false"),
    (line(version=True).encode(), "line 1: version"),
    (line(version=10**30).encode(), "line 1: version"),
    (line(status="gone").encode(), r"line 1: status is 'gone'; allowed: candidate \| active"),
    (line(status=["active"]).encode(), "line 1: status"),
    (line(sources="E1").encode(), "line 1: sources"),
    (line(namespace=[]).encode(), "line 1: namespace"),
    (line(namespace=["default", 3]).encode(), "line 1: namespace"),
    (line(whne="x").encode(), "line 1: a key is 'whne'; allowed: id, version"),
    (b'{"do": "x"}', "line 1: when is None"),
    (b'{"when": "a", "do": "x", "do": "y"}', "line 1: a key is 'do'; allowed: each key once"),
    (f"{line(id='1')}\n{line(id='1', do='y')}".encode(), "line 2: id is '1'; allowed: another than in line 1"),
    (f"{line()}\n{line()}".encode(), "line 2: do is 'ask'; allowed: another than in line 1"),
    (line(namespace=["other"]).encode(), r"line 1: namespace is \['other'\]; allowed: \['default'\], or none"),
]


@pytest.fixture(scope="module")
def victim() -> Any:
    with testing.reflection() as reflection:
        yield reflection


@pytest.mark.parametrize(("data", "says"), HOSTILE)
def test_a_bad_line_is_named_and_nothing_is_written(victim: Reflection, tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "hostile.jsonl"
    file.write_bytes(data)
    with pytest.raises(LessonFileError, match=says):
        victim.lessons.import_(file)
    assert victim.lessons.list() == ()


def test_all_bad_lines_are_named_at_once(victim: Reflection) -> None:
    text = "\n".join([line(do=""), line(when="fine"), *[line(pinned=1)] * 60])
    with pytest.raises(LessonFileError, match="and 11 more") as caught:
        victim.lessons.import_(text)
    assert [problem.line for problem in caught.value.problems] == [1, *range(3, 63)]
    assert len(str(caught.value)) < 8_000
    assert victim.lessons.list() == ()


def test_a_huge_file_is_not_read(victim: Reflection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "huge.jsonl"
    with file.open("wb") as sparse:
        sparse.truncate(100_000_000)
    with pytest.raises(LessonFileError, match="the size is 100000000; allowed: at most 32,000,000 bytes"):
        victim.lessons.import_(file)
    file.write_bytes(b"1\n" * 1_000_000)
    with pytest.raises(LessonFileError, match=r"(?s)line 1: .*and 951 more") as caught:
        victim.lessons.import_(file)
    assert len(caught.value.problems) == 1_001
    monkeypatch.setattr(lesson_file, "MOST_LESSONS", 2)
    with pytest.raises(LessonFileError, match="line 3: the number is 3; allowed: at most 2 lessons"):
        victim.lessons.import_("\n".join(line(do=str(n)) for n in range(9)))
    with pytest.raises(LessonFileError, match="the size"):
        victim.lessons.import_("{" + " " * lesson_file.MOST_BYTES)


def test_files_that_are_none(victim: Reflection, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LessonFileError, match=r"the path is .*allowed: an existing file"):
            victim.lessons.import_(path)
    with pytest.raises(LessonFileError, match="a folder that exists"):
        victim.lessons.export(tmp_path / "no" / "lessons.jsonl")
    with pytest.raises(ConfigurationError, match="source is 3"):
        victim.lessons.import_(3)  # type: ignore[arg-type]


def test_a_byte_order_mark_is_no_matter(make: Maker, tmp_path: Path) -> None:
    reflection = make()
    file = tmp_path / "from_an_editor.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line().encode())
    assert len(reflection.lessons.import_(file).added) == 1
    assert len(reflection.lessons.import_(file.read_text()).unchanged) == 1


def test_the_cap_holds(make: Maker) -> None:
    reflection = make(max_lessons=2)
    filled(reflection)
    with pytest.raises(LessonCapError, match=r"This would make 3 active lessons; allowed: max_lessons=2"):
        reflection.lessons.import_(line())
    assert len(reflection.lessons.list()) == 2
    text = "\n".join(line(do=str(n)) for n in range(3))
    with pytest.raises(LessonCapError, match="3 candidate lessons"):
        reflection.lessons.import_(text, status="candidate")
    assert len(reflection.lessons.import_(line(), status="retired").added) == 1


def test_arguments_are_checked(victim: Reflection) -> None:
    lessons: Any = victim.lessons
    for call in (
        lambda: lessons.export(format="yaml"),
        lambda: lessons.export(status="gone"),
        lambda: lessons.import_("{", format="csv"),
        lambda: lessons.import_("{", on_conflict="maybe"),
        lambda: lessons.import_("{", status="gone"),
        lambda: lessons.rollback(to=datetime(2026, 1, 1)),  # noqa: DTZ001 - that is refused
        lambda: lessons.rollback(to=3),
        lambda: lessons.diff(datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda: lessons.fork(("default",)),
    ):
        with pytest.raises(ConfigurationError, match="allowed: "):
            call()


def test_lessons_of_another_namespace_come_in_when_asked_to(make: Maker) -> None:
    reflection = make()
    filled(reflection)
    text = reflection.lessons.export()
    with pytest.raises(LessonFileError, match=r"line 1: namespace is \['default'\]; allowed: \['other'\], or none"):
        reflection.lessons.import_(text, namespace=("other",))
    mine = text.replace('"namespace": ["default"]', '"namespace": ["other"]')
    with pytest.raises(LessonFileError, match=r"one that is not in \['default'\] of this ledger"):
        reflection.lessons.import_(mine, namespace=("other",))
    assert reflection.lessons.list(namespace=("other",)) == ()
    assert len(reflection.lessons.import_(text, any_namespace=True, namespace=("other",)).added) == 2
    assert len(reflection.lessons.import_(text, any_namespace=True, namespace=("other",)).unchanged) == 2
    assert reflection.lessons.diff(None, ("other",)).empty
    elsewhere = make()
    report = elsewhere.lessons.import_(text, any_namespace=True, namespace=("other",))
    assert {x.namespace for x in report.added} == {("other",)}
    assert elsewhere.lessons.list() == ()


def test_a_candidate_replaces_nothing_of_another_namespace(make: Maker) -> None:
    reflection = make()
    one, _ = filled(reflection)
    text = line(status="candidate", replaces=[one.id])
    (hostile,) = reflection.lessons.import_(text, namespace=("other",)).added
    reflection.lessons.approve(hostile.id)
    assert reflection.lessons.get(one.id).status == "active"


def test_somebody_else_may_write_in_between(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    reflection = make()
    one, _ = filled(reflection)
    text = reflection.lessons.export().replace("200 EUR", "500 EUR")
    table, rivals = reflection._core.parts.ledger.lessons, iter(["rival"])
    save = table.save_all

    def late(changes: Any, embedder: str) -> Any:
        for do in rivals:
            reflection.lessons.edit(one.id, do=do)
        return save(changes, embedder)

    monkeypatch.setattr(table, "save_all", late)
    with pytest.raises(LessonFileError, match="version 2, at which the lesson is here"):
        reflection.lessons.import_(text)
    assert reflection.lessons.get(one.id).do == "rival"


def test_pages(make: Maker, tmp_path: Path) -> None:
    reflection = make()
    assert "None yet." in reflection.lessons.export(format="markdown")
    assert "None yet." in reflection.lessons.export(format="agents.md")
    assert reflection.lessons.export(format="prompt") == ""
    filled(reflection)
    reflection.lessons.add(when="reading <!-- hidden", do="see [this](http://x) </lessons>")
    page = reflection.lessons.export(format="markdown")
    assert "## refunding an order\n\nask a manager above 200 EUR\n" in page
    assert "(active, pinned, by hand, " in page
    assert "\\<!-- hidden" in page
    assert "\\[this\\]" in page
    prompt = reflection.lessons.export(format="prompt")
    assert prompt == reflection.preview({"messages": "refund"}).block
    file = tmp_path / "AGENTS.md"
    file.symlink_to("real.md")
    (tmp_path / "real.md").write_bytes(b"# Mine\xff\r\n")
    (tmp_path / "real.md").chmod(0o640)
    section = reflection.lessons.export(file, format="agents.md")
    assert "- When writing dates: use ISO 8601" in section
    assert "<!-- hidden" not in section
    written = (tmp_path / "real.md").read_bytes()
    assert written == b"# Mine\xff\r\n\r\n" + section.replace("\n", "\r\n").encode() + b"\r\n"
    (tmp_path / "real.md").write_bytes(written + b"more\r\n")
    reflection.lessons.add(when="late", do="one more")
    reflection.lessons.export(file, format="agents.md")
    behind = b"one more\r\n<!-- reflect lessons of default: end -->\r\nmore\r\n"
    assert (tmp_path / "real.md").read_bytes().endswith(behind)
    assert (tmp_path / "real.md").stat().st_mode & 0o777 == 0o640
    assert file.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["AGENTS.md", "real.md"]
    file.write_text("<!-- reflect lessons of default: begin -->\n")
    with pytest.raises(ConfigurationError, match=r"pair of comments is '1 and 0 of them'.*nothing was written"):
        reflection.lessons.export(file, format="agents.md")
