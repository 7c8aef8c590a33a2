"""Work that must be seen through although the client has gone: judging a message, committing an incident."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def see_through(work: Coroutine[Any, Any, T], *, within_s: float) -> T:
    """Run ``work`` to its end, whether this task is cancelled by anyio's scopes or by asyncio itself.

    A cancellation that arrives meanwhile is delivered afterwards.  ``within_s`` bounds only the wait
    after a cancellation: work that is stuck then goes on without us.
    """
    task = asyncio.ensure_future(work)
    with anyio.CancelScope(shield=True):
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await asyncio.wait({task}, timeout=within_s)
            raise
    return task.result()
