"""Hints on the in-process bus."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.errors import Overloaded
from gateway.events.bus import EventBus, Hint
from gateway.events.inprocess import InProcessBus


def hint(number: int) -> Hint:
    return Hint("incident", f"inc_{number}")


async def test_every_listener_hears_what_came_after_it_began() -> None:
    bus = InProcessBus()
    port: EventBus = bus
    port.publish(hint(0))
    with bus.subscribe() as first, bus.subscribe() as second:
        port.publish(hint(1))
        assert await anext(first) == hint(1)
        assert await anext(second) == hint(1)


async def test_a_waiting_listener_wakes() -> None:
    bus = InProcessBus()
    with bus.subscribe() as hints:
        waiting = asyncio.ensure_future(anext(hints))
        await asyncio.sleep(0)
        assert not waiting.done()
        bus.publish(hint(1))
        assert await waiting == hint(1)


async def test_a_slow_listener_loses_the_oldest_and_nobody_waits_for_it() -> None:
    bus = InProcessBus(max_queued=3)
    with bus.subscribe() as hints:
        for number in range(10):
            bus.publish(hint(number))
        assert [await anext(hints) for _ in range(3)] == [hint(7), hint(8), hint(9)]
        assert hints.dropped == 7


async def test_listening_ends_with_its_context_and_with_the_bus() -> None:
    bus = InProcessBus()
    with bus.subscribe() as hints:
        bus.publish(hint(1))
    assert [found async for found in hints] == [hint(1)], "what was heard is still delivered"
    with bus.subscribe() as others:
        bus.close()
        assert [found async for found in others] == []


async def test_listeners_are_bounded_and_leave_their_place() -> None:
    bus = InProcessBus(max_subscribers=1)
    with bus.subscribe(), pytest.raises(Overloaded), bus.subscribe():
        pass
    with bus.subscribe():
        pass


@pytest.mark.parametrize(
    ("kind", "id"),
    [("incident", "she said"), ("in cident", "inc_1"), ("incident", ""), ("", "inc_1"), ("incident", "x" * 65)],
)
def test_a_hint_cannot_hold_words(kind: str, id: str) -> None:  # noqa: A002 - the field's name
    with pytest.raises(ValueError, match="codes only"):
        Hint(kind, id)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"kind": kind, "id": id}), type=Hint)
