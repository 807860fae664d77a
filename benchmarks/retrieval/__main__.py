"""How well lessons are found, by each embedder: `make retrieval`. Nothing is downloaded.

Each lesson is measured as if it had been learned from a task, and as if a person had written it: then it has none.
`top_k` and the similarity floor are chosen on the tuning part, to serve both; the held-out part is only reported.
Tables are in Markdown, as in docs/retrieval.md. For an embedder of yours: `make retrieval ARGS="--embeddings NAME"`,
where NAME is `openai:text-embedding-3-small` or the like.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.retrieval.labelled import by_hand, lessons, tasks
from benchmarks.retrieval.measure import FLOORS, Found, Ranked, Scores, best_top_k, chosen, rank, scores
from reflect_middleware.errors import ReflectError
from reflect_middleware.registry import open_embedder

EMBEDDERS = ("local", "chroma", "hashing")
HEAD = "| {} | tasks | recall | hit@1 | wrong share | shown | shown any where none fits | shown where none fits |"
RULE = "| --- |" + " ---: |" * 7


def main(arguments: list[str]) -> int:
    """Measure each embedder and print what follows."""
    parser = argparse.ArgumentParser(prog="make retrieval", description=__doc__)
    parser.add_argument("--embeddings", nargs="+", default=EMBEDDERS, help="names, or provider:model")
    asked = parser.parse_args(arguments)
    known, labelled = lessons(), tasks()
    counts = f"{len(known)} lessons, {len(labelled)} tasks"
    print(f"{counts}; Python {platform.python_version()}, numpy {version('numpy')}, {platform.machine()}\n")
    failed = False
    for name in asked.embeddings:
        print(f"## {name}\n")
        if name == "chroma" and not _downloaded():
            print("Its model is not on this machine: Chroma downloads it on first use. Not measured.\n")
            continue
        try:
            started = time.perf_counter()
            embedder = open_embedder(name)
            learned, written = (rank(embedder, found, labelled) for found in (known, by_hand(known)))
        except ReflectError as error:
            failed = True
            print(f"Not measured: {error}\n")
            continue
        texts = 2 * len(known) + len(labelled)
        print(f"{(time.perf_counter() - started) * 1e3 / texts:.1f} ms a text, loading included\n")
        for title, ranked in (("learned, with the task that taught them", learned), ("written by hand", written)):
            print(f"### Lessons {title}\n")
            _report(ranked, *chosen(learned, written))
    return int(failed)


def _report(ranked: Ranked, top_k: int, floor: float) -> None:
    print(HEAD.format("floor, on the tuning part"), RULE, sep="\n")
    for tried in FLOORS:
        print(_row("none" if tried < 0 else f"{tried:.2f}", scores(ranked.found("tuning", top_k, tried))))
    alone = f"top_k={best_top_k(ranked)} would do for these lessons alone"
    print(f"\nChosen on the tuning part, for both: top_k={top_k}, min_similarity={floor:g}; {alone}\n")
    print(HEAD.format("held out"), RULE, sep="\n")
    found = ranked.found("held out", top_k, floor)
    print(_row("all", scores(found)))
    for kind in dict.fromkeys(x.task.kind for x in found):
        print(_row(kind, scores([x for x in found if x.task.kind == kind]), [x for x in found if x.task.kind == kind]))
    print()


def _row(name: str, given: Scores, found: list[Found] | None = None) -> str:
    fitting = [f"{given.recall:.2f}", f"{given.hit_at_1:.2f}", f"{given.wrong:.2f}", f"{given.shown:.1f}"]
    idle = [f"{given.idle:.2f}", f"{given.idle_shown:.1f}"]
    if found is not None:  # of one kind: either all its tasks have a lesson that fits, or none has
        fitting, idle = (fitting, ["", ""]) if given.tasks else ([""] * len(fitting), idle)
    return f"| {' | '.join([name, str(given.tasks if found is None else len(found)), *fitting, *idle])} |"


def _downloaded() -> bool:
    """Whether Chroma has its default model here; asking for it would download it."""
    from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

    folder = Path(ONNXMiniLM_L6_V2.DOWNLOAD_PATH) / ONNXMiniLM_L6_V2.EXTRACTED_FOLDER_NAME
    return (folder / "model.onnx").is_file()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
