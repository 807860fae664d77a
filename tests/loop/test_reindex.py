"""Moving to another store or embedder: agents go on, a kill costs a batch, and nothing worse is switched to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.memory import InMemoryStore

from reflect_adapters.langchain import LessonVectors
from reflect_middleware import filling, testing
from reflect_middleware.embed import PROBE
from reflect_middleware.errors import ConfigurationError, EmbedderError, StoreError
from reflect_middleware.filling import Difference
from reflect_middleware.reindex import Progress
from reflect_middleware.schema import vectors
from reflect_middleware.testing import HashingEmbeddings

from .test_index import Flaky, found, inner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect_middleware import Reflection
    from reflect_middleware.store import Entry, Hit, Vector
    from reflect_middleware.types import Namespace

WORDS = "refund order parcel invoice paper straw door lock gift card tax stamp shelf label crate"
SPACE = ("default",)


def taught(reflection: Reflection, count: int = 12) -> Reflection:
    """A Reflection with lessons, each of words of its own."""
    words = WORDS.split()
    for number in range(count):
        reflection.lessons.add(when=f"{words[number % len(words)]} case{number}", do=f"way {number}")
    return reflection


def answers(reflection: Reflection) -> list[str]:
    """The nearest lessons after all background work; those behind are equally far."""
    return [found(reflection, question)[0] for question in ("refund case0", "parcel case2", "lock case7")]


def held(reflection: Reflection, space: Namespace = SPACE) -> set[str]:
    """Ids in the open store."""
    index = inner(reflection)
    return index._store.ids(index._space(space))


@pytest.mark.parametrize("store", ["qdrant", "exact"])
async def test_whoever_names_no_store_follows(tmp_path: Path, make: Any, store: str) -> None:
    reflection = taught(make(path=str(tmp_path), store=None))
    before = answers(reflection)
    assert inner(reflection).spec == "chroma"
    report = await reflection.areindex(store)
    assert (report.switched, report.reason, report.todo) == (True, "", "")
    assert (report.store, report.lessons, report.recall) == (store, 12, 1.0)
    assert (report.questions, report.written) == ((0, 0) if store == "exact" else (10, 12))
    assert answers(reflection) == before
    assert (inner(reflection).spec, inner(reflection).is_open) == (store, store != "exact")
    reflection.close()
    again = make(path=str(tmp_path), store=None)
    assert answers(again) == before
    assert inner(again).spec == store


def test_other_processes_follow_without_a_restart(tmp_path: Path, make: Any) -> None:
    agent, operator = taught(make(path=str(tmp_path), store=None)), make(path=str(tmp_path), store=None)
    before = answers(agent)
    assert operator.reindex("qdrant").switched
    assert agent.lessons.search("refund case0")  # this one still exactly, the next one knows
    assert answers(agent) == before
    assert (inner(agent).spec, inner(agent).describe()) == ("qdrant", "the store")


def test_code_that_names_a_store_is_told_by_doctor(tmp_path: Path, make: Any) -> None:
    reflection = taught(make(path=str(tmp_path), store="chroma"))
    report = reflection.reindex("qdrant")
    assert (report.switched, "say store='qdrant' in the code" in report.todo) == (True, True)
    assert found(reflection, "refund case0")
    assert (inner(reflection).spec, inner(reflection).describe()) == ("qdrant", "the store")  # as long as it lives
    reflection.close()
    other = make(path=str(tmp_path), store="chroma")
    finding = next(f for f in other.doctor() if f.check == "store")
    assert (finding.level, finding.facts["moved"], inner(other).spec) == ("advice", "qdrant", "chroma")
    assert "'chroma', the ledger was moved to 'qdrant'" in finding.message


def test_settings_and_secrets_stay_out_of_the_ledger(make: Any) -> None:
    import qdrant_client

    client = qdrant_client.QdrantClient(":memory:")
    reflection = taught(make(store=None))
    report = reflection.reindex("qdrant", store_options={"client": client})
    assert (report.switched, report.recall) == (True, 1.0)
    assert report.todo.startswith("say store= in the code")
    assert len(client.get_collections().collections) == 1
    assert reflection._core.parts.ledger.moves.last().store == ""
    assert found(reflection, "refund case0")[0] == "way 0"
    assert inner(reflection).describe() == "the store"
    reflection.close()
    client.close()


@pytest.mark.parametrize("given", [InMemoryStore, lambda: InMemoryVectorStore(LessonVectors())])
def test_a_given_object_is_filled_and_used_by_this_reflection(make: Any, given: Any) -> None:
    reflection, store = taught(make(store="exact")), given()
    before = answers(reflection)
    report = reflection.reindex(store)
    assert (report.switched, report.store, report.written) == (True, type(store).__name__, 12)
    assert answers(reflection) == before
    assert inner(reflection).spec is store


class Gaps(Flaky):
    """A store that forgets, or answers wrongly."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def upsert(self, namespace: Namespace, entries: Sequence[Entry]) -> None:
        if self.fault == "away":
            raise StoreError("no connection to the server")
        super().upsert(namespace, entries[1:] if self.fault == "forgets" else entries)

    def search(self, namespace: Namespace, vector: Vector, k: int) -> list[Hit]:
        hits = super().search(namespace, vector, 999)
        return [("nobody", 1.0), *hits[: k - 1]] if self.fault == "lies" else hits[:k]


