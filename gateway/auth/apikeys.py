"""API keys: made, imported, revoked, and checked at every request.

A key is ``hg_<id>_<secret>``: 8 characters that may be shown and logged, and 32 random bytes that may not.  The store
holds a keyed hash of the whole key (`Keyring.mac_key`), so a stolen database gives no key away.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

import msgspec

from gateway.audit.log import AuditEvent
from gateway.auth.principal import SCOPES, Principal
from gateway.errors import UsageError
from gateway.store.crypto import Keyring
from gateway.store.errors import StoreError
from gateway.store.uow import Store, UnitOfWork
from gateway.store.vocabulary import StoredKey

MIN_KEY_CHARS: Final = 8
MAX_KEY_CHARS: Final = 256
MAX_NAME_CHARS: Final = 100
MAX_CACHED: Final = 4_096
CACHE_TTL_S: Final = 10.0
STALE_FOR_S: Final = 900.0

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_ID_CHARS: Final = 8
_FORMAT: Final = re.compile(r"hg_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")
_REGION: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,15}")


class ApiKeyInfo(msgspec.Struct, frozen=True):
    """What may be shown of a key."""

    id: str
    name: str
    scopes: frozenset[str]
    region: str


async def create(
    unit: UnitOfWork, keyring: Keyring, *, name: str, scopes: Iterable[str], region: str, now: datetime
) -> tuple[ApiKeyInfo, str]:
    """Make a key; returns it with its plaintext, which exists nowhere else.  Raises `UsageError` for a bad argument."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARS))
    plaintext = f"hg_{key_id}_{secrets.token_urlsafe(32)}"
    info = await _add(unit, keyring, plaintext, ApiKeyInfo(key_id, name, frozenset(scopes), region), now)
    return info, plaintext


async def import_key(
    unit: UnitOfWork,
    keyring: Keyring,
    plaintext: str,
    *,
    name: str,
    scopes: Iterable[str],
    region: str,
    now: datetime,
) -> ApiKeyInfo:
    """Take a key that was chosen elsewhere (``HAVENGATE_DEV_API_KEY``); a second import changes nothing.

    Raises `UsageError` when it is too short or too long to be a key, or was revoked.
    """
    if not MIN_KEY_CHARS <= len(plaintext) <= MAX_KEY_CHARS or not plaintext.isascii() or not plaintext.isprintable():
        raise UsageError(f"An API key has {MIN_KEY_CHARS} to {MAX_KEY_CHARS} printable ASCII characters.")
    key_id = _id_of(keyring, plaintext)
    stored = await unit.api_keys.get(key_id)
    if stored is None:
        return await _add(unit, keyring, plaintext, ApiKeyInfo(key_id, name, frozenset(scopes), region), now)
    if not hmac.compare_digest(stored.hash, keyring.mac_key(plaintext)):
        raise UsageError("Another API key already has this key's id; choose another key.")
    if stored.revoked_at is not None:
        raise UsageError("This API key was revoked; choose another key.")
    return ApiKeyInfo(stored.id, stored.name, frozenset(stored.scopes), stored.region)


async def revoke(unit: UnitOfWork, key_id: str, *, now: datetime) -> bool:
    """Revoke a key for good; False when it is unknown or already revoked."""
    revoked = await unit.api_keys.revoke(key_id, now)
    if revoked:
        await unit.audit.append(
            AuditEvent(event="api_key.revoked", actor="system:keys", at=now, data={"key_id": key_id})
        )
    return revoked


async def _add(unit: UnitOfWork, keyring: Keyring, plaintext: str, info: ApiKeyInfo, now: datetime) -> ApiKeyInfo:
    if not info.scopes or not info.scopes <= SCOPES:
        raise UsageError(f"Scopes are one or more of: {', '.join(sorted(SCOPES))}.")
    if not 0 < len(info.name) <= MAX_NAME_CHARS or not info.name.isprintable():
        raise UsageError(f"A key's name has 1 to {MAX_NAME_CHARS} printable characters.")
    if not _REGION.fullmatch(info.region):
        raise UsageError("A region is a short code, such as GB or EU, or 'unknown'.")
    scopes = sorted(info.scopes)
    stored = StoredKey(info.id, info.name, keyring.mac_key(plaintext), tuple(scopes), info.region, now)
    await unit.api_keys.add(stored)
    data = {"key_id": info.id, "scopes": scopes, "region": info.region}
    await unit.audit.append(AuditEvent(event="api_key.created", actor="system:keys", at=now, data=data))
    return info


def _id_of(keyring: Keyring, presented: str) -> str:
    """The id a key is looked up by: written in it, or, for a key of another form, from its keyed hash.

    What the caller sent never reaches a query: only 8 letters and digits do.
    """
    match = _FORMAT.fullmatch(presented)
    return match[1] if match else keyring.blind(presented, purpose="api-key-id")[:_ID_CHARS]


class ApiKeyAuthenticator:
    """Checks presented keys.  A good key is remembered for ``cache_ttl_s``, so a revocation is seen within that time.

    Only good keys are remembered, by their keyed hash, so that a flood of bad ones evicts nothing.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        cache_ttl_s: float = CACHE_TTL_S,
        *,
        max_cached: int = MAX_CACHED,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._cache_ttl_s = cache_ttl_s
        self._max_cached = max_cached
        self._monotonic_s = monotonic_s
        self._cache: OrderedDict[str, tuple[float, Principal]] = OrderedDict()
        self._nobody = keyring.mac_key(secrets.token_urlsafe(32))

    async def authenticate(self, presented: str) -> Principal | None:
        """Who presents this key; None if it is unknown, wrong or revoked (the same work for all three).

        When the store cannot say, a key that was good within the last ``STALE_FOR_S`` still is: a person in crisis
        may be behind it.  Raises `StoreError` for any other key then.
        """
        if not MIN_KEY_CHARS <= len(presented) <= MAX_KEY_CHARS:
            return None
        hashed = self._keyring.mac_key(presented)
        cached = self._cache.get(hashed)
        if cached is not None and self._monotonic_s() < cached[0]:
            return cached[1]
        # Taken before the read: a revocation during the read must not be hidden for longer than the promise.
        expires_s = self._monotonic_s() + self._cache_ttl_s
        try:
            async with self._store.read() as unit:
                stored = await unit.api_keys.get(_id_of(self._keyring, presented))
        except StoreError:
            if cached is not None and self._monotonic_s() < cached[0] + STALE_FOR_S:
                return cached[1]
            raise
        matches = hmac.compare_digest(self._nobody if stored is None else stored.hash, hashed)
        if stored is None or not matches or stored.revoked_at is not None:
            self._cache.pop(hashed, None)
            return None
        return self._remember(hashed, expires_s, stored)

    def _remember(self, hashed: str, expires_s: float, stored: StoredKey) -> Principal:
        principal = Principal(
            key_id=stored.id, name=stored.name, scopes=frozenset(stored.scopes), mode="assistant", region=stored.region
        )
        self._cache[hashed] = (expires_s, principal)
        self._cache.move_to_end(hashed)
        if len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)
        return principal
