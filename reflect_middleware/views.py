"""What a user reads and changes: lessons, episodes and reflections. Every method has an async twin, named with an a."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from reflect_middleware import nearby, telemetry
from reflect_middleware.desk import Change
from reflect_middleware.errors import ConfigurationError, LessonStateError, LessonTextError, ReflectError
from reflect_middleware.exchange import Exchange
from reflect_middleware.lesson_file import BECAUSE_CHARS, DO_CHARS, STATUSES, WHEN_CHARS
from reflect_middleware.types import (
    TASK_CHARS,
    Episode,
    Lesson,
    LessonStatus,
    Namespace,
    ReflectionRecord,
    Retrieved,
    now,
)
from reflect_middleware.viewing import View, twin

if TYPE_CHECKING:
    from reflect_middleware.purge import PurgeReport
    from reflect_middleware.store import Vector


class Lessons(Exchange):
    """The lessons of a namespace. Every change makes a new version; none is ever lost."""

    def search(self, text: str, k: int = 5, *, namespace: Namespace | None = None) -> tuple[Retrieved, ...]:
        """The active lessons nearest to a text, best first.

        Raises:
            EmbedderError: If no embedder works.
        """
        space = self._own(namespace)
        table = self._core.parts.ledger.lessons
        revision, _ = table.state(space)
        if not revision:
            return ()
        hits = self._core.parts.index.search(space, revision, self._core.parts.embedder.embed_query(text), k)
        bodies = {lesson.id: lesson for lesson in table.many([lesson_id for lesson_id, _ in hits])}
        return tuple(
            Retrieved(lesson=bodies[i], similarity=score, shown=score >= self._core.options.limits.min_similarity)
            for i, score in hits
            if i in bodies and bodies[i].status == "active"
        )

    def get(self, lesson_id: str) -> Lesson:
        """One lesson.

        Raises:
            LessonNotFoundError: If there is none of this id.
        """
        return self._with_statistics((self._core.parts.ledger.lessons.get(lesson_id),))[0]

    def add(
        self,
        *,
        when: str,
        do: str,
        because: str = "",
        pinned: bool = False,
        always: bool = False,
        namespace: Namespace | None = None,
    ) -> Lesson:
        """Add a lesson by hand; it is active at once.

        Args:
            when: The situation in which it applies.
            do: The advice.
            because: The evidence.
            pinned: Keep it as it is, whatever is learned.
            always: Show it to every run of the namespace, whatever its task; see `docs/retrieval.md` for the bounds.
            namespace: The Reflection's own by default.

        Raises:
            LessonTextError: If a text is empty or too long.
        """
        lesson = Lesson(namespace=self._own(namespace), when=when, do=do, because=because, pinned=pinned, always=always)
        return self._save(lesson)[0]

    def edit(
        self,
        lesson_id: str,
        *,
        when: str | None = None,
        do: str | None = None,
        because: str | None = None,
        pinned: bool | None = None,
        always: bool | None = None,
    ) -> Lesson:
        """Change a lesson's words, or whether it is pinned or always shown; what is not given stays.

        Raises:
            LessonNotFoundError: If there is none of this id.
            LessonTextError: If a text is empty or too long.
        """
        old = self._core.parts.ledger.lessons.get(lesson_id)
        given = {"when": when, "do": do, "because": because, "pinned": pinned, "always": always}
        changed = {name: value for name, value in given.items() if value is not None}
        return self._save(_next(old, **changed, needs_review=False, held=()))[0] if changed else old

    def approve(self, lesson_id: str) -> Lesson:
        """Make a candidate (or a retired lesson) active; what it replaces retires.

        Raises:
            LessonNotFoundError: If there is none of this id.
            LessonStateError: If it is active already.
        """
        old = self._core.parts.ledger.lessons.get(lesson_id)
        if old.status == "active":
            raise LessonStateError(f"Lesson {lesson_id!r} is 'active' already; nothing to approve.")
        replaced = self._core.parts.ledger.lessons.many(old.replaces) if old.status == "candidate" else ()
        mine = [x for x in replaced if x.namespace == old.namespace and x.status != "retired" and not x.pinned]
        gone = [_next(x, status="retired") for x in mine]
        return self._save(_next(old, status="active", held=()), *gone)[0]

    def retire(self, lesson_id: str) -> Lesson:
        """Take a lesson out of use; `approve` brings it back.

        Raises:
            LessonNotFoundError: If there is none of this id.
            LessonStateError: If it is retired already.
        """
        old = self._core.parts.ledger.lessons.get(lesson_id)
        if old.status == "retired":
            raise LessonStateError(f"Lesson {lesson_id!r} is 'retired' already. `lessons.approve(id)` brings it back.")
        return self._save(_next(old, status="retired"))[0]

    def history(self, lesson_id: str) -> tuple[Lesson, ...]:
        """All versions of a lesson, the first one first.

        Raises:
            LessonNotFoundError: If there is none of this id.
        """
        return self._core.parts.ledger.lessons.history(lesson_id)

    def list(self, status: LessonStatus | None = None, *, namespace: Namespace | None = None) -> tuple[Lesson, ...]:
        """The lessons of a namespace, the oldest first, with how often each was shown.

        Args:
            status: `"candidate"`, `"active"` or `"retired"`; None for all.
            namespace: The Reflection's own by default.
        """
        if status is not None and status not in STATUSES:
            raise ConfigurationError("status", status, " | ".join(map(repr, STATUSES)))
        return self._with_statistics(self._core.parts.ledger.lessons.find(self._own(namespace), status))

    asearch, aget, aadd, aedit, aapprove = twin(search), twin(get), twin(add), twin(edit), twin(approve)
    aretire, ahistory, alist = twin(retire), twin(history), twin(list)

    def _save(self, *lessons: Lesson, before: Mapping[str, int] | None = None) -> tuple[Lesson, ...]:
        """Write the next versions of lessons, all of them or none; `before`, by id, are versions that skip some."""
        for lesson in lessons:
            checked(lesson)
        if not lessons:
            return ()
        known = before or {}
        vectors, embedder = self._vectors(lessons)
        with telemetry.changing() as changed:
            changed.extend(
                Change(lesson=lesson, vector=vector, expected_version=known.get(lesson.id, lesson.version - 1))
                for lesson, vector in zip(lessons, vectors, strict=True)
            )
            saved = self._core.parts.ledger.lessons.save_all(changed, embedder)
        if embedder:
            for namespace in {lesson.namespace for lesson in lessons}:
                self._core.parts.index.sync_later(namespace)
        return saved

    def _vectors(self, lessons: tuple[Lesson, ...]) -> tuple[Sequence[Vector | None], str]:
        try:
            texts = [lesson.searched for lesson in lessons]
            return self._core.parts.embedder.embed_documents(texts), self._core.parts.embedder.id
        except ReflectError as error:  # they are kept, and embedded when an embedder works
            self._core.failed("embed", error)
            return [None] * len(lessons), ""

    def _with_statistics(self, lessons: tuple[Lesson, ...]) -> tuple[Lesson, ...]:
        return nearby.with_statistics(self._core.parts, lessons)


class Episodes(View):
    """What was recorded."""

    def get(self, episode_id: str) -> Episode:
        """One episode with its trajectory, rewards and exposures.

        Raises:
            EpisodeNotFoundError: If there is none of this id.
        """
        return self._core.parts.ledger.episodes.get(episode_id)

    def list(
        self,
        *,
        namespace: Namespace | None = None,
        thread_id: str | None = None,
        status: str | None = None,
        agent: str | None = None,
        waiting: bool = False,
        dead: bool = False,
        limit: int | None = 100,
    ) -> tuple[Episode, ...]:
        """The newest episodes first, of all namespaces unless one is given.

        Args:
            namespace: Only of this one.
            thread_id: Only of this thread.
            status: Only with this status.
            agent: Only of this agent.
            waiting: Only those that no reflection has read yet.
            dead: Only those that are dead-lettered: reflections on them failed, and `dead_letter` says why.
            limit: At most so many; None for all.
        """
        return self._core.parts.ledger.episodes.find(
            namespace=namespace,
            thread_id=thread_id,
            status=status,
            agent=agent,
            waiting=waiting,
            dead=dead,
            limit=limit,
        )

    def retry(self, *episode_ids: str, namespace: Namespace | None = None) -> tuple[str, ...]:
        """Give dead-lettered episodes another chance: they count again, with all their tries.

        Args:
            episode_ids: Only these; all of them if none is given.
            namespace: Only of this one.

        Returns:
            The ids of those that were dead-lettered.

        Raises:
            EpisodeNotFoundError: If there is none of an id.
        """
        found = self._core.parts.ledger.work.retry(episode_ids or None, namespace)
        for space in set(found.values()):
            self._core.parts.learner.poke(space)
        return tuple(found)

    def purge(
        self,
        ids: str | Sequence[str] | None = None,
        *,
        principal: str | None = None,
        thread_id: str | None = None,
        before: datetime | None = None,
        namespace: Namespace | None = None,
        dry_run: bool = False,
    ) -> PurgeReport:
        """Erase episodes for good, with all that came from them, and look whether anything is left.

        Rewards, exposures and the records of reflections go with them, and every lesson that rests on them alone. A
        lesson with other support loses these sources and is examined again. Backups in the folder are purged alike.
        It may take minutes: call it outside of requests. Runs in flight are not touched: purge again when they ended.

        Args:
            ids: Only episodes with these ids.
            principal: Only episodes that ran on behalf of this one.
            thread_id: Only this thread's episodes.
            before: Only episodes that started before this time (with a time zone).
            namespace: Only episodes of this namespace; of all namespaces by default. Not enough by itself.
            dry_run: Erase nothing, say what would go.

        Raises:
            ConfigurationError: If nothing is named, or a value is not allowed.
            LedgerError: If the ledger fails; the same purge again goes on where this one stopped.
        """
        from reflect_middleware.purge import Purge, criteria

        wanted = criteria(ids, principal, thread_id, before, namespace)
        purge = Purge(self._core, wanted)
        return purge.preview() if dry_run else purge.run()

    aget, alist, aretry, apurge = twin(get), twin(list), twin(retry), twin(purge)


class Reflections(View):
    """What the reflector was asked, what it answered, and what became of it."""

    def get(self, reflection_id: str) -> ReflectionRecord:
        """One reflection: prompt, raw answer, accepted and rejected edits, tokens.

        Raises:
            ReflectionNotFoundError: If there is none of this id.
        """
        return self._core.parts.ledger.reflections.get(reflection_id)

    def list(self, *, namespace: Namespace | None = None, limit: int | None = 100) -> tuple[ReflectionRecord, ...]:
        """The newest reflections first, of all namespaces unless one is given."""
        return self._core.parts.ledger.reflections.find(namespace, limit)

    aget, alist = twin(get), twin(list)


def checked(lesson: Lesson) -> None:
    """Check a lesson's words.

    Raises:
        LessonTextError: If one is empty or too long.
    """
    limits = (("when", lesson.when, WHEN_CHARS, 1), ("do", lesson.do, DO_CHARS, 1))
    more = (("because", lesson.because, BECAUSE_CHARS, 0), ("task", lesson.task, TASK_CHARS, 0))
    for name, text, most, least in (*limits, *more):
        if not least <= len(text.strip()) <= most:
            raise LessonTextError(
                f"{name} has {len(text.strip())} characters: {text[:60]!r}; allowed: {least} to {most}."
                " A lesson is one piece of advice: split a long one in two."
            )


def _next(lesson: Lesson, **changed: Any) -> Lesson:
    stamp = {"version": lesson.version + 1, "created_by": "human", "updated_at": now()}
    return lesson.model_copy(update=changed | stamp)
