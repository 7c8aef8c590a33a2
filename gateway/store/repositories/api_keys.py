"""API keys, by their keyed hash."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, insert, select, update

from gateway.store.session import Session
from gateway.store.tables import ApiKey
from gateway.store.vocabulary import StoredKey

MAX_LIST: Final = 1_000

_T: Final = ApiKey.__table__  # type: ignore[attr-defined]
_SELECT: Final = select(_T.c.id, _T.c.name, _T.c.hash, _T.c.scopes, _T.c.region, _T.c.created_at, _T.c.revoked_at)
_GET: Final = _SELECT.where(_T.c.id == bindparam("key_id"))
_ADD: Final = insert(_T)
_REVOKE: Final = (
    update(_T).where(_T.c.id == bindparam("key_id"), _T.c.revoked_at.is_(None)).values(revoked_at=bindparam("at"))
)


class ApiKeys:
    """Keys by their public id."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, key_id: str) -> StoredKey | None:
        """The key, revoked or not."""

        def work(connection: Connection) -> StoredKey | None:
            row = connection.execute(_GET, {"key_id": key_id}).one_or_none()
            return None if row is None else _stored(row)

        return await self._session.run(work)

    async def add(self, key: StoredKey) -> None:
        """Add a key; `StoreError` ``conflict`` when its id or hash is taken."""
        values = msgspec.structs.asdict(key) | {"scopes": list(key.scopes)}

        def work(connection: Connection) -> None:
            connection.execute(_ADD, values)

        await self._session.run(work)

    async def revoke(self, key_id: str, at: datetime) -> bool:
        """Revoke a key for good; False when it is unknown or already revoked."""
        return await self._session.run(
            lambda connection: connection.execute(_REVOKE, {"key_id": key_id, "at": at}).rowcount == 1
        )

    async def list_all(self, limit: int = 100) -> list[StoredKey]:
        """Keys, oldest first."""
        statement = _SELECT.order_by(_T.c.created_at, _T.c.id).limit(max(1, min(limit, MAX_LIST)))
        return await self._session.run(lambda connection: [_stored(row) for row in connection.execute(statement)])


def _stored(row: Any) -> StoredKey:
    return StoredKey(
        id=row.id,
        name=row.name,
        hash=row.hash,
        scopes=tuple(row.scopes),
        region=row.region,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
