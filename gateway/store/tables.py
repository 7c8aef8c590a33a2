"""The tables (SQLModel).  They are for schema and queries; rows never leave the store, frozen structs do.

SQLModel does not validate ``table=True`` classes, so every bound that matters is a CHECK constraint too.
``Base`` has metadata of its own: no table of another package ends up in our migrations.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from gateway.store.vocabulary import IMMINENCE_ORDER, IncidentKind, IncidentState, OutboxState, Subject

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also on SQLite, which drops time zones.  A naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


COUNTER: Final = BigInteger().with_variant(Integer(), "sqlite")
JSON_TYPE: Final = JSON().with_variant(JSONB(), "postgresql")


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(v) for v in values)})", name=column)


class Base(SQLModel):
    metadata = MetaData(naming_convention=NAMING)


class ApiKey(Base, table=True):
    """A caller.  ``hash`` is the keyed hash of the whole key; the key itself is nowhere."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("hash"), CheckConstraint("length(hash) = 64", name="hash_length"))

    id: str = Field(primary_key=True, sa_type=String(16))
    name: str = Field(sa_type=String(100))
    hash: str = Field(sa_type=String(64))
    scopes: list[str] = Field(sa_type=JSON_TYPE)
    region: str = Field(sa_type=String(16))
    created_at: datetime = Field(sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Conversation(Base, table=True):
    """What a conversation carries from turn to turn.  Ids of the application are stored as keyed hashes."""

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("app_id", "external_hash"),
        CheckConstraint("severity_peak BETWEEN 0 AND 4", name="severity_peak"),
        CheckConstraint("version >= 1", name="version"),
    )

    id: str = Field(primary_key=True, sa_type=String(40))
    app_id: str = Field(sa_type=String(64))
    external_hash: str = Field(sa_type=String(64))
    end_user_hash: str | None = Field(default=None, sa_type=String(64), index=True)
    risk: dict[str, Any] = Field(sa_type=JSON_TYPE)
    severity_peak: int
    last_turn_at: datetime = Field(sa_type=UtcDateTime)
    created_at: datetime = Field(sa_type=UtcDateTime)
    version: int


class Incident(Base, table=True):
    """Something that people must look at.  ``evidence_encrypted`` is the only place with a person's words."""

    __tablename__ = "incidents"
    __table_args__ = (
        # One unresolved incident per conversation and kind; incidents without a conversation stand alone.
        Index(
            "uq_incidents_unresolved",
            "conversation_id",
            "kind",
            unique=True,
            sqlite_where=text("state <> 'resolved'"),
            postgresql_where=text("state <> 'resolved'"),
        ),
        Index("ix_incidents_queue", "state", "severity", "opened_at"),
        _one_of("kind", get_args(IncidentKind)),
        _one_of("state", get_args(IncidentState)),
        _one_of("imminence", IMMINENCE_ORDER),
        _one_of("subject", get_args(Subject)),
        CheckConstraint("severity BETWEEN 0 AND 4", name="severity"),
        CheckConstraint("turns >= 1", name="turns"),
        CheckConstraint("version >= 1", name="version"),
    )

    id: str = Field(primary_key=True, sa_type=String(40))
    conversation_id: str | None = Field(default=None, sa_type=String(40), foreign_key="conversations.id")
    app_id: str = Field(sa_type=String(64))
    kind: str = Field(sa_type=String(16))
    state: str = Field(sa_type=String(16))
    severity: int
    categories: list[str] = Field(sa_type=JSON_TYPE)
    imminence: str = Field(sa_type=String(16))
    subject: str = Field(sa_type=String(16))
    stage: str = Field(sa_type=String(16))
    policy_version: str = Field(sa_type=String(200))
    route: str = Field(sa_type=String(16))
    ack_deadline_at: datetime = Field(sa_type=UtcDateTime)
    evidence_encrypted: bytes | None = Field(default=None, sa_type=LargeBinary)
    turns: int
    opened_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)
    version: int


class OutboxItem(Base, table=True):
    """A notice that must reach people.  Written with its incident; a worker delivers it later."""

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("dedupe_key"),
        Index("ix_outbox_due", "state", "next_attempt_at"),
        _one_of("state", get_args(OutboxState)),
        CheckConstraint("attempts >= 0", name="attempts"),
    )

    id: str = Field(primary_key=True, sa_type=String(40))
    kind: str = Field(sa_type=String(32))
    incident_id: str = Field(sa_column_args=(ForeignKey("incidents.id"),), sa_type=String(40), index=True)
    route: str = Field(sa_type=String(16))
    payload: dict[str, Any] = Field(sa_type=JSON_TYPE)
    state: str = Field(sa_type=String(16))
    attempts: int
    next_attempt_at: datetime = Field(sa_type=UtcDateTime)
    lease_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    lease_owner: str | None = Field(default=None, sa_type=String(64))
    last_error: str | None = Field(default=None, sa_type=String(200))
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    dedupe_key: str = Field(sa_type=String(200))
    created_at: datetime = Field(sa_type=UtcDateTime)


class AuditRow(Base, table=True):
    """One entry of the audit chain (`gateway.audit.log`).  No foreign keys: the trail outlives what it speaks of."""

    __tablename__ = "audit"
    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        CheckConstraint("length(hash) = 64 AND length(prev_hash) = 64", name="hash_length"),
    )

    seq: int = Field(primary_key=True, sa_type=COUNTER, sa_column_kwargs={"autoincrement": False})
    at: datetime = Field(sa_type=UtcDateTime)
    actor: str = Field(sa_type=String(200))
    event: str = Field(sa_type=String(64))
    request_id: str | None = Field(default=None, sa_type=String(200), index=True)
    conversation_id: str | None = Field(default=None, sa_type=String(200), index=True)
    incident_id: str | None = Field(default=None, sa_type=String(200), index=True)
    data: dict[str, Any] = Field(sa_type=JSON_TYPE)
    prev_hash: str = Field(sa_type=String(64))
    hash: str = Field(sa_type=String(64), unique=True)
