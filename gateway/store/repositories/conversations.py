"""Conversations: the risk each carries from turn to turn."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, case, select

from gateway.store.crypto import Keyring
from gateway.store.dialect import lock_record, per_dialect
from gateway.store.session import Session
from gateway.store.tables import Conversation
from gateway.store.vocabulary import ConversationState

MAX_OF_END_USER: Final = 20
_T: Final = Conversation.__table__  # type: ignore[attr-defined]
_LOAD: Final = select(_T.c.id, _T.c.risk, _T.c.severity_peak, _T.c.version).where(
    _T.c.app_id == bindparam("app_id"), _T.c.external_hash == bindparam("external_hash")
)
_OF_END_USER: Final = (
    select(_T.c.id, _T.c.risk, _T.c.severity_peak, _T.c.version)
    .where(
        _T.c.app_id == bindparam("app_id"),
        _T.c.end_user_hash == bindparam("end_user_hash"),
        _T.c.last_turn_at > bindparam("since"),
    )
    .order_by(_T.c.last_turn_at.desc())
    .limit(MAX_OF_END_USER)
)


def _upsert(insert: Any) -> Any:
    statement = insert(_T)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[_T.c.app_id, _T.c.external_hash],
        set_={
            "risk": new.risk,
            "severity_peak": case(
                (new.severity_peak > _T.c.severity_peak, new.severity_peak), else_=_T.c.severity_peak
            ),
            "end_user_hash": case((new.end_user_hash.is_not(None), new.end_user_hash), else_=_T.c.end_user_hash),
            "last_turn_at": new.last_turn_at,
            "version": _T.c.version + 1,
        },
    )


_SAVE: Final = per_dialect(_upsert)


class Conversations:
    """Conversations by the application's own id, which is stored as a keyed hash only."""

    def __init__(self, session: Session, keyring: Keyring) -> None:
        self._session = session
        self._keyring = keyring

    async def load(self, app_id: str, external_id: str) -> ConversationState | None:
        """What is stored, or None for a conversation not seen before.

        In a unit that writes, nobody else changes it before the unit ends: what is saved then follows from what was
        loaded, also when another gateway takes a turn of the same conversation.
        """
        values = {"app_id": app_id, "external_hash": self._hash(external_id)}
        alone = self._session.writable

        def work(connection: Connection) -> ConversationState | None:
            if alone:
                lock_record(connection)
            row = connection.execute(_LOAD, values).one_or_none()
            return None if row is None else ConversationState(*row)

        return await self._session.run(work)

    async def of_end_user(self, app_id: str, end_user_hash: str, since: datetime) -> list[ConversationState]:
        """The latest conversations of one end user that had a turn after ``since``, at most `MAX_OF_END_USER`."""
        values = {"app_id": app_id, "end_user_hash": end_user_hash, "since": since}

        def work(connection: Connection) -> list[ConversationState]:
            return [ConversationState(*row) for row in connection.execute(_OF_END_USER, values)]

        return await self._session.run(work)

    async def save(
        self,
        app_id: str,
        external_id: str,
        *,
        risk: dict[str, Any],
        severity_peak: int,
        end_user_hash: str | None,
        now: datetime,
    ) -> str:
        """Store the risk, making the conversation if it is new; returns the store's id for it.

        ``severity_peak`` never falls.  ``risk`` is replaced: the last save wins.
        """
        conversation_id = self._id(app_id, external_id)
        values = {
            "id": conversation_id,
            "app_id": app_id,
            "external_hash": self._hash(external_id),
            "end_user_hash": end_user_hash,
            "risk": risk,
            "severity_peak": severity_peak,
            "last_turn_at": now,
            "created_at": now,
            "version": 1,
        }

        def work(connection: Connection) -> None:
            # Two that save a new conversation at once would meet at its primary key, which ON CONFLICT does not name.
            lock_record(connection)
            connection.execute(_SAVE[connection.dialect.name], values)

        self._session.later(work)
        return conversation_id

    def _id(self, app_id: str, external_id: str) -> str:
        """Known without asking the database, so that a save need not wait for an answer."""
        return "conv_" + self._keyring.blind(f"{app_id}\x00{external_id}", purpose="conversation-id")[:32]

    def _hash(self, external_id: str) -> str:
        return self._keyring.blind(external_id, purpose="conversation")
