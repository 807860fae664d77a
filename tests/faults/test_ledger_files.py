"""What can happen to a ledger's file: the run goes on, nothing is lost in silence, the error says what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reflect_middleware import Reflection, connecting, places, testing
from reflect_middleware.errors import LedgerDamagedError, LedgerError, LedgerPlaceError, LedgerUnavailableError
from reflect_middleware.ledger import Ledger
from reflect_middleware.schema import meta
from tests.loop.conftest import RULE, agent

LINUX = """\
22 28 0:20 / /proc rw,nosuid shared:5 - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
61 28 0:52 / /home rw,relatime - nfs4 server:/home rw,vers=4.2
62 61 254:1 / /home/local rw - xfs /dev/vdb rw
63 28 0:53 / /mnt/my\\040share rw - cifs //server/share rw
64 28 0:54 / /data rw - fuse.sshfs me@host: rw
65 28 0:55 / /workspace rw master:2 - 9p host rw,trans=virtio
66 28 0:56 / /shared rw - virtiofs host rw
67 28 0:57 / /layers rw - overlay overlay rw
68 28 254:2 / /srv rw - ext4 /dev/vdc rw
69 28 0:58 / /srv rw - glusterfs volume rw
"""
MACOS = """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
//me@host/share on /Volumes/my share (smbfs, nodev, nosuid, mounted by me)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled)
"""


def episodes(reflection: Reflection) -> set[str]:
    """The tasks of all recorded runs."""
    return {episode.task for episode in reflection.episodes.list(limit=1_000)}


def failures(reflection: Reflection) -> dict[str, str]:
    """What `reflect doctor` has to complain about."""
    return {finding.check: finding.message for finding in reflection.doctor() if not finding.ok}


def says(graph: Any, text: str) -> str:
    """Run it, as a user does; gives the answer."""
    return str(graph.invoke({"messages": text})["messages"][-1].content)


# Where it lies.


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/agent/ledger.db", ""),
        ("/home/ann/.reflect/ledger.db", "nfs4"),
        ("/home/local/ledger.db", ""),
        ("/homely/ledger.db", ""),
        ("/mnt/my share/ledger.db", "cifs"),
        ("/data/../data/x/ledger.db", "fuse.sshfs"),
        ("/workspace/ledger.db", ""),
        ("/shared/ledger.db", ""),
        ("/layers/ledger.db", ""),
        ("/srv/ledger.db", "glusterfs"),
    ],
)
def test_network_file_systems_are_known_by_their_mounts(path: str, kind: str) -> None:
    assert places.network_of(Path(path), places.mounts_of_linux(LINUX)) == kind


def test_network_file_systems_are_known_on_macos() -> None:
    mounts = places.mounts_of_macos(MACOS)
    assert places.network_of(Path("/Volumes/my share/x/ledger.db"), mounts) == "smbfs"
    assert places.network_of(Path("/Users/ann/ledger.db"), mounts) == ""


def test_a_link_to_a_network_is_seen_without_touching_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").symlink_to(tmp_path / "share" / "reflect")
    touched: list[str] = []
    real = Path.is_symlink
    monkeypatch.setattr(Path, "is_symlink", lambda path: (touched.append(str(path)), real(path))[1])
    mounts = [("/", "ext4"), (str(tmp_path / "share"), "nfs")]
    assert places.network_of(tmp_path / "home" / "ledger.db", mounts) == "nfs"
    assert not [path for path in touched if "share" in path]


def test_a_network_file_system_is_refused_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_mounts", lambda: [("/", "ext4"), (str(tmp_path), "nfs4")])
    with testing.reflection(path=str(tmp_path / "r")) as reflection:
        with pytest.raises(LedgerPlaceError, match=r"network file system \(nfs4\).*postgresql\+psycopg://"):
            reflection.episodes.list()
        assert says(reflection.wrap(agent()), "Refund 1") == "refunded"
        assert "nfs4" in failures(reflection)["ledger"]
    assert not (tmp_path / "r").exists()


def test_a_disk_that_cannot_hold_the_log_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///file:{tmp_path / 'ledger.db'}?vfs=unix-none&uri=true")  # a VFS without shared memory
    with pytest.raises(LedgerPlaceError, match=r"journal_mode 'wal', it stays at 'delete'.*postgresql\+psycopg://"):
        ledger.episodes.find()
    ledger.close()


# When it is deleted or replaced.


@pytest.mark.parametrize("gone", ["file", "file and log", "folder"])
def test_a_deleted_ledger_is_noticed_and_a_new_one_begun(
    tmp_path: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    home, model = tmp_path / "home", testing.ScriptedChatModel(lambda _: "refunded")
    with testing.reflection(path=str(home), every=99) as reflection:
        reflection.lessons.add(when="refunding an order", do=RULE)
        graph = reflection.wrap(agent(model))
        for n in range(3):
            says(graph, f"Refund {n}")
        if gone == "folder":
            shutil.rmtree(home)
        else:
            for name in ["ledger.db", *(["ledger.db-wal", "ledger.db-shm"] if "log" in gone else [])]:
                (home / name).unlink()
        assert says(graph, "Refund 3") == "refunded"
        says(graph, "Refund 4")
        reflection.flush()
        assert episodes(reflection) == {"Refund 3", "Refund 4"}
        assert "was deleted or replaced under this process" in caplog.text
        assert "reflect restore" in failures(reflection)["failures: ledger"]
        assert reflection.lessons.list() == ()
        assert [message.type for message in model.calls[-1]] == ["human"]
        reflection.lessons.add(when="refunding an order", do="ask twice")
        says(graph, "Refund 5")
        assert "ask twice" in model.calls[-1][0].content
        assert RULE not in model.calls[-1][0].content
    with sqlite3.connect(home / "ledger.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_processes_meet_again_in_the_new_file(tmp_path: Path) -> None:
    several = [testing.reflection(path=str(tmp_path), every=99) for _ in range(4)]
    graphs = [reflection.wrap(agent()) for reflection in several]
    for graph in graphs:
        says(graph, "before")
    (tmp_path / "ledger.db").unlink()
    with ThreadPoolExecutor(4) as threads:
        for round_ in range(5):
            tasks = [f"{n} {round_}" for n in range(4)]
            assert list(threads.map(says, graphs, tasks)) == ["refunded"] * 4
    several[1].close()
    says(graphs[0], "after")
    assert episodes(several[0]) == {f"{n} {r}" for n in range(4) for r in range(5)} | {"after"}
    for reflection in several:
        reflection.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM episodes").fetchone() == (21,)
    connection.close()


def test_what_goes_into_a_deleted_file_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with testing.reflection(path=str(tmp_path), every=99) as reflection:
        graph = reflection.wrap(agent())
        says(graph, "before")
        database = reflection._core.parts.ledger.database
        with pytest.raises(LedgerUnavailableError, match="while something was written"), database.write():
            (tmp_path / "ledger.db").unlink()
        says(graph, "between")
        real = database._spare.take

        def deleting(engine: sa.Engine) -> Any:
            (tmp_path / "ledger.db").unlink()
            monkeypatch.undo()
            return real(engine)

        monkeypatch.setattr(database._spare, "take", deleting)
        assert says(graph, "lost and found") == "refunded"
        says(graph, "after")
        reflection.flush()
        assert episodes(reflection) == {"lost and found", "after"}


def test_a_file_put_in_its_place_is_read_at_once(tmp_path: Path) -> None:
    with testing.reflection(path=str(tmp_path / "other"), every=99) as other:
        other.lessons.add(when="refunding an order", do="from the backup")
    model = testing.ScriptedChatModel(lambda _: "refunded")
    with testing.reflection(path=str(tmp_path / "home"), every=99) as reflection:
        reflection.lessons.add(when="refunding an order", do=RULE)
        graph = reflection.wrap(agent(model))
        says(graph, "Refund 1")
        for ending in ("-wal", "-shm"):
            (tmp_path / "home" / f"ledger.db{ending}").unlink(missing_ok=True)
        (tmp_path / "other" / "ledger.db").replace(tmp_path / "home" / "ledger.db")
        says(graph, "Refund 2")
        reflection.flush()
        says(graph, "Refund 3")
        assert "from the backup" in model.calls[-1][0].content
        assert RULE not in model.calls[-1][0].content
        assert episodes(reflection) == {"Refund 2", "Refund 3"}


# When it is damaged.


@pytest.mark.parametrize("backup", [True, False])
def test_what_is_no_database_says_how_to_recover(tmp_path: Path, *, backup: bool) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database" * 1_000)
    if backup:
        (tmp_path / "backups").mkdir()
        for name in ("ledger-20261101T120000.000000Z.db", "ledger-20261102T120000.000000Z-schema-1.db"):
            (tmp_path / "backups" / name).touch()
    with testing.reflection(path=str(tmp_path)) as reflection:
        todo = (
            f"reflect restore .*ledger-20261102.* --path {tmp_path}" if backup else "no backup in .*move the file away"
        )
        with pytest.raises(LedgerDamagedError, match=rf"not a database.*reflect doctor.*{todo}") as found:
            reflection.episodes.list()
        assert not found.value.temporary
        assert says(reflection.wrap(agent()), "Refund 1") == "refunded"
        assert "not a database" in failures(reflection)["ledger"]


def test_damaged_pages_say_how_to_recover(tmp_path: Path) -> None:
    with testing.reflection(path=str(tmp_path), every=99) as reflection:
        graph = reflection.wrap(agent())
        for n in range(20):
            says(graph, f"Refund {n}")
    file = tmp_path / "ledger.db"
    whole = file.read_bytes()
    file.write_bytes(whole[:4_096] + b"\xa5" * (len(whole) - 4_096))
    with testing.reflection(path=str(tmp_path), every=99) as reflection:
        with pytest.raises(LedgerDamagedError, match=r"malformed.*reflect doctor"):
            reflection.episodes.list()
        graph = reflection.wrap(agent())
        assert says(graph, "Refund 20") == "refunded"
        file.unlink()  # as the message says: move it away
        says(graph, "Refund 21")
        reflection.flush()
        assert episodes(reflection) == {"Refund 20", "Refund 21"}


# When it cannot be written.


def test_a_full_disk_loses_nothing_that_waits(tmp_path: Path) -> None:
    with testing.reflection(path=str(tmp_path), every=99) as reflection:
        graph = reflection.wrap(agent())
        says(graph, "Refund 0")
        database = reflection._core.parts.ledger.database
        engine = database._open()
        limit = 1
        sa.event.listen(engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count={limit}"))
        database._spare.close()
        engine.dispose()
        answers = [says(graph, f"Refund {n} {'x' * 9_000}") for n in range(1, 9)]
        assert answers == ["refunded"] * 8
        with pytest.raises(LedgerUnavailableError, match="full") as found, database.write() as connection:
            connection.execute(database.upsert(meta, key="large", value="x" * 100_000))
        assert found.value.temporary
        limit = 1_000_000
        database._spare.close()
        engine.dispose()
        says(graph, "Refund 9")
        reflection.flush()
        assert {task.split(" x")[0] for task in episodes(reflection)} == {f"Refund {n}" for n in range(10)}
        assert any("full" in message for message in failures(reflection).values())


LIMITED = """
import resource, sys
from pathlib import Path
from reflect_middleware import testing
from tests.loop.conftest import agent

