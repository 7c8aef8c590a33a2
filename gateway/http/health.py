"""``/healthz`` (alive), ``/readyz`` (detectors, store, backend) and ``/metrics``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from litestar import Response, get

from backends.api import BackendError
from detectors.api import Passage
from gateway.http.front import Front
from gateway.store.errors import StoreError
from gateway.telemetry.metrics import CONTENT_TYPE

CHECK_WITHIN_S: Final = 5.0
FRESH_FOR_S: Final = 1.0


@get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


class Readiness:
    """What the parts said when last asked.  The route is open, so a crowd of callers may not cost a verdict each."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._asked_s = -math.inf
        self._parts: dict[str, str] = {}
        self._asking = asyncio.Lock()

    async def parts(self, front: Front) -> dict[str, str]:
        """Each part with ``ok`` or why not, at most ``FRESH_FOR_S`` old."""
        async with self._asking:
            if self._monotonic_s() - self._asked_s >= FRESH_FOR_S:
                checks = await asyncio.gather(
                    _check(_detectors(front)), _check(front.store.health()), _check(front.house.backend.health())
                )
                self._parts = dict(zip(("detectors", "store", "backend"), checks, strict=True))
                self._asked_s = self._monotonic_s()
            return self._parts


@get("/readyz")
async def readyz(front: Front, readiness: Readiness) -> Response[bytes]:
    """200 when a turn would be judged, recorded and answered; else 503 naming the part that would fail."""
    parts = await readiness.parts(front)
    ready = all(state == "ok" for state in parts.values())
    body = {"status": "ready" if ready else "not_ready", "checks": parts}
    return Response(content=msgspec.json.encode(body), media_type="application/json", status_code=200 if ready else 503)


@get("/metrics")
async def metrics(front: Front) -> Response[bytes]:
    """Prometheus text format.  Counts and durations only."""
    return Response(content=front.house.observer.render_metrics(), media_type=CONTENT_TYPE)


async def _detectors(front: Front) -> None:
    # A text not seen before: a cached verdict would say nothing of the detectors.
    reading = await front.house.panel.read(Passage(text=f"ready {time.monotonic_ns()}"))
    if reading.unavailable_tasks:
        raise TimeoutError


async def _check(work: Awaitable[Any]) -> str:
    try:
        await asyncio.wait_for(work, CHECK_WITHIN_S)
    except (BackendError, StoreError) as error:
        return f"failed: {error.kind}"
    except TimeoutError:
        return "failed: timeout"
    return "ok"
