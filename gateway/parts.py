"""The parts of the house, each opened from its settings.  `gateway/main.py` puts them together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from structlog.typing import FilteringBoundLogger

from detectors.api import Detector
from detectors.panel import Observe, Panel
from gateway.auth.apikeys import import_key
from gateway.errors import StartupError
from gateway.events.bus import EventBus
from gateway.events.inprocess import InProcessBus
from gateway.events.redis import RedisBus, Report
from gateway.http.openai import Limits
from gateway.pipeline.holdback import Rules
from gateway.pipeline.owed import Owed
from gateway.pipeline.record import Intervention
from gateway.registry import load_detectors
from gateway.settings import Settings
from gateway.store.crypto import Keyring
from gateway.store.migrate import upgrade
from gateway.store.uow import Store

LOCK_TIMEOUT_S: Final = 1.0
"""A person waits for this before they get their care text; a finding that missed it is kept on disk."""


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


def open_store(settings: Settings) -> Store:
    """The record, its schema brought up to date; its keys are kept beside it, not in it."""
    keyring = open_keyring(settings)
    upgrade(settings.database_url)
    return Store.open(settings.database_url, keyring, lock_timeout_s=LOCK_TIMEOUT_S)


def open_keyring(settings: Settings) -> Keyring:
    """The keys from the environment, else from their file.  Raises `StartupError` where there are none and none may
    be made."""
    if settings.store.keyring is not None:
        return Keyring.from_env(settings.store.keyring.get_secret_value())
    if not settings.may_make_keyring and not settings.keyring_path.exists():
        raise StartupError(
            f"There are no keys: set HAVENGATE_KEYRING (32 random bytes in base64: openssl rand -base64 32), the same "
            f"for every gateway, or put a key file at {settings.keyring_path}."
        )
    return Keyring.load_or_create(settings.keyring_path)


@contextlib.asynccontextmanager
async def open_bus(settings: Settings, report: Report) -> AsyncIterator[EventBus]:
    """Where hints go: to every gateway when settings name a server, else to this process alone."""
    if settings.events.url is None:
        here = InProcessBus()
        try:
            yield here
        finally:
            here.close()
    else:
        async with RedisBus(settings.events.url.get_secret_value(), settings.events.channel, report) as bus:
            yield bus


async def open_panel(
    settings: Settings, *, log: FilteringBoundLogger | None = None, observe: Observe | None = None
) -> tuple[Panel, list[Detector]]:
    """The detectors that settings name, and the panel that asks them under one deadline, with one cache."""
    detectors = await load_detectors(settings.detectors, log=log)
    panel = Panel(
        detectors, timeout_s=settings.judge.timeout_s, cache_entries=settings.judge.cache_entries, observe=observe
    )
    return panel, detectors


async def import_dev_key(settings: Settings, store: Store) -> None:
    """Make the development key valid, if there is one; a second start changes nothing."""
    if settings.auth.dev_api_key is None:
        return
    async with store.begin() as unit:
        await import_key(
            unit,
            store.keyring,
            settings.auth.dev_api_key.get_secret_value(),
            name="development",
            scopes=("chat", "moderations", "models"),
            region="unknown",
            now=datetime.now(tz=UTC),
        )


def owed(settings: Settings, store: Store) -> Owed[Intervention]:
    """Where findings wait that the store could not take."""
    return Owed(settings.home.expanduser().absolute() / "owed", store.keyring, Intervention)


def holdback(settings: Settings) -> Rules:
    """How answers are cut into windows."""
    sizes = settings.holdback
    return Rules(first_chars=sizes.first_chars, window_chars=sizes.window_chars, overlap_chars=sizes.overlap_chars)


def limits(settings: Settings) -> Limits:
    """Bounds of a request."""
    return Limits(
        max_messages=settings.server.max_messages,
        max_message_chars=settings.server.max_message_chars,
        max_total_chars=settings.server.max_total_chars,
        max_tokens_default=settings.persona.default_max_tokens,
        max_tokens_cap=settings.persona.cap_max_tokens,
    )
