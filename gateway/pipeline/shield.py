"""Work that must be seen through although the client has gone: judging a message, committing an incident."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import anyio

T = TypeVar("T")
MAX_CANCELLATIONS: Final = 8


async def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, whether this task is cancelled by anyio's scopes or by asyncio itself, once or again.

    A cancellation that arrives meanwhile is delivered afterwards.  The wait is as long as ``work``, which
    therefore bounds itself; a task that is cancelled over and over (a loop that is being torn down) gives up.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        for _ in range(MAX_CANCELLATIONS):
            try:
                await asyncio.wait({task})
                break
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
