"""The event bus inside one process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from gateway.errors import Overloaded
from gateway.events.bus import Hint

MAX_QUEUED: Final = 256
MAX_SUBSCRIBERS: Final = 1_024


class Subscription(AsyncIterator[Hint]):
    """One listener's queue.  Full, it drops its oldest hint and counts it."""

    def __init__(self, max_queued: int) -> None:
        self._hints: deque[Hint] = deque(maxlen=max_queued)
        self._arrived = asyncio.Event()
        self._closed = False
        self.dropped = 0

    def offer(self, hint: Hint) -> None:
        if len(self._hints) == self._hints.maxlen:
            self.dropped += 1
        self._hints.append(hint)
        self._arrived.set()

    def close(self) -> None:
        """Wake the listener; its iteration ends."""
        self._closed = True
        self._arrived.set()

    async def __anext__(self) -> Hint:
        while not self._hints:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._hints.popleft()


class InProcessBus:
    """`EventBus` for one process and one event loop."""

    def __init__(self, max_queued: int = MAX_QUEUED, max_subscribers: int = MAX_SUBSCRIBERS) -> None:
        self._max_queued = max_queued
        self._max_subscribers = max_subscribers
        self._subscriptions: set[Subscription] = set()

    def publish(self, hint: Hint) -> None:
        """Tell every subscriber."""
        for subscription in self._subscriptions:
            subscription.offer(hint)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Hear hints until the context ends; raises `Overloaded` past ``max_subscribers``."""
        if len(self._subscriptions) >= self._max_subscribers:
            raise Overloaded("Too many listeners.", retry_after_s=5)
        subscription = Subscription(self._max_queued)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    def close(self) -> None:
        """End every subscription, as at shutdown."""
        for subscription in self._subscriptions:
            subscription.close()
