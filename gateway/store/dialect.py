"""The few statements that SQLite and PostgreSQL write differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

AUDIT_LOCK: Final = 0x68617665_6E676174
"""Key of the PostgreSQL advisory lock under which the record grows ("havengat")."""


def per_dialect(build: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Build a statement once per dialect; ``build`` gets that dialect's ``insert`` (for ON CONFLICT)."""
    return {"sqlite": build(sqlite.insert), "postgresql": build(postgresql.insert)}


def lock_record(connection: Connection) -> None:
    """Wait until no other transaction can open incidents, change a conversation it has read or extend the chain; held
    until this one ends.

    SQLite needs nothing: BEGIN IMMEDIATE already lets one writer in.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(AUDIT_LOCK)))
