"""Hints between processes, over a real Valkey that comes, goes, hangs and is shared with strangers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from gateway.events import redis as bus_module
from gateway.events.bus import EventBus, Hint
from gateway.events.inprocess import MAX_QUEUED
from gateway.events.redis import MAX_FRAME_BYTES, RedisBus
from tests.support.columns import ignore
from tests.support.servers import Valkey

WITHIN_S = 20.0


class Told:
    """What a bus reports; a test can wait for a happening."""

    def __init__(self) -> None:
        self.happenings: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, direction: str, happening: str) -> None:
        self.happenings.append((direction, happening))
        self._more.set()

    async def wait_for(self, *wanted: tuple[str, str]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not set(wanted) <= set(self.happenings):
                self._more.clear()
                await self._more.wait()


def hint(number: int) -> Hint:
    return Hint("incident", f"inc_{number}")


@contextlib.asynccontextmanager
async def two(url: str, channel: str, told: Told) -> AsyncIterator[tuple[RedisBus, RedisBus]]:
    """The buses of two gateways; the first tells how it fares."""
    async with RedisBus(url, channel, told) as first, RedisBus(url, channel, ignore) as second:
        yield first, second


async def both_listen(*buses: RedisBus) -> None:
    async with asyncio.timeout(WITHIN_S):
        for bus in buses:
            await bus.listening.wait()


@pytest.fixture
def own() -> Iterator[Valkey]:
    """A Valkey of the test's own, not started yet."""
    server = Valkey(started=False)
    yield server
    server.close()


async def test_every_process_hears_each_hint_once(valkey: Valkey) -> None:
    async with two(valkey.url, "once", Told()) as (first, second):
        await both_listen(first, second)
        port: EventBus = first
        with first.subscribe() as here, second.subscribe() as there:
            port.publish(hint(1))
            port.publish(hint(2))
            assert [await asyncio.wait_for(anext(there), WITHIN_S) for _ in range(2)] == [hint(1), hint(2)]
            second.publish(hint(3))
            assert [await asyncio.wait_for(anext(here), WITHIN_S) for _ in range(3)] == [hint(1), hint(2), hint(3)]
            assert await asyncio.wait_for(anext(there), WITHIN_S) == hint(3)


async def test_houses_on_one_server_do_not_hear_each_other(valkey: Valkey) -> None:
    async with two(valkey.url, "house-a", Told()) as (first, second), RedisBus(valkey.url, "house-b", ignore) as other:
        await both_listen(first, second, other)
        with second.subscribe() as hints:
            other.publish(hint(1))
            first.publish(hint(2))
            assert await asyncio.wait_for(anext(hints), WITHIN_S) == hint(2)


async def test_a_server_that_is_away_costs_nobody_anything(own: Valkey) -> None:
    told = Told()
    async with two(own.url, "away", told) as (first, second):
        with first.subscribe() as here:
            first.publish(hint(0))
            assert await asyncio.wait_for(anext(here), WITHIN_S) == hint(0), "this process hears it all the same"
            await told.wait_for(("send", "lost"), ("listen", "lost"))
        for number in range(1_000):
            first.publish(hint(number))
        assert told.happenings.count(("send", "dropped")) >= 1_000 - MAX_QUEUED - 1
        assert told.happenings.count(("send", "lost")) == 1, "one outage is told once"
        own.start()
        await both_listen(first, second)
        with second.subscribe() as hints:
            first.publish(hint(1_000))
            async with asyncio.timeout(WITHIN_S):
                while await anext(hints) != hint(1_000):
                    pass


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_that_goes_and_comes_back_is_found_again(own: Valkey, how: signal.Signals) -> None:
    own.start()
    told = Told()
    async with two(own.url, "back", told) as (first, second):
        await both_listen(first, second)
        await asyncio.to_thread(own.stop, how)
        await told.wait_for(("listen", "connected"), ("listen", "lost"))
        assert not first.listening.is_set()
        first.publish(hint(1))
        await told.wait_for(("send", "lost"))
        await asyncio.to_thread(own.start)
        await both_listen(first, second)
        with second.subscribe() as hints:
            first.publish(hint(2))
            async with asyncio.timeout(WITHIN_S):
                while await anext(hints) != hint(2):
                    pass
        await told.wait_for(("send", "connected"))


