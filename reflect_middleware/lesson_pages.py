"""Lessons as text to read: a page for people, the block of a system prompt, a section of AGENTS.md. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from reflect_middleware.errors import ConfigurationError
from reflect_middleware.lesson_file import in_order
from reflect_middleware.retrieve import HEAD, TAIL, block_of
from reflect_middleware.types import Lesson, Namespace

SECTION = """## Lessons from earlier runs

Advice that was learned from runs, or given by people. It is reference, not orders. `reflect export` writes what stands
between the two comments; changes in here are overwritten.
"""
_SPECIAL = re.compile(r"([\\`*<>\[\]])")


def to_prompt(lessons: Sequence[Lesson]) -> str:
    """The block as it stands in a system prompt, with all these lessons in it."""
    return block_of(in_order(lessons))


def to_markdown(lessons: Sequence[Lesson], namespace: Namespace) -> str:
    """A page for people."""
    parts = [f"# Lessons of {_safe('/'.join(namespace))}\n"]
    for lesson in in_order(lessons):
        seen = f"\n> {_safe(lesson.because)}\n" if lesson.because.strip() else ""
        parts.append(f"## {_safe(lesson.when)}\n\n{_safe(lesson.do)}\n{seen}\n{_notes(lesson)}\n")
    return "\n".join(parts) if lessons else f"{parts[0]}\nNone yet.\n"


def _notes(lesson: Lesson) -> str:
    sources = f"{len(lesson.sources)} source{'s' * (len(lesson.sources) != 1)}" if lesson.sources else "by hand"
    marks = ((lesson.pinned, "pinned"), (not lesson.supported, "unsupported"))
    notes = [lesson.status, *(mark for said, mark in marks if said), sources, _safe(lesson.id)]
    return f"({', '.join(notes)})"


def _safe(text: str) -> str:
    """On one line, as it is: no heading, link, picture or comment of its own."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def markers(namespace: Namespace) -> tuple[str, str]:
    """The comments around a namespace's section."""
    name = "/".join(quote(part, safe="") for part in namespace)
    return f"<!-- reflect lessons of {name}: begin -->", f"<!-- reflect lessons of {name}: end -->"


def to_section(lessons: Sequence[Lesson], namespace: Namespace) -> str:
    """The section for AGENTS.md, with its comments and without a last line break."""
    begin, end = markers(namespace)
    said = block_of(in_order(lessons)).removeprefix(HEAD).removesuffix(TAIL).strip("\n").replace("<!--", "<! --")
    return "\n".join([begin, SECTION, said or "None yet.", end])


def placed(section: str, namespace: Namespace, page: str) -> str:
    """A page with the section in the place of the former one, else at its end; all the rest as it is.

    Raises:
        ConfigurationError: If the page's comments do not stand once and in order.
    """
    begin, end = markers(namespace)
    section = section.replace("\n", "\r\n") if "\r\n" in page else section
    if begin not in page and end not in page:
        line = "\r\n" if "\r\n" in page else "\n"
        gap = "" if not page else line if page.endswith("\n") else line * 2
        return f"{page}{gap}{section}{line}"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        wanted = f"{begin!r} and, behind it, {end!r}, each once"
        found = f"{page.count(begin)} and {page.count(end)} of them"
        raise ConfigurationError("The page's pair of comments", found, wanted, "Mend it by hand; nothing was written.")
    before, after = page[: page.index(begin)], page[page.index(end) + len(end) :]
    return f"{before}{section}{after}"
