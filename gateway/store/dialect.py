"""The few statements that SQLite and PostgreSQL write differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

AUDIT_LOCK: Final = 0x68617665_6E676174
"""Key of the PostgreSQL advisory lock under which the record grows ("havengat")."""

_LOCK: Final = select(func.pg_advisory_xact_lock(AUDIT_LOCK))
_HOLDER: Final = "havengate.record"
"""Where a connection remembers the transaction that holds the lock."""


def per_dialect(build: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Build a statement once per dialect; ``build`` gets that dialect's ``insert`` (for ON CONFLICT)."""
    return {"sqlite": build(sqlite.insert), "postgresql": build(postgresql.insert)}


def lock_record(connection: Connection) -> None:
    """Wait until no other transaction can save conversations, open incidents or extend the chain; held until this one
    ends.  Asking again in the same transaction costs nothing.

    SQLite needs nothing: BEGIN IMMEDIATE already lets one writer in.
    """
    if connection.dialect.name != "postgresql":
        return
    holder = connection.info.get(_HOLDER)
    if holder is None or holder is not connection.get_transaction():
        connection.execute(_LOCK)
        connection.info[_HOLDER] = connection.get_transaction()
