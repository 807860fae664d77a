"""Purging: nothing that came from the purged episodes is left, and nothing else is touched."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from langgraph.checkpoint.memory import InMemorySaver

from reflect_middleware import Reward, testing
from reflect_middleware.episodes_table import Record
from reflect_middleware.errors import ConfigurationError, EpisodeNotFoundError, LessonNotFoundError
from reflect_middleware.schema import metadata
from reflect_middleware.spool import Given, Run

from .conftest import adding, agent
from .test_processes import child

if TYPE_CHECKING:
    from reflect_middleware import Reflection

ROOT = Path(__file__).parents[2]
ANNA, BEN = "anna-4711", "ben-0815"
TASK = "Refund the canary order CANARY-77123 of Mrs Zwetschgenbaum"
OUTPUT = "I have refunded the amount to account DE00CANARYOUT of the lady"
COMMENT = "no, canary comment Kirschkuchen99, the lady wanted a voucher instead"
TOOL = "the tool says canary TOOL-55443 in a long answer of its own"
CANARIES = (ANNA, "CANARY-77123", "Zwetschgenbaum", "DE00CANARYOUT", "Kirschkuchen99", "TOOL-55443")


def talking(answer: str = "done") -> Any:
    return agent(testing.ScriptedChatModel(lambda _: answer), checkpointer=InMemorySaver())


def go(reflection: Reflection, task: str, principal: str, thread: str = "", answer: str = "done") -> str:
    """One run on behalf of somebody; gives its episode's id."""
    config = {"configurable": {"thread_id": thread or f"thread of {principal}", "reflect": {"principal": principal}}}
    with reflection.track() as track:
        reflection.wrap(talking(answer)).invoke({"messages": [("user", task)]}, config)
    return track.episode_ids[0]


def found(reflection: Reflection, *needles: str) -> list[str]:
    """Every file of its folder, and every column of its ledger, that has one of them in any form."""
    path = reflection._options.path
    files = [file for file in path.rglob("*") if file.is_file() and file.suffix != ".lock"]
    with sa.create_engine(reflection._options.ledger_url, poolclass=sa.NullPool).connect() as connection:
        texts = {f"{c}": connection.execute(sa.select(c)).scalars() for t in metadata.sorted_tables for c in t.columns}
        held = {name: "\n".join(map(str, column)).encode() for name, column in texts.items()}
    held |= {str(file.relative_to(path)): file.read_bytes() for file in files}
    return [f"{place}: {needle}" for place, data in held.items() for needle in needles if needle.encode() in data]


def edits(*made: dict[str, Any]) -> str:
    return json.dumps({"edits": [{"op": "add", **edit} for edit in made]})


@pytest.mark.parametrize("store", ["exact", "chroma"])
def test_nothing_is_left_in_any_file(tmp_path: Path, make: Any, store: str) -> None:
    answer = edits(
        {"episodes": ["E1"], "because": "canary order CANARY-77123", "when": "refunding for a lady", "do": "ask first"},
        {"episodes": ["E1"], "because": "it is not there", "when": "x", "do": "call Mrs Zwetschgenbaum at once"},
    )
    reflection = make(testing.ScriptedChatModel([answer, '{"edits": []}']), every=9, path=str(tmp_path), store=store)
    ids = [go(reflection, TASK, ANNA, answer=OUTPUT), go(reflection, "Paint the fence green", BEN)]
    reflection.reward(ids[0], 0.0, source="user", comment=COMMENT)
    reflection.reward(ids[0], 0.1, source="user", comment="a canary on second thoughts: Kirschkuchen99")
    reflection.reflect()
    reflection._core.failed("reward", ValueError(f"cannot judge {TASK!r}"))
    for _ in range(3):  # so that the store opens, and a later prompt shows the lessons
        reflection.lessons.search("refund")
    reflection.flush()
    go(reflection, "Paint it blue", BEN)
    reflection.reflect()
    mine = {lesson.id for lesson in reflection.lessons.list()}
    assert len(mine) == 2
    assert found(reflection, *CANARIES)
    report = reflection.episodes.purge(principal=ANNA)
    assert report.complete, report.left
    assert (report.episodes, report.rewards, set(report.lessons)) == (1, 2, mine)
    assert found(reflection, *CANARIES, ids[0], *mine) == []
    assert reflection.lessons.list() == ()
    assert [episode.id for episode in reflection.episodes.list()][1:] == [ids[1]]
    reflection.close()  # and nothing comes back with what is written at the end
    assert found(reflection, *CANARIES, ids[0], *mine) == []


