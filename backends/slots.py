"""A bounded number of places, a bounded line before them, and a bounded time in that line."""

from __future__ import annotations

import asyncio

from backends.api import BackendError


class Slots:
    """Admission to something that serves only so many at once.

    Overload is a value here, not a slow death: whoever finds the line full, or has stood in it for
    ``wait_s``, gets ``BackendError("overloaded")`` and can be answered some other way.
    """

    def __init__(self, places: int, line: int, wait_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._line = line
        self._wait_s = wait_s
        self._standing = 0

    @property
    def full(self) -> bool:
        """True when the next caller would be turned away."""
        return self._free.locked() and self._standing >= self._line

    async def enter(self) -> None:
        """Take a place.  Raises `BackendError` ``overloaded``; pair each success with one `leave`."""
        if self.full:
            raise BackendError("overloaded", f"all places are taken and {self._line} callers already wait")
        self._standing += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise BackendError("overloaded", f"no place came free within {self._wait_s:g} s") from None
        finally:
            self._standing -= 1

    def leave(self) -> None:
        self._free.release()
