"""A real gateway in a process of its own, as a person would start it: ``havengate serve`` on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.store.crypto import Keyring
from gateway.store.uow import Store

START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
SAYS_WITHIN_S = 30.0
DEV_KEY = "test-key-for-one-machine-only"


class Output:
    """What a process says, line by line; a test can wait for a line instead of sleeping."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._over = False

    def read(self, process: subprocess.Popen[str]) -> None:
        """Read to the end; for a thread of its own."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, *parts: str, within_s: float = SAYS_WITHIN_S) -> str:
        """The first line that holds every part, also one said before; fails when the process ends without it."""

        def found() -> str | None:
            return next((line for line in self._lines if all(part in line for part in parts)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._over, within_s)
            line = found()
        assert line is not None, f"the gateway never said {parts}; it said:\n{self.text}"
        return line

    def wait_for_end(self, within_s: float = STOP_WITHIN_S) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over, within_s)


@dataclass
class Gateway:
    """A running gateway: where it is, how to call it, and everything it wrote."""

    base_url: str
    home: Path
    process: subprocess.Popen[str]
    sign_in_link: str
    key: str = DEV_KEY
    output: Output = field(default_factory=Output)

    @property
    def api_url(self) -> str:
        return f"{self.base_url}/v1"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Read the gateway's own database from outside."""
        with contextlib.closing(sqlite3.connect(f"file:{self.home}/havengate.sqlite3?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query, values).fetchall()

    def incident(self, incident_id: str) -> sqlite3.Row:
        (row,) = self.rows("SELECT * FROM incidents WHERE id = ?", incident_id)
        return row

    def evidence(self, incident_id: str) -> str:
        """The words of an incident, opened with the gateway's own key as a reviewer would."""

        async def read() -> str:
            keyring = Keyring.load_or_create(self.home / "keyring.json")
            store = Store.open(f"sqlite+aiosqlite:///{self.home}/havengate.sqlite3", keyring)
            try:
                async with store.read() as unit:
                    return await unit.incidents.evidence(incident_id)
            finally:
                await store.aclose()

        return asyncio.run(read())

    def create_key(self, *scopes: str) -> str:
        """Another API key, made by ``havengate keys create`` while the gateway runs."""
        options = [part for scope in scopes for part in ("--scope", scope)]
        done = havengate("keys", "create", "--name", "test", *options, home=self.home)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> int:
        """Ask it to stop, wait until it has, and return its exit code.  Safe to call twice."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_WITHIN_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(STOP_WITHIN_S)
            self.output.wait_for_end()


def havengate(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one ``havengate`` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The test's environment without any setting of a real gateway."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAVENGATE") and name != "PORT"}
    return kept | {"HAVENGATE_HOME": str(home), "HAVENGATE_DEV_API_KEY": DEV_KEY} | variables


@contextlib.contextmanager
def running(home: Path, *arguments: str, settings: str | None = None, **variables: str) -> Iterator[Gateway]:
    """Start a gateway, wait until it says that it is ready, and stop it by its process id at the end.

    With ``--profile production`` there is no sign-in link, and the caller brings a key.
    """
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", *arguments]
    if settings is not None:
        (home / "settings.toml").write_text(settings, encoding="utf-8")
        command += ["--config", str(home / "settings.toml")]
    process = subprocess.Popen(
        command,
        env=environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = Output()
    gateway = Gateway("", home, process, "", output=output)
    threading.Thread(target=output.read, args=(process,), daemon=True).start()
    try:
        ready = re.search(r"ready at (http://\S+)", output.wait_for("ready at http", within_s=START_WITHIN_S))
        assert ready is not None
        gateway.base_url = ready[1]
        if "production" not in arguments:
            link = re.search(
                r"(http://\S+/login\?token=\S+)", output.wait_for("/login?token=", within_s=START_WITHIN_S)
            )
            assert link is not None
            gateway.sign_in_link = link[1]
        yield gateway
    finally:
        gateway.stop()


def scripted(script: list[dict[str, Any]], *, trusted_to: int = 0) -> str:
    """Settings (TOML) for a gateway whose model replays ``script``."""
    turns = "\n".join(f"[[backend.options.script]]\n{_toml(turn)}" for turn in script)
    return f'[backend]\nkind = "scripted"\n[backend.options]\ntrusted_to = {trusted_to}\n{turns}\n'


def _toml(turn: dict[str, Any]) -> str:
    return "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in turn.items())
