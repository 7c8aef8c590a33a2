"""A backend call that starts before its prompt is known to be allowed, and can be dropped without trace.

Until someone wants the answer only its first chunk is fetched, so a backend that is faster than the
verdict does not complete; after that, chunks wait in a bounded queue.  Nothing is released here.  `abort`
returns only when the backend has let go, so that "zero completed backend calls on an intervention" can be
asserted, not hoped for.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator
from typing import Final

from backends.api import BackendError, ChatBackend, Chunk, Prompt

QUEUE_CHUNKS: Final = 64
ABORT_WITHIN_S: Final = 1.0
CHECKPOINT_CHUNKS: Final = 32


class Speculation:
    """One started backend call.  Use `chunks` once, or `abort`; either ends the call."""

    def __init__(self, backend: ChatBackend, prompt: Prompt) -> None:
        self._queue: asyncio.Queue[Chunk | BackendError | None] = asyncio.Queue(QUEUE_CHUNKS)
        self._failure: BackendError | None = None
        self._wanted = asyncio.Event()
        self._pump_task = asyncio.create_task(self._pump(backend, prompt), name="speculation")

    async def _pump(self, backend: ChatBackend, prompt: Prompt) -> None:
        try:
            async with contextlib.aclosing(backend.stream(prompt)) as stream:
                async for chunk in stream:
                    await self._queue.put(chunk)
                    await self._wanted.wait()
        except BackendError as error:
            await self._queue.put(error)
        except Exception as error:  # noqa: BLE001 - a stranger's backend may raise anything; the person still gets care
            await self._queue.put(BackendError("protocol", f"the backend broke its contract ({type(error).__name__})"))
        else:
            await self._queue.put(None)

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes.  Raises `BackendError`; closing the generator aborts the backend."""
        self._wanted.set()
        try:
            count, finished = 0, False
            while (item := await self._queue.get()) is not None:
                if isinstance(item, BackendError):
                    raise item
                if self._failure is not None:
                    raise self._failure
                finished = item.finish_reason is not None
                yield item
                count += 1
                if count % CHECKPOINT_CHUNKS == 0:
                    # A client that left must not let a fast backend starve the event loop.
                    await asyncio.sleep(0)
            if self._failure is not None:
                raise self._failure
            if not finished:
                raise BackendError("protocol", "the backend ended without a finish reason")
        finally:
            await self.abort()

    def fail(self, error: BackendError) -> None:
        """End the call from outside: whoever reads its chunks meets ``error`` next."""
        self._failure = error
        self._pump_task.cancel()
        if self._queue.empty():
            self._queue.put_nowait(None)

    async def abort(self) -> None:
        """End the call.  Safe to call more than once."""
        if self._pump_task.done():
            return
        self._pump_task.cancel()
        await asyncio.wait({self._pump_task}, timeout=ABORT_WITHIN_S)


class Speeches:
    """Every backend call under way, so that a gateway that must stop can end each answer with words."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Speculation] = weakref.WeakSet()

    def start(self, backend: ChatBackend, prompt: Prompt) -> Speculation:
        speech = Speculation(backend, prompt)
        self._open.add(speech)
        return speech

    def fail_all(self, error: BackendError) -> None:
        """End every call that is still under way."""
        for speech in list(self._open):
            speech.fail(error)