def test_what_others_said_and_learned_stays(make: Any) -> None:
    answers = [adding("Paint the fence", "painting", "use two coats"), adding("canary order")]
    reflection = make(testing.ScriptedChatModel(answers), every=1)
    kept = go(reflection, "Paint the fence", BEN)
    reflection.reward(kept, 1.0, comment="well done")
    before = (reflection.episodes.get(kept), reflection.lessons.list(), reflection.reflections.list())
    gone = go(reflection, TASK, ANNA)
    assert reflection.lessons.list()[0].shown == 1
    report = reflection.episodes.purge(principal=ANNA)
    assert report.complete, report.left
    after = (reflection.episodes.get(kept), reflection.lessons.list(), reflection.reflections.list())
    assert after[0] == before[0]
    assert after[1][0].model_copy(update={"needs_review": True}) == before[1][0]
    assert after[2] == before[2]
    with pytest.raises(EpisodeNotFoundError):
        reflection.episodes.get(gone)
    with pytest.raises(LessonNotFoundError):
        reflection.lessons.history(report.lessons[0])


def test_what_others_said_too_is_nothing_that_is_left(make: Any) -> None:
    rule = "needs a manager above 200 EUR"
    reflection = make(testing.ScriptedChatModel([adding(rule)]), every=99)
    ids = [go(reflection, "Refund an order", BEN), go(reflection, "Refund another one", ANNA)]
    for episode in ids:
        reflection.reward(episode, 0.0, source="user", comment=rule)
    reflection.reflect()
    report = reflection.episodes.purge(principal=ANNA)
    assert report.complete, report.left
    assert [lesson.because for lesson in reflection.lessons.list()] == [rule]


def test_a_lesson_with_other_support_loses_the_source_and_is_examined_again(make: Any) -> None:
    both = {"episodes": ["E1", "E2"], "because": "Mrs Zwetschgenbaum wants it back", "when": "w", "do": "be polite"}
    reflector = testing.ScriptedChatModel([edits(both), '{"edits": []}'])
    reflection = make(reflector, every=2)
    gone = go(reflection, "Mrs Zwetschgenbaum wants it back", ANNA)
    kept = go(reflection, "Refund an order", BEN)
    (lesson,) = reflection.lessons.list()
    assert lesson.sources == (gone, kept)
    report = reflection.episodes.purge(principal=ANNA)
    assert report.complete, report.left
    assert report.lessons_changed == (lesson.id,)
    now = reflection.lessons.get(lesson.id)
    assert (now.do, now.sources, now.because, now.needs_review) == ("be polite", (kept,), "", True)
    assert [version.version for version in reflection.lessons.history(lesson.id)] == [now.version]
    (record,) = reflection.reflections.list()
    assert (record.episodes, record.prompt, record.answer) == ((kept,), "", "")
    assert [(o.accepted, o.edit.op, o.lesson_id) for o in record.outcomes] == [(True, "add", lesson.id)]
    go(reflection, "Refund another", BEN)
    reflection.reflect()
    assert "be polite" in reflector.prompts[1]
    assert not reflection.lessons.get(lesson.id).needs_review