@pytest.mark.parametrize(
    ("fault", "words"), [("forgets", "1 lessons are missing"), ("lies", "%"), ("away", "no connection")]
)
def test_what_is_not_as_good_is_not_switched_to(make: Any, fault: str, words: str) -> None:
    reflection, store = taught(make(store="exact"), 40), Gaps(fault)
    before = answers(reflection)
    report = reflection.reindex(store)
    assert not report.switched
    assert words in report.reason or "wrong" in report.reason
    assert (inner(reflection).spec, store.closed) == ("exact", 0)
    assert answers(reflection) == before
    store.fault = ""
    assert reflection.reindex(store).switched


async def test_arguments_are_checked_first(make: Any) -> None:
    reflection = make()
    for wrong in ({"store": 7}, {"embeddings": 7}, {"progress": 7}):
        with pytest.raises(ConfigurationError):
            await reflection.areindex(**wrong)


# Another embedder.


class Counting(HashingEmbeddings):
    """Counts what it embeds, and may end in the middle of it."""

    def __init__(self, dimensions: int = 64) -> None:
        super().__init__(dimensions)
        self.texts: list[str] = []
        self.left = 10**6

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the provider is away")
        self.texts += texts
        return super().embed_documents(texts)


def test_both_embedders_find_theirs(tmp_path: Path, make: Any) -> None:
    old = taught(make(path=str(tmp_path), store="exact"))
    before = answers(old)
    model = Counting()
    report = old.reindex(embeddings=model)
    assert (report.switched, report.embedded, report.embedder) == (True, 12, "Counting:hashing:64")
    assert "embeddings= in the code" in report.todo
    assert answers(old) == before
    new = make(path=str(tmp_path), store="exact", embeddings=model)
    assert answers(new) == before
    assert len(model.texts) == 12  # none again
    old.lessons.add(when="mail letter", do="use a stamp")
    assert found(new, "mail letter")[0] == "use a stamp"
    assert found(old, "mail letter")[0] == "use a stamp"
    changed = new.lessons.list()[0]
    new.lessons.edit(changed.id, do="another way")
    assert found(old, "refund case0")[0] == "another way"
    assert old._core.parts.ledger.health.lacking(inner(old).embedder.id) == {}
    assert answers(old)[1:] == before[1:]
    level = {f.check: f for f in old.doctor()}["embedder"]
    assert (level.level, level.facts["other_vectors"], "last indexed for Counting" in level.message) == (
        "advice",
        0,
        True,
    )


def test_vectors_kept_beside_go_with_their_lesson_and_its_former_words(make: Any) -> None:
    reflection = taught(make(store="exact"), 3)
    reflection.reindex(embeddings=Counting())
    database = reflection._core.parts.ledger.database

    def beside() -> set[str]:
        with database.read() as connection:
            return set(connection.execute(sa.select(vectors.c.lesson_id)).scalars())

    one, two, three = reflection.lessons.list()
    assert beside() == {one.id, two.id, three.id}
    reflection.lessons.edit(one.id, do="another way")
    assert beside() == {two.id, three.id}
    reflection._core.parts.ledger.forget.erase_lessons([two])
    assert beside() == {three.id}


