"""Other projects' own tests as judge of ours: `make upstream`.

LangGraph's, langgraph-prebuilt's and LangChain's source packages hold their tests. They are downloaded in the versions
that are installed here, and run in arms that differ in nothing but our library: bare; with every graph wrapped; with a
middleware that does nothing in every agent (idle); with ours. Ours run with no lesson, with one, and with one that is
found and merged and whose words are then taken out again (hidden).

A test that passes bare and fails in an arm fails this program, unless `expected.toml` names it with a reason; so does
every failure of ours that a run survived. A new failure is run once more by itself: many of these tests measure time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "upstream"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false",
    "NO_DOCKER": "true",  # langgraph's tests: no PostgreSQL or Redis
    "NO_COLOR": "1",
}
WRAPPED = ("bare", "wrap", "wrap+lesson", "wrap+hidden")
MIDDLEWARE = ("idle", "middleware", "middleware+lesson", "middleware+hidden")
QUICK = ("bare", "wrap", "middleware")
SECOND_CHANCES = 10
"""More new failures than this in an arm are not run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One project's tests."""

    package: str
    tests: str
    """The folder in the source package, relative to its root."""
    arms: tuple[str, ...]
    detect: bool
    """Whether we bring the detector of blocking calls; LangChain's tests have it themselves."""

    @property
    def version(self) -> str:
        """The installed version, which is the one that is downloaded."""
        return version(self.package)