@pytest.mark.parametrize("first", [ANNA, BEN])
def test_a_lesson_loses_a_task_that_only_purged_episodes_had(make: Any, first: str) -> None:
    both = {"episodes": ["E1", "E2"], "because": "please", "when": "refunding", "do": "be polite"}
    reflection = make(testing.ScriptedChatModel([edits(both)]), every=2, store="exact")
    asked = {ANNA: f"{TASK}, please", BEN: "Refund an order, please"}
    for who in (first, BEN if first == ANNA else ANNA):
        go(reflection, asked[who], who)
    (lesson,) = reflection.lessons.list()
    assert lesson.task == asked[first]
    reflection.lessons.edit(lesson.id, pinned=True)  # so that there is an old version, and it holds the task
    report = reflection.episodes.purge(principal=ANNA)
    assert report.complete, report.left
    now = reflection.lessons.get(lesson.id)
    assert (now.do, now.task) == ("be polite", "" if first == ANNA else asked[BEN])
    assert [version.version for version in reflection.lessons.history(lesson.id)] == [now.version]
    table, embedder = reflection._core.parts.ledger.lessons, reflection._core.parts.embedder
    assert table.vectors([lesson.id], embedder.id) == {}, "the old one was made of the task"
    reflection._core.parts.index.sync(("default",))
    assert reflection.lessons.search(now.searched)[0].similarity == pytest.approx(1.0)
    assert found(reflection, *CANARIES) == []


def test_what_a_person_wrote_stays_without_its_source(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel([adding("canary order")]), every=1)
    go(reflection, TASK, ANNA)
    (lesson,) = reflection.lessons.list()
    reflection.lessons.edit(lesson.id, when="paying back", do="my own words")
    report = reflection.episodes.purge(principal=ANNA)
    now = reflection.lessons.get(lesson.id)
    assert (now.do, now.sources, now.because) == ("my own words", (), "")
    assert report.complete, report.left


def test_one_that_was_only_approved_by_a_person_goes(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel([adding("canary order")]), every=1, approval="human")
    go(reflection, TASK, ANNA)
    (lesson,) = reflection.lessons.list()
    reflection.lessons.approve(lesson.id)
    assert reflection.episodes.purge(principal=ANNA).lessons == (lesson.id,)
    assert reflection.lessons.list() == ()


@pytest.mark.parametrize("by", ["ids", "thread", "before"])
def test_by_ids_thread_and_time(make: Any, by: str) -> None:
    reflection = make(every=9)
    old = go(reflection, TASK, ANNA, "t1")
    between = datetime.now(UTC)
    new = go(reflection, TASK, ANNA, "t2")
    wanted: dict[str, Any] = {"ids": {"ids": old}, "thread": {"thread_id": "t1"}, "before": {"before": between}}[by]
    dry = reflection.episodes.purge(**wanted, dry_run=True)
    assert (dry.episodes, dry.dry_run, len(reflection.episodes.list())) == (1, True, 2)
    report = reflection.episodes.purge(**wanted)
    assert report.complete, report.left
    assert [episode.id for episode in reflection.episodes.list()] == [new]
    assert reflection.episodes.purge(**wanted).episodes == 0


def test_only_in_a_namespace(make: Any) -> None:
    reflection = make(every=9, namespace=("acme", "{principal}"))
    for who in (ANNA, BEN):
        go(reflection, TASK, who)
    everything = datetime.now(UTC) + timedelta(hours=1)
    assert reflection.episodes.purge(before=everything, namespace=("acme", BEN)).episodes == 1
    assert [episode.principal for episode in reflection.episodes.list()] == [ANNA]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "principal="),
        ({"namespace": ("a",)}, "principal="),
        ({"principal": " "}, "not empty"),
        ({"thread_id": ""}, "not empty"),
        ({"ids": []}, "ids of episodes"),
        ({"before": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - that is the mistake
    ],
)
def test_what_is_not_named_is_not_purged(wanted: Any, words: str) -> None:
    with testing.reflection() as reflection, pytest.raises(ConfigurationError, match=re.escape(words)):
        reflection.episodes.purge(**wanted)


