"""What agents were told in a batch of runs, each statement once: what many runs share, and what sets runs apart. Pure.

A reader of many rollouts overlooks what stands in the middle of one. So the page ends with a list of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from reflect_middleware.cases import PART
from reflect_middleware.evidence import plain
from reflect_middleware.particular import OBLIGES, Tasks, is_rule
from reflect_middleware.prompts import NOT_TOLD, TOLD
from reflect_middleware.rollout import last_words

if TYPE_CHECKING:
    from reflect_middleware.groups import Group
    from reflect_middleware.types import Episode

MOST = 24
"""Most statements of one page."""
NAMED = 8
"""Most episodes that a statement names."""
RESULT_CHARS = 400
"""A longer result is something that was read, not an answer to what the agent did."""
STATEMENT_CHARS = 160
"""A longer statement is left to the rollout that has it."""

_HEAD = re.compile(
    r"^(?:[\w-]*(?:error|exception|rejected|refused|failed|denied|invalid))\b[^:;]{0,30}:\s+", re.IGNORECASE
)
"""What only says that something went wrong, before what it was."""
_CALL, _RESULT = re.compile(r"^call (\S+)", re.MULTILINE), re.compile(r"^result: (.+)", re.MULTILINE)
"""How the output of an agent that calls its tools by itself tells of them."""
_COMMA = re.compile(r",\s+(?:and\s+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One thing that agents were told."""

    text: str
    told: tuple[str, ...]
    """Handles of the episodes that heard it."""
    apart: tuple[tuple[str, ...], str] | None = None
    """Episodes that did the same tasks and did not hear it, with the tool that only they called."""

    @property
    def line(self) -> str:
        """The statement as it stands in the list."""
        told = _named(self.told)
        if self.apart is None:
            return TOLD.format(text=self.text, told=told)
        return NOT_TOLD.format(text=self.text, told=told, others=_named(self.apart[0]), tool=self.apart[1])


def digest(known: Mapping[str, Episode], groups: Sequence[Group]) -> list[Statement]:
    """The statements, rules first, then by how many episodes heard them.

    What belongs to one task only is left out, and so is what was said to runs that went well, or to every other run
    without being a rule: "the query was refused" tells nobody what to do.

    Args:
        known: The episodes of the page by their handles. One alone needs no list.
        groups: Those of the same task.
    """
    if len(known) <= 1:
        return []
    told: dict[str, dict[str, str]] = {}
    for handle, episode in known.items():
        for clause in clauses(episode):
            told.setdefault(plain(clause), {}).setdefault(handle, clause)
    tasks, unhappy = Tasks(list(known.values())), {handle for by in told.values() for handle in by}

    def says_something(text: str, by: Mapping[str, str]) -> bool:
        heard_by_all = len(by) == len(unhappy) and len(told) > 1
        return not (heard_by_all and not is_rule(text)) and not tasks.particular(text, "")

    listed = [(next(iter(by.values())), by) for by in told.values()]
    listed.sort(key=lambda one: (not is_rule(one[0]), -len(one[1])))
    found = islice((one for one in listed if says_something(*one)), MOST)  # of thousands of errors, few are looked at
    tools = {handle: _tools(episode) for handle, episode in known.items()}
    return [Statement(text=text, told=tuple(by), apart=_apart(by, tools, groups)) for text, by in found]


def clauses(episode: Episode) -> Iterator[str]:
    """What an agent was told in a run that did not go well, in pieces that say one thing each."""
    for text in _answers(episode):
        for part in PART.split(text):
            said = _HEAD.sub("", part.strip()).strip(" .")
            rules = _COMMA.split(said)
            for rule in rules if all(OBLIGES.search(rule) for rule in rules) else (said,):
                if len(rule.split()) > 1 and len(rule) <= STATEMENT_CHARS:
                    yield rule


def _answers(episode: Episode) -> Iterator[str]:
    """Errors, and what the environment and people said to a run with less than the full reward."""
    yield from (step.error for step in episode.trajectory if step.error)
    if episode.reward is None or episode.reward >= 1:
        return
    results = [step.output for step in episode.trajectory if step.kind == "tool" and step.output]
    results += _RESULT.findall(last_words(episode))
    yield from (result for result in results[-1:] if len(result) <= RESULT_CHARS)
    for reward in episode.rewards:
        if reward.source not in ("implicit", "self"):
            yield from filter(None, (reward.comment, reward.correction))


def _apart(
    told: Collection[str], tools: Mapping[str, set[str]], groups: Sequence[Group]
) -> tuple[tuple[str, ...], str] | None:
    """The tool that sets the runs that did not hear it apart from those of the same task that did, if one does so."""
    heard: list[str] = []
    spared: list[str] = []
    for group in groups:
        with_it = [handle for handle in group.handles if handle in told]
        without = [handle for handle in group.handles if handle in tools and handle not in told]
        if group.same and with_it and without:
            heard += with_it
            spared += without
    common = set.intersection(*(tools[handle] for handle in spared)) if spared else set()
    only = common.difference(*(tools[handle] for handle in heard))
    return (tuple(spared), min(only)) if only else None


def _named(handles: Sequence[str]) -> str:
    more = len(handles) - NAMED
    return ", ".join(handles) if more <= 0 else f"{', '.join(handles[:NAMED])} and {more} more"


def _tools(episode: Episode) -> set[str]:
    called = {step.name for step in episode.trajectory if step.kind == "tool" and step.name}
    return called.union(_CALL.findall(last_words(episode)))
