"""The words and frozen structs that the store takes and gives.  No SQL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, get_args

import msgspec

from detectors.api import Imminence, Subject
from gateway.policy.decision import Route, Stage

__all__ = ["Imminence", "Route", "Stage", "Subject"]

IncidentKind = Literal["crisis", "output_harm", "unavailable", "backend", "abuse"]
IncidentState = Literal["open", "acknowledged", "resolved"]
OutboxState = Literal["pending", "leased", "delivered", "dead"]

IMMINENCE_ORDER: Final[tuple[str, ...]] = get_args(Imminence)
"""From far to near."""


class ConversationState(msgspec.Struct, frozen=True):
    """What is stored of a conversation."""

    id: str
    risk: dict[str, Any]
    severity_peak: int
    """Highest severity (0-4) ever saved; never falls."""
    version: int
    """Counts saves, from 1."""


class NewIncident(msgspec.Struct, frozen=True):
    """A finding for people.  ``evidence`` is plain here and encrypted before it is stored."""

    app_id: str
    kind: IncidentKind
    severity: int
    stage: Stage
    policy_version: str
    route: Route
    ack_within_s: int
    opened_at: datetime
    conversation_id: str | None = None
    """The id that `conversations.save` returned."""
    categories: tuple[str, ...] = ()
    imminence: str = "none"
    subject: str = "none"
    evidence: str | None = None


class IncidentRef(msgspec.Struct, frozen=True):
    """What `open_or_update` did."""

    id: str
    created: bool
    severity_rose: bool
    """True as well when it was created."""


class IncidentView(msgspec.Struct, frozen=True):
    """An incident without the person's words."""

    id: str
    conversation_id: str | None
    app_id: str
    kind: IncidentKind
    state: IncidentState
    severity: int
    categories: tuple[str, ...]
    imminence: str
    subject: str
    stage: str
    policy_version: str
    route: Route
    ack_deadline_at: datetime
    turns: int
    opened_at: datetime
    updated_at: datetime
    version: int


class OutboxView(msgspec.Struct, frozen=True):
    """A notice and where it stands."""

    id: str
    incident_id: str
    route: str
    payload: Mapping[str, Any]
    state: OutboxState
    attempts: int
    dedupe_key: str


class StoredKey(msgspec.Struct, frozen=True):
    """An API key as the store knows it: by its keyed hash."""

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    region: str
    created_at: datetime
    revoked_at: datetime | None = None
