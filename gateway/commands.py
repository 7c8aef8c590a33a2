"""What the ``havengate`` commands do.  Each takes parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.errors import StartupError, UsageError
from gateway.settings import Settings, load_settings

DEFAULT_SCOPES: Final = ("chat", "moderations", "models")
MIN_FREE_BYTES: Final = 200 * 1024 * 1024
DEV_KEY_FILE: Final = "dev-api-key"


# --- serve -------------------------------------------------------------------------------------


def serve(arguments: argparse.Namespace) -> int:
    """Start the gateway and stay until told to stop."""
    from gateway.server import run

    settings = _settings(arguments, _serve_overrides(arguments))
    prepare_home(settings)
    settings = _with_dev_key(settings)
    listener = _listen(settings.server.host, settings.server.port)
    try:
        return run(settings, listener)
    finally:
        listener.close()


def _serve_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {"url": arguments.backend_url, "model": arguments.backend_model}
    options = {name: value for name, value in options.items() if value is not None}
    if options and arguments.backend is None:
        raise UsageError("--backend-url and --backend-model go with --backend.")
    backend: dict[str, Any] = {"kind": arguments.backend}
    if arguments.backend is not None and options:
        backend["options"] = options
    return {"server": {"port": arguments.port, "host": arguments.host}, "backend": backend}


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, before anything slow is started: a taken port is known at once."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise StartupError(f"The address {host} is not known here; try --host 127.0.0.1.") from None
    listener = socket.socket(address[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address[4])
    except OSError as error:
        listener.close()
        hint = f"another program uses it; choose one with PORT={port + 1} make serve or --port {port + 1}"
        if isinstance(error, PermissionError):
            hint = "it needs more rights than this user has; choose one above 1023"
        raise StartupError(f"Port {port} on {host} cannot be opened: {hint}.") from None
    return listener


def prepare_home(settings: Settings) -> None:
    """Make the state folder and see that it can be written, or say in one line what to do."""
    home = settings.home.expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"The state folder {home} cannot be written ({error.strerror}); set HAVENGATE_HOME to one that can."
        ) from None
    if shutil.disk_usage(home).free < MIN_FREE_BYTES:
        raise StartupError(
            f"Less than {MIN_FREE_BYTES // 2**20} MB are free where {home} lies; make room or set HAVENGATE_HOME."
        )


def _with_dev_key(settings: Settings) -> Settings:
    """The embedded profile has a development key: the one that was set, else one kept in the state folder."""
    if settings.profile != "embedded" or settings.auth.dev_api_key is not None:
        return settings
    path = settings.home.expanduser().absolute() / DEV_KEY_FILE
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        key = f"hg_dev_{secrets.token_urlsafe(32)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key + "\n")
    except (OSError, UnicodeDecodeError):
        raise StartupError(f"The development key in {path} cannot be read; remove the file to get a new one.") from None
    auth = settings.auth.model_copy(update={"dev_api_key": _secret(key)})
    return settings.model_copy(update={"auth": auth})


def _secret(value: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(value)


# --- store -------------------------------------------------------------------------------------


def db_upgrade(arguments: argparse.Namespace) -> int:
    """Bring the schema up to date; safe to run again."""
    from gateway.store.migrate import current, upgrade

    settings = _settings(arguments)
    prepare_home(settings)
    upgrade(settings.database_url)
    print(f"The database is at revision {current(settings.database_url)}.")
    return 0


def keys_create(arguments: argparse.Namespace) -> int:
    """Make an API key and print it; it is stored as a hash and never shown again."""
    from gateway.auth import apikeys
    from gateway.parts import open_store

    settings = _settings(arguments)
    prepare_home(settings)
    scopes = tuple(arguments.scope or DEFAULT_SCOPES)
    store = open_store(settings)

    async def work() -> str:
        try:
            async with store.begin() as unit:
                _, plaintext = await apikeys.create(
                    unit,
                    store.keyring,
                    name=arguments.name,
                    scopes=scopes,
                    region=arguments.region,
                    now=datetime.now(tz=UTC),
                )
            return plaintext
        finally:
            await store.aclose()

    print(asyncio.run(work()))
    print("Keep it now: it is stored as a hash and cannot be shown again.", file=sys.stderr)
    return 0


def audit_verify(arguments: argparse.Namespace) -> int:
    """Walk the whole trail; 1 if any row was changed, removed, moved or put in."""
    from gateway.audit.verify import Head, verify_database

    settings = _settings(arguments)
    try:
        head = Head.parse(arguments.head) if arguments.head else None
    except ValueError:
        raise UsageError("--head takes SEQ:HASH, as a former run printed it.") from None
    result = asyncio.run(verify_database(settings.database_url, head))
    if result.ok:
        print(f"The audit trail is whole: {result.count} entries, head {result.head}.")
        return 0
    print(f"The audit trail is broken at entry {result.first_bad_seq}: {result.reason}.", file=sys.stderr)
    return 1


# --- judging -----------------------------------------------------------------------------------


def policy_check(arguments: argparse.Namespace) -> int:
    """Load each file and run its example table; 1 if any fails."""
    from gateway.policy.loader import check, default_policy_path

    failed = False
    for result in check(arguments.paths or [default_policy_path()]):
        said = f"policy {result.version}, {result.cases} examples hold" if result.ok else result.error
        print(f"{'ok  ' if result.ok else 'FAIL'} {result.path}: {said}")
        failed = failed or not result.ok
    return 1 if failed else 0


def detect(arguments: argparse.Namespace) -> int:
    """Judge every row; 1 if any row could not be read."""
    from detectors.batch import detect_file
    from gateway.parts import open_panel

    settings = _settings(arguments)

    async def work() -> int:
        panel, _ = await open_panel(settings)
        try:
            with arguments.input.open("rb") as rows, arguments.output.open("wb") as out:
                return 1 if await detect_file(panel, rows, out) else 0
        finally:
            await panel.aclose()

    return _with_files(work)


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure the detectors on labelled rows and write a report in Markdown."""
    from detectors import evaluate as measure
    from gateway.parts import open_panel

    settings = _settings(arguments)

    async def work() -> int:
        panel, detectors = await open_panel(settings)
        try:
            with arguments.input.open("rb") as lines:
                rows = measure.read_labelled(lines)
            report = measure.evaluate(rows, [await panel.read(row.passage()) for row in rows])
        finally:
            await panel.aclose()
        named = ", ".join(f"{detector.info.name} {detector.info.digest[:12]}" for detector in detectors)
        text = measure.markdown(report, title="Detectors", data=arguments.input.name, detectors=named)
        arguments.output.write_text(text, encoding="utf-8")
        return 0

    return _with_files(work)


def _with_files(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    try:
        return asyncio.run(work())
    except OSError as error:
        raise StartupError(f"{error.filename}: {error.strerror}.") from None
    except ValueError as error:
        raise StartupError(str(error)) from None


# --- doctor ------------------------------------------------------------------------------------


def doctor(arguments: argparse.Namespace) -> int:
    """Check what serving needs, part by part; 1 if a part is missing."""
    from gateway.doctor import examine

    settings = _settings(arguments)
    prepare_home(settings)
    findings = asyncio.run(examine(settings))
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.part}: {finding.detail}")
    print(msgspec.json.format(msgspec.json.encode(settings.shown())).decode())
    return 0 if all(finding.ok for finding in findings) else 1


def _settings(arguments: argparse.Namespace, overrides: dict[str, Any] | None = None) -> Settings:
    return load_settings(arguments.config, {"profile": arguments.profile, **(overrides or {})})


__all__: Sequence[str] = (
    "audit_verify",
    "db_upgrade",
    "detect",
    "doctor",
    "evaluate",
    "keys_create",
    "policy_check",
    "prepare_home",
    "serve",
)
