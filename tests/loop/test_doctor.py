"""`reflect doctor` against real ledgers, on each of the two databases."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from reflect_middleware import Reflection, Reward, testing
from reflect_middleware.advice import REMEDIES
from reflect_middleware.counters import Count
from reflect_middleware.embed import embedder_id
from reflect_middleware.schema import episodes, lessons, reflections, spent, work
from reflect_middleware.types import now

from .conftest import adding, agent

if TYPE_CHECKING:
    from reflect_middleware.advice import Finding

DAY = 86_400.0


def examined(reflection: Reflection) -> dict[str, Finding]:
    return {finding.check: finding for finding in reflection.doctor()}


def write(reflection: Reflection, statement: Any) -> None:
    with reflection._core.parts.ledger.database.write() as connection:
        connection.execute(statement)


def test_a_fresh_reflection_has_no_problem(make: Any) -> None:
    found = examined(make())
    assert [check for check, finding in found.items() if finding.level != "ok"] == []
    assert list(found)[:5] == ["ledger", "embedder", "store", "model", "spool"]


def test_the_ledger_says_where_and_how(make: Any) -> None:
    reflection = make()
    facts = examined(reflection)["ledger"].facts
    assert facts["mode"] == "wal" or facts["mode"].startswith("PostgreSQL ")
    assert facts["bytes"] > 0
    assert (facts["free_bytes"] is None) is not facts["url"].startswith("sqlite")
    reflection.pause()
    assert (examined(reflection)["ledger"].level, examined(reflection)["ledger"].facts["paused"]) == ("advice", True)


def test_episodes_by_what_becomes_of_them(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: "no idea"), every=99)
    graph = reflection.wrap(agent())
    for number in range(6):
        graph.invoke({"messages": f"Refund order {number}"})
    ids = [episode.id for episode in reflection.episodes.list()]
    write(reflection, episodes.update().where(episodes.c.id == ids[0]).values(dead_letter="the older reason"))
    write(reflection, episodes.update().where(episodes.c.id == ids[1]).values(dead_letter="hidden", started_at=1.0))
    write(reflection, episodes.update().where(episodes.c.id == ids[2]).values(sampled=False))
    paused = {"status": "interrupted", "ended_at": None, "ready_at": None}
    write(reflection, episodes.update().where(episodes.c.id == ids[3]).values(**paused))
    write(reflection, episodes.update().where(episodes.c.id == ids[4]).values(ended_at=time.time() - 7_300))
    found = examined(reflection)["episodes"]
    oldest = found.facts.pop("oldest_waiting_seconds")
    assert found.facts == {
        "total": 6,
        "waiting": 2,
        "interrupted": 1,
        "dead_lettered": 2,
        "dead_letter_reason": "the older reason",
        "sampled_out": 1,
        "sampled_of": 6,
    }
    assert 7_300 <= oldest < 7_400
    assert found.level == "advice"


def test_reflections_done_failed_and_under_way(make: Any) -> None:
    answers = iter([adding("Refund order"), "no idea", "no idea"])
    reflection = make(testing.ScriptedChatModel(lambda _: next(answers)), every=1)
    graph = reflection.wrap(agent())
    graph.invoke({"messages": "Refund order 1"})
    assert examined(reflection)["reflections"].level == "ok"
    graph.invoke({"messages": "Refund order 2"})
    found = examined(reflection)["reflections"]
    assert (found.level, "no usable answer" in found.facts["last_failure"]) == ("problem", True)
    claim = reflection._core.parts.ledger.reflections.claim(
        ("default",), "host:7:x", at_least=1, at_most=9, lease=30.0, whatever=True
    )
    assert claim is not None
    (running,) = examined(reflection)["reflections"].facts["running"]
    assert (running["owner"], 0 < running["lease_seconds"] <= 30) == ("host:7:x", True)
    write(reflection, reflections.update().where(reflections.c.id == claim.id).values(lease_until=1.0))
    assert "died" in examined(reflection)["reflections"].message


def test_lessons_reviews_and_foreign_vectors(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: adding("Refund order")), every=1)
    result = reflection.wrap(agent()).invoke({"messages": "Refund order 1"})
    reflection.reward(result, 0.0)  # after its reflection: the lesson is looked at again
    quoting = reflection.lessons.add(when='somebody says "needs_review":true', do="ask")
    reflection.lessons.retire(reflection.lessons.add(when="old", do="old").id)
    found = examined(reflection)
    assert found["lessons"].facts == {"active": 2, "candidate": 0, "retired": 1, "needs_review": 1}
    assert found["embedder"].facts["id"] == embedder_id(testing.HashingEmbeddings())
    assert found["embedder"].facts["other_vectors"] == 0
    write(reflection, lessons.update().where(lessons.c.id == quoting.id).values(embedder="another"))
    assert examined(reflection)["embedder"].facts["other_vectors"] == 1


def test_lessons_that_never_fit_are_named(make: Any) -> None:
    reflection = make(top_k=1)
    near = reflection.lessons.add(when="Refund order", do="ask")
    far = reflection.lessons.add(when="Refund something", do="ask nobody at all")
    graph = reflection.wrap(agent())
    for _ in range(5):
        assert examined(reflection)["prompt"].level == "ok"
        graph.invoke({"messages": "Refund order"})
    found = examined(reflection)["prompt"]
    assert (found.level, found.facts["never_shown"]) == ("advice", [far.id])
    assert near.id not in found.message


def test_most_rewards_are_late_so_waiting_is_advised(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=1)
    graph = reflection.wrap(agent())
    for number in range(15):
        result = graph.invoke({"messages": f"Refund order {number}"})
        later = now() + timedelta(hours=1, seconds=number)
        reflection.reward(result, Reward(value=1.0, at=later))
    found = examined(reflection)["rewards"]
    assert (found.level, found.facts["rewards"], found.facts["late"]) == ("advice", 15, 15)
    assert 3_600 <= found.facts["p90_delay_seconds"] < 3_700
    assert "set reward_wait=3" in found.message


def test_rewards_in_time_need_no_advice(make: Any) -> None:
    reflection = make(testing.ScriptedChatModel(lambda _: '{"edits": []}'), every=1, reward=lambda _: 1.0)
    graph = reflection.wrap(agent())
    for number in range(12):
        graph.invoke({"messages": f"Refund order {number}"})
    found = examined(reflection)["rewards"]
    assert (found.level, found.facts["late"], found.facts["rewards"]) == ("ok", 0, 12)


def test_what_rests_and_what_was_spent(make: Any) -> None:
    reflection = make()
    until = time.time() + 100
    write(reflection, work.insert().values(namespace='["acme"]', failures=3, rest_until=until))
    write(reflection, work.insert().values(namespace='["done"]', failures=1, rest_until=5.0))
    today = datetime.now(UTC).date().isoformat()
    write(reflection, spent.insert().values(day=today, input_tokens=900, output_tokens=100))
    found = examined(reflection)
    assert [row["namespace"] for row in found["back-off"].facts["resting"]] == [["acme"]]
    assert found["tokens"].facts["today"] == 1_000


def test_failures_are_counted_by_every_process_and_fade(make: Any) -> None:
    reflection = make()
    table = reflection._core.parts.ledger.health
    for _ in range(3):
        table.add({"store": Count(count=2, last="the server went away", at=time.time())})
    table.add({"embed": Count(count=1, last="no network", at=time.time() - 2 * DAY)})
    found = examined(reflection)
    assert (found["failures: store"].level, found["failures: store"].facts["count"]) == ("problem", 6)
    assert "the server went away" in found["failures: store"].message
    assert found["failures: embed"].level == "ok"


def test_a_run_without_its_namespace_is_counted(make: Any) -> None:
    reflection = make()
    graph = reflection.wrap(agent(), namespace=("acme", "{user_id}"))
    for _ in range(3):
        graph.invoke({"messages": "Refund order 1"})
    found = examined(reflection)["failures: namespace"]
    assert (found.level, found.facts["count"]) == ("advice", 3)
    assert "no value for user_id" in found.message


async def test_a_search_that_is_late_is_counted_as_such(run: Any) -> None:
    release = threading.Event()

    class Slow(testing.HashingEmbeddings):
        hangs = False

        def embed_query(self, text: str) -> list[float]:
            if self.hangs:
                release.wait(30)
                raise ConnectionError("given up")
            return super().embed_query(text)

    embeddings = Slow()
    with testing.reflection(embeddings=embeddings, retrieve_timeout=0.05) as reflection:
        reflection.lessons.add(when="refunding", do="ask")
        embeddings.hangs = True
        await run(reflection.wrap(agent()), "Refund order 1")
        release.set()
        found = examined(reflection)["failures: retrieve.timeout"]
    assert (found.level, "retrieve_timeout=0.05" in found.message) == ("advice", True)


def test_a_ledger_that_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database" * 100)
    with testing.reflection(path=str(tmp_path)) as reflection:
        found = reflection.doctor()
    assert [finding.check for finding in found] == ["ledger", "embedder", "store", "model", "spool"]
    assert [finding.check for finding in found if not finding.ok] == ["ledger"]


@pytest.mark.process
def test_who_holds_the_embedded_store_is_named(tmp_path: Path) -> None:
    holder = f"""
