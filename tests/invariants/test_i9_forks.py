"""I9: workers forked from a process that has built, opened and used a Reflection, as a preloading server does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork"),
]

SERVER = """
import asyncio, json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.invariants.crowd import Crowd

folder, form, store = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
crowd = Crowd(12, path=str(folder), durability="queue", store=store)
agent = crowd.agent(form=form)
for user in crowd.users:  # used before it forks, and still writing: ledger, store and embedder are open
    agent.invoke(crowd.given(user), crowd.config(user))

async def in_a_loop(users):
    await asyncio.gather(*(agent.ainvoke(crowd.given(user), crowd.config(user)) for user in users))

def work(users):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda user: agent.invoke(crowd.given(user), crowd.config(user)), users))
    for user, result in zip(users, results):
        crowd.reflection.reward(result, crowd.value(user))
    asyncio.run(in_a_loop(users))

def worker(number):
    crowd.seen.clear()
    crowd.models["desk"].calls.clear()
    work(crowd.users[number::2])
    crowd._check_prompts("desk")
    assert len(crowd.models["desk"].calls) == 24
    (folder / f"seen-{number}.json").write_text(json.dumps(crowd.seen))
    sys.exit(0)  # what is queued is written at exit

children = []
for number in (0, 1):
    if (child := os.fork()) == 0:
        worker(number)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
for number in (0, 1):
    crowd.seen += map(tuple, json.loads((folder / f"seen-{number}.json").read_text()))
episodes = crowd.check(desk=3)
assert sum(len(episode.rewards) for episode in episodes) == 12
crowd.reflection.close()
print("all is well")
"""


@pytest.mark.parametrize(("form", "store"), [("wrap", "chroma"), ("middleware", "exact")])
def test_preloaded_and_forked(tmp_path: Path, form: str, store: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path), form, store],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split("\n")[-2:]) == (0, ["all is well", ""]), done.stderr
