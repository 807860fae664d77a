"""The case for which a rule holds, where the evidence says it and the advice forgot it. Pure.

A small model quotes "zone must be WF49 for glass" and advises "use WF49". Its own quote completes it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reflect_middleware.particular import BOUNDS, OBLIGES
from reflect_middleware.words import content

if TYPE_CHECKING:
    from reflect_middleware.types import Edit

_PART = re.compile(r"[;\n]+|(?<=[.!?])\s+")
_CASE = re.compile(
    r"\b(?:only\s+)?(?:for|if|when|unless|except|in case of|above|below|over|under|on|bei|für|falls|wenn|über|unter"
    r"|pour|si|para|cuando)\s+[^.;:,()<>\"]{2,60}$",
    re.IGNORECASE,
)
"""At the end of a rule: the case, in a few words."""


def with_case(edit: Edit) -> Edit:
    """The edit, its advice with the case of the one rule that it quotes, unless it has a word of that case."""
    rules = [part for part in _PART.split(edit.because.strip()) if OBLIGES.search(part) or BOUNDS.search(part)]
    if edit.op not in ("add", "edit") or not edit.do.strip() or len(rules) != 1:
        return edit
    found = _CASE.search(rules[0].strip().rstrip(".!"))
    about = content(found[0]) if found else frozenset()
    if found is None or not about or about & content(f"{edit.when} {edit.do}"):
        return edit
    return edit.model_copy(update={"do": f"{edit.do.strip().rstrip('.')} ({found[0]})"})