import sys
from reflect_adapters.chroma import ChromaStore
from pathlib import Path
store = ChromaStore(Path({str(tmp_path / "chroma")!r}))
print("held", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with testing.reflection(path=str(tmp_path), store="chroma") as reflection:
            found = examined(reflection)["store"]
        assert (found.level, found.facts["held_by_another"]) == ("ok", True)
        assert f"Process {process.pid} holds the store" in found.message
    finally:
        process.communicate()


def test_a_store_that_lags_behind_is_seen(tmp_path: Path) -> None:
    with testing.reflection(path=str(tmp_path), store="chroma") as reflection:
        reflection.lessons.add(when="refunding", do="ask")
        reflection.flush()
        assert examined(reflection)["store"].facts["behind"] == 0
        index = reflection._core.parts.index
        index._store.delete(index._space(("default",)), [reflection.lessons.list()[0].id])
        found = examined(reflection)["store"]
    assert (found.level, found.facts["behind"]) == ("advice", 1)


def test_its_questions_are_answered_by_an_index(tmp_path: Path) -> None:
    """At a million episodes a look at each would take seconds, and on a server the cache of everybody else."""
    with testing.reflection(path=str(tmp_path)) as reflection:
        database, asked = reflection._core.parts.ledger.database, []
        reflection.doctor()  # opens everything

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                asked.append((statement, parameters))

        sa.event.listen(database._open(), "before_cursor_execute", note)
        reflection.doctor()
        with database.read() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            plans = [
                (statement, row[3])
                for statement, given in list(asked)
                for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", given)
            ]
    big = ("episodes", "rewards", "exposures", "reflections", "aliases", "lesson_versions")
    scans = [plan for plan in plans if plan[1].startswith("SCAN") and plan[1].split()[1] in big]
    assert len(asked) > 10
    assert [plan for plan in scans if "INDEX" not in plan[1] and "LIMIT" not in plan[0]] == []


def test_every_counter_has_a_remedy() -> None:
    root = Path(__file__).parents[2] / "reflect_middleware"
    names = set()
    for file in root.glob("*.py"):
        names |= set(re.findall(r'(?:core\.failed|self\.failed|_failed|safely)\("([a-z_ ]+)"', file.read_text()))
    assert {"retrieve", "reward", "store"} <= names
    assert names - set(REMEDIES) == set()


def test_json_has_the_same_fields_for_every_finding(make: Any) -> None:
    dumped = json.loads(json.dumps([finding.model_dump(mode="json") for finding in make().doctor()]))
    assert {tuple(finding) for finding in dumped} == {("check", "level", "message", "facts", "ok")}
