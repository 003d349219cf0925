"""A real PostgreSQL for the tests: Debian's, in a temporary directory, on a free port of 127.0.0.1, synced to the disk as it comes.

`postgres()` is the one server of a test run; `database()` makes a fresh, migrated database in it. Tests that stop, break or configure a
server start one of their own: `Server`.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import psycopg

from proxy.store.postgres.schema import migrate
from tests.support.live import PATIENCE_SECONDS, eventually, free_port

_PASSWORD = "a-password-that-no-log-may-show"
_TEMPLATE = "scq_template"


def programs() -> Path | None:
    """The newest server that is installed: Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as the user whom Debian's package has made."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"] if os.geteuid() == 0 else []


class Server:
    """Started at once.

    `settings`: lines of postgresql.conf, by name; `port`: any that is free, unless it is given; `environment`: of its process, beside ours.
    """

    def __init__(
        self, *, port: int | None = None, environment: Mapping[str, str] | None = None, **settings: str
    ) -> None:
        found = programs()
        if found is None:
            import pytest  # noqa: PLC0415 - here, because the benchmark uses servers as well, and is installed without it

            missing = "no PostgreSQL: install Debian's package postgresql"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
        self._programs = found
        self._directory = Path(tempfile.mkdtemp(prefix="scq-postgres-"))
        self.port = port or free_port()
        self._environment = os.environ | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._has_template = False
        self._fill()
        self._configure(settings)
        self.start()

    def _fill(self) -> None:
        """Makes its directory of data."""
        password = self._directory / "password"
        password.write_text(_PASSWORD, encoding="ascii")
        if os.geteuid() == 0:
            for path in (self._directory, password):
                shutil.chown(path, "postgres", "postgres")
        options = ["-U", "scq", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-A", "scram-sha-256", f"--pwfile={password}"]
        self._run("initdb", "-D", str(self._data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*_as_postgres(), self._programs / program, *arguments],
            check=True,
            timeout=PATIENCE_SECONDS,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
        )

    def _configure(self, settings: dict[str, str]) -> None:
        usual = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._directory),
        }
        # Its memory comes from files, as /dev/shm is small in many containers.
        usual |= {"max_connections": "100", "shared_buffers": "64MB", "dynamic_shared_memory_type": "mmap"}
        lines = [f"{name} = '{value}'" for name, value in (usual | settings).items()]
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(encoding="utf-8", errors="replace")

    def dsn(self, database: str = "postgres", *, user: str = "scq", password: str = _PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    # --- its life

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_postgres(), self._programs / "postgres", "-D", self._data],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=self._environment,
                start_new_session=True,
            )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server has ended: {self.log[-2000:]}"
        try:
            psycopg.connect(self.dsn(), connect_timeout=round(PATIENCE_SECONDS)).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Shuts down in order, ending whatever is connected."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """As if its machine had crashed: nothing it has not synced is written any more. `start` starts it again."""
        if self._process is None:
            return
        children = self._children()
        self._signal(signal.SIGKILL)
        for child in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        eventually(lambda: not any(_runs(child) for child in children))

    def freeze(self) -> None:
        """Freezes the server, as if its machine hung: connections stay open, without answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # first, so that there will be no more children
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGSTOP)

    def wake(self) -> None:
        assert self._process is not None
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    def _children(self) -> list[str]:
        assert self._process is not None
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    # --- databases

    def wait_for_standbys(self, names: str) -> None:
        """Sets the standbys that commits wait for, `""` for none."""
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """One statement of the superuser, outside a transaction."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def cut_connections(self, database: str) -> None:
        """All to this database."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,))

    def empty_database(self) -> str:
        """The DSN of a new one without tables."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.dsn(name)

    def database(self) -> str:
        """The DSN of a new one that is migrated."""
        if not self._has_template:
            self._has_template = True
            self.execute(f"CREATE DATABASE {_TEMPLATE}")
            with ThreadPoolExecutor(1) as thread:  # the caller's may run an event loop
                thread.submit(asyncio.run, migrate(self.dsn(_TEMPLATE))).result(PATIENCE_SECONDS)
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self.dsn(name)


class Standby(Server):
    """Follows `primary`, which knows it by its `name`."""

    def __init__(self, primary: Server, name: str = "standby", *, port: int | None = None) -> None:
        self._primary, self._name = primary, name
        super().__init__(port=port)

    def _fill(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self._directory, "postgres", "postgres")
        source = f"{self._primary.dsn()}?application_name={self._name}"
        self._run("pg_basebackup", "-d", source, "-D", str(self._data), "-N", "-R", "-c", "fast")

    def promote(self) -> None:
        """Promotes it to primary."""
        self.execute("SELECT pg_promote()")

    def follows(self) -> bool:
        """Returns whether it is connected to its primary."""
        return self._primary.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'") != []


def _runs(pid: str) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


@cache
def postgres() -> Server:
    """The server that all tests of this run share, unless they need their own."""
    server = Server()
    atexit.register(server.remove)
    return server


def database() -> str:
    """The DSN of a fresh, migrated database."""
    return postgres().database()
