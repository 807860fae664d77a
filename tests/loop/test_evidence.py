"""Lessons are found by their evidence too; whether two say the same is decided without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from reflect_middleware import testing
from reflect_middleware.testing import HashingEmbeddings
from tests.loop.conftest import RULE, agent

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

WHEN, DO = "somebody wants a refund of an order that was paid", "ask one of the managers before you send money"
EVIDENCE = "gizmo shipment 1182 bounced twice at customs in Antwerp"
EDIT = {"op": "add", "episodes": ["E1"], "because": RULE, "when": WHEN.replace("an order", "the order"), "do": DO}


class Picky(HashingEmbeddings):
    """Cannot embed some texts, for now."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if not self.refused.isdisjoint(texts):
            raise ConnectionError("no network")
        return super().embed_documents(texts)


def learn(reflection: Reflection) -> Any:
    reflection.wrap(agent()).invoke({"messages": [("user", f"Refund it: {RULE}")]})
    ((outcome,),) = [record.outcomes for record in reflection.reflections.list()]
    return outcome


def test_the_words_of_a_former_task_find_its_lesson(make: Callable[..., Reflection]) -> None:
    reflection = make()
    reflection.lessons.add(when="a parcel comes back", do="call the carrier")
    told = reflection.lessons.add(when=WHEN, do=DO, because=EVIDENCE)
    assert told.searched == f"{told.text} {EVIDENCE}"
    best = reflection.lessons.search("gizmo shipment bounced in Antwerp")[0]
    assert (best.lesson.id, best.similarity > 0.3) == (told.id, True)


def test_the_same_advice_with_other_evidence_is_the_same_lesson(make: Callable[..., Reflection]) -> None:
    reflection = make(reflector=lambda _: [EDIT], every=1)
    known = reflection.lessons.add(when=WHEN, do=DO, because=EVIDENCE)
    assert learn(reflection).reason == f"merged into lesson {known.id}"
    assert reflection.lessons.search("gizmo shipment bounced in Antwerp")[0].similarity > 0.3


def test_without_an_embedder_for_a_moment_only_equal_words_are_the_same() -> None:
    embeddings = Picky()
    with testing.reflection(reflector=lambda _: [EDIT], every=1, embeddings=embeddings) as reflection:
        known = reflection.lessons.add(when=WHEN, do=DO, because=EVIDENCE)
        embeddings.refused = {known.text}
        assert learn(reflection).reason == ""
        assert len(reflection.lessons.list(status="active")) == 2


@pytest.mark.parametrize("store", ["exact", "chroma"])
def test_a_vector_that_cannot_be_made_now_is_made_later(store: str) -> None:
    embeddings = Picky()
    with testing.reflection(reflector=lambda _: [EDIT], every=1, embeddings=embeddings, store=store) as reflection:
        embeddings.refused = {f"{EDIT['when']}: {DO} {RULE}"}
        learned = learn(reflection).lesson_id
        embeddings.refused = set()
        reflection._core.parts.index.sync(("default",))
        assert [hit.lesson.id for hit in reflection.lessons.search(RULE)] == [learned]
