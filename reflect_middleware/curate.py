"""Check a reflector's edits and turn them into changes of the lessons. Pure: no clock, model or ledger of its own.

Garbage must never cost a lesson: what cannot be shown from the episodes changes, merges and retires nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from uuid import NAMESPACE_URL, uuid5

from reflect_middleware.alike import union, weakest
from reflect_middleware.checks import contradicted, one_tasks_own, told_already
from reflect_middleware.desk import Change, Desk, Limits, Plan, taught
from reflect_middleware.evidence import episode_text, found, quoted
from reflect_middleware.particular import Tasks
from reflect_middleware.types import Edit, EditOutcome, Episode, Lesson, LessonStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from reflect_middleware.batch import Batch
    from reflect_middleware.store import Vector

__all__ = ["Change", "Limits", "Plan", "curate", "episode_text", "quoted", "texts_to_embed"]

Approval = Literal["auto", "human"]


def texts_to_embed(edits: Sequence[Edit], batch: Batch) -> tuple[str, ...]:
    """The texts of the lessons that these edits could make, each once."""
    known = batch.lesson_handles
    drafts = []
    for edit in edits:
        old = known.get(edit.lessons[0]) if edit.op == "edit" and edit.lessons else None
        when, do = _wording(edit, old)
        if edit.op != "retire" and when and do:
            drafts.append(f"{when}: {do}")
    return union(drafts)


def curate(
    edits: Sequence[Edit],
    batch: Batch,
    *,
    existing: Sequence[tuple[Lesson, Vector | None]],
    vectors: Mapping[str, Vector],
    limits: Limits,
    approval: Approval,
    reflection_id: str,
    clock: Callable[[], datetime],
    more: Mapping[str, int] | None = None,
) -> Plan:
    """Decide about each edit, additions last, so that what an answer retires does not stand in the way of what it adds.

    Equal arguments give an equal plan, ids of new lessons included.

    Args:
        edits: As the reflector proposed them, by handles.
        batch: What the handles stand for.
        existing: The namespace's lessons as the ledger has them now, with their vectors. Retired ones are ignored.
        vectors: Text to unit float32 vector, for `texts_to_embed`; without one only equal words count as duplicates.
        limits: Lengths and caps.
        approval: `"human"`: additions, edits and merges wait as candidates, and nothing is retired.
        reflection_id: Becomes `created_by`.
        clock: The time of all changes.
        more: How many more lessons stand in the namespace, by status: too far from the matter to be compared.
    """
    desk = Desk(
        batch.namespace, existing, vectors, threshold=limits.duplicate, by=reflection_id, at=clock(), more=more or {}
    )
    judge = _Judge(batch=batch, tasks=Tasks(batch.episodes), desk=desk, limits=limits, by_hand=approval == "human")
    order = sorted(range(len(edits)), key=lambda number: edits[number].op == "add")
    judged = {number: judge.outcome(number, edits[number]) for number in order}
    outcomes = _keep_cap(desk, limits.lessons, [judged[number] for number in range(len(edits))])
    return Plan(changes=desk.changes(), outcomes=tuple(outcomes))


class _RefusedError(Exception):
    """This edit changes nothing; the message is the reason."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting
        """Whether it would be refused again, whatever the evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One edit with its handles resolved and its quote checked."""

    edit: Edit
    lessons: tuple[Lesson, ...]
    sources: tuple[str, ...]
    """The named episodes; those that hold the quote where none is named."""
    because: str
    supported: bool
    new_id: str

    @property
    def unsupported(self) -> str:
        """What is wrong with its quote."""
        where = ", ".join(self.edit.episodes) or "any episode"
        wanted = "copy the exact words of a result, error, comment or correction"
        return f"its quote is not in {where}; {wanted}" if self.because else f"it quotes no evidence; {wanted}"

    def demand_support(self) -> None:
        if not self.supported:
            raise _RefusedError(self.unsupported)

    def only_lesson(self) -> Lesson:
        if len(self.lessons) != 1:
            raise _RefusedError(f"{self.edit.op} takes one lesson; {len(self.lessons)} are named")
        return self.lessons[0]


