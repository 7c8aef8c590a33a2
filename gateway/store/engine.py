"""Connections: how work reaches the database.  The only file that tells SQLite from PostgreSQL when connecting.

Repositories are written once, as functions over a synchronous `Connection`.  On SQLite they run on the one thread
that owns the connection (one hop per call, where an async driver would need one per cursor step); on PostgreSQL they
run over asyncpg (`AsyncConnection.run_sync`).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, cast
from urllib.parse import quote

import msgspec
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.errors import StartupError
from gateway.store.errors import StoreError, translated

LOCK_TIMEOUT_S: Final = 5.0
"""Longest wait for another writer, in this process or another, before `StoreError` ``locked``."""
STATEMENT_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 5.0

T = TypeVar("T")


class Runner(Protocol):
    """Runs a function over the connection of one transaction."""

    async def __call__(self, work: Callable[[Connection], T]) -> T: ...


class Transaction(Protocol):
    """One open transaction."""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` now."""
        ...

    def before_commit(self, work: Callable[[Connection], None]) -> None:
        """Run ``work`` as part of the commit, in the same hop; an error in it undoes the transaction."""
        ...


class Channel(Protocol):
    """A database that can be read and written."""

    def read(self) -> AbstractAsyncContextManager[Runner]:
        """Reads outside a transaction: each call sees what was committed last."""
        ...

    def write(self, *, durable: bool) -> AbstractAsyncContextManager[Transaction]:
        """One transaction: committed when the block ends, rolled back when it raises or is cancelled."""
        ...

    async def aclose(self) -> None: ...


def parse_url(url: str) -> URL:
    """Accepts ``sqlite:///PATH`` and ``postgresql://...`` with or without a driver name; raises `StartupError`."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StartupError(
            "The database URL cannot be read; it looks like sqlite:///PATH or postgresql://..."
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StartupError("The record needs a file: sqlite:///PATH.  A database in memory would forget.")
        return parsed.set(drivername="sqlite+pysqlite")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+asyncpg")
    raise StartupError(f"The database '{backend}' is not supported; use sqlite or postgresql.")


def open_channel(url: str, *, lock_timeout_s: float = LOCK_TIMEOUT_S, read_only: bool = False) -> Channel:
    """A channel to the database at ``url``.  Connects when first used."""
    parsed = parse_url(url)
    if parsed.drivername == "sqlite+pysqlite":
        return SqliteChannel(Path(str(parsed.database)), lock_timeout_s, read_only=read_only)
    return PostgresChannel(parsed, lock_timeout_s, read_only=read_only)


# --- SQLite --------------------------------------------------------------------------------------


Access = Literal["write", "query", "foreign"]
"""``query``: our own file, reads only.  ``foreign``: a file that we may not even touch."""


def sqlite_engine(path: Path, lock_timeout_s: float = LOCK_TIMEOUT_S, access: Access = "write") -> Engine:
    """An engine whose connections are in autocommit mode: we say BEGIN ourselves."""

    def connect() -> sqlite3.Connection:
        if access == "write":
            _create_private(path)
        mode = "ro" if access == "foreign" else "rw"
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}",
            uri=True,
            timeout=lock_timeout_s,
            isolation_level=None,
            # `_Desk` keeps a connection to one thread; the exception is its burial at interpreter exit.
            check_same_thread=False,
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        if access == "write":
            connection.execute("PRAGMA journal_mode = WAL")
        else:
            connection.execute("PRAGMA query_only = ON")
        return connection

    return create_engine(
        "sqlite+pysqlite://",
        creator=connect,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
    )


def _create_private(path: Path) -> None:
    """Make the file with mode 0600; SQLite gives its -wal and -shm files the mode of the database."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def raw_sqlite(connection: Connection) -> sqlite3.Connection:
    """The driver's connection under ours, for BEGIN, COMMIT and PRAGMA."""
    return cast("sqlite3.Connection", connection.connection.driver_connection)


class _Desk:
    """One SQLite connection and the only thread that touches it."""

    def __init__(self, engine: Engine, path: Path, name: str) -> None:
        self._engine = engine
        self._path = path
        self._file: tuple[int, int] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._connection: Connection | None = None

    def submit(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Queue ``work`` for the thread.  Work runs in the order in which it was queued."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._call, work)

    def _call(self, work: Callable[[Connection], T]) -> T:
        try:
            with translated():
                if self._connection is None:
                    self._connection = self._engine.connect()
                    self._file = _file_at(self._path)
                elif _file_at(self._path) != self._file:
                    # SQLite would go on writing to a file that has no name any more, and nobody would ever read it.
                    raise StoreError("unavailable", "another file")
                return work(self._connection)
        except StoreError as error:
            if error.kind == "unavailable":
                self._drop()
            raise

    def _drop(self) -> None:
        """Forget a connection that failed; the next call opens another."""
        if self._connection is not None:
            with suppress(StoreError), translated():
                self._connection.close()
            self._connection = None

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown(wait=False)


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file it is, whatever it is called; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino)


