"""Read a reflector's answer: strict JSON, JSON with flaws, or JSON somewhere in prose. Pure, and never raises."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from reflect_middleware.forks import gate
from reflect_middleware.types import Edit, EditOp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MOST_CHARS = 200_000
"""An answer is read up to here."""

_OPS: Mapping[str, EditOp] = {
    **dict.fromkeys(("add", "create", "new", "insert", "append"), "add"),
    **dict.fromkeys(("edit", "update", "modify", "change", "revise", "replace", "rewrite"), "edit"),
    **dict.fromkeys(("merge", "combine", "consolidate", "join"), "merge"),
    **dict.fromkeys(("retire", "delete", "remove", "drop", "archive"), "retire"),
}
_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("op", "operation", "action", "type"), "op"),
    **dict.fromkeys(("episodes", "episode", "sources", "source"), "episodes"),
    **dict.fromkeys(("lessons", "lesson", "lesson_id", "id"), "lessons"),
    **dict.fromkeys(("because", "evidence", "quote", "quotes"), "because"),
    **dict.fromkeys(("when", "situation"), "when"),
    **dict.fromkeys(("do", "advice"), "do"),
}
_TAG = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?)"
_THOUGHTS = re.compile(rf"<{_TAG}>.*?</{_TAG}>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE)
_THOUGHT_BEFORE = re.compile(rf"^.*(?:</{_TAG}>|\[/THINK\]|<\|channel\|>final<\|message\|>)", re.DOTALL | re.IGNORECASE)
"""Templates may open the thoughts in the prompt, so that only their end is in the answer."""
_THOUGHT_AFTER = re.compile(rf"(?:<{_TAG}>|\[THINK\]|<\|channel\|>analysis).*$", re.DOTALL | re.IGNORECASE)
"""Thoughts that the limit of tokens cut off."""
_FENCED = re.compile(r"```[a-z]*\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_START = re.compile(r"""[{\[]\s*\[?\s*\{?\s*["']?edits\b|\[\s*\{|\{""", re.IGNORECASE)
_EDITS = re.compile(r"""[{]\s*["']?edits\b""", re.IGNORECASE)
_HANDLE = re.compile(r"(?:episode|lesson|e|l)?[\s_#-]*(\d{1,6})", re.IGNORECASE)
_NONE = object()


def parse_answer(text: str) -> tuple[list[Edit], list[str]]:
    """The edits of an answer, and what was wrong with it.

    A malformed edit is left out and named among the problems; the others stand. No edits and no problem is an empty
    answer, a good one. No edits and a problem is an answer that could not be used.
    """
    text = without_thoughts(text[:MOST_CHARS])
    entries, broken_off = _entries_in(text)
    if entries is None:
        return [], ['there is no JSON object with a list "edits" in it']
    edits, problems = read_entries(entries[:-1] if broken_off else entries)
    return edits, problems + (["the answer breaks off in its last edit"] if broken_off else [])


def read_answers(texts: Sequence[str]) -> tuple[list[Edit], list[str]]:
    """The first of several texts that is an answer; else what is wrong with the first."""
    read = [parse_answer(text) for text in texts]
    good = (answer for answer in read if answer[0] or not answer[1])
    return next(good, read[0] if read else parse_answer(""))


def without_thoughts(text: str) -> str:
    """What is said after, and not in, the thoughts of a reasoning model."""
    text = text.strip()
    if text.startswith(("{", '["', "[{", "[ {", "[\n")):  # the answer itself, which may quote such marks
        return text
    for thoughts in (_THOUGHTS, _THOUGHT_BEFORE, _THOUGHT_AFTER):
        text = thoughts.sub("", text)
    return text.strip()


def read_entries(entries: Iterable[Any]) -> tuple[list[Edit], list[str]]:
    """Edits from decoded JSON objects, and a problem for each that is none."""
    edits: list[Edit] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        try:
            edits.extend(_edits(entry))
        except ValueError as error:
            problems.append(f"edit {number} was left out: {error}")
    return edits, problems


def _edits(entry: Any) -> list[Edit]:
    """The edit of one entry; to retire several lessons is several edits."""
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - the answer is wrong, not the code
    lower = {str(key).strip().lower(): value for key, value in entry.items()}
    fields = {_KEYS[key]: value for key, value in lower.items() if key in _KEYS}
    words = {name: _words(name, fields.get(name)) for name in ("because", "when", "do")}
    lessons = _handles("L", fields.get("lessons"))
    edit = Edit(op=_op(fields, lessons), episodes=_handles("E", fields.get("episodes")), lessons=lessons, **words)
    if edit.op == "retire" and len(lessons) > 1:
        return [edit.model_copy(update={"lessons": (lesson,)}) for lesson in lessons]
    return [edit]


def _op(fields: Mapping[str, Any], lessons: tuple[str, ...]) -> EditOp:
    """The operation; one that is not named can only be an addition that has all it needs."""
    named = str(fields.get("op") or "").strip().lower()
    if named in _OPS:
        return _OPS[named]
    if not named and not lessons and fields.get("when") and fields.get("do"):
        return "add"
    raise ValueError(f'"op" is {named[:40]!r}; allowed: add, edit, merge, retire')


def _words(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value).strip()
    if isinstance(value, (dict, list)):
        raise ValueError(f'"{name}" must be text')  # noqa: TRY004 - as above
    return str(value).strip()


def _handles(letter: str, value: Any) -> tuple[str, ...]:
    """Handles such as E1 from `"e1"`, `1`, `"E1, E2"` or a list; anything else stays as it is, to be refused later."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    parts = [part.strip(" []()\"'") for item in items for part in re.split(r"[,;&]|\band\b", str(item))]
    matches = ((part, _HANDLE.fullmatch(part)) for part in parts if part)
    return tuple(dict.fromkeys(f"{letter}{int(match[1])}" if match else part[:60] for part, match in matches))


def _entries_in(text: str) -> tuple[list[Any] | None, bool]:
    """The list of edits in a text, and whether the text ends in the middle of one; None where there is no list."""
    fenced = [block.strip() for block in reversed(_FENCED.findall(text))]
    for candidate in (text, *fenced):
        entries = _entries(_decode(candidate), bare_empty=True)
        if entries is not None:
            return entries, False
    start = _EDITS.search(text) or _START.search(text)
    if start is None:
        return None, False
    rest = text[start.start() :]
    entries = _entries(_decode_first(rest))
    if entries is not None:
        return entries, False
    entries = _entries(_repair(rest))
    return entries, bool(entries) and rest.rfind("{") > rest.rfind("}")


def _entries(value: Any, *, bare_empty: bool = False) -> list[Any] | None:
    """The list of edits in decoded JSON: under "edits", bare, or a single edit."""
    if isinstance(value, dict):
        edits = next((item for key, item in value.items() if str(key).lower() == "edits"), _NONE)
        if edits is _NONE:
            return [value] if any(str(key).lower() in ("op", "do") for key in value) else None
        if isinstance(edits, str):  # a list that was made text once more
            return _entries(_decode(edits), bare_empty=True)
        return edits if isinstance(edits, list) else [edits] if isinstance(edits, dict) and edits else None
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and "edits" in value[0]:
            return _entries(value[0])
        return value if any(isinstance(item, dict) for item in value) or (bare_empty and not value) else None
    return None


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _decode_first(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _repair(text: str) -> Any:
    """JSON with its flaws mended. Imported late: only a flawed answer needs it."""
    with gate.passing():
        import json_repair

    try:
        return json_repair.loads(text)
    except Exception:  # noqa: BLE001 - a parser of arbitrary text must not decide what breaks a reflection
        return None
