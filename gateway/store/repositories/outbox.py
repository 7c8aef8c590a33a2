"""Notices that must reach people, written in the same transaction as what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, select

from gateway.audit.log import AuditRefused, check_tokens
from gateway.store.dialect import per_dialect
from gateway.store.errors import StoreError
from gateway.store.ids import new_id
from gateway.store.session import Session
from gateway.store.tables import OutboxItem
from gateway.store.vocabulary import OutboxView, Route

MAX_LIST: Final = 500

_T: Final = OutboxItem.__table__  # type: ignore[attr-defined]
_ENQUEUE: Final = per_dialect(lambda insert: insert(_T).on_conflict_do_nothing(index_elements=[_T.c.dedupe_key]))
_LIST: Final = select(
    _T.c.id, _T.c.incident_id, _T.c.route, _T.c.payload, _T.c.state, _T.c.attempts, _T.c.dedupe_key
).order_by(_T.c.created_at, _T.c.id)


class Outbox:
    """Notices, oldest first."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def enqueue(
        self, incident_id: str, route: Route, payload: Mapping[str, Any], dedupe_key: str, now: datetime
    ) -> None:
        """Add a notice, at the latest with the commit; one with the same ``dedupe_key`` is left as it is.

        ``payload`` holds tokens and numbers only; prose raises `StoreError` ``refused``.
        """
        values = {
            "id": new_id("out", now),
            "kind": "incident",
            "incident_id": incident_id,
            "route": route,
            "payload": dict(payload),
            "state": "pending",
            "attempts": 0,
            "next_attempt_at": now,
            "dedupe_key": dedupe_key,
            "created_at": now,
        }

        def work(connection: Connection) -> None:
            try:
                check_tokens(payload)
            except AuditRefused as error:
                raise StoreError("refused", str(error)) from None
            connection.execute(_ENQUEUE[connection.dialect.name], values)

        self._session.later(work)

    async def known(self, dedupe_key: str) -> bool:
        """Whether a notice with this key was ever written."""
        statement = select(_T.c.id).where(_T.c.dedupe_key == dedupe_key)
        return await self._session.run(lambda connection: connection.execute(statement).first() is not None)

    async def list_undelivered(self, limit: int = 100) -> list[OutboxView]:
        """Notices that have not reached anyone."""
        statement = _LIST.where(_T.c.state != "delivered").limit(max(1, min(limit, MAX_LIST)))
        return await self._session.run(lambda connection: [OutboxView(*row) for row in connection.execute(statement)])
