"""The audit trail in the database: append, and read in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Row, insert, select

from gateway.audit.log import GENESIS, AuditEvent, AuditRefused, Entry, chain_hash, check
from gateway.store.dialect import lock_record
from gateway.store.errors import StoreError
from gateway.store.session import Session
from gateway.store.tables import AuditRow

MAX_PAGE: Final = 1_000

_T: Final = AuditRow.__table__  # type: ignore[attr-defined]
_HEAD: Final = select(_T.c.seq, _T.c.hash).order_by(_T.c.seq.desc()).limit(1)
_APPEND: Final = insert(_T)
_PAGE: Final = select(
    _T.c.seq, _T.c.at, _T.c.actor, _T.c.event, _T.c.request_id, _T.c.conversation_id, _T.c.incident_id, _T.c.data,
    _T.c.prev_hash, _T.c.hash,
).order_by(_T.c.seq)  # fmt: skip


class AuditTrail:
    """The chain.  It has no way to change or remove an entry."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def append(self, event: AuditEvent) -> None:
        """Add the next entry, at the latest with the commit.

        An event that could hold text of a person raises `StoreError` ``refused``; its unit of work is undone.
        """
        self._session.later(lambda connection: _append(connection, event))

    async def page(self, after: int | None = None, limit: int = MAX_PAGE) -> list[Entry]:
        """Up to ``limit`` entries that follow ``after`` (None: from the very first), by number."""
        bounded = max(1, min(limit, MAX_PAGE))
        return await self._session.run(lambda connection: read_page(connection, after, bounded))


def _append(connection: Connection, event: AuditEvent) -> None:
    try:
        check(event)
    except AuditRefused as error:
        raise StoreError("refused", str(error)) from None
    lock_record(connection)
    last = connection.execute(_HEAD).one_or_none()
    seq, prev_hash = (1, GENESIS) if last is None else (last.seq + 1, last.hash)
    values = {
        "seq": seq,
        "at": event.at,
        "actor": event.actor,
        "event": event.event,
        "request_id": event.request_id,
        "conversation_id": event.conversation_id,
        "incident_id": event.incident_id,
        "data": dict(event.data),
        "prev_hash": prev_hash,
        "hash": chain_hash(prev_hash, seq, event),
    }
    connection.execute(_APPEND, values)


def read_page(connection: Connection, after: int | None, limit: int) -> list[Entry]:
    """Entries in order.  Raises ``ValueError`` for a row that cannot be decoded."""
    statement = _PAGE if after is None else _PAGE.where(_T.c.seq > after)
    return [_entry(row) for row in _all(connection, statement.limit(limit))]


def _all(connection: Connection, statement: object) -> Sequence[Row[tuple[object, ...]]]:
    return connection.execute(statement).all()  # type: ignore[call-overload, no-any-return]


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    event = AuditEvent(
        event=row.event,
        actor=row.actor,
        at=row.at,
        request_id=row.request_id,
        conversation_id=row.conversation_id,
        incident_id=row.incident_id,
        data=row.data,
    )
    return Entry(seq=row.seq, event=event, prev_hash=row.prev_hash, hash=row.hash)
