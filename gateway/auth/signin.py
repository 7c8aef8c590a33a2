"""One-time sign-in links for the person who runs the gateway on their own machine.

A link holds a random token, works once and for a few minutes; it becomes a session cookie that is
kept as a hash, in memory, and ends with the process.  In production the clinic's OIDC provider
takes this place.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from gateway.auth.principal import Principal

SESSION_COOKIE: Final = "havengate_session"
LINK_LIFE_S: Final = 900.0
SESSION_LIFE_S: Final = 12 * 3600.0
MAX_ENTRIES: Final = 1_000


class SignIn:
    """Links given out and sessions opened.  ``monotonic_s`` is the clock, in seconds."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._links: OrderedDict[str, float] = OrderedDict()
        self._sessions: OrderedDict[str, tuple[float, Principal]] = OrderedDict()

    def new_link_token(self) -> str:
        """A token that `redeem` accepts once, within ``LINK_LIFE_S``."""
        token = secrets.token_urlsafe(32)
        self._links[_digest(token)] = self._monotonic_s() + LINK_LIFE_S
        _trim(self._links)
        return token

    def redeem(self, token: str, principal: Principal) -> str | None:
        """Trade a link token for a session id that acts as ``principal``; None if it is used up, expired or unknown."""
        expires_s = self._links.pop(_digest(token), None)
        if expires_s is None or expires_s < self._monotonic_s():
            return None
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = (self._monotonic_s() + SESSION_LIFE_S, principal)
        _trim(self._sessions)
        return session

    def principal(self, session: str) -> Principal | None:
        """Whose session this is; None if it is unknown or over."""
        entry = self._sessions.get(_digest(session))
        if entry is None or entry[0] < self._monotonic_s():
            return None
        return entry[1]


def _digest(value: str) -> str:
    """Looked up by hash: neither a memory dump nor the timing of a lookup gives a token away."""
    return hashlib.sha256(value.encode()).hexdigest()


def _trim(entries: OrderedDict[str, Any]) -> None:
    while len(entries) > MAX_ENTRIES:
        entries.popitem(last=False)
