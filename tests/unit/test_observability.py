"""docs/observability.md says what the code does: each of its tables is compared."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reflect_middleware import signals, testing
from reflect_middleware.advice import REMEDIES, Finding
from reflect_middleware.counters import Count

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text()
TELLING = (ROOT / "reflect_middleware" / "telemetry.py", ROOT / "reflect_middleware" / "signals.py")
METRICS = {*signals.BOUNDS, signals.FAILURES}
EVENT = "gen_ai.evaluation.result"


def table(heading: str) -> list[list[str]]:
    """The rows of the table with this head."""
    lines = PAGE.splitlines()
    start = lines.index(heading) + 2
    rows: list[list[str]] = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert rows
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first(heading: str) -> list[str]:
    return [names(row[0])[0] for row in table(heading)]


def literals(prefix: str) -> set[str]:
    """All whole strings of the telling modules that begin so."""
    nodes = (node for file in TELLING for node in ast.walk(ast.parse(file.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if re.fullmatch(rf"{prefix}\.[a-z_.]+", text)}


def logging_modules() -> Iterator[str]:
    for folder in (ROOT, ROOT / "adapters"):
        for file in folder.glob("reflect_*/**/*.py"):
            if "getLogger(__name__)" in file.read_text():
                yield ".".join(file.relative_to(folder).with_suffix("").parts)


def test_loggers() -> None:
    assert sorted(first("| logger | tells |")) == sorted(logging_modules())


def test_counters() -> None:
    assert first("| counter | counts |") == sorted(REMEDIES)


def test_fields_of_a_finding() -> None:
    assert first("| field | meaning |") == list(Finding(check="c", message="m").model_dump())


def test_checks_and_their_facts() -> None:
    with testing.reflection() as reflection:
        reflection._core.parts.ledger.health.add({"store": Count(count=1, last="away", at=1.0)})
        found = {finding.check.partition(": ")[0]: list(finding.facts) for finding in reflection.doctor()}
    rows = table("| check | facts | says |")
    assert {names(row[0])[0].removesuffix(": …"): names(row[1]) for row in rows} == found


def test_attributes_of_spans_and_events_and_metrics() -> None:
    told = literals("gen_ai") | literals("reflect") | literals("error")
    spans, events = first("| attribute | on | value |"), first("| attribute | value |")
    rows = table("| metric | kind, unit | attributes |")
    of_metrics = {name for row in rows for name in names(row[2])}
    assert {names(row[0])[0] for row in rows} == METRICS
    assert {*spans, *events, *of_metrics} == told - METRICS - {EVENT}
    assert f"`{EVENT}`" in PAGE
    content = {
        name for heading in ("| attribute | on | value |", "| attribute | value |") for name in _content(heading)
    }
    assert content == {
        "gen_ai.memory.query.text",
        "gen_ai.memory.records",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.evaluation.explanation",
    }


def _content(heading: str) -> list[str]:
    return [names(row[0])[0] for row in table(heading) if row[-1].startswith("content:")]


def test_units_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.metrics import NoOpMeterProvider

    made = {}

    class Meters(NoOpMeterProvider):
        def get_meter(self, *_: object, **__: object) -> Meters:  # type: ignore[override]
            return self

        def create_histogram(self, name: str, unit: str, *_: object, **__: object) -> None:
            made[name] = f"histogram, {unit}"

        def create_counter(self, name: str, unit: str, *_: object) -> None:
            made[name] = f"counter, {unit}"

    signals._instruments.__wrapped__(Meters())
    assert {names(row[0])[0]: row[1] for row in table("| metric | kind, unit | attributes |")} == made


@pytest.mark.parametrize("row", table("| value | content |"), ids=lambda row: row[0])
def test_values_of_the_environment_variable(row: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"`{signals.CAPTURE}`" in PAGE
    monkeypatch.setenv(signals.CAPTURE, names(row[0])[0])
    where = {"none": (False, False), "on spans": (True, False), "in events": (False, True), "both": (True, True)}
    expected = next(pair for word, pair in where.items() if row[1].startswith(word))
    assert (signals.captures("SPAN"), signals.captures("EVENT")) == expected


def test_spans() -> None:
    source = TELLING[0].read_text()
    for name in first("| span | when | parent |"):
        operation, _, workflow = name.partition(" ")
        assert f'"{operation}"' in source
        assert workflow in ("", "reflect")
