"""What is shipped, and what importing it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("chromadb", "onnxruntime", "langchain", "sqlalchemy", "numpy", "tokenizers", "typer", "reflect_adapters")
ENTRY_POINTS = [
    pytest.param(point, id=f"{group}-{point.name}")
    for group in PROJECT["project"]["entry-points"]
    for point in metadata.entry_points(group=group)
    if point.dist is not None and point.dist.name == "reflect-middleware"
]


def run(code: str) -> str:
    """The output of a fresh interpreter that may keep bytecode, as one of an installed package has."""
    unwanted = ("COV", "REFLECT", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def modules(code: str) -> set[str]:
    return set(json.loads(run(f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))")))


def import_seconds(module: str) -> float:
    """Of CPU time: wall time would measure this machine's other work, too."""
    return float(run(f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"))


def test_import_loads_no_heavy_package() -> None:
    own = modules("import reflect_middleware")
    given = modules("import langgraph.graph")
    assert {name for name in HEAVY if name in own and name not in given} == set()


@pytest.mark.process
def test_import_takes_less_than_one_and_a_half_of_langgraph() -> None:
    import_seconds("reflect_middleware")  # writes bytecode, warms the disk cache
    bare = ours = float("inf")
    for turn in range(20):  # the least of each: the rest is what other processes did to the caches
        bare, ours = min(bare, import_seconds("langgraph.graph")), min(ours, import_seconds("reflect_middleware"))
        if turn >= 4 and ours < 1.5 * bare:
            break
    assert ours < 1.5 * bare, f"{ours:.2f} s against {bare:.2f} s"


def test_version_is_the_installed_one() -> None:
    import reflect_middleware

    assert reflect_middleware.__version__ == metadata.version("reflect-middleware") == PROJECT["project"]["version"]


def test_all_public_names_exist() -> None:
    import reflect_middleware

    assert [name for name in reflect_middleware.__all__ if not hasattr(reflect_middleware, name)] == []


@pytest.mark.parametrize("point", ENTRY_POINTS)
def test_entry_point_names_a_factory(point: metadata.EntryPoint) -> None:
    assert callable(point.load())


def test_every_entry_point_is_installed() -> None:
    listed = {name for group in PROJECT["project"]["entry-points"].values() for name in group}
    assert {param.values[0].name for param in ENTRY_POINTS} == listed


def test_lower_bounds_are_the_tested_ones() -> None:
    """Every bound that `tests/lowest.txt` pins is the one of pyproject.toml."""
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["local"], *extras["langchain"]]
    for requirement in wanted:
        name, _, bounds = requirement.partition(">=")
        bound = bounds.partition(",")[0]
        assert pinned[name] == bound or pinned[name].removesuffix(".0") == bound, requirement


def test_wheel_holds_both_packages_and_their_type_marks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    own = {str(p.relative_to(ROOT)) for p in (ROOT / "reflect_middleware").rglob("*.py")}
    assert own <= names
    assert {"reflect_middleware/py.typed", "reflect_adapters/py.typed", "reflect_adapters/chroma.py"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "reflect_middleware",
        "reflect_adapters",
        f"reflect_middleware-{PROJECT['project']['version']}.dist-info",
    }
