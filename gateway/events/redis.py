"""The event bus between gateways, over the publish/subscribe of Redis or Valkey.

A hint reaches the listeners of its own process at once, also while the server is away, and those of the others
through one channel.  Publish/subscribe, not a stream: a hint that is heard late is worth nothing, and the record,
which every reader polls, is the only place that must remember.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import msgspec

from gateway.events.bus import Hint
from gateway.events.inprocess import MAX_QUEUED, InProcessBus, Subscription

if TYPE_CHECKING:
    from redis.asyncio import Redis

REPLY_WITHIN_S: Final = 2.0
"""Longest wait for the server to accept a connection or to answer a command."""
QUIET_S: Final = 15.0
"""A connection this quiet is asked whether it still lives; one that stays quiet as long again is given up."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0
MAX_FRAME_BYTES: Final = 512
MAX_CANCELLATIONS: Final = 5
END_WITHIN_S: Final = 0.5

Direction = Literal["send", "listen"]
Happening = Literal["connected", "lost", "dropped", "refused"]
Report = Callable[[Direction, Happening], None]
"""Told of every change: ``lost`` when an outage begins, ``connected`` when it works (again), ``dropped`` when a full
queue loses its oldest hint, ``refused`` for a frame on the channel that is no hint."""

_FRAME: Final = msgspec.json.Decoder(tuple[str, Hint])


class RedisBus:
    """`EventBus` for many processes.  Use it as an async context; it connects, and connects again, by itself.

    A server that is away costs nobody anything: hints wait in a bounded queue that drops its oldest.
    """

    def __init__(self, url: str, channel: str, report: Report, *, max_queued: int = MAX_QUEUED) -> None:
        self._url = url
        self._channel = channel
        self._report = report
        self._here = InProcessBus(max_queued)
        self._outgoing = Subscription(max_queued)
        self._unsent: Hint | None = None
        self._origin = secrets.token_hex(8)
        self._closing = False
        self._up: dict[Direction, bool] = {"send": False, "listen": False}
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self.listening = asyncio.Event()
        """Set while hints of other processes can be heard."""

    async def __aenter__(self) -> Self:
        self._client = _connect(self._url)
        self._tasks = (
            asyncio.create_task(self._keep_at("send", self._send)),
            asyncio.create_task(self._keep_at("listen", self._listen)),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every subscription and both connections.  Hints still unsent are let go."""
        self._closing = True
        for _attempt in range(MAX_CANCELLATIONS):
            # Once is not enough: a cancellation that meets a time-out of the client is lost in it.
            for task in self._tasks:
                task.cancel()
            _done, pending = await asyncio.wait(self._tasks, timeout=END_WITHIN_S)
            if not pending:
                break
        ended = await asyncio.gather(*(task for task in self._tasks if task.done()), return_exceptions=True)
        self._here.close()
        await self._client.aclose()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    def publish(self, hint: Hint) -> None:
        """Tell every subscriber, here at once and elsewhere as soon as the server takes it."""
        self._here.publish(hint)
        dropped = self._outgoing.dropped
        self._outgoing.offer(hint)
        if self._outgoing.dropped > dropped:
            self._report("send", "dropped")

    def subscribe(self) -> AbstractContextManager[Subscription]:
        """Hear hints of every process until the context ends; raises `Overloaded` past the bound of listeners."""
        return self._here.subscribe()

    async def _keep_at(self, direction: Direction, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` for as long as the bus is open; after a failure, again after a pause that grows to its bound."""
        from redis.exceptions import RedisError

        failures = 0
        while not self._closing:
            try:
                await work()
            except (RedisError, OSError):
                failures = 1 if self._up[direction] else failures + 1
                self._up[direction] = False
                if failures == 1:
                    self._report(direction, "lost")
            await asyncio.sleep(_pause_s(failures))

    def _works(self, direction: Direction) -> None:
        if not self._up[direction]:
            self._up[direction] = True
            self._report(direction, "connected")

    async def _send(self) -> None:
        """Send hints in order; one that failed is kept for the next attempt."""
        while True:
            if self._unsent is None:
                self._unsent = await anext(self._outgoing)
            await self._client.publish(self._channel, msgspec.json.encode((self._origin, self._unsent)))
            self._unsent = None
            self._works("send")

    async def _listen(self) -> None:
        """Pass on what other processes publish, until the connection fails or falls silent."""
        pubsub = self._client.pubsub()
        try:
            await pubsub.subscribe(self._channel)
            asked = True
            while True:
                message = await pubsub.get_message(timeout=REPLY_WITHIN_S if asked else QUIET_S)
                if message is not None:
                    asked = False
                    self._heard(message)
                elif asked:
                    raise TimeoutError
                else:
                    asked = True
                    await pubsub.ping()
        finally:
            self.listening.clear()
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _heard(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self.listening.set()
            self._works("listen")
        if message["type"] != "message":
            return
        hint = self._read(message["data"])
        if hint is not None:
            self._here.publish(hint)

    def _read(self, frame: bytes) -> Hint | None:
        """The hint in a frame of another process; None for our own, and for what is no hint."""
        try:
            if len(frame) > MAX_FRAME_BYTES:
                raise msgspec.ValidationError
            origin, hint = _FRAME.decode(frame)
        except msgspec.DecodeError:
            self._report("listen", "refused")
            return None
        return None if origin == self._origin else hint


async def answers(url: str) -> bool:
    """Whether a server is there and takes our commands, within `REPLY_WITHIN_S` of connecting and of asking."""
    from redis.exceptions import RedisError

    client = _connect(url)
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


def _connect(url: str) -> Redis:
    """A client that connects when first used and never retries by itself: the bus does."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        socket_connect_timeout=REPLY_WITHIN_S,
        socket_timeout=REPLY_WITHIN_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )


def _pause_s(failures: int) -> float:
    """Doubles from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`, with jitter so that gateways do not return in step."""
    longest = min(LONGEST_PAUSE_S, math.ldexp(FIRST_PAUSE_S, min(failures, 10)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
