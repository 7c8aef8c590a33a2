"""Incidents: one unresolved incident per conversation and kind, which grows with every further finding."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from gateway.policy.decision import ROUTE_ORDER
from gateway.store.crypto import DecryptionError, Keyring
from gateway.store.dialect import lock_record
from gateway.store.ids import new_id
from gateway.store.session import Session
from gateway.store.tables import Incident
from gateway.store.vocabulary import IMMINENCE_ORDER, IncidentRef, IncidentView, NewIncident

MAX_EVIDENCE_CHARS: Final = 65_536
"""Kept per incident: what opened it, and the latest."""
KEPT_OPENING_CHARS: Final = 16_384
MAX_LIST: Final = 500

UNREADABLE: Final = "[earlier evidence was sealed with a key that is not in the keyring any more]"
_GAP: Final = "\n\n[...]\n\n"
_BREAK: Final = "\n\n"
_T: Final = Incident.__table__  # type: ignore[attr-defined]
_VIEW: Final = select(*(_T.c[name] for name in IncidentView.__struct_fields__))
_GET: Final = _VIEW.where(_T.c.id == bindparam("incident_id"))
_EVIDENCE: Final = select(_T.c.evidence_encrypted).where(_T.c.id == bindparam("incident_id"))
_UNRESOLVED: Final = select(_T).where(
    _T.c.conversation_id == bindparam("conversation_id"), _T.c.kind == bindparam("kind"), _T.c.state != "resolved"
)
_OPEN: Final = _VIEW.where(_T.c.state != "resolved").order_by(
    _T.c.severity.desc(), _T.c.ack_deadline_at, _T.c.opened_at, _T.c.id
)
_INSERT: Final = insert(_T)


class Incidents:
    """Incidents by id.  Evidence leaves only through `evidence`."""

    def __init__(self, session: Session, keyring: Keyring) -> None:
        self._session = session
        self._keyring = keyring

    async def open_or_update(self, new: NewIncident) -> IncidentRef:
        """Open an incident, or fold the finding into the unresolved one of the same conversation and kind.

        Folding never lowers severity, imminence or route, never moves the deadline back, and counts the turn; when
        severity rises, an acknowledged incident is open again.  Without a conversation it is always a new incident.
        """
        return await self._session.run(lambda connection: self._open_or_update(connection, new))

    async def get(self, incident_id: str) -> IncidentView | None:
        """The incident without the person's words."""

        def work(connection: Connection) -> IncidentView | None:
            row = connection.execute(_GET, {"incident_id": incident_id}).one_or_none()
            return None if row is None else _view(row)

        return await self._session.run(work)

    async def list_open(self, limit: int = 100) -> list[IncidentView]:
        """Unresolved incidents, the most severe first, then the one whose deadline is nearest."""
        statement = _OPEN.limit(max(1, min(limit, MAX_LIST)))
        return await self._session.run(lambda connection: [_view(row) for row in connection.execute(statement)])

    async def evidence(self, incident_id: str) -> str:
        """The person's words, decrypted ("" when there are none or no such incident).

        Whoever calls this appends an audit entry: reading is an act.  Raises `DecryptionError` with a wrong key.
        """

        def work(connection: Connection) -> bytes | None:
            return connection.execute(_EVIDENCE, {"incident_id": incident_id}).scalar_one_or_none()

        return self._unseal(incident_id, await self._session.run(work))

    def _open_or_update(self, connection: Connection, new: NewIncident) -> IncidentRef:
        lock_record(connection)
        found = None
        if new.conversation_id is not None:
            key = {"conversation_id": new.conversation_id, "kind": new.kind}
            found = connection.execute(_UNRESOLVED, key).one_or_none()
        return self._open(connection, new) if found is None else self._fold(connection, found, new)

    def _open(self, connection: Connection, new: NewIncident) -> IncidentRef:
        incident_id = new_id("inc", new.opened_at)
        values = {
            "id": incident_id,
            "conversation_id": new.conversation_id,
            "app_id": new.app_id,
            "kind": new.kind,
            "state": "open",
            "severity": new.severity,
            "categories": list(new.categories),
            "imminence": new.imminence,
            "subject": new.subject,
            "stage": new.stage,
            "policy_version": new.policy_version,
            "route": new.route,
            "ack_deadline_at": new.opened_at + timedelta(seconds=new.ack_within_s),
            "evidence_encrypted": self._seal(incident_id, bounded(new.evidence or "")),
            "turns": 1,
            "opened_at": new.opened_at,
            "updated_at": new.opened_at,
            "version": 1,
        }
        connection.execute(_INSERT, values)
        return IncidentRef(id=incident_id, created=True, severity_rose=True)

    def _fold(self, connection: Connection, found: Row[Any], new: NewIncident) -> IncidentRef:
        rose = new.severity > found.severity
        deadline = new.opened_at + timedelta(seconds=new.ack_within_s)
        evidence = self._seal(found.id, joined(self._earlier(found), new.evidence or ""))
        values = {
            "state": "open" if rose else found.state,
            "severity": max(new.severity, found.severity),
            "categories": list(dict.fromkeys((*found.categories, *new.categories))),
            "imminence": max(new.imminence, found.imminence, key=IMMINENCE_ORDER.index),
            "subject": new.subject if rose or found.subject == "none" else found.subject,
            "stage": new.stage if rose else found.stage,
            "policy_version": new.policy_version,
            "route": max(new.route, found.route, key=ROUTE_ORDER.index),
            "ack_deadline_at": _deadline(
                found.ack_deadline_at, deadline, restart=rose and found.state == "acknowledged"
            ),
            "evidence_encrypted": evidence,
            "turns": found.turns + 1,
            "updated_at": max(new.opened_at, found.updated_at),
            "version": found.version + 1,
        }
        connection.execute(update(_T).where(_T.c.id == found.id).values(values))
        return IncidentRef(id=found.id, created=False, severity_rose=rose)

    def _earlier(self, found: Row[Any]) -> str:
        """What the incident holds already.  A seal that no key opens may not keep a new finding out."""
        try:
            return self._unseal(found.id, found.evidence_encrypted)
        except DecryptionError:
            return UNREADABLE

    def _seal(self, incident_id: str, text: str) -> bytes | None:
        return self._keyring.encrypt(text, aad=_aad(incident_id)) if text else None

    def _unseal(self, incident_id: str, blob: bytes | None) -> str:
        return "" if blob is None else self._keyring.decrypt(blob, aad=_aad(incident_id))


def _aad(incident_id: str) -> str:
    return f"incident-evidence:{incident_id}"


def _deadline(earlier: datetime, deadline: datetime, *, restart: bool) -> datetime:
    """An acknowledged incident that grew worse needs a new acknowledgement; otherwise the earlier clock stands."""
    return deadline if restart else min(deadline, earlier)


def joined(earlier: str, later: str) -> str:
    """Evidence with a further finding, bounded: the opening and the latest stay, the middle goes."""
    return bounded(_BREAK.join(part for part in (earlier, later) if part))


def bounded(text: str) -> str:
    """At most `MAX_EVIDENCE_CHARS`, the first `KEPT_OPENING_CHARS` among them."""
    if len(text) <= MAX_EVIDENCE_CHARS:
        return text
    return text[:KEPT_OPENING_CHARS] + _GAP + text[-(MAX_EVIDENCE_CHARS - KEPT_OPENING_CHARS - len(_GAP)) :]


def _view(row: Row[Any]) -> IncidentView:
    fields = dict(row._mapping)
    return IncidentView(**fields | {"categories": tuple(fields["categories"])})