with testing.reflection(path=sys.argv[1], every=99) as reflection:
    graph = reflection.wrap(agent())
    graph.invoke({"messages": "Refund 0"})
    size = (Path(sys.argv[1]) / "ledger.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
    for n in range(1, 9):
        answer = graph.invoke({"messages": f"Refund {n} " + "x" * 9_000})["messages"][-1].content
        assert answer == "refunded", answer
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    graph.invoke({"messages": "Refund 9"})
    reflection.flush()
    print(sorted(e.task[:8] for e in reflection.episodes.list()), all(f.ok for f in reflection.doctor()))
"""


@pytest.mark.process
def test_a_file_that_may_not_grow_loses_nothing_that_waits(tmp_path: Path) -> None:
    out = child(LIMITED, tmp_path)
    assert out == f"{[f'Refund {n}' for n in range(10)]} False"


READ_ONLY = """
import os, sys
from pathlib import Path
from reflect_middleware import testing
from tests.loop.conftest import agent

home = Path(sys.argv[1])
with testing.reflection(every=99) as other:  # imports all that a run needs, which another user may not be able to
    assert other.wrap(agent()).invoke({"messages": "Refund"})
    assert other.doctor()
home.chmod(0o555)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write everywhere
with testing.reflection(path=str(home), every=99, embeddings="hashing") as reflection:
    graph = reflection.wrap(agent())
    for n in range(3):
        assert graph.invoke({"messages": f"Refund {n}"})["messages"][-1].content == "refunded"
    try:
        reflection.episodes.list()
    except Exception as error:
        print(type(error).__name__, error.temporary, end=" ")
    os.seteuid(os.getuid())
    home.chmod(0o755)
    graph.invoke({"messages": "Refund 3"})
    reflection.flush()
    print(sorted(e.task for e in reflection.episodes.list()))
"""


@pytest.mark.process
def test_a_read_only_folder_loses_nothing_that_waits(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    out = child(READ_ONLY, home)
    assert out == f"LedgerUnavailableError True {[f'Refund {n}' for n in range(4)]}"


# When many use it.

WRITER = """
import sys
from reflect_middleware import outage, testing
from tests.loop.conftest import agent

outage.HANG_SECONDS = 60.0  # on a busy machine a writer's turn may come late: that is no outage here

with testing.reflection(path=sys.argv[1], every=99) as reflection:
    graph = reflection.wrap(agent())
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(25):
        result = graph.invoke({"messages": f"{sys.argv[2]} {n}"})
        reflection.reward(result, 0.5)
    reflection.lessons.add(when=f"case {sys.argv[2]}", do="as ever")
    reflection.flush()
    print([(f.check, f.message) for f in reflection.doctor() if not f.ok])
"""


@pytest.mark.process
def test_eight_processes_write_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen([*command, str(n)], stdin=pipe, stdout=pipe, stderr=pipe, text=True) for n in range(8)]
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in children:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in children:
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, out.strip(), "locked" in errors) == (0, "[]", False), errors
    with testing.reflection(path=str(tmp_path), every=99) as reflection:
        found = reflection.episodes.list(limit=1_000)
        assert {episode.task for episode in found} == {f"{p} {n}" for p in range(8) for n in range(25)}
        assert {episode.reward for episode in found} == {0.5}
        assert len(reflection.lessons.list()) == 8


def child(code: str, path: Path) -> str:
    """Run it in a process of its own; gives what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What errors mean.


@pytest.mark.parametrize(
    ("name", "temporary"),
    [("SQLITE_BUSY_SNAPSHOT", True), ("SQLITE_FULL", True), ("SQLITE_READONLY_DBMOVED", True), ("SQLITE_ERROR", False)],
)
def test_errors_tell_whether_they_pass(name: str, *, temporary: bool) -> None:
    error = sqlite3.OperationalError("something")
    error.sqlite_errorname = name
    assert connecting.kind_of(error).temporary is temporary
    assert issubclass(connecting.kind_of(error), LedgerError)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_a_ledger_opens_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "WAIT_SECONDS", 0.2)
    file, (end, begin) = tmp_path / "ledger.db", os.pipe()
    with places.alone(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is what is tried
        if not (forked := os.fork()):
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
    with places.alone(file):  # the child lives, and has the folder open
        pass
    os.close(begin)
    os.close(end)
    os.waitpid(forked, 0)


def test_who_reads_a_replaced_file_is_told_even_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "BUSY_SECONDS", 0.1)
    file, new = tmp_path / "ledger.db", tmp_path / "new" / "ledger.db"
    told: list[LedgerError] = []
    here, there = Ledger(f"sqlite:///{file}"), Ledger(f"sqlite:///{new}")
    here.database.on_replaced = told.append
    assert here.lessons.read_generation() == ""
    assert there.lessons.read_generation() == ""
    there.close()
    new.replace(file)
    for ending in ("-wal", "-shm"):
        Path(f"{file}{ending}").unlink(missing_ok=True)
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailableError):
        here.lessons.read_generation()
    assert len(told) == 1
    writer.close()
    assert here.lessons.read_generation() == ""
    here.close()
