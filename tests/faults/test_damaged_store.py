"""I7: whatever becomes of Chroma's folder, the next process gives the answers that it gave before."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.namespaces import to_key
from tests.faults import judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reflect_middleware import Reflection

MANY = 1_300
"""So many that Chroma keeps an index in files of its own."""
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("ck", "nd", "rm", "st", "x")]
CHANCE = random.Random(7)
LESSONS = [tuple(CHANCE.sample(WORDS, 8)) for _ in range(MANY)]
QUESTIONS = [" ".join(CHANCE.sample(words, 6)) for words in LESSONS[::200]]


def deleted(chroma: Path) -> None:
    shutil.rmtree(chroma)


def no_database(chroma: Path) -> None:
    (chroma / "chroma.sqlite3").unlink()


def no_index(chroma: Path) -> None:
    for folder in chroma.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)


def empty_database(chroma: Path) -> None:
    (chroma / "chroma.sqlite3").write_bytes(b"")


def garbled_database(chroma: Path) -> None:
    (chroma / "chroma.sqlite3").write_bytes(os.urandom(5_000))


def cut_database(chroma: Path) -> None:
    file = chroma / "chroma.sqlite3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbled_index(chroma: Path) -> None:
    for file in chroma.rglob("*.bin"):
        file.write_bytes(os.urandom(file.stat().st_size))


def index_without_header(chroma: Path) -> None:
    for file in chroma.rglob("header.bin"):
        file.unlink()


def cut_header(chroma: Path) -> None:
    for file in chroma.rglob("header.bin"):
        file.write_bytes(file.read_bytes()[:50])


def cut_data(chroma: Path) -> None:
    for file in chroma.rglob("data_level0.bin"):
        file.write_bytes(file.read_bytes()[:-100])


DAMAGES = (deleted, no_database, no_index, empty_database, garbled_database, cut_database, garbled_index,
           index_without_header, cut_header, cut_data)  # fmt: skip


def opened(path: Path) -> Reflection:
    return testing.reflection(path=str(path), store="chroma")


def answers(reflection: Reflection) -> list[list[tuple[str, float]]]:
    """What searches give now, by the store if it will open; ties are left out."""
    for _ in range(2):  # the second search of a process opens the store
        reflection.lessons.search("order")
    assert reflection.flush(60)
    found = [reflection.lessons.search(question, k=1) for question in QUESTIONS]
    return [[(item.lesson.id, round(item.similarity, 4)) for item in items] for items in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A path with many lessons and their Chroma, and what it answers."""
    from reflect_middleware.desk import Change
    from reflect_middleware.types import Lesson

    path = tmp_path_factory.mktemp("whole")
    with opened(path) as reflection:
        parts = reflection._core.parts
        made = [Lesson(namespace=("default",), when=" ".join(x[:4]), do=" ".join(x[4:])) for x in LESSONS]
        vectors = parts.embedder.embed_documents([lesson.searched for lesson in made])
        changes = [Change(lesson=x, vector=v, expected_version=0) for x, v in zip(made, vectors, strict=True)]
        parts.ledger.lessons.save_all(changes, parts.embedder.id)
        found = answers(reflection)
    assert [hits[0][0] for hits in found] == [lesson.id for lesson in made[::200]]
    assert list((path / "chroma").rglob("*.bin"))
    return path, found


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_anew(whole: tuple[Path, Any], tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path, before = whole
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "chroma")
    with opened(tmp_path) as reflection:
        assert answers(reflection) == before
        index = reflection._core.parts.index
        assert index.describe() == "the store"
        space = index._space(("default",))
        with index._store._using("judging", space) as collections:
            held = collections.found(space).get(include=["embeddings"])
        rows = judge.read(reflection._options.ledger_url)
    stored = dict(zip(held["ids"], held["embeddings"], strict=True))
    assert list(judge.store_is_ledger(rows, to_key(("default",)), stored)) == []


def test_a_folder_of_last_week_neither_revives_nor_hides(tmp_path: Path) -> None:
    with opened(tmp_path) as reflection:
        old = reflection.lessons.add(when="refund order", do="ask")
        edited = reflection.lessons.add(when="pack parcel", do="use paper")
        answers(reflection)
    shutil.copytree(tmp_path / "chroma", tmp_path / "backup")
    with opened(tmp_path) as reflection:
        reflection.lessons.retire(old.id)
        reflection.lessons.edit(edited.id, do="use straw")
        new = reflection.lessons.add(when="close the shop", do="lock the door")
        answers(reflection)
    shutil.rmtree(tmp_path / "chroma")
    (tmp_path / "backup").rename(tmp_path / "chroma")
    with opened(tmp_path) as reflection:
        answers(reflection)
        assert reflection._core.parts.index.describe() == "the store"
        found = reflection.lessons.search("close the shop", k=5)
        assert {item.lesson.id: item.lesson.do for item in found} == {new.id: "lock the door", edited.id: "use straw"}
        assert reflection._core.parts.index._store.ids(reflection._core.parts.index._space(("default",))) == {
            new.id,
            edited.id,
        }


def test_a_folder_that_goes_while_it_is_held(tmp_path: Path) -> None:
    with opened(tmp_path) as reflection:
        lesson = reflection.lessons.add(when="refund order", do="ask")
        before = answers(reflection)
        shutil.rmtree(tmp_path / "chroma")
        assert answers(reflection) == before
        index = reflection._core.parts.index
        assert "ledger's vectors" in index.describe()
        index._not_before = 0.0  # as if it had rested
        assert answers(reflection) == before
        assert index.describe() == "the store"
        assert index._store.ids(index._space(("default",))) == {lesson.id}


def test_others_files_stay(tmp_path: Path) -> None:
    with opened(tmp_path) as reflection:
        reflection.lessons.add(when="refund order", do="ask")
        before = answers(reflection)
    (tmp_path / "chroma" / "notes.txt").write_text("mine")
    garbled_database(tmp_path / "chroma")
    with opened(tmp_path) as reflection:
        assert answers(reflection) == before
    assert (tmp_path / "chroma" / "notes.txt").read_text() == "mine"
