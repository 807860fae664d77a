"""From staging to production by way of a reviewed file, offline: the models are scripted, everything else is real.

Staging learns and exports. A reviewer changes a line, as in a pull request. Production serves the file: no ledger, no
reflecting model, no writes. Staging takes the reviewed words back in.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from one_line import RULE, build_agent, reflector_script
from reflect_middleware import Reflection
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

ORDER = {"messages": "refund order 2001, 990 EUR"}


def learn(staging: Reflection) -> None:
    """One run, its reward, and the lesson from it."""
    result = staging.wrap(build_agent()).invoke({"messages": "refund order 1182, 340 EUR"})
    staging.reward(result, 0.0, source="user", comment=RULE)
    staging.reflect()


def review(file: Path) -> None:
    """What a person does to a line."""
    text = file.read_text()
    print("to review:", text.strip())
    file.write_text(text.replace('"ask a manager"', '"ask a manager and name the amount"'))


def main() -> None:
    """Learn, export, review, serve, take back."""
    file, embeddings = Path(tempfile.mkdtemp()) / "lessons.jsonl", HashingEmbeddings()
    with Reflection(ScriptedChatModel(reflector_script), every=99, embeddings=embeddings) as staging:
        learn(staging)
        staging.lessons.export(file)
        review(file)
        print("the review:", staging.lessons.diff(None, file))
        with Reflection.frozen(file, embeddings=embeddings) as production:
            print("production:", production.wrap(build_agent()).invoke(ORDER)["messages"][-1].content)
            print(production.preview(ORDER).block)
        print("staging:", staging.lessons.import_(file))
        print("again:", staging.lessons.import_(file))


if __name__ == "__main__":
    main()
