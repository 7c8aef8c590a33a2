"""Server-sent events for ``/v1``: framing and heartbeat (WHATWG HTML, section 9.2; OpenAI's ``data:`` + ``[DONE]``)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
HEADERS: Final[Mapping[str, str]] = {"cache-control": "no-store", "x-accel-buffering": "no"}


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event.  JSON escapes line ends, so an event is always one line."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


async def with_heartbeat(frames: AsyncGenerator[bytes, None], interval_s: float) -> AsyncGenerator[bytes, None]:
    """Pass frames on, and a comment whenever none came for ``interval_s``, so that proxies keep the line open.

    Closing this generator closes ``frames``, also while it is waiting.
    """
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(_next(frames))
            done, _ = await asyncio.wait({pending}, timeout=interval_s)
            if not done:
                yield PING
                continue
            ready, pending = pending, None
            try:
                item = ready.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if pending is not None:
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending
        await frames.aclose()


async def _next(frames: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(frames)
