"""The audit trail's grammar: what an entry may hold, and how entries are chained.  Pure.

    leaf_n = SHA-256(0x00 || canonical JSON of entry n)
    hash_n = SHA-256(0x01 || hash_(n-1) || leaf_n),  hash_0 = GENESIS

The prefixes keep leaves and nodes apart (RFC 6962, section 2.1).  Canonical JSON: UTF-8, keys sorted, no
white space, times in UTC with microseconds.

What this promises: whoever keeps a head (``seq:hash``) outside the database will find any change to the entries
up to it.  Without a head kept elsewhere, someone who may write to the database can rebuild the whole chain.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

GENESIS: Final = hashlib.sha256(b"havengate audit chain, version 1").hexdigest()
MAX_STRING: Final = 200
MAX_ITEMS: Final = 64
# JSON numbers beyond 2**53 do not survive every reader (RFC 8259, section 6).
MAX_INT: Final = 2**53

DATA_KEYS: Final = frozenset(
    {
        "ack_within_s", "action", "backend", "backend_error", "categories", "channel", "client_gone", "count",
        "delivered_chars", "detectors", "fields", "finish_reason", "from_state", "key_id", "kind", "mode", "model",
        "outcome", "policy_version", "reason", "reasons", "region", "route", "scopes", "severity", "stage", "state",
        "subject", "imminence", "to_state", "turns", "version", "wording",
    }
)  # fmt: skip
"""Everything an entry's data may be called.  A new key is a decision: could a person's words get in by it?"""

_TOKEN: Final = re.compile(r"[!-~]*")
"""Printable ASCII without spaces: names, codes and hashes pass, a sentence does not."""


class AuditRefused(ValueError):
    """The entry could hold text of a person.  The message names the field, never its value."""


class AuditEvent(msgspec.Struct, frozen=True):
    """One thing that happened.  Strings are tokens of at most 200 characters, never prose."""

    event: str
    """Dotted name, as in ``incident.opened``."""
    actor: str
    """``app:KEY_ID``, ``user:ID`` or ``system:PART``."""
    at: datetime
    request_id: str | None = None
    conversation_id: str | None = None
    """The store's id, never the application's."""
    incident_id: str | None = None
    data: Mapping[str, Any] = {}


class Entry(msgspec.Struct, frozen=True):
    """One row of the chain."""

    seq: int
    event: AuditEvent
    prev_hash: str
    hash: str


def check(event: AuditEvent) -> None:
    """Raise `AuditRefused` unless every field is a token, a number, a truth value or a short list of them."""
    for name in ("event", "actor", "request_id", "conversation_id", "incident_id"):
        _check_scalar(name, getattr(event, name))
    if event.at.tzinfo is None:
        raise AuditRefused("at: no time zone")
    if not event.data.keys() <= DATA_KEYS:
        raise AuditRefused("data: a key that is not in DATA_KEYS")
    check_tokens(event.data)


def check_tokens(data: Mapping[str, Any]) -> None:
    """The same rule for any flat mapping that must not hold prose (an outbox payload, for one)."""
    for name, value in data.items():
        for item in _items(name, value):
            _check_scalar(name, item)


def _items(name: str, value: object) -> Iterator[object]:
    if not isinstance(value, list | tuple):
        yield value
        return
    if len(value) > MAX_ITEMS:
        raise AuditRefused(f"{name}: more than {MAX_ITEMS} items")
    yield from value


def _check_scalar(name: str, value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise AuditRefused(f"{name}: a number beyond 2**53")
        return
    if not isinstance(value, str):
        raise AuditRefused(f"{name}: neither a token nor an integer nor a truth value")
    if len(value) > MAX_STRING or not _TOKEN.fullmatch(value):
        raise AuditRefused(f"{name}: not a token of at most {MAX_STRING} characters")


def canonical(seq: int, event: AuditEvent) -> bytes:
    """The bytes that are hashed for entry ``seq``."""
    document = {
        "actor": event.actor,
        "at": event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "conversation_id": event.conversation_id,
        "data": event.data,
        "event": event.event,
        "incident_id": event.incident_id,
        "request_id": event.request_id,
        "seq": seq,
    }
    return msgspec.json.encode(document, order="deterministic")


def chain_hash(prev_hash: str, seq: int, event: AuditEvent) -> str:
    """Hash of entry ``seq`` after an entry with ``prev_hash`` (hex in, hex out)."""
    leaf = hashlib.sha256(b"\x00" + canonical(seq, event)).digest()
    return hashlib.sha256(b"\x01" + bytes.fromhex(prev_hash) + leaf).hexdigest()