class _SqliteTransaction:
    """BEGIN IMMEDIATE at the first work, so that a unit costs no hop of its own to open."""

    def __init__(self, desk: _Desk, *, durable: bool) -> None:
        self._desk = desk
        self._synchronous = "FULL" if durable else "NORMAL"
        self._begun = False
        self._last: Callable[[Connection], None] | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await self._desk.submit(lambda connection: self._begun_work(connection, work))

    def before_commit(self, work: Callable[[Connection], None]) -> None:
        self._last = work

    def _begun_work(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        raw = raw_sqlite(connection)
        if not self._begun:
            raw.execute(f"PRAGMA synchronous = {self._synchronous}")
            raw.execute("BEGIN IMMEDIATE")
            self._begun = True
        self._check_unbroken(raw)
        return work(connection)

    def commit(self, connection: Connection) -> None:
        try:
            if self._last is not None:
                self._begun_work(connection, self._last)
            if self._begun:
                self._check_unbroken(raw_sqlite(connection))
            connection.commit()
        except BaseException:
            self.rollback(connection)
            raise

    def _check_unbroken(self, raw: sqlite3.Connection) -> None:
        """SQLite may roll back by itself (a full disk, an I/O error); what follows must not run outside it."""
        if not raw.in_transaction:
            raise StoreError("unavailable", "rolled back")

    def rollback(self, connection: Connection) -> None:
        connection.rollback()


class SqliteChannel:
    """`Channel` over a SQLite file: one writer and one reader connection, each with its thread.

    Writers of this process queue in order on a lock; writers of other processes meet at BEGIN IMMEDIATE.
    """

    def __init__(self, path: Path, lock_timeout_s: float, *, read_only: bool = False) -> None:
        reading: Access = "foreign" if read_only else "query"
        writing: Access = "foreign" if read_only else "write"
        self._writer = _Desk(sqlite_engine(path, lock_timeout_s, writing), path, "havengate-record-write")
        self._reader = _Desk(sqlite_engine(path, lock_timeout_s, reading), path, "havengate-record-read")
        self._lock = asyncio.Lock()
        self._lock_timeout_s = lock_timeout_s

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Runner]:
        yield self._read

    async def _read(self, work: Callable[[Connection], T]) -> T:
        return await self._reader.submit(work)

    @asynccontextmanager
    async def write(self, *, durable: bool) -> AsyncIterator[Transaction]:
        try:
            async with asyncio.timeout(self._lock_timeout_s):
                await self._lock.acquire()
        except TimeoutError:
            raise StoreError("locked", "in process") from None
        transaction = _SqliteTransaction(self._writer, durable=durable)
        try:
            yield transaction
        except BaseException:
            with suppress(StoreError):
                await self._end(transaction.rollback)
            raise
        else:
            await self._end(transaction.commit)

    async def _end(self, work: Callable[[Connection], None]) -> None:
        """The lock opens when the transaction is over, even if whoever waits for it is cancelled meanwhile.

        Shielded, since cancelling work that is still queued would leave the transaction open for the next unit.
        """
        ended = self._writer.submit(work)
        ended.add_done_callback(lambda _: self._lock.release())
        await asyncio.shield(ended)

    async def aclose(self) -> None:
        await self._writer.aclose()
        await self._reader.aclose()


# --- PostgreSQL ----------------------------------------------------------------------------------


def postgres_engine(url: URL, lock_timeout_s: float = LOCK_TIMEOUT_S, *, read_only: bool = False) -> AsyncEngine:
    """An engine with every wait bounded: connect, pool, lock, statement, forgotten transaction."""
    return create_async_engine(
        url,
        hide_parameters=True,
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
        pool_size=10,
        max_overflow=10,
        pool_timeout=lock_timeout_s,
        pool_pre_ping=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": STATEMENT_TIMEOUT_S,
            "server_settings": {
                "application_name": "havengate",
                "lock_timeout": f"{lock_timeout_s * 1000:.0f}",
                "statement_timeout": f"{STATEMENT_TIMEOUT_S * 1000:.0f}",
                "idle_in_transaction_session_timeout": "60000",
                "default_transaction_read_only": "on" if read_only else "off",
            },
        },
    )


class PostgresChannel:
    """`Channel` over PostgreSQL.  Every commit is durable (``synchronous_commit`` as the server has it)."""

    def __init__(self, url: URL, lock_timeout_s: float, *, read_only: bool = False) -> None:
        self._engine = postgres_engine(url, lock_timeout_s, read_only=read_only)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Runner]:
        async with _connected(self._autocommit) as connection:
            yield _PostgresTransaction(connection).run

    @asynccontextmanager
    async def write(self, *, durable: bool) -> AsyncIterator[Transaction]:  # noqa: ARG002 - always durable
        async with _connected(self._engine) as connection:
            transaction = _PostgresTransaction(connection)
            yield transaction
            with translated():
                await transaction.commit()

    async def aclose(self) -> None:
        await self._engine.dispose()


@asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection of the pool; whatever was not committed is rolled back when it returns there."""
    with translated():
        connection = await engine.connect()
    try:
        yield connection
    finally:
        with suppress(StoreError), translated():
            await asyncio.shield(connection.close())


class _PostgresTransaction:
    """SQLAlchemy begins it at the first statement."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._last: Callable[[Connection], None] | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        with translated():
            return await self._connection.run_sync(work)

    def before_commit(self, work: Callable[[Connection], None]) -> None:
        self._last = work

    async def commit(self) -> None:
        if self._last is not None:
            await self._connection.run_sync(self._last)
        await self._connection.commit()