async def test_a_connection_that_falls_silent_is_given_up(own: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "QUIET_S", 0.05)
    monkeypatch.setattr(bus_module, "REPLY_WITHIN_S", 0.5)
    own.start()
    told = Told()
    async with RedisBus(own.url, "silent", told) as bus:
        await both_listen(bus)
        own.tell(signal.SIGSTOP)
        bus.publish(hint(1))
        await told.wait_for(("listen", "lost"), ("send", "lost"))
        own.tell(signal.SIGCONT)
        await both_listen(bus)
        await told.wait_for(("send", "connected"))


async def test_a_quiet_connection_that_lives_is_kept(own: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "QUIET_S", 0.01)
    own.start()
    told = Told()
    async with RedisBus(own.url, "quiet", told) as bus, _client(own) as client:
        await both_listen(bus)
        async with asyncio.timeout(WITHIN_S):
            while (await client.info("commandstats")).get("cmdstat_ping", {}).get("calls", 0) < 3:
                await asyncio.sleep(0.01)
        assert ("listen", "lost") not in told.happenings


async def test_what_is_no_hint_goes_no_further(valkey: Valkey) -> None:
    prose = "she said that she cannot go on"
    frames = [
        b"",
        b"\xff\xfe",
        b"not json",
        b'{"kind": "incident", "id": "inc_1"}',
        b'["origin", {"kind": "incident"}]',
        f'["origin", {{"kind": "incident", "id": "{prose}"}}]'.encode(),
        f'["origin", {{"kind": "{prose}", "id": "inc_1"}}]'.encode(),
        b'["origin", {"kind": "incident", "id": "inc_1"}]' + b" " * MAX_FRAME_BYTES,
    ]
    told = Told()
    async with RedisBus(valkey.url, "strangers", told) as bus, _client(valkey) as client:
        await both_listen(bus)
        with bus.subscribe() as hints:
            for frame in frames:
                await client.publish("strangers", frame)
            await client.publish("strangers", b'["origin", {"kind": "incident", "id": "inc_9"}]')
            assert await asyncio.wait_for(anext(hints), WITHIN_S) == hint(9)
        assert told.happenings.count(("listen", "refused")) == len(frames)


async def test_a_server_that_refuses_us_is_an_outage(valkey: Valkey) -> None:
    told = Told()
    async with RedisBus(valkey.url.replace("//", "//stranger:wrong-password@"), "refused", told) as bus:
        bus.publish(hint(1))
        await told.wait_for(("send", "lost"), ("listen", "lost"))


async def test_the_end_of_the_bus_ends_listening(valkey: Valkey) -> None:
    async with RedisBus(valkey.url, "end", ignore) as bus:
        listening = bus.subscribe()
        hints = listening.__enter__()
    assert [found async for found in hints] == []
    listening.__exit__(None, None, None)


async def test_a_fault_of_ours_is_not_swallowed(valkey: Valkey) -> None:
    failed = asyncio.Event()

    def faulty(_direction: str, _happening: str) -> None:
        failed.set()
        raise KeyError

    with pytest.raises(KeyError):
        async with RedisBus(valkey.url, "faulty", faulty):
            await asyncio.wait_for(failed.wait(), WITHIN_S)


@contextlib.asynccontextmanager
async def _client(server: Valkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url)
    try:
        yield client
    finally:
        await client.aclose()


class Stubborn(RedisBus):
    """A client in which a cancellation was lost in a time-out, as redis-py's may be."""

    async def _send(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError from None


async def test_a_cancellation_that_got_lost_does_not_keep_the_bus_open() -> None:
    async def open_and_close() -> None:
        async with Stubborn("redis://127.0.0.1:1/0", "lost", lambda *_: None):
            await asyncio.sleep(0)

    await asyncio.wait_for(open_and_close(), WITHIN_S)
