"""Looking for bytes in files, of whatever size, without disturbing SQLite's locks."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from reflect_middleware import residue

if TYPE_CHECKING:
    from pathlib import Path


def test_ids_and_words_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residue, "PIECE", 1_000)
    ids = [str(uuid4()) for _ in range(40)]
    held = b"x".join(b"\x00" * 77 + one.encode() for one in ids) + "the wörd".encode()
    file = tmp_path / "any.bin"
    file.write_bytes(held)
    other = str(uuid4())
    assert residue.found_in(file, [*ids, other], ["the wörd", "another", "rd", "z"]) == {*ids, "the wörd", "rd"}
    assert residue.found_in(tmp_path / "missing", ids, ["x"]) == set()


def test_a_live_database_keeps_its_locks(tmp_path: Path) -> None:
    file = tmp_path / "live.db"
    script = f"import sqlite3; sqlite3.connect({str(file)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        residue.found_in(file, [], ["x"], live=True)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "locked" in done.stderr
    connection.execute("COMMIT")
    connection.close()
