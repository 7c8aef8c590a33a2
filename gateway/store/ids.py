"""Identifiers that sort by time: a prefix and a ULID (github.com/ulid/spec), in lower case."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Final

_CROCKFORD: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, at: datetime) -> str:
    """``prefix_`` and 26 characters: 48 bits of milliseconds since the epoch, then 80 random bits."""
    value = (int(at.timestamp() * 1000) << 80) | secrets.randbits(80)
    return f"{prefix}_" + "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))
