"""Who is calling."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from gateway.policy.decision import Mode

Scope = Literal["chat", "moderations", "models", "incidents:read", "admin"]
SCOPES: Final[frozenset[str]] = frozenset(get_args(Scope))
"""``admin`` does not contain the others: a key can do what its scopes name, and no more."""


class Principal(msgspec.Struct, frozen=True):
    """A caller that proved who it is.  ``mode`` comes from the credential and from nothing else."""

    key_id: str
    name: str
    scopes: frozenset[str]
    mode: Mode
    region: str
    """Where the people behind this caller live, as a region code, or ``unknown``."""
