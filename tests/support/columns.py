"""The two columns of the house (docs/ARCHITECTURE.md): where it keeps its record, and where its hints go.

A test that takes the fixture ``column`` runs over both, with real servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from gateway.events.bus import EventBus
from gateway.events.inprocess import InProcessBus
from gateway.events.redis import RedisBus
from gateway.store.dialect import AUDIT_LOCK
from gateway.store.migrate import upgrade
from tests.support.servers import Databases, Valkey

WITHIN_S: Final = 10.0


class Column(Protocol):
    """One column, and a folder for what a gateway keeps beside its record."""

    @property
    def folder(self) -> Path: ...

    def database(self, *, empty: bool = False) -> AbstractAsyncContextManager[str]:
        """The URL of a new record with the newest schema, or ``empty``, gone at the end."""
        ...

    def bus(self) -> AbstractAsyncContextManager[EventBus]:
        """An event bus that hears already."""
        ...

    async def rows(self, url: str, query: str) -> list[tuple[Any, ...]]:
        """Read or change the record from outside, as another program would: only what is committed is seen."""
        ...

    def held(self, url: str) -> AbstractAsyncContextManager[None]:
        """Another program is writing and does not end."""
        ...


@dataclass
class Embedded:
    """SQLite in ``folder``, hints inside the process."""

    folder: Path
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @contextlib.asynccontextmanager
    async def database(self, *, empty: bool = False) -> AsyncIterator[str]:
        url = f"sqlite:///{self.folder / f'record-{next(self._numbers)}.sqlite3'}"
        if not empty:
            await asyncio.to_thread(upgrade, url)
        yield url

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[EventBus]:
        bus = InProcessBus()
        yield bus
        bus.close()

    async def rows(self, url: str, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as database:
            return database.execute(query).fetchall()

    @contextlib.asynccontextmanager
    async def held(self, url: str) -> AsyncIterator[None]:
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield
            database.execute("ROLLBACK")


@dataclass
class Production:
    """PostgreSQL and Valkey."""

    folder: Path
    databases: Databases
    valkey: Valkey
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def database(self, *, empty: bool = False) -> AbstractAsyncContextManager[str]:
        return self.databases.database(empty=empty)

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[EventBus]:
        async with RedisBus(self.valkey.url, f"test-{id(self)}-{next(self._numbers)}", ignore) as bus:
            await asyncio.wait_for(bus.listening.wait(), WITHIN_S)
            yield bus

    async def rows(self, url: str, query: str) -> list[tuple[Any, ...]]:
        import asyncpg

        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def held(self, url: str) -> AsyncIterator[None]:
        import asyncpg

        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", AUDIT_LOCK)
            yield
        finally:
            await connection.close()


def ignore(_direction: str, _happening: str) -> None:
    """For a test that does not ask how the bus fares."""
