"""A real gateway in a process of its own, as a person would start it: ``havengate serve`` on a free loopback port."""

from __future__ import annotations

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

START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
DEV_KEY = "test-key-for-one-machine-only"


@dataclass
class Gateway:
    """A running gateway: where it is, how to call it, and everything it wrote."""

    base_url: str
    home: Path
    process: subprocess.Popen[str]
    sign_in_link: str
    key: str = DEV_KEY
    lines: list[str] = field(default_factory=list)

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
    """Start a gateway, wait until it says that it is ready, and stop it by its process id at the end."""
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
    lines: list[str] = []
    ready, over = threading.Event(), threading.Event()
    reader = threading.Thread(target=_read, args=(process, lines, ready, over), daemon=True)
    reader.start()
    try:
        ready.wait(START_WITHIN_S)
        text = "".join(lines)
        base = re.search(r"ready at (http://\S+)", text)
        link = re.search(r"(http://\S+/login\?token=\S+)", text)
        assert base is not None, f"the gateway did not start:\n{text}"
        assert link is not None, f"the gateway gave no sign-in link:\n{text}"
        yield Gateway(base[1], home, process, link[1], lines=lines)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(STOP_WITHIN_S)
            over.wait(STOP_WITHIN_S)


def _read(process: subprocess.Popen[str], lines: list[str], ready: threading.Event, over: threading.Event) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if "/login?token=" in line:
                ready.set()
    ready.set()
    over.set()


def scripted(script: list[dict[str, Any]], *, trusted_to: int = 0) -> str:
    """Settings (TOML) for a gateway whose model replays ``script``."""
    turns = "\n".join(f"[[backend.options.script]]\n{_toml(turn)}" for turn in script)
    return f'[backend]\nkind = "scripted"\n[backend.options]\ntrusted_to = {trusted_to}\n{turns}\n'


def _toml(turn: dict[str, Any]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in turn.items())
