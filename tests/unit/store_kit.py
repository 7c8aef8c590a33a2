"""Real stores for tests, and the things one writes into them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from gateway.audit.log import AuditEvent
from gateway.store import migrate
from gateway.store.crypto import Keyring
from gateway.store.repositories import NewIncident
from gateway.store.uow import Store, UnitOfWork
from tests.support.columns import Column

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CANARY = "seven herons carried the lantern over the canary wharf"


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'record.sqlite3'}"


@asynccontextmanager
async def opened(
    where: Path | Column, keyring: Keyring | None = None, *, lock_timeout_s: float = 5.0
) -> AsyncIterator[Store]:
    """A store, closed at the end: over the SQLite file in a folder, or over a new database of a column."""
    async with _database(where) as url, opened_at(url, keyring, lock_timeout_s=lock_timeout_s) as store:
        yield store


def _database(where: Path | Column) -> AbstractAsyncContextManager[str]:
    if not isinstance(where, Path):
        return where.database()
    migrate.upgrade(url_of(where))
    return nullcontext(url_of(where))


@asynccontextmanager
async def opened_at(url: str, keyring: Keyring | None = None, *, lock_timeout_s: float = 5.0) -> AsyncIterator[Store]:
    """A store over the migrated database at ``url``, closed at the end."""
    store = Store.open(url, keyring or Keyring.create(), lock_timeout_s=lock_timeout_s)
    try:
        yield store
    finally:
        await store.aclose()


def event(name: str = "turn.closed", **changes: Any) -> AuditEvent:
    base = AuditEvent(event=name, actor="app:test", at=NOW, request_id="req-1", data={"action": "allow", "severity": 0})
    return msgspec.structs.replace(base, **changes)


def incident(**changes: Any) -> NewIncident:
    base = NewIncident(
        app_id="app",
        kind="crisis",
        severity=3,
        stage="input",
        policy_version="policy@1",
        route="page",
        ack_within_s=300,
        opened_at=NOW,
        categories=("suicide",),
        imminence="days",
        subject="self",
        evidence=CANARY,
    )
    return msgspec.structs.replace(base, **changes)


async def save(unit: UnitOfWork, external_id: str = "c-1", peak: int = 0, minutes: int = 0, **risk: Any) -> str:
    return await unit.conversations.save(
        "app",
        external_id,
        risk={"level": peak, **risk},
        severity_peak=peak,
        end_user_hash=None,
        now=NOW + timedelta(minutes=minutes),
    )


async def append_many(store: Store, count: int) -> None:
    async with store.begin() as unit:
        for number in range(count):
            await unit.audit.append(event(request_id=f"req-{number}"))
