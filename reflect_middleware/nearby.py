"""What a reflection sees of the lessons: all that stand in the namespace if they are few, else those near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reflect_middleware.alike import telling
from reflect_middleware.batch import COUNTED
from reflect_middleware.errors import ReflectError
from reflect_middleware.types import Episode, Lesson, Namespace

if TYPE_CHECKING:
    from reflect_middleware.batch import Batch
    from reflect_middleware.parts import Parts
    from reflect_middleware.store import Vector

RELATED = 30
"""Most existing lessons shown to the reflector."""
FEW = 400
"""So many standing lessons are all looked at: as many as the default cap allows, active ones and candidates."""
TWINS = 50
"""Of more, so many that are nearest to each new text are compared with it: with the task that taught it in front, a
lesson is not always among the first that its own words find."""
OLDEST = 200
"""Of more, so many that were changed least recently may retire to make room."""

Pair = tuple[Lesson, "Vector | None"]


def related(parts: Parts, namespace: Namespace, episodes: Sequence[Episode]) -> tuple[Lesson, ...]:
    """The standing lessons that these episodes may touch, with statistics: all if they are few, else the nearest."""
    return with_statistics(parts, _related(parts, namespace, episodes), most=COUNTED)


def with_statistics(parts: Parts, lessons: Sequence[Lesson], most: int | None = None) -> tuple[Lesson, ...]:
    """The lessons, with how often each was shown, up to `most`, and what the episodes that it was shown in earned."""
    known = parts.ledger.episodes.lesson_statistics([lesson.id for lesson in lessons], most)
    named = {i: {"shown": times, "shown_reward": reward} for i, (times, reward) in known.items()}
    return tuple(lesson.model_copy(update=named.get(lesson.id, {})) for lesson in lessons)


def _related(parts: Parts, namespace: Namespace, episodes: Sequence[Episode]) -> tuple[Lesson, ...]:
    table = parts.ledger.lessons
    few = sum(table.standing(namespace).values()) <= FEW
    standing = table.find(namespace, standing=True) if few else ()
    if few and len(standing) <= RELATED:
        return standing
    revision, _ = table.state(namespace)
    best: dict[str, float] = {e.lesson_id: 2.0 for episode in episodes for e in episode.exposures if e.shown}
    for episode in episodes:
        vector = parts.embedder.embed_query(episode.task)
        for lesson_id, score in parts.index.search(namespace, revision, vector, RELATED):
            best[lesson_id] = max(best.get(lesson_id, -1.0), score)
    if not few:
        standing = (*table.to_review(namespace), *_standing(table.many(list(best)), namespace))
        standing = tuple({lesson.id: lesson for lesson in standing}.values())
    ranked = sorted(standing, key=lambda x: (not x.needs_review, -best.get(x.id, -1.0)))
    return tuple(ranked[:RELATED])


def existing(parts: Parts, batch: Batch, vectors: Mapping[str, Vector]) -> tuple[list[Pair], dict[str, int]]:
    """What new lessons are compared with.

    Args:
        parts: Ledger and index.
        batch: What the reflector was shown.
        vectors: Of the new texts. Without them, where the embedder fails, all lessons are looked at.

    Returns:
        Lessons with their vectors, and how many more stand, by status.
    """
    table = parts.ledger.lessons
    numbers = table.standing(batch.namespace)
    if sum(numbers.values()) <= FEW or not vectors:
        lessons = table.find(batch.namespace, standing=True)
    else:
        revision, _ = table.state(batch.namespace)
        ids = [lesson.id for lesson in batch.lessons]
        for vector in vectors.values():
            ids += [lesson_id for lesson_id, _ in parts.index.search(batch.namespace, revision, vector, TWINS)]
        ids += table.least_changed(batch.namespace, OLDEST)
        near = _standing(table.many(list(dict.fromkeys(ids))), batch.namespace)
        candidates = table.find(batch.namespace, "candidate")
        lessons = tuple({lesson.id: lesson for lesson in (*near, *candidates)}.values())
    wanted = {telling(text) for text in vectors}  # others cannot say the same, and need no vector
    known = compared(parts, [lesson for lesson in lessons if telling(lesson.text) in wanted])
    more = {status: max(0, n - sum(x.status == status for x in lessons)) for status, n in numbers.items()}
    return [(lesson, known.get(lesson.id)) for lesson in lessons], more


def compared(parts: Parts, lessons: Sequence[Lesson]) -> dict[str, Vector]:
    """By id, the vectors by which lessons are compared with each other: of what they say, not of how they are found."""
    try:
        made = parts.embedder.embed_documents([lesson.text for lesson in lessons]) if lessons else []
    except ReflectError as error:  # only equal words count as the same then
        parts.core.failed("embed", error)
        return {}
    return {lesson.id: vector for lesson, vector in zip(lessons, made, strict=True)}


def _standing(lessons: Sequence[Lesson], namespace: Namespace) -> list[Lesson]:
    return [lesson for lesson in lessons if lesson.namespace == namespace and lesson.status != "retired"]
