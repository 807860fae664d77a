"""The figures of docs/consolidation.md are those of the code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from reflect_middleware import Reflection
from reflect_middleware.clusters import MOST_CLUSTERS, MOST_LESSONS, NEAR, NEAR_CAP, RELATED, SHARED, SOONER
from reflect_middleware.consolidating import SOURCES
from reflect_middleware.desk import Limits
from reflect_middleware.fading import DAYS, EPISODES, GONE
from reflect_middleware.nearby import FEW
from reflect_middleware.reflections_table import LOOKED_AT
from reflect_middleware.schema import CONSOLIDATION
from reflect_middleware.surviving import KEPT
from reflect_middleware.use_table import LOOKED_AT as EPISODES_LOOKED_AT

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "consolidation.md").read_text().split())
EVERY = inspect.signature(Reflection.__init__).parameters["consolidate_every"].default
WORDS = {0.5: "half", 3: "three", 4: "a quarter"}


@pytest.mark.parametrize(
    "said",
    [
        f"consolidate_every={EVERY}) # the default",
        f"once {NEAR_CAP:.0%} of `max_lessons` are active, {WORDS[SOONER]} as many".replace("%", " %"),
        f"at most {MOST_CLUSTERS} questions, each about 2 to {MOST_LESSONS} lessons",
        f"a cosine of {f'{RELATED:.2f}'[1:]}, or of {f'{NEAR:.2f}'[1:]} and a third ({f'{SHARED:.2f}'[1:]})",
        f"{MOST_LESSONS} lessons at most",
        f"Of more than {FEW} active lessons",
        f"less than {WORDS[KEPT]} of the telling words",
        f"the tasks of its {WORDS[SOURCES]} newest sources",
        f"(up to {Limits().because} characters)",
        f"the last **{EPISODES} episodes**",
        f"of the newest {EPISODES_LOOKED_AT:,} episodes",
        f"for **{DAYS:g} days**",
        f"**{WORDS[GONE]} of both** is enough",
        f"the namespace's newest {LOOKED_AT} reflections",
        f"`{CONSOLIDATION}`",
    ],
)
def test_the_page_says_what_the_code_does(said: str) -> None:
    assert said in PAGE
