"""Loads backends and detectors through entry points: built-ins come through the same door as strangers.

Only the kinds that settings name are imported.  A kind that two distributions claim is refused, because
nobody could say which of them judges.  A detector must judge one harmless passage before the gateway starts.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger

from backends.api import BackendError, ChatBackend
from detectors.api import Detector, DetectorError, Passage
from gateway.errors import StartupError
from gateway.settings import DetectorSettings

BACKENDS: Final = "havengate.backends"
DETECTORS: Final = "havengate.detectors"
LOAD_WITHIN_S: Final = 60.0
PROBE: Final = Passage("Hello, this is a test of the line.")


async def load_backend(
    kind: str, options: Mapping[str, Any], *, log: FilteringBoundLogger | None = None
) -> ChatBackend:
    """The backend named ``kind``, loaded.  A remote model that is down is not an error here; a wrong option is.

    Raises `StartupError`: unknown or doubly claimed kind, options that do not fit, or a failed load.
    """
    factory = _find(BACKENDS, kind)
    config = _configure(factory, kind, options)
    try:
        backend = await asyncio.wait_for(factory.load(config), LOAD_WITHIN_S)
    except BackendError as error:
        raise StartupError(f"Backend {kind} cannot start ({error.kind}): {error.detail}") from error
    except TimeoutError:
        raise StartupError(f"Backend {kind} did not load within {LOAD_WITHIN_S:.0f} s.") from None
    if not isinstance(backend, ChatBackend):
        raise StartupError(f"Backend {kind} does not keep the contract of backends.api.ChatBackend.")
    _say(log, "backend_loaded", BACKENDS, kind, name=kind, model=backend.info.model)
    return backend


async def load_detectors(
    named: Mapping[str, DetectorSettings], *, log: FilteringBoundLogger | None = None
) -> list[Detector]:
    """Every enabled detector, loaded and proven by one verdict, in the order of ``named``; they load side by side.

    Raises `StartupError` for the first fault; whatever else was loaded is closed again.
    """
    wanted = {name: section for name, section in named.items() if section.enabled}
    results = await asyncio.gather(*(_prove(name, section) for name, section in wanted.items()), return_exceptions=True)
    loaded = [result for result in results if not isinstance(result, BaseException)]
    faults = [result for result in results if isinstance(result, BaseException)]
    if faults:
        for detector in loaded:
            await detector.aclose()
        raise faults[0]
    for detector, (name, section) in zip(loaded, wanted.items(), strict=True):
        _say(log, "detector_loaded", DETECTORS, section.kind, name=name, digest=detector.info.digest)
    return loaded


async def _prove(name: str, section: DetectorSettings) -> Detector:
    """Load one detector and let it judge; close it again if it cannot."""
    detector = await _load_detector(name, section)
    try:
        await _probe(name, detector)
    except StartupError:
        await detector.aclose()
        raise
    return detector


async def _load_detector(name: str, section: DetectorSettings) -> Detector:
    factory = _find(DETECTORS, section.kind)
    config = _configure(factory, section.kind, section.options)
    try:
        detector = await asyncio.wait_for(factory.load(name, config), LOAD_WITHIN_S)
    except DetectorError as error:
        raise StartupError(f"Detector {name} cannot start ({error.reason}): {error.detail}") from error
    except TimeoutError:
        raise StartupError(f"Detector {name} did not load within {LOAD_WITHIN_S:.0f} s.") from None
    if not isinstance(detector, Detector):
        raise StartupError(f"Detector {name} does not keep the contract of detectors.api.Detector.")
    return detector


async def _probe(name: str, detector: Detector) -> None:
    """A detector that cannot judge a greeting would fail at a person's first message instead."""
    try:
        await asyncio.wait_for(detector.judge(PROBE), LOAD_WITHIN_S)
    except DetectorError as error:
        raise StartupError(f"Detector {name} failed its first verdict ({error.reason}): {error.detail}") from error
    except TimeoutError:
        raise StartupError(f"Detector {name} gave no first verdict within {LOAD_WITHIN_S:.0f} s.") from None


def _find(group: str, kind: str) -> Any:
    """The class behind ``kind``: exactly one distribution may offer it, and it must look like an implementer."""
    claims = _claims(group)
    found = claims.get(kind, [])
    what = group.rpartition(".")[2].removesuffix("s")
    if not found:
        close = difflib.get_close_matches(kind, claims, n=1)
        hint = f" Did you mean {close[0]}?" if close else f" Installed: {', '.join(sorted(claims)) or 'none'}."
        raise StartupError(f"No {what} of kind {kind} is installed.{hint}")
    if len(found) > 1:
        owners = ", ".join(sorted(_owner(claim)[0] for claim in found))
        raise StartupError(f"The {what} kind {kind} is offered more than once ({owners}); uninstall all but one.")
    try:
        factory = found[0].load()
    except (ImportError, AttributeError) as error:
        raise StartupError(
            f"The {what} {kind} cannot be imported from {found[0].value} ({type(error).__name__})."
        ) from error
    if not (inspect.isclass(factory) and hasattr(factory, "load") and hasattr(factory, "config_type")):
        raise StartupError(f"The {what} {kind} ({found[0].value}) has no load or no config_type.")
    return factory


def _claims(group: str) -> dict[str, list[EntryPoint]]:
    """Entry points by kind.  The same claim seen twice (one distribution found by two paths) is one claim."""
    claims: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=group):
        claims.setdefault(point.name, {})[_owner(point)[0], point.value] = point
    return {kind: list(found.values()) for kind, found in claims.items()}


def _owner(point: EntryPoint) -> tuple[str, str]:
    """Distribution and version behind an entry point."""
    return (point.dist.name, point.dist.version) if point.dist is not None else ("unknown", "unknown")


def _configure(factory: Any, kind: str, options: Mapping[str, Any]) -> Any:
    """Decode options into the implementer's Struct: no unknown key, no silent conversion, no value in an error."""
    config_type = factory.config_type
    if not (inspect.isclass(config_type) and issubclass(config_type, msgspec.Struct)):
        raise StartupError(f"The config_type of {kind} is not a msgspec Struct.")
    known = [field.encode_name for field in msgspec.structs.fields(config_type)]
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" It knows: {', '.join(known) or 'none'}."
            raise StartupError(f"Unknown option {key} for {kind}.{hint}")
    try:
        return msgspec.convert(dict(options), config_type, strict=True)
    except msgspec.ValidationError as error:
        raise StartupError(f"Options of {kind} do not fit: {error}.") from None


def _say(log: FilteringBoundLogger | None, event: str, group: str, kind: str, **fields: str) -> None:
    if log is None:
        return
    (claim,) = _claims(group)[kind]
    distribution, version = _owner(claim)
    log.info(event, kind=kind, distribution=distribution, version=version, **fields)
