"""``havengate doctor``: look at each part that serving needs, and say in one line each how it stands."""

from __future__ import annotations

import sys

import msgspec

from backends.api import BackendError
from gateway.errors import HavengateError
from gateway.events.redis import answers
from gateway.parts import open_panel, open_store
from gateway.policy.loader import default_policy_path, load_policy
from gateway.registry import load_backend
from gateway.settings import Settings


class Finding(msgspec.Struct, frozen=True):
    """How one part stands."""

    part: str
    ok: bool
    detail: str


async def examine(settings: Settings) -> list[Finding]:
    """Every part, also after one has failed: a person mends several things in one go."""
    return [
        Finding("python", sys.version_info >= (3, 11), ".".join(str(part) for part in sys.version_info[:3])),
        _policy(settings),
        await _store(settings),
        await _events(settings),
        await _detectors(settings),
        await _backend(settings),
    ]


def _policy(settings: Settings) -> Finding:
    try:
        policy = load_policy(settings.policy.path or default_policy_path())
    except HavengateError as error:
        return Finding("policy", False, error.message)
    return Finding("policy", True, f"{policy.rules.meta.name} {policy.version}, {len(policy.rules.case)} examples hold")


async def _store(settings: Settings) -> Finding:
    try:
        store = open_store(settings)
    except HavengateError as error:
        return Finding("store", False, error.message)
    try:
        await store.health()
    except HavengateError as error:
        return Finding("store", False, error.message)
    finally:
        await store.aclose()
    return Finding("store", True, "reads and writes")


async def _events(settings: Settings) -> Finding:
    if settings.events.url is None:
        return Finding("events", True, "in this process")
    if await answers(settings.events.url.get_secret_value()):
        return Finding("events", True, f"channel {settings.events.channel}")
    return Finding("events", False, "the server of events.url does not answer; reviewers would see changes late")


async def _detectors(settings: Settings) -> Finding:
    try:
        panel, detectors = await open_panel(settings)
    except HavengateError as error:
        return Finding("detectors", False, error.message)
    await panel.aclose()
    return Finding("detectors", True, ", ".join(f"{d.info.name} {d.info.digest[:12]}" for d in detectors))


async def _backend(settings: Settings) -> Finding:
    try:
        backend = await load_backend(settings.backend.kind, settings.backend.options)
    except HavengateError as error:
        return Finding("backend", False, error.message)
    try:
        await backend.health()
    except BackendError as error:
        return Finding("backend", False, f"{backend.info.kind}: {error.kind}")
    finally:
        await backend.aclose()
    return Finding("backend", True, f"{backend.info.kind}: {backend.info.model}")