def test_nested_runs_go_with_the_run_around_them(make: Any) -> None:
    reflection = make(every=9)
    inner = reflection.wrap(agent(testing.ScriptedChatModel(lambda _: TOOL)), name="inner")
    outer = reflection.wrap(
        agent(testing.ScriptedChatModel(lambda _: inner.invoke({"messages": TASK})["messages"][-1]))
    )
    outer.invoke({"messages": "Ask the other one"})
    (last,) = [episode for episode in reflection.episodes.list() if not episode.parent_id]
    assert len(reflection.episodes.list()) == 2
    assert reflection.episodes.purge(last.id).episodes == 2
    assert reflection.episodes.list() == ()


def test_a_reflection_under_way_does_not_bring_it_back(make: Any) -> None:
    reading, purged = threading.Event(), threading.Event()

    def slow(batch: Any) -> list[Any]:
        reading.set()
        assert purged.wait(60)
        return [
            {"op": "add", "episodes": ["E1"], "because": "canary order", "when": "w", "do": "remember CANARY-77123"}
        ]

    reflection = make(reflector=slow, every=9)
    go(reflection, TASK, ANNA)
    kept = go(reflection, "Paint the fence", BEN)
    thread = threading.Thread(target=reflection.reflect)
    thread.start()
    assert reading.wait(60)
    report = reflection.episodes.purge(principal=ANNA)
    purged.set()
    thread.join(60)
    assert report.complete, report.left
    assert reflection.lessons.list() == ()
    assert found(reflection, "CANARY-77123") == []
    assert [episode.id for episode in reflection.episodes.list(waiting=True)] == [kept]


def test_rewards_for_what_was_purged_wait_like_those_for_an_unknown_run(make: Any) -> None:
    reflection = make(every=9)
    gone = go(reflection, TASK, ANNA)
    reflection.episodes.purge(gone)
    reflection.reward(gone, 1.0)
    assert reflection.episodes.list() == ()


def test_what_waits_in_the_spool_is_purged(make: Any) -> None:
    reflection = make(every=9)
    kept, gone = go(reflection, "Paint the fence", BEN), go(reflection, TASK, ANNA)
    spool, episode = reflection._core.keeper.outage.spool, reflection.episodes.get(gone)
    fresh = episode.model_copy(update={"id": str(uuid4()), "run_ids": ()})
    spool.add(Run(record=Record(episode=fresh, ready_at=0.0)))
    spool.add(Given(reward=Reward(value=0, comment=COMMENT), names=(fresh.id,)))
    spool.add(Given(reward=Reward(value=0, comment=COMMENT), names=(gone,)))
    spool.add(Given(reward=Reward(value=1, comment="well painted"), names=(kept,)))
    assert found(reflection, fresh.id)
    report = reflection.episodes.purge(principal=ANNA)
    assert report.complete, report.left
    assert (report.spooled, report.episodes) == (1, 1)
    assert [entry.target for entry in spool.entries()] == [kept]
    assert found(reflection, *CANARIES, fresh.id, gone) == []


@pytest.mark.skipif(sys.platform != "linux", reason="a file that nobody can read is known for Linux")
def test_a_file_that_cannot_be_read_or_deleted_is_named(make: Any) -> None:
    reflection = make(every=9)
    gone = go(reflection, "task", "ann")
    folder = reflection._options.path / "backups"
    (folder / "damaged-1.db").mkdir(parents=True)
    (reflection._options.path / "unreadable").symlink_to("/proc/self/mem")
    report = reflection.episodes.purge(gone)
    assert report.episodes == 1
    assert [left.partition("(")[0] for left in report.left] == [
        f"{folder / 'damaged-1.db'}: it cannot be deleted ",
        f"{reflection._options.path / 'unreadable'}: it cannot be read ",
    ]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="which file holds SQLite's locks is known for Linux")
def test_the_look_at_the_files_releases_no_lock_of_the_spool(make: Any) -> None:
    reflection = make(every=9)
    gone = go(reflection, "task", "ann")
    reflection._core.keeper.outage.spool.add(Given(reward=Reward(value=1), names=("another one",)))
    assert reflection.episodes.purge(gone).complete
    spool = str(reflection._options.path / "spool.db")
    ask = f"from reflect_middleware.backups_table import in_use, Path; print(in_use(Path({spool!r})))"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"


