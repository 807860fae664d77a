"""What docs/postgres.md prints runs, and another process sees what was learned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reflect_middleware import testing
from reflect_middleware.connecting import PING_AFTER, POOL
from reflect_middleware.libpq import LIBPQ, TIMEOUTS
from tests.loop.conftest import RULE, adding, agent

PAGE = (Path(__file__).parents[2] / "docs" / "postgres.md").read_text()
URL = "postgresql+psycopg://agents:password@db.internal/agents"

OTHER = """
import sys
from reflect_middleware import Reflection, testing
from tests.loop.conftest import agent

model = testing.ScriptedChatModel(lambda messages: str(messages[0].content))
settings = {"store": "exact", "embeddings": "hashing", "min_similarity": -1.0}  # hashes know no meaning
with Reflection(ledger=sys.argv[1], namespace=("acme", "{user_id}"), **settings) as reflection:
    graph = reflection.wrap(agent(model))
    for user in ("ann", "bob"):
        answer = graph.invoke({"messages": "Refund order 7"}, {"configurable": {"user_id": user}})
        print(answer["messages"][-1].content.replace("\\n", " "))
"""


@pytest.mark.process
def test_the_page_runs_as_printed_and_another_process_sees_the_lesson(postgres: str, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    reflector = testing.ScriptedChatModel(lambda _: adding())
    settings = f'path={str(tmp_path)!r}, store="exact", embeddings="hashing",'
    code = code.replace('"openai:gpt-5-mini",', f"reflector_model, {settings}").replace(URL, postgres)
    given: dict[str, Any] = {"agent": agent(), "reflector_model": reflector}
    exec(compile(code, "docs/postgres.md", "exec"), given)
    given["reflection"].close()
    assert RULE in str(reflector.calls[0])
    done = subprocess.run([sys.executable, "-c", OTHER, postgres], capture_output=True, text=True, check=True)
    ann, bob = done.stdout.splitlines()
    assert json.loads(adding())["edits"][0]["do"] in ann
    assert bob == "Refund order 7"


def test_the_page_prints_the_limits_that_hold() -> None:
    keepalives = LIBPQ["keepalives_idle"] + LIBPQ["keepalives_interval"] * LIBPQ["keepalives_count"]
    for text in (
        f"up to {POOL['pool_size']} connections and opens up to {POOL['max_overflow']} more",
        f"rested for more than {PING_AFTER:.0f} s",
        f"| connecting | {LIBPQ['connect_timeout']} s |",
        f"{LIBPQ['tcp_user_timeout'] // 1000} s, {keepalives} s |",
        *(f"`{name}` | {seconds} s |" for name, seconds in re.findall(r"-c (\w+)=(\d+)s", TIMEOUTS)),
    ):
        assert text in PAGE, text