def test_embedding_goes_on_where_it_failed(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reflect_middleware.index.EMBEDDED_AT_ONCE", 5)
    reflection, model, told = taught(make(path=str(tmp_path), store="exact")), Counting(), list[Progress]()
    model.left = 1
    with pytest.raises(EmbedderError, match="provider is away"):
        reflection.reindex(embeddings=model, progress=told.append)
    assert [(step.doing, step.done, step.total) for step in told] == [("embedding", 5, 12)]
    model.left = 9
    report = reflection.reindex(embeddings=model, progress=told.append)
    assert (report.embedded, len(model.texts), len(set(model.texts))) == (7, 12, 12)
    assert [(step.done, step.total) for step in told[1:]] == [(5, 7), (7, 7)]


def test_a_lesson_that_changes_while_it_is_embedded_keeps_no_old_vector(make: Any) -> None:
    reflection = taught(make(store="exact"), 3)

    class Slow(Counting):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            if not self.texts:
                reflection.lessons.edit(reflection.lessons.list()[0].id, when="lock door", do="turn the key")
            return super().embed_documents(texts)

    model = Slow()
    assert not reflection.reindex("exact", embeddings=model).reason
    again = reflection.reindex("exact", embeddings=model)
    assert (again.embedded, model.texts[-1]) == (1, "lock door: turn the key")


class Weights(HashingEmbeddings):
    """A model of one name whose weights change without a word."""

    def __init__(self, sign: float = 1.0, noise: float = 0.0) -> None:
        super().__init__(64)
        self.sign, self.noise = sign, noise

    def embed_query(self, text: str) -> list[float]:
        first, *rest = super().embed_query(text)
        return [first + self.noise, *(value * self.sign ** (number % 2) for number, value in enumerate(rest))]


def test_a_silent_change_of_the_model_is_noticed(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = taught(make(path=str(tmp_path), store="exact", embeddings=Weights()))
    assert (first.close(), inner(first).embedder.id) == (None, "Weights:hashing:64")
    same = make(path=str(tmp_path), store="exact", embeddings=Weights(noise=0.004))  # another machine's arithmetic
    assert inner(same).embedder.id == "Weights:hashing:64"
    changed = make(path=str(tmp_path), store="exact", embeddings=Weights(-1.0))
    assert found(changed, "refund case0")[0] == "way 0"
    own = inner(changed).embedder.id
    assert own.startswith("Weights:hashing:64#")
    assert caplog.text.count("gives other vectors than it did") == 1
    finding = next(f for f in changed.doctor() if f.check == "embedder")
    assert (finding.facts["changed"], finding.facts["other_vectors"], "kept apart" in finding.message) == (
        True,
        0,
        True,
    )
    assert make(path=str(tmp_path), store="exact", embeddings=Weights(-1.0))._core.parts.embedder.id == own
    assert found(same, "refund case0")[0] == "way 0"  # the former weights still find theirs
    assert caplog.text.count("gives other vectors than it did") == 1


def test_who_it_is_is_asked_once_in_a_process(make: Any) -> None:
    asked: list[str] = []

    class Noted(HashingEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            asked.append(text)
            return super().embed_query(text)

    reflection = taught(make(store="exact", embeddings=Noted()), 2)
    for _ in range(3):
        reflection.lessons.search("refund")
    assert asked.count(PROBE) == 1


# Comparing and mending.


@pytest.mark.parametrize("store", ["chroma", "qdrant"])
def test_doctor_mends_what_is_missing_too_much_and_wrong(tmp_path: Path, store: str) -> None:
    reflection = taught(testing.reflection(path=str(tmp_path), store=store))
    before = answers(reflection)
    index, ids = inner(reflection), sorted(held(reflection))
    space, vectors = index._space(SPACE), {entry.id: entry for entry in index.vectors(SPACE)}
    index._store.delete(space, ids[:2])
    index._store.upsert(space, [filling.Entry(id="nobody's", vector=vectors[ids[0]].vector)])
    index._store.upsert(space, [filling.Entry(id=ids[5], vector=vectors[ids[0]].vector)])
    assert index.compare(SPACE) == Difference(missing=2, superfluous=1, wrong=1)
    finding = next(f for f in reflection.doctor() if f.check == "store")
    assert (finding.level, finding.facts["behind"], finding.facts["wrong"]) == ("advice", 3, 1)
    assert "reflect doctor --mend" in finding.message
    mended = next(f for f in reflection.doctor(mend=True) if f.check == "store")
    assert (mended.level, mended.facts["mended"], mended.facts["behind"], mended.facts["wrong"]) == ("ok", 4, 0, 0)
    assert (index.compare(SPACE).total, answers(reflection)) == (0, before)
    reflection.close()


def test_pgvector_is_moved_to_compared_and_its_table_made_anew(tmp_path: Path, postgres: str) -> None:
    place = {"ledger": postgres, "namespace": SPACE, "path": str(tmp_path)}
    with taught(testing.reflection(store=None, **place)) as reflection:
        report = reflection.reindex("pgvector")
        if "extension" in report.reason:
            pytest.skip(f"this PostgreSQL has no pgvector: {report.reason}")
        assert (report.switched, report.written, report.recall) == (True, 12, 1.0)
        before = answers(reflection)
        assert inner(reflection).describe() == "the store"
        with reflection._core.parts.ledger.database.write() as connection:
            connection.exec_driver_sql("DROP TABLE reflect_vectors")
        assert found(reflection, "refund case0")[0] == before[0]  # over the ledger's vectors
        inner(reflection)._not_before = 0.0  # as if it had rested
        assert answers(reflection) == before
        assert (inner(reflection).describe(), len(held(reflection))) == ("the store", 12)


@pytest.mark.parametrize("store", ["chroma", "qdrant"])
@pytest.mark.parametrize("while_it_runs", [True, False])
def test_a_deleted_folder_is_rebuilt(tmp_path: Path, store: str, *, while_it_runs: bool) -> None:
    reflection = taught(testing.reflection(path=str(tmp_path), store=store))
    before = answers(reflection)
    if not while_it_runs:
        reflection.close()
    shutil.rmtree(tmp_path / store)
    if while_it_runs:
        assert answers(reflection) == before
        inner(reflection)._not_before = 0.0
    else:
        reflection = testing.reflection(path=str(tmp_path), store=store)
    assert answers(reflection) == before
    assert (inner(reflection).describe(), len(held(reflection))) == ("the store", 12)
    reflection.close()


def emptied(store: Any) -> None:
    if isinstance(store, InMemoryStore):
        store._data.clear()
    else:
        store.store.clear()


@pytest.mark.parametrize("given", [InMemoryStore, lambda: InMemoryVectorStore(LessonVectors())])
def test_a_store_that_its_owner_empties_is_filled_again(
    make: Any, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = given()
    reflection = taught(make(store=store))
    before = answers(reflection)
    emptied(store)
    assert reflection.lessons.search("refund case0")[0].lesson.do == "way 0"  # at once
    assert reflection.flush(60)
    assert caplog.text.count("it is filled again") == 1
    assert (answers(reflection), inner(reflection).compare(SPACE).total) == (before, 0)
    emptied(store)  # and again, before half a minute has passed: it is still right, and not filled at each search
    assert answers(reflection) == before
    assert caplog.text.count("it is filled again") == 1


# Kills, and agents that go on.

CHILD = """
import json, sys
from reflect_middleware import Reflection, reindex
from reflect_middleware.testing import HashingEmbeddings
seen, reindex.BATCH = [], 50

def tell(step):
    seen.append(step)
    if len(seen) == 3:
        print("now", flush=True)
        sys.stdin.read()  # until it is killed

reflection = Reflection(embeddings=HashingEmbeddings(), **json.loads(sys.argv[1]))
print(reflection.reindex(embeddings=HashingEmbeddings(64)).model_dump_json(), flush=True)
reflection.reindex("qdrant", progress=tell)
"""


def many(reflection: Reflection, count: int) -> None:
    """Lessons with vectors, straight into the ledger."""
    from reflect_middleware.desk import Change
    from reflect_middleware.types import Lesson

    parts = reflection._core.parts
    made = [
        Lesson(namespace=SPACE, when=f"case{number} of {number % 7}", do=f"way {number}") for number in range(count)
    ]
    vectors = parts.embedder.embed_documents([lesson.searched for lesson in made])
    changes = [Change(lesson=x, vector=v, expected_version=0) for x, v in zip(made, vectors, strict=True)]
    parts.ledger.lessons.save_all(changes, parts.embedder.id)


def answer(found: Any) -> tuple[str, float, int]:
    """What every store says alike: the one lesson that fits, and how many; the others are equally near."""
    return found[0].lesson.id, round(found[0].similarity, 3), len(found)


@pytest.mark.process
def test_a_kill_in_the_middle_costs_a_batch_and_no_agent_notices(tmp_path: Path, make: Any) -> None:
    agent = make(path=str(tmp_path), store=None)
    many(agent, 400)
    question = "case12 way 12"
    found(agent, question)
    first = agent.lessons.search(question)
    before, wrong, stop = answer(first), list[Any](), threading.Event()
    spared = min({x.id for x in agent.lessons.list()} - {x.lesson.id for x in first})
    place = {"path": str(tmp_path), **make.place(str(tmp_path))}
    command = [sys.executable, "-c", CHILD, json.dumps(place)]
    operator = make(path=str(tmp_path), store=None)

    def reads() -> None:
        while not stop.wait(0.02):
            if (got := answer(agent.lessons.search(question))) != before:
                wrong.append(got)

    reader = threading.Thread(target=reads)
    reader.start()
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            prepared = json.loads(process.stdout.readline())
            assert process.stdout.readline() == "now\n"
            locked = operator.reindex("qdrant")
            process.send_signal(signal.SIGKILL)
        assert (inner(agent).spec, process.returncode) == ("chroma", -signal.SIGKILL)
        changed = agent.lessons.edit(spared, do="another way")
        report = operator.reindex("qdrant")
    finally:
        stop.set()
        reader.join()
    assert (locked.switched, f"Process {process.pid} holds" in locked.reason) == (False, True)
    # An embedder's vectors are what takes long; the store is filled by whoever holds it.
    assert (prepared["switched"], prepared["embedded"]) == (True, 400)
    assert f"are ready; Process {os.getpid()} holds" in prepared["todo"]
    assert (report.switched, report.lessons, report.recall) == (True, 400, 1.0)
    assert report.written == 400 - 150 + 1  # what three batches did not bring, and what changed since
    assert wrong == [], before
    assert "another way" in found(agent, f"{changed.when} another way")
    assert (inner(agent).spec, inner(agent).describe()) == ("qdrant", "the store")
    assert answer(agent.lessons.search(question)) == before


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from reflect_middleware import Reflection
    from reflect_middleware.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFLECT_PATH", raising=False)
    with Reflection(embeddings="hashing", min_similarity=-1.0) as reflection:
        taught(reflection, 3)
    run = CliRunner(env={"NO_COLOR": "1"}).invoke
    wrong = run(app, ["reindex", "--store", "qdrant"])
    assert (wrong.exit_code, "HashingEmbeddings:hashing:256" in wrong.stderr) == (1, True)
    done = run(app, ["reindex", "--store", "qdrant", "--embeddings", "hashing"])
    assert done.exit_code == 0, done.output
    assert "writing: 3 of 3 lessons" in done.stderr
    assert "recall: 1.0" in done.stdout
    shown = CliRunner(env={"FORCE_COLOR": "1"}).invoke(app, ["reindex", "--embeddings", "hashing"])
    assert (shown.exit_code, "writing" in shown.stderr, "3/3" in shown.stderr) == (0, True, True)
    again = json.loads(run(app, ["reindex", "--embeddings", "hashing", "--json"]).stdout)
    assert (again["store"], again["switched"]) == ("qdrant", True)
    refused = run(app, ["reindex", "--store", "pgvector", "--embeddings", "hashing"])
    assert (refused.exit_code, "The pgvector store's URL" in refused.stdout + refused.stderr) == (1, True)
    (tmp_path / "mine.py").write_text(
        "from reflect_middleware import Reflection\nr = Reflection(embeddings='hashing')\n"
    )
    refused = run(app, ["doctor", "--mend"])
    assert (refused.exit_code, "--app" in refused.stderr) == (1, True)
    findings = json.loads(run(app, ["doctor", "--mend", "--json", "--app", "mine:r"]).stdout)
    store = next(f for f in findings if f["check"] == "store")["facts"]
    assert (store["store"], store["mended"]) == ("'qdrant'", 0)