def test_every_line_of_the_page_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "forgetting.md").read_text()
    files = [*(ROOT / "tests" / "loop").glob("*.py"), *(ROOT / "tests" / "properties").glob("*.py")]
    tests = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 20
    assert set(named) <= tests
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("| what", "| limit", "| ---"))
    ]
    assert all("`test_" in row for row in rows)


def test_what_was_deleted_earlier_is_not_left_in_free_pages(tmp_path: Path) -> None:
    with testing.reflection(every=9, path=str(tmp_path)) as reflection:
        go(reflection, f"{TASK} {'and so on ' * 900}", ANNA)
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as connection, connection:
            connection.execute("PRAGMA secure_delete=OFF")  # some builds of SQLite have it on
            connection.execute("DELETE FROM episodes")
        assert found(reflection, "CANARY-77123")
        report = reflection.episodes.purge(principal=ANNA)
        assert (report.episodes, report.complete) == (0, True), report.left
        assert found(reflection, *CANARIES) == []


def test_the_audit_names_nobody(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel([adding("canary order")]), every=1)
    gone = go(reflection, TASK, ANNA)
    reflection.episodes.purge(principal=ANNA)
    (entry,) = reflection.audit()
    assert entry.action == "purge"
    assert entry.details["by"] == ["principal"]
    assert (entry.details["episodes"], entry.details["lessons"]) == (1, 1)
    assert not any(needle in entry.model_dump_json() for needle in (*CANARIES, gone))


async def test_async_twins(make: Any) -> None:
    reflection = make(every=9)
    gone = go(reflection, TASK, ANNA)
    assert (await reflection.episodes.apurge(gone)).episodes == 1
    assert len(await reflection.aaudit()) == 1


def test_a_namespace_that_comes_back_begins_anew(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: adding("canary order", do="call anna")), every=1)
    other = make(path=str(reflection._options.path))
    go(reflection, TASK, ANNA)
    seen = testing.ScriptedChatModel(lambda _: "ok")
    other.wrap(agent(seen)).invoke({"messages": "Refund"})
    assert "call anna" in seen.prompts[-1]
    reflection.episodes.purge(principal=ANNA)
    other.wrap(agent(seen)).invoke({"messages": "Refund"})
    assert "call anna" not in seen.prompts[-1]
    reflection.lessons.add(when="refunding", do="a new beginning")
    other.wrap(agent(seen)).invoke({"messages": "Refund"})
    assert "a new beginning" in seen.prompts[-1]


@pytest.mark.process
@pytest.mark.parametrize(("make", "store"), [("sqlite", "chroma"), ("postgresql", "exact")], indirect=["make"])
def test_a_running_process_forgets_at_its_next_run(tmp_path: Path, make: Any, store: str) -> None:
    model = testing.ScriptedChatModel(lambda _: adding("canary order", do="ask the Pflaumenmus desk"))
    reflection = make(model, every=1, path=str(tmp_path))
    with child(make, tmp_path, f"wait:{store}") as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def next_run() -> str:
            other.stdin.write("go\n")
            other.stdin.flush()
            return other.stdout.readline()

        assert other.stdout.readline() == "ready\n"
        go(reflection, TASK, ANNA)
        shown = [next_run() for _ in range(3)]
        until = time.monotonic() + 60
        while store == "chroma" and not (tmp_path / "chroma" / "chroma.sqlite3").exists() and time.monotonic() < until:
            shown.append(next_run())  # it opens its store beside its runs
        assert all("Pflaumenmus" in line for line in shown)
        report = reflection.episodes.purge(principal=ANNA)
        assert report.complete == (store == "exact"), report.left
        assert "Pflaumenmus" not in next_run()
        other.stdin.close()
        assert other.wait(timeout=60) == 0
    assert reflection.episodes.purge(principal=ANNA).complete
    assert found(reflection, *report.lessons) == []
