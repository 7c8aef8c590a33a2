"""What the store says when it cannot do its work.  Never SQL, never a parameter, never a stored value."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.errors import NotReady

StoreErrorKind = Literal["unavailable", "locked", "full", "conflict", "refused"]

_MESSAGES: Final[dict[StoreErrorKind, str]] = {
    "unavailable": "The record cannot be reached.",
    "locked": "The record is busy; try again.",
    "full": "There is no room left for the record.",
    "conflict": "The record was changed by someone else, or already holds this entry.",
    "refused": "The record does not take this entry: it could hold text of a person.",
}
_SQLITE_KINDS: Final[dict[int, StoreErrorKind]] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CONSTRAINT: "conflict",
}
# PostgreSQL, appendix A: lock_not_available, deadlock_detected, query_canceled, disk_full, serialization_failure.
_SQLSTATE_KINDS: Final[dict[str, StoreErrorKind]] = {
    "55P03": "locked",
    "40P01": "locked",
    "57014": "locked",
    "53100": "full",
    "40001": "conflict",
}


class StoreError(NotReady):
    """A transaction did not happen.  ``kind`` says why:

    - ``unavailable``: the database cannot be reached, opened or read;
    - ``locked``: another writer held it longer than the bound;
    - ``full``: no room on the disk;
    - ``conflict``: a constraint or a concurrent change;
    - ``refused``: the entry broke a rule of the record (an audit row with text in it).

    ``reason`` is the database's own code (``SQLITE_BUSY``, an SQLSTATE), for operators.
    """

    def __init__(self, kind: StoreErrorKind, reason: str = "") -> None:
        super().__init__(_MESSAGES[kind])
        self.kind: StoreErrorKind = kind
        self.reason = reason


def classify(error: Exception) -> StoreError:
    """The `StoreError` for an error of SQLAlchemy, of a driver, or of the network under it."""
    original: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        # Extended result codes keep the primary code in their low byte (sqlite.org/rescode.html).
        return StoreError(_SQLITE_KINDS.get(code & 0xFF, "unavailable"), str(getattr(original, "sqlite_errorname", "")))
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if isinstance(state, str):
        # Class 22: a value the column cannot hold.  Class 23: a constraint.
        broken = state.startswith(("22", "23"))
        kind: StoreErrorKind = "conflict" if broken else _SQLSTATE_KINDS.get(state, "unavailable")
        return StoreError(kind, state)
    return StoreError("unavailable", type(original).__name__)


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the database into `StoreError`; the original, which may quote values, is not chained."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise classify(error) from None
