"""The store and its unit of work: one transaction, all or nothing.

async with store.begin() as unit:
    ref = await unit.incidents.open_or_update(...)
    await unit.outbox.enqueue(...)
    await unit.audit.append(...)
# here it is committed, or a `StoreError` was raised and nothing of it exists
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection, select, text

from gateway.store.crypto import Keyring
from gateway.store.engine import LOCK_TIMEOUT_S, Channel, Runner, open_channel
from gateway.store.errors import StoreError
from gateway.store.repositories import ApiKeys, AuditTrail, Conversations, Incidents, Outbox

T = TypeVar("T")

_PROBE: Final = select(text("version_num")).select_from(text("alembic_version"))


class UnitOfWork:
    """The repositories over one transaction.  Not for use after its ``async with`` block.

    Writes whose result nobody waits for are kept back and go with the next call, or with the commit, in the order
    in which they were asked for: a plain turn is then one hop to the database.  Their errors surface there.
    """

    def __init__(self, run: Runner, keyring: Keyring, *, writable: bool) -> None:
        self._runner = run
        self.writable: Final = writable
        self._pending: list[Callable[[Connection], None]] = []
        self._failure: StoreError | None = None
        self._over = False
        self.conversations = Conversations(self, keyring)
        self.incidents = Incidents(self, keyring)
        self.outbox = Outbox(self)
        self.api_keys = ApiKeys(self)
        self.audit = AuditTrail(self)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` over the transaction's connection, after whatever was kept back."""
        self._check_open()
        if self._failure is not None:
            raise self._failure
        try:
            return await self._runner(partial(self._flush_and, work) if self._pending else work)
        except StoreError as error:
            self._failure = error
            raise

    def later(self, work: Callable[[Connection], None]) -> None:
        """Keep ``work`` back until the next `run` or the commit."""
        self._check_open()
        if not self.writable:
            raise RuntimeError("This unit of work only reads.")
        self._pending.append(work)

    def close(self) -> Callable[[Connection], None] | None:
        """End the unit; returns what is left to do before the commit.

        A unit in which something failed is not committed, even when the failure was caught inside it: this raises it.
        """
        self._over = True
        if self._failure is not None:
            raise self._failure
        return self._flush if self._pending else None

    def _check_open(self) -> None:
        if self._over:
            raise RuntimeError("The unit of work is over.")

    def _flush_and(self, work: Callable[[Connection], T], connection: Connection) -> T:
        self._flush(connection)
        return work(connection)

    def _flush(self, connection: Connection) -> None:
        pending, self._pending = self._pending, []
        for work in pending:
            work(connection)


class Store:
    """The record.  One per process and event loop."""

    def __init__(self, channel: Channel, keyring: Keyring) -> None:
        self._channel = channel
        self.keyring: Final = keyring

    @classmethod
    def open(cls, url: str, keyring: Keyring, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Store:
        """The store at ``url`` (``sqlite:///PATH`` or ``postgresql://...``).  Connects when first used.

        ``lock_timeout_s`` bounds the wait for another writer.  The schema must be there (`gateway.store.migrate`).
        """
        return cls(open_channel(url, lock_timeout_s=lock_timeout_s), keyring)

    @asynccontextmanager
    async def begin(self, *, durable: bool = True) -> AsyncIterator[UnitOfWork]:
        """One transaction.  Raises `StoreError`; cancelled before its commit began, it leaves nothing.

        A commit outlives ``kill -9`` in any case.  ``durable=False`` lets SQLite skip the fsync: a power cut may
        then take the last few such commits (never half of one, never an earlier durable one).  Not for incidents.
        """
        async with self._channel.write(durable=durable) as transaction:
            unit = UnitOfWork(transaction.run, self.keyring, writable=True)
            yield unit
            rest = unit.close()
            if rest is not None:
                transaction.before_commit(rest)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[UnitOfWork]:
        """Reads outside a transaction; each call sees what was committed last.  Writing here is a mistake."""
        async with self._channel.read() as run:
            yield UnitOfWork(run, self.keyring, writable=False)

    async def health(self) -> None:
        """Return if the record has its schema and lets us begin a transaction now, else raise `StoreError`."""
        async with self._channel.write(durable=False) as transaction:
            await transaction.run(_probe)

    async def aclose(self) -> None:
        """Close every connection.  Call it once, when nothing uses the store any more."""
        await self._channel.aclose()


def _probe(connection: Connection) -> None:
    connection.execute(_PROBE).one()
