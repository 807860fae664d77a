"""The figures of docs/reflection.md are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from reflect_middleware.asking import METHODS, SEEDS
from reflect_middleware.desk import Limits
from reflect_middleware.evidence import FRAGMENT
from reflect_middleware.refusals import REFLECTIONS, TOLD
from reflect_middleware.render import STEP_CHARS
from reflect_middleware.restating import LEAST

from .test_particular import GOOD, ONE_TASK_ONLY

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "reflection.md").read_text().split())
NUMBERS = {3: "three", 4: "four", 5: "five", 10: "ten"}


@pytest.mark.parametrize(
    "said",
    [
        f"`when` up to {Limits().when} characters, `do` up to {Limits().do}; of `because` {Limits().because} are kept",
        f"a part of it of {FRAGMENT} characters",
        f"a cosine of {f'{Limits().duplicate:.2f}'.lstrip('0')} with the same numbers",
        f"{Limits().lessons} active lessons a namespace (`max_lessons=`), {Limits().edits} edits an answer",
        f"at most {NUMBERS[TOLD]}, with lessons named by the handles of the new prompt, for {NUMBERS[REFLECTIONS]}",
        f"{len(ONE_TASK_ONLY)} with a value of one task",
        f"and {len(GOOD)} good lessons that must pass",
        f"{STEP_CHARS:,} characters of each",
        f"Advice of fewer than {NUMBERS[LEAST]} telling words always passes",
        "in this order: " + ", ".join(f"`{method}`" for method in METHODS),
        "(" + ", ".join(f"`{seed}`" for seed in SEEDS) + ") that is not set",
    ],
)
def test_the_page_says_what_the_code_does(said: str) -> None:
    assert said in PAGE
