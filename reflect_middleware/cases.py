"""The case for which a rule holds, where the evidence says it and the advice forgot it. Pure.

A small model quotes "zone must be WF49 for glass" and advises "use WF49", and likewise "use FG18" for food: the second
would contradict the first. Their own quotes tell them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from reflect_middleware.particular import is_rule
from reflect_middleware.words import content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect_middleware.types import Edit

PART = re.compile(r"[;\n]+|(?<=[.!?])\s+")
"""Where one statement ends and the next one begins."""
_CASE = re.compile(
    r"\b(?:only\s+)?(?:for|if|when|unless|except|in case of|above|below|over|under|on|bei|für|falls|wenn|über|unter"
    r"|pour|si|para|cuando)\s+[^.;:,()<>\"]{2,60}$",
    re.IGNORECASE,
)
"""At the end of a rule: the case, in a few words."""


def told_apart(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits; where several advise on one situation, each with the case of the one rule that it quotes.

    What has a word of its case already, and advice that is alone in its situation, stay as they are.
    """
    about = Counter(content(edit.when) for edit in edits if edit.op == "add")
    return tuple(_with_case(edit) if edit.op == "add" and about[content(edit.when)] > 1 else edit for edit in edits)


def _with_case(edit: Edit) -> Edit:
    rules = [part for part in PART.split(edit.because.strip()) if is_rule(part)]
    if not edit.do.strip() or len(rules) != 1:
        return edit
    found = _CASE.search(rules[0].strip().rstrip(".!"))
    about = content(found[0]) if found else frozenset()
    if found is None or not about or about & content(f"{edit.when} {edit.do}"):
        return edit
    return edit.model_copy(update={"do": f"{edit.do.strip().rstrip('.')} ({found[0]})"})
