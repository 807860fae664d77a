"""The judge of the storms can fail: each way of breaking a good ledger is found, and named."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import testing
from reflect_middleware.namespaces import to_key
from tests.faults import judge
from tests.faults.judge import Acknowledged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPACE = ("default",)
embed = testing.HashingEmbeddings().embed_query


class Good:
    """A small ledger in which everything is right, and what was acknowledged on the way."""

    def __init__(self, folder: Path) -> None:
        def reflector(batch: Any) -> list[dict[str, Any]]:
            lesson = {"because": "Refund order", "when": f"refund {batch.episodes[0].id}", "do": "ask"}
            merge = {"because": "Refund order", "when": "refunding", "do": "ask twice"}
            found = [{"op": "add", "episodes": ["E1"], **lesson}]
            return found if len(batch.lessons) < 2 else [{"op": "merge", "lessons": ["L1", "L2"], **merge}]

        self.file = folder / "ledger.db"
        builder = StateGraph(MessagesState)
        builder.add_node("answer", lambda _: {"messages": [("ai", "done")]})
        builder.add_edge(START, "answer")
        with testing.reflection(reflector=reflector, every=2, path=str(folder)) as reflection:
            graph = reflection.wrap(builder.compile())
            for number in range(6):
                result = graph.invoke({"messages": f"Refund order {number}"})
                reflection.reward(result, 0.5, source="user", comment="good")
            added = reflection.lessons.add(when="packing", do="use paper")
            edited = reflection.lessons.edit(added.id, do="use straw")
            episodes, records = reflection.episodes.list(), reflection.reflections.list()
        fields = {"source": "user", "key": "reward", "value": 0.5, "comment": "good"}
        self.told = Acknowledged(
            episodes={episode.id: "completed" for episode in episodes},
            rewards=[{"target": episode.id, **fields} for episode in episodes],
            changes=[{"id": x.id, "version": x.version, "text": x.text, "status": x.status} for x in (added, edited)],
            reflections=[record.id for record in records],
        )

    def wrong(self) -> list[str]:
        """What the judge says."""
        return judge.after_a_restart(judge.read(f"sqlite:///{self.file}"), self.told, embed)

    def sql(self, *statements: str) -> None:
        """Break it."""
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            for statement in statements:
                assert connection.execute(statement).rowcount != 0, statement
            connection.commit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Good:
    return Good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def good(made: Good, tmp_path: Path) -> Good:
    own = copy.copy(made)
    own.file = tmp_path / "ledger.db"
    shutil.copy(made.file, own.file)
    return own


def test_a_good_ledger_is_called_good(good: Good) -> None:
    assert good.wrong() == []
    rows = judge.read(f"sqlite:///{good.file}")
    assert (len(rows.done), len(rows.lessons), len(rows.rewards)) == (3, 4, 6)


ONE = "(SELECT id FROM episodes ORDER BY id LIMIT 1)"
DONE = "(SELECT id FROM reflections WHERE status = 'done' ORDER BY started_at DESC LIMIT 1)"
EDITED = "(SELECT id FROM lessons WHERE version = 2 AND status = 'active')"
FIRST = f"(SELECT replace(body, id, {DONE}) FROM reflections ORDER BY started_at LIMIT 1)"
REWARD = "target, source, key, current, waiting, at, body"
BROKEN = {
    "a lost episode": ([f"DELETE FROM episodes WHERE id = {ONE}"], "was acknowledged and is lost"),
    "an end that was lost": (["UPDATE episodes SET status = 'interrupted'"], "was acknowledged as completed"),
    "a lost reward": (["DELETE FROM rewards WHERE seq = 3"], "reward .* is lost"),
    "two standing rewards": (
        [f"INSERT INTO rewards ({REWARD}) SELECT {REWARD} FROM rewards WHERE seq = 1"],
        "2 rewards .* stand",
    ),
    "a reward nobody adopted": (["UPDATE rewards SET waiting = 1 WHERE seq = 2"], "still waits for an episode"),
    "an episode consumed twice": (
        [f"UPDATE reflections SET body = {FIRST} WHERE id = {DONE}"],
        "was consumed by 2 reflections",
    ),
    "an episode that forgot": (
        [f"UPDATE episodes SET reflection_id = '' WHERE id = {ONE}"],
        "names reflection '', and .* names the episode",
    ),
    "an episode that nobody read": (
        [f"UPDATE episodes SET reflection_id = '', ready_at = 0 WHERE id = {ONE}"],
        "still waits",
    ),
    "a batch held by the dead": ([f"UPDATE reflections SET status = 'running' WHERE id = {DONE}"], "still runs"),
    "a batch that was never given back": (
        [f"UPDATE reflections SET status = 'released' WHERE id = {DONE}"],
        "is held by reflection .* which is released",
    ),
    "two batches of a namespace at once": (["UPDATE reflections SET status = 'running'"], "3 reflections of"),
    "a done-mark without its edits": (
        [f"DELETE FROM lesson_versions WHERE by = {DONE}"],
        "says that it wrote lesson .* and did not",
    ),
    "edits without a done-mark": (
        [f"UPDATE reflections SET status = 'failed' WHERE id = {DONE}"],
        "is failed and wrote lessons",
    ),
    "half a merge": (
        [f"DELETE FROM lesson_versions WHERE by = {DONE} AND version = 2"],
        "merged .* and did not retire them",
    ),
    "a missing version": ([f"DELETE FROM lesson_versions WHERE lesson_id = {EDITED} AND version = 1"], "versions .2."),
    "a row that is behind": (
        [f"UPDATE lessons SET body = replace(body, 'use straw', 'use glue') WHERE id = {EDITED}"],
        "is not what its version 2 says",
    ),
    "a column that is behind": ([f"UPDATE lessons SET status = 'retired' WHERE id = {EDITED}"], "columns retired, 2"),
    "a lesson without a row": ([f"DELETE FROM lessons WHERE id = {EDITED}"], "and no row"),
    "a change by hand that is gone": (
        [
            f"UPDATE lesson_versions SET body = replace(body, 'use straw', 'use glue') WHERE lesson_id = {EDITED}",
        ],
        "change .* was acknowledged and the ledger has",
    ),
    "a source that is not noted": (["DELETE FROM lesson_sources"], "sources .* that are not noted"),
    "a revision from the future": ([f"UPDATE lessons SET revision = 99 WHERE id = {EDITED}"], "has not reached"),
    "the vector of other words": (
        [f"UPDATE lessons SET vector = (SELECT vector FROM lessons WHERE id <> {EDITED} LIMIT 1) WHERE id = {EDITED}"],
        "has the vector of other words",
    ),
    "no vector": ([f"UPDATE lessons SET vector = NULL WHERE id = {EDITED}"], "has no vector"),
    "a reported reflection that is not done": (
        [f"UPDATE reflections SET status = 'released' WHERE id = {DONE}"],
        "was reported as done and is not",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_ledger_is_found(good: Good, name: str) -> None:
    statements, expected = BROKEN[name]
    good.sql(*statements)
    wrong = good.wrong()
    assert [text for text in wrong if re.search(expected, text)], wrong


def test_half_an_approval_is_found(good: Good) -> None:
    parent, candidate = "p", "c"
    bodies = [
        json.dumps(
            {"id": candidate, "namespace": SPACE, "when": "w", "do": "d", "status": status, "version": version}
            | {"replaces": [parent], "created_by": "human"}
        )
        for version, status in enumerate(("candidate", "active"), 1)
    ]
    version = {"namespace": to_key(SPACE), "at": 0.0, "by": "human"}
    tables: dict[str, Any] = {name: [] for name in judge.READ}
    tables["lesson_versions"] = [
        {"lesson_id": candidate, "version": number, "body": body, **version} for number, body in enumerate(bodies, 1)
    ] + [{"lesson_id": parent, "version": 1, "body": bodies[0].replace('"c"', '"p"'), **version}]
    (found,) = judge.approvals_whole(judge.Rows(tables))
    assert "never retired" in found


def _same(vectors: dict[str, Any]) -> None:
    pass


def _stale(vectors: dict[str, Any]) -> None:
    vectors["retired-long-ago"] = [0.0] * 256


def _short(vectors: dict[str, Any]) -> None:
    vectors.popitem()


def _other(vectors: dict[str, Any]) -> None:
    vectors[next(iter(vectors))] = embed("something else")


@pytest.mark.parametrize(
    ("act", "expected"), [(_same, None), (_stale, "too many"), (_short, "misses"), (_other, "another vector")]
)
def test_a_store_that_is_not_the_ledger_is_found(
    good: Good, act: Callable[[dict[str, Any]], None], expected: str | None
) -> None:
    rows = judge.read(f"sqlite:///{good.file}")
    active = [row for row in rows.lessons.values() if row["status"] == "active"]
    vectors = {row["id"]: embed(judge._lesson(row).searched) for row in active}
    act(vectors)
    found = list(judge.store_is_ledger(rows, to_key(SPACE), vectors))
    assert len(found) == (expected is not None)
    assert all(expected in text for text in found)


def test_other_answers_are_found() -> None:
    asked = {"user": "ann", "query": "refund", "by": "the store"}
    exact = [{**asked, "hits": [("a", 0.9), ("b", 0.5), ("c", 0.5)]}]
    tie = [{**asked, "hits": [("a", 0.9), ("d", 0.5), ("b", 0.5)]}]
    other = [{**asked, "hits": [("d", 0.9), ("b", 0.5), ("c", 0.5)]}]
    short = [{**asked, "hits": [("a", 0.9)]}]
    assert list(judge.same_answers(exact, tie)) == []
    assert "a search for 'refund'" in next(judge.same_answers(exact, other))
    assert "a search for 'refund'" in next(judge.same_answers(exact, short))
    assert "only the store" in next(judge.same_answers([], other))