SUITES = (
    Suite(package="langchain", tests="tests/unit_tests/agents", arms=WRAPPED + MIDDLEWARE, detect=False),
    Suite(package="langgraph-prebuilt", tests="tests", arms=WRAPPED, detect=True),
    Suite(package="langgraph", tests="tests", arms=WRAPPED, detect=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one arm made of a suite."""

    passed: frozenset[str]
    failed: dict[str, str]
    """Test id to report."""
    complaints: tuple[tuple[str, str], ...]
    """(test id, what our library could not do while it ran)."""
    episodes: int
    injected: int
    """Model calls that got a lesson."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An arm against bare."""

    expected: tuple[str, ...]
    unexpected: tuple[str, ...]
    complaints: tuple[tuple[str, str], ...]
    """Those that nothing in `expected.toml` explains."""

    @property
    def bad(self) -> bool:
        """Whether the library failed its judge."""
        return bool(self.unexpected or self.complaints)


def sources(suite: Suite) -> Path:
    """The unpacked source package, downloaded once."""
    folder = BUILD / f"{suite.package.replace('-', '_')}-{suite.version}"
    if not folder.exists():
        wanted = f"{suite.package}=={suite.version}"
        print(f"Downloading the source package of {wanted} into {BUILD}.", flush=True)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        only = ("--no-binary", suite.package, "--dest", str(BUILD))
        subprocess.run([*pip, *only, wanted], check=True)
        with tarfile.open(folder.with_name(f"{folder.name}.tar.gz")) as archive:
            archive.extractall(BUILD, filter="data")
    return folder


def fixed(suite: Suite) -> frozenset[str]:
    """The suite's part of the fixed list."""
    lines = (HERE / "fixed.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return frozenset(test for package, _, test in pairs if package == suite.package)


def run(suite: Suite, arm: str, only: frozenset[str], name: str = "") -> Outcome:
    """Run one arm of a suite in a process of its own; its report is kept under `name`."""
    folder = sources(suite)
    out = BUILD / f"{folder.name}-{name or arm}.json"
    out.unlink(missing_ok=True)
    files = sorted({test.partition("::")[0] for test in only})
    where = [file for file in files if (folder / file).exists()] if only else [suite.tests]
    own = {"REFLECT_ARM": arm, "REFLECT_OUTCOMES": str(out), "REFLECT_ONLY": "\n".join(only)}
    env = {**os.environ, **QUIET, **own, "PYTHONPATH": str(HERE)} | ({"REFLECT_DETECT": "1"} if suite.detect else {})
    options = ("-p", "arms", "-p", "no:cacheprovider", "-o", "addopts=", "-vv", "--tb=short")
    # Drawings are compared with those of the bare arm: the ones in the source package may be of other versions.
    update = ("--snapshot-update",) if arm == "bare" else ()
    command = (sys.executable, "-m", "pytest", *options, *update, *where)
    start = time.monotonic()
    log = out.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(command, cwd=folder, env=env, stdout=file, stderr=file, check=False)
    if not out.exists():
        raise SystemExit(f"{suite.package} {arm}: pytest did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")
    return outcome(json.loads(out.read_text(encoding="utf-8")), time.monotonic() - start)


def outcome(left: dict[str, Any], seconds: float) -> Outcome:
    """What the plugin wrote, typed."""
    return Outcome(
        passed=frozenset(left["passed"]),
        failed=left["failed"],
        complaints=tuple((test, text) for test, text in left["complaints"]),
        episodes=left["episodes"],
        injected=left["injected"],
        seconds=seconds,
    )


def judge(bare: Outcome, seen: Outcome, known: list[dict[str, Any]], suite: Suite, arm: str) -> Verdict:
    """Compare an arm with bare. A test that did not run in the arm counts as failed."""
    here = [entry for entry in known if entry["suite"] == suite.package and arm in entry["arms"]]
    tests = [pattern for entry in here if entry["what"] == "fails" for pattern in entry["tests"]]
    survived = [pattern for entry in here if entry["what"] == "survives" for pattern in entry["tests"]]
    new = sorted(bare.passed - seen.passed)
    return Verdict(
        expected=tuple(test for test in new if matches(test, tests)),
        unexpected=tuple(test for test in new if not matches(test, tests)),
        complaints=tuple((test, text) for test, text in seen.complaints if not matches(test, survived)),
    )


def second_chance(suite: Suite, arm: str, seen: Outcome, verdict: Verdict) -> Verdict:
    """Run new failures again: some of these tests allow a tenth of a second for what a busy machine does in two."""
    if not 0 < len(verdict.unexpected) <= SECOND_CHANCES:
        return verdict
    again = run(suite, arm, frozenset(verdict.unexpected), f"{arm}-again")
    for test in sorted(again.passed & set(verdict.unexpected)):
        print(f"    passed the second time: {test}\n        {why(seen, test)}")
    return replace(verdict, unexpected=tuple(test for test in verdict.unexpected if test not in again.passed))


def why(seen: Outcome, test: str) -> str:
    """The last line of a failure's report."""
    return seen.failed.get(test, "did not run").strip().splitlines()[-1][:200]


def matches(test: str, patterns: list[str]) -> bool:
    """Whether one of the patterns names the test; brackets in an id are plain text."""
    return any(fnmatchcase(test, pattern.replace("[", "[[]")) for pattern in patterns)


def report(suite: Suite, arm: str, seen: Outcome, verdict: Verdict) -> None:
    """One row of the table, and under it what must not be."""
    print(
        f"{suite.package:<19}{suite.version:<9}{arm:<19}{len(seen.passed):>6}{len(seen.failed):>7}"
        f"{len(verdict.expected):>10}{len(verdict.unexpected):>11}{len(verdict.complaints):>10}"
        f"{seen.episodes:>10}{seen.injected:>9}{seen.seconds:>7.0f}",
        flush=True,
    )
    for test in verdict.unexpected:
        print(f"    NEW FAILURE {test}\n        {why(seen, test)}")
    for test, text in verdict.complaints:
        print(f"    OUR FAILURE in {test}\n        {text[:200]}")


def main() -> None:
    """Run the suites; exit with 1 where the library failed its judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append", choices=[suite.package for suite in SUITES], help="only this one")
    parser.add_argument("--arm", action="append", choices=WRAPPED[1:] + MIDDLEWARE, help="only this one, beside bare")
    parser.add_argument(
        "--fixed", action="store_true", help="only the tests of fixed.txt, in the arms without a lesson"
    )
    parser.add_argument("--download", action="store_true", help="only download the source packages")
    asked = parser.parse_args()
    suites = [suite for suite in SUITES if not asked.suite or suite.package in asked.suite]
    for suite in suites:
        sources(suite)
    if asked.download:
        return
    known = tomllib.loads((HERE / "expected.toml").read_text(encoding="utf-8"))["group"]
    print(
        f"langgraph {version('langgraph')}, langchain {version('langchain')}, langchain-core"
        f" {version('langchain-core')}, Python {sys.version.split()[0]}\n"
        "suite              version  arm                passed failed  expected unexpected our fail.  episodes  lessons"
        "      s"
    )
    bad = 0
    for suite in suites:
        only = fixed(suite) if asked.fixed else frozenset[str]()
        bare = run(suite, "bare", only)
        report(suite, "bare", bare, Verdict(expected=(), unexpected=(), complaints=()))
        for arm in suite.arms[1:]:
            if (asked.arm and arm not in asked.arm) or (asked.fixed and arm not in QUICK):
                continue
            seen = run(suite, arm, only)
            verdict = second_chance(suite, arm, seen, judge(bare, seen, known, suite, arm))
            report(suite, arm, seen, verdict)
            bad += verdict.bad
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
