"""What a purge leaves of lessons and reflections that have read what is purged. Pure: no clock, no ledger.

A lesson rests on the episodes that it names. Where none of them stays, or its words repeat what only purged ones said,
it is erased; else it loses those sources, and the next batch looks at it again. Words that a person wrote stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from reflect_middleware.evidence import found, plain
from reflect_middleware.types import EditOutcome, Episode, Lesson, ReflectionRecord

RUN = 6
"""So many words in a row are no accident: who has them has them from there. A shorter text counts as a whole."""
SHORTEST = 12
"""Characters of the shortest text that is looked for."""
_NAMING = re.compile(r"[\w.@+-]*[\d@][\w.@+-]*")
_NAME_CHARS = 4


@dataclass(frozen=True, slots=True)
class Said:
    """What some texts say that would give them away in another text."""

    runs: frozenset[int] = frozenset()
    """Hashes of words in a row."""
    lengths: frozenset[int] = frozenset()
    """How many words such a row has: `RUN`, and those of whole short texts."""
    names: frozenset[str] = frozenset()
    """Numbers of orders, addresses and the like: words with a digit or an @."""

    def __sub__(self, other: Said) -> Said:
        return Said(self.runs - other.runs, self.lengths, self.names - other.names)

    def __or__(self, other: Said) -> Said:
        return Said(self.runs | other.runs, self.lengths | other.lengths, self.names | other.names)

    def repeated_in(self, text: str) -> bool:
        """Whether a text repeats any of it."""
        if self.names and not self.names.isdisjoint(_names(text)):
            return True
        words = plain(text).split()
        return any(not self.runs.isdisjoint(_rows(words, length)) for length in self.lengths)


def said(texts: Iterable[str], *, whole: bool = False) -> Said:
    """What these texts say.

    Args:
        texts: Of what is purged.
        whole: Texts of fewer than `RUN` words count too, as a whole: for lessons and comments, which are short.
    """
    runs: set[int] = set()
    lengths, names = {RUN}, set[str]()
    for text in texts:
        words = plain(text).split()
        runs.update(_rows(words, RUN))
        names.update(_names(text))
        if whole and len(words) < RUN and len(text.strip()) >= SHORTEST:
            lengths.add(len(words))
            runs.update(_rows(words, len(words)))
    return Said(frozenset(runs), frozenset(lengths), frozenset(names))


def everything(episode: Episode) -> str:
    """All that an episode holds, as one text."""
    return episode.model_dump_json()


def by_hand(lesson: Lesson, versions: Sequence[Lesson]) -> bool:
    """Whether a person wrote its words, all of them: no version of a reflection has its situation or its advice."""
    learned = [version for version in versions if version.created_by != "human"]
    whens, dos = {version.when for version in learned}, {version.do for version in learned}
    return lesson.created_by == "human" and lesson.when not in whens and lesson.do not in dos


def remains(
    lesson: Lesson,
    versions: Sequence[Lesson],
    gone: AbstractSet[str],
    purged: str,
    kept: str,
    *,
    erased: AbstractSet[str] = frozenset(),
) -> Lesson | None:
    """What stays of a lesson; None: nothing.

    Args:
        lesson: As it stands.
        versions: All its versions.
        gone: Ids of the purged episodes.
        purged: What those of them said that the lesson comes from.
        kept: What its other episodes say.
        erased: Ids of lessons of which nothing stays.
    """
    sources = tuple(source for source in lesson.sources if source not in gone)
    rested = any(not gone.isdisjoint(version.sources) for version in (lesson, *versions))
    own = by_hand(lesson, versions)
    only_there = said([purged]) - said([kept])
    if not own and ((lesson.sources and not sources) or only_there.repeated_in(lesson.text)):
        return None
    quoted = found(lesson.because, purged) and not found(lesson.because, kept)
    because = "" if quoted or only_there.repeated_in(lesson.because) else lesson.because
    theirs = (rested or _begins(lesson.task, purged)) and not _begins(lesson.task, kept)
    task = "" if theirs or only_there.repeated_in(lesson.task) else lesson.task
    replaces = tuple(old for old in lesson.replaces if old not in erased)
    if (sources, because, task, replaces) == (lesson.sources, lesson.because, lesson.task, lesson.replaces):
        return lesson
    supported = lesson.supported and bool(because)
    words = {"sources": sources, "because": because, "task": task, "replaces": replaces, "supported": supported}
    stamp = {"held": (), "needs_review": True, "created_by": _author(lesson, versions, own=own)}
    return lesson.model_copy(update=words | stamp)


def told_by(version: Lesson, gone: AbstractSet[str], purged: Said) -> bool:
    """Whether an old version has to go: it names a purged episode, or repeats what one said."""
    words = f"{version.text}\n{version.because}\n{version.task}"
    return not gone.isdisjoint(version.sources) or purged.repeated_in(words)


def named_in(record: ReflectionRecord) -> set[str]:
    """The ids of the lessons that a reflection made, changed, or asked about to consolidate them."""
    groups = record.consolidation.clusters if record.consolidation else ()
    asked = {member.partition("@")[0] for group in groups for member in group.split()}
    return asked | {outcome.lesson_id for outcome in record.outcomes if outcome.lesson_id}


def scrubbed(record: ReflectionRecord, gone: AbstractSet[str], erased: AbstractSet[str]) -> ReflectionRecord:
    """A reflection without its words: which episodes it read, what kind of edits it made to which lessons."""
    outcomes = tuple(_bare(outcome, erased) for outcome in record.outcomes)
    stay = tuple(episode for episode in record.episodes if episode not in gone)
    empty = {"prompt": "", "answer": "", "note": "", "error": "purged" if record.error else ""}
    kept = {
        "episodes": stay,
        "cut": tuple(cut for cut in record.cut if cut.episode not in gone),
        "skipped": tuple(skip for skip in record.skipped if gone.isdisjoint(skip.episodes)),
    }
    return record.model_copy(update={**empty, **kept, "outcomes": outcomes})


def words_of(record: ReflectionRecord) -> Said:
    """What a reflection wrote, or wanted to: later ones may have read it."""
    edits = [outcome.edit for outcome in record.outcomes]
    advice = said((text for edit in edits for text in (edit.do, edit.because)), whole=True)
    return advice | said(edit.when for edit in edits)


def _begins(task: str, text: str) -> bool:
    """Whether a lesson's task is the beginning of one that is told of here; its last word may be cut."""
    return f" {plain(task)}" in f" {plain(text)}"


def _bare(outcome: EditOutcome, erased: AbstractSet[str]) -> EditOutcome:
    edit = outcome.edit.model_copy(update={"because": "", "when": "", "do": "", "episodes": (), "lessons": ()})
    lesson_id = "" if outcome.lesson_id in erased else outcome.lesson_id
    return outcome.model_copy(update={"edit": edit, "reason": "", "lesson_id": lesson_id})


def _author(lesson: Lesson, versions: Sequence[Lesson], *, own: bool) -> str:
    """Who wrote the words that stand; a person who only approved them did not."""
    learned = [version.created_by for version in versions if version.created_by != "human"]
    return lesson.created_by if own or not learned else learned[-1]


def _rows(words: Sequence[str], length: int) -> Iterable[int]:
    return (hash(tuple(words[n : n + length])) for n in range(len(words) - length + 1)) if length else ()


def _names(text: str) -> set[str]:
    names = (name.strip(".+-").casefold() for name in _NAMING.findall(text))
    return {name for name in names if len(name) >= _NAME_CHARS}
