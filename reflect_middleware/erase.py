"""Erasing from one ledger: what rests on some episodes alone goes with them, the rest loses what came from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from reflect_middleware.forget import Said, everything, named_in, remains, said, scrubbed, told_by, words_of
from reflect_middleware.forget_table import Criteria, Marked, chunks
from reflect_middleware.ledger import Ledger
from reflect_middleware.types import Lesson, ReflectionRecord, now

PROBED = 40
"""Of how many erased episodes pieces of text are looked for afterwards; their ids are looked for of all."""
PROBE_CHARS = 40
READ = 200
"""Most episodes read to decide about one lesson."""


class Tally:
    """What a purge of one ledger has done so far."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.erased: dict[str, Lesson] = {}
        self.changed: dict[str, Lesson] = {}
        self.counts: dict[str, int] = {}
        self.records = self.emptied = 0
        self.probes: set[str] = set()


def erase(ledger: Ledger, wanted: Criteria) -> Tally:
    """Erase from one ledger: lessons, reflections, then the episodes themselves."""
    tally = Tally()
    tally.ids = ledger.forget.wanted(wanted)
    if tally.ids:
        Eraser(ledger, tally).run()
    return tally


class Eraser:
    """The purge of one ledger, once it is known which episodes go."""

    def __init__(self, ledger: Ledger, tally: Tally) -> None:
        self.ledger = ledger
        self.tally = tally
        self.gone = frozenset(tally.ids)
        self.told = Said()
        """What the prompts of later reflections may repeat."""

    def run(self) -> None:
        """All of it, in an order that can be begun again."""
        forget, tally = self.ledger.forget, self.tally
        tally.probes = self._probes()
        marked = forget.scope(tally.ids)
        forget.mark(marked)
        readers = self.readers(marked)
        merged: list[Lesson] = []
        for lesson, versions in self.concerned(readers):
            if lesson.replaces:
                merged.append(lesson)
            else:
                self._settle(lesson, versions, readers)
        for lesson in sorted(merged, key=lambda x: x.created_at):  # after those that they name, which may be erased
            for again, versions in forget.standing([lesson.id]).values():
                self._settle(again, versions, readers)
        forget.erase_lessons(tally.erased.values())
        self._scrub(marked, readers)
        tally.counts = forget.erase_episodes(tally.ids)

    def readers(self, marked: Marked) -> list[ReflectionRecord]:
        """The reflections that read the episodes, without their prompts."""
        found = (r for r in self.ledger.forget.records(marked) if not self.gone.isdisjoint(r.episodes))
        return [record.model_copy(update={"prompt": "", "answer": ""}) for record in found]

    def concerned(self, readers: Sequence[ReflectionRecord]) -> Iterator[tuple[Lesson, list[Lesson]]]:
        """Every lesson that may have to do with these episodes, with its versions."""
        made = [o.lesson_id for record in readers for o in record.outcomes if o.lesson_id]
        ids = list(dict.fromkeys([*self.ledger.forget.resting_on(self.tally.ids), *made]))
        for some in chunks(ids, 50):
            yield from self.ledger.forget.standing(some).values()

    def decide(self, lesson: Lesson, versions: Sequence[Lesson], readers: Sequence[ReflectionRecord]) -> Lesson | None:
        """What stays of a lesson."""
        read_by = {record.id: record.episodes for record in readers}
        sources = {source for version in (lesson, *versions) for source in version.sources}
        sources |= {read for version in versions for read in read_by.get(version.created_by, ()) if read in self.gone}
        purged, kept = self._text(sources & self.gone), self._text(sources - self.gone)
        stays = remains(lesson, versions, self.gone, purged, kept, erased=frozenset(self.tally.erased))
        if stays is None:
            self.tally.erased[lesson.id] = lesson
            self.told |= said((text for v in (lesson, *versions) for text in (v.do, v.because)), whole=True)
            return None
        self.tally.probes = {probe for probe in self.tally.probes if probe not in kept}  # it has that from there
        if stays is not lesson:
            self.tally.changed[lesson.id] = stays
        return stays

    def _settle(self, lesson: Lesson, versions: Sequence[Lesson], readers: Sequence[ReflectionRecord]) -> None:
        """Write what stays of a lesson, again where somebody changes it meanwhile; an erased one goes later."""
        while (stays := self.decide(lesson, versions, readers)) is not None:
            purged = said([self._text(self.gone & {source for v in versions for source in v.sources})])
            drop = [v.version for v in versions if v.version < lesson.version and told_by(v, self.gone, purged)]
            if stays is not lesson:
                drop.append(lesson.version)
                stays = stays.model_copy(update={"version": lesson.version + 1, "updated_at": now()})
            if self.ledger.forget.keep_lesson(stays, lesson.version, drop, self.gone):
                return
            lesson, versions = self.ledger.forget.standing([lesson.id])[lesson.id]

    def _scrub(self, marked: Marked, readers: Sequence[ReflectionRecord]) -> None:
        """Empty the reflections that read the episodes, and later ones that repeat what came from them."""
        given = self.ledger.forget.judgements(self.tally.ids)
        told = self.told | said((text for r in given for text in (r.comment, r.correction)), whole=True)
        for record in readers:
            told |= words_of(record)
        told -= said((text for x in self.tally.changed.values() for text in (x.do, x.because)), whole=True)
        erased = self.tally.erased.keys()
        for record in self.ledger.forget.records(marked):
            reads = not self.gone.isdisjoint(record.episodes)
            names = not erased.isdisjoint(named_in(record))
            if reads or names or told.repeated_in(f"{record.prompt}\n{record.answer}\n{record.error}"):
                bare = scrubbed(record, self.gone, erased)
                self.ledger.forget.scrub(bare)
                self.tally.records += not bare.episodes
                self.tally.emptied += bool(bare.episodes)

    def _text(self, ids: AbstractSet[str]) -> str:
        """What episodes say; of very many the first ones by id speak for all."""
        return "\n".join(everything(e) for e in self.ledger.episodes.many(sorted(ids)[:READ]))

    def _probes(self) -> set[str]:
        """Pieces of the texts that are erased, to look for afterwards."""
        probes: set[str] = set()
        for episode in self.ledger.episodes.many(self.tally.ids[:PROBED]):
            texts = [episode.task, episode.output, *(r.comment for r in episode.rewards)]
            texts += [step.output for step in episode.trajectory][:5]
            plain = (piece.strip() for text in texts for piece in text.replace("\\", '"').replace("\n", '"').split('"'))
            probes.update(piece[:PROBE_CHARS] for piece in plain if len(piece) >= PROBE_CHARS // 2 and piece.isascii())
        return set(sorted(probes)[:PROBED])
