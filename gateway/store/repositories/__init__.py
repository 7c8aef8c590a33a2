"""What can be read and written in a unit of work, one repository per kind of thing."""

from __future__ import annotations

from gateway.store.repositories.api_keys import ApiKeys
from gateway.store.repositories.audit import AuditTrail
from gateway.store.repositories.conversations import Conversations
from gateway.store.repositories.incidents import Incidents
from gateway.store.repositories.outbox import Outbox
from gateway.store.vocabulary import (
    ConversationState,
    IncidentKind,
    IncidentRef,
    IncidentState,
    IncidentView,
    NewIncident,
    OutboxView,
    StoredKey,
)

__all__ = [
    "ApiKeys",
    "AuditTrail",
    "ConversationState",
    "Conversations",
    "IncidentKind",
    "IncidentRef",
    "IncidentState",
    "IncidentView",
    "Incidents",
    "NewIncident",
    "Outbox",
    "OutboxView",
    "StoredKey",
]