def _wording(edit: Edit, old: Lesson | None) -> tuple[str, str]:
    """The edit's when and do, one space between words; the old lesson's where the edit says nothing."""
    when, do = " ".join(edit.when.split()), " ".join(edit.do.split())
    return (when or old.when, do or old.do) if old else (when, do)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Decides about one edit after the other and lays what is accepted on the desk."""

    batch: Batch
    tasks: Tasks
    desk: Desk
    limits: Limits
    by_hand: bool
    """A person approves: nothing becomes active or retires here."""

    def outcome(self, number: int, edit: Edit) -> EditOutcome:
        """Apply one edit, or say why not."""
        if number >= self.limits.edits:
            return EditOutcome(
                edit=edit, accepted=False, reason=f"an answer may have {self.limits.edits} edits at most"
            )
        act = {"add": self._add, "edit": self._edit, "merge": self._merge, "retire": self._retire}[edit.op]
        try:
            lesson, reason = act(self._case(number, edit))
        except _RefusedError as refused:
            return EditOutcome(edit=edit, accepted=False, reason=str(refused), lasting=refused.lasting)
        return EditOutcome(edit=edit, accepted=True, reason=reason, lesson_id=lesson.id)

    def _case(self, number: int, edit: Edit) -> _Case:
        episodes = [self._episode(handle) for handle in edit.episodes]
        named = [self._lesson(handle) for handle in edit.lessons] if edit.op != "add" else []
        lessons = tuple({lesson.id: lesson for lesson in named}.values())
        because = edit.because.strip()
        holding = [episode.id for episode in episodes or self.batch.episodes if quoted(because, episode)]
        own = edit.op == "merge" and any(found(because, lesson.because) for lesson in lessons if lesson.supported)
        return _Case(
            edit=edit,
            lessons=lessons,
            sources=union([episode.id for episode in episodes] or holding),
            because=because[: self.limits.because],
            supported=bool(holding) or own,
            new_id=str(uuid5(NAMESPACE_URL, f"reflection/{self.desk.by}/{number}")),
        )

    def _episode(self, handle: str) -> Episode:
        known = self.batch.episode_handles
        if handle not in known:
            raise _RefusedError(f"there is no episode {handle}; there are E1 to E{len(known)}")
        return known[handle]

    def _lesson(self, handle: str) -> Lesson:
        """The lesson a handle stands for, if this answer may change it."""
        read = self.batch.lesson_handles.get(handle)
        if read is None:
            known = ", ".join(self.batch.lesson_handles) or "none"
            raise _RefusedError(f"there is no lesson {handle}; there are: {known}")
        lesson = self.desk.before.get(read.id)
        if lesson is None or lesson.version != read.version:
            raise _RefusedError(f"lesson {handle} was changed or retired while the reflector read it")
        if lesson.pinned:
            raise _RefusedError(f"lesson {handle} is pinned: only a person changes it")
        if lesson.id in self.desk.touched:
            raise _RefusedError(f"an earlier edit of this answer changes lesson {handle}")
        return lesson

    def _texts(self, case: _Case, old: Lesson | None = None) -> tuple[str, str]:
        """The lesson's when and do, if they are there and short enough."""
        when, do = _wording(case.edit, old)
        for name, text, most in (("when", when, self.limits.when), ("do", do, self.limits.do)):
            if not text:
                raise _RefusedError(f'"{name}" is empty')
            if len(text) > most:
                problem = f'"{name}" has {len(text)} characters; at most {most} are allowed'
                raise _RefusedError(problem, lasting=True)
        return when, do

    def _task(self, case: _Case, *grown_from: Lesson) -> str:
        """By which tasks find the lesson that a case makes or changes."""
        read = {episode.id: episode for episode in self.batch.episodes}
        return taught(grown_from, [read[source] for source in case.sources if source in read])

    def _refuse_twin(self, text: str, own: Sequence[Lesson]) -> None:
        twin = self.desk.twin(text, apart_from=own)
        if twin:
            raise _RefusedError(f"it would say the same as lesson {twin.id}: merge the two instead")

    def _refuse_needless(self, case: _Case, when: str, do: str, own: Sequence[Lesson] = ()) -> None:
        """Refuse what the agent is told anyway, and what contradicts a lesson that stands."""
        sources = [episode for episode in self.batch.episodes if episode.id in case.sources]
        others = [lesson for lesson in self.desk.after.values() if lesson not in own]
        told = "" if do in (lesson.do for lesson in own) else told_already(do, sources)
        for reason in (told, contradicted(when, do, others)):
            if reason:
                raise _RefusedError(reason, lasting=True)

    def _refuse_new_values(self, when: str, do: str, old: Sequence[Lesson]) -> None:
        """A lesson that stands gets no value of one task: it would lose what makes it useful."""
        _, reason = one_tasks_own(when, do, self.batch, self.tasks, old="\n".join(lesson.text for lesson in old))
        if reason:
            raise _RefusedError(reason, lasting=True)

    def _add(self, case: _Case) -> tuple[Lesson, str]:
        if not case.edit.episodes:
            raise _RefusedError("it names no episode; name those that show it, such as E1")
        when, do = self._texts(case)
        twin = self.desk.twin(f"{when}: {do}")
        if twin:
            return self._confirm(twin, case)
        self._refuse_needless(case, when, do)
        held, own = one_tasks_own(when, do, self.batch, self.tasks)
        why = "; ".join(filter(None, ("" if case.supported else case.unsupported, own)))
        new = self._new(case, when, do, task=self._task(case), sources=case.sources, held=held)
        return new, why and f"kept as a candidate: {why}"

    def _confirm(self, twin: Lesson, case: _Case) -> tuple[Lesson, str]:
        """An addition that is known already: its episodes are further evidence for the standing lesson."""
        sources = union(twin.sources, case.sources)
        held = self._still_held(twin, twin.text)
        proven = case.supported and (not twin.supported or held != twin.held)
        if twin.pinned or (sources == twin.sources and not proven):
            raise _RefusedError(f"already known: lesson {twin.id}")
        if not case.supported:
            raise _RefusedError(f"already known: lesson {twin.id}, and {case.unsupported}")
        reason, task = f"merged into lesson {twin.id}", self._task(case, twin)
        if proven:
            news = {"because": case.because, "supported": True, "held": held, "status": self._promoted(twin, held)}
            return self.desk.change(twin, task=task, sources=sources, **news), reason
        return self.desk.change(twin, task=task, sources=sources), reason

    def _still_held(self, lesson: Lesson, text: str) -> tuple[str, ...]:
        """The values for which a lesson waits, if it must still wait with this text."""
        return lesson.held if self.tasks.still_particular(text, lesson.held) else ()

    def _promoted(self, lesson: Lesson, held: tuple[str, ...]) -> LessonStatus:
        """A candidate that waited for evidence or general words becomes active with them, unless a person decides."""
        waited = not lesson.supported or bool(lesson.held)
        return "active" if waited and not held and not self.by_hand else lesson.status

    def _edit(self, case: _Case) -> tuple[Lesson, str]:
        old = case.only_lesson()
        when, do = self._texts(case, old)
        sources = union(old.sources, case.sources)
        if (when, do, sources) == (old.when, old.do, old.sources) and case.because in ("", old.because):
            raise _RefusedError("it changes nothing")
        case.demand_support()
        self._refuse_twin(f"{when}: {do}", case.lessons)
        self._refuse_needless(case, when, do, case.lessons)
        self._refuse_new_values(when, do, case.lessons)
        held, task = self._still_held(old, f"{when}: {do}"), self._task(case, old)
        if self.by_hand:
            self.desk.touched.add(old.id)
            waiting = self._new(
                case, when, do, task=task, sources=sources, replaces=(old.id,), held=held, always=old.always
            )
            return waiting, "waits as a candidate"
        changed = self.desk.change(
            old,
            when=when,
            do=do,
            because=case.because,
            task=task,
            sources=sources,
            status=self._promoted(old, held),
            supported=True,
            held=held,
            needs_review=False,
        )
        return changed, ""

    def _merge(self, case: _Case) -> tuple[Lesson, str]:
        parents = case.lessons
        if len(parents) <= 1:
            raise _RefusedError(f"a merge takes two lessons or more; {len(parents)} are named")
        when, do = self._texts(case)
        case.demand_support()
        self._refuse_twin(f"{when}: {do}", parents)
        self._refuse_new_values(when, do, parents)
        if held := union(*(self._still_held(parent, f"{when}: {do}") for parent in parents)):
            raise _RefusedError(
                f"it keeps what belongs to one task only: {', '.join(held)}; leave it out", lasting=True
            )
        sources = union(*(parent.sources for parent in parents), case.sources)
        always, replaces = any(parent.always for parent in parents), tuple(parent.id for parent in parents)
        task = self._task(case, *parents)
        merged = self._new(case, when, do, task=task, sources=sources, replaces=replaces, always=always)
        if self.by_hand:
            self.desk.touched.update(merged.replaces)
            return merged, "waits as a candidate"
        if any(parent.status == "active" for parent in parents):
            self.desk.grown.remove(merged.id)
        for parent in parents:
            self.desk.change(parent, status="retired")
        return merged, ""

    def _retire(self, case: _Case) -> tuple[Lesson, str]:
        lesson = case.only_lesson()
        case.demand_support()
        if self.by_hand:
            raise _RefusedError(f"needs a person: lessons.retire({lesson.id!r})", lasting=True)
        return self.desk.change(lesson, status="retired"), ""

    def _new(
        self,
        case: _Case,
        when: str,
        do: str,
        *,
        task: str,
        sources: tuple[str, ...],
        replaces: tuple[str, ...] = (),
        held: tuple[str, ...] = (),
        always: bool = False,
    ) -> Lesson:
        """A new lesson: active, or a candidate where a person decides, evidence is missing, or it fits one task."""
        waits = self.by_hand or not case.supported or bool(held)
        if waits and self.desk.count("candidate") >= self.limits.lessons:
            raise _RefusedError(f"{self.limits.lessons} candidates wait already: approve or retire some")
        return self.desk.make(
            Lesson(
                id=case.new_id,
                namespace=self.batch.namespace,
                when=when,
                do=do,
                because=case.because,
                task=task,
                status="candidate" if waits else "active",
                sources=sources,
                supported=case.supported,
                held=held,
                always=always,
                replaces=replaces,
                created_by=self.desk.by,
                created_at=self.desk.at,
                updated_at=self.desk.at,
            )
        )


def _keep_cap(desk: Desk, most: int, outcomes: list[EditOutcome]) -> list[EditOutcome]:
    """Make room for lessons that became active: the weakest untouched ones retire, else the newest go back."""
    while desk.grown and (excess := desk.count("active") - most) > 0:
        spare = desk.spare()
        if (least := weakest(spare)) and len(spare) >= excess:
            desk.change(least, status="retired")
            continue
        newest = desk.after[desk.grown.pop()]
        reason = f"there is no room: {most} active lessons, none of them free to retire"
        gone = newest.id not in desk.before and not newest.replaces
        if gone:
            desk.forget(newest)
            news = {"accepted": False, "reason": reason, "lesson_id": ""}
        else:
            desk.change(newest, status="candidate")
            news = {"reason": f"kept as a candidate: {reason}"}
        outcomes = [o.model_copy(update=news) if o.lesson_id == newest.id else o for o in outcomes]
    return outcomes
