"""How soon a remote model is let go after its client left: from the client's close to the model's server noticing it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.faults import record
from tests.faults.upstream import settings
from tests.support import scripts
from tests.support.calls import MODEL
from tests.support.gateway import Gateway, running
from tests.support.openai_server import Behaviour, StandInServer

WITHIN_S: Final = 20.0
LOOK_EVERY_S: Final = 0.02
RESET_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""``struct linger``: on, for no time (socket(7))."""


@dataclass(frozen=True)
class Moment:
    """When a client leaves: what the model does until then, and what the client has read."""

    name: str
    stream: bool
    how: Behaviour
    read: bytes | None = None
    """The client leaves when this has arrived; None for as soon as the model was called."""


MOMENTS: Final = (
    Moment("before the first word, not streamed", stream=False, how=Behaviour(hang_before_answer=True)),
    Moment("before the first word, streamed", stream=True, how=Behaviour(hang_before_answer=True)),
    Moment("in the hold-back", True, Behaviour(words=("Knead ", "it"), hang_after=3), b'"role":"assistant"'),
    Moment(
        "mid-stream",
        stream=True,
        how=Behaviour(words=(scripts.SAFE_START, scripts.SAFE_MIDDLE, "And "), hang_after=4),
        read=scripts.SAFE_START[-20:-2].encode(),
    ),
)


@dataclass(frozen=True)
class Left:
    """One client that left.  ``reset`` when its connection was torn (RST) and not closed (FIN)."""

    moment: str
    reset: bool
    delay_ms: float


async def measure(folder: Path, runs: int) -> tuple[list[Left], int]:
    """``runs`` clients that leave, every moment in turn; also how many of them the record says have gone."""
    found = []
    async with StandInServer() as model:
        context = running(folder / "home", settings=settings(model.url))
        gateway = await asyncio.to_thread(context.__enter__)
        try:
            for number in range(runs):
                moment = MOMENTS[number % len(MOMENTS)]
                found.append(await _leave(gateway, model, moment, reset=number // len(MOMENTS) % 2 == 1))
            gone = await _gone(gateway, runs)
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    return found, gone


async def _leave(gateway: Gateway, model: StandInServer, moment: Moment, *, reset: bool) -> Left:
    model.behave = moment.how
    model.arrived.clear()
    model.disconnected.clear()
    url = urlsplit(gateway.base_url)
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(_request(gateway, stream=moment.stream))
        await model.arrived.wait()
        if moment.read is not None:
            await reader.readuntil(moment.read)
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
        assert not model.disconnected.is_set(), "the model was let go before the client left"
        left_s = time.perf_counter()
        writer.transport.abort()
        await model.disconnected.wait()
    return Left(moment.name, reset, (time.perf_counter() - left_s) * 1_000.0)


def _request(gateway: Gateway, *, stream: bool) -> bytes:
    ask: dict[str, Any] = {
        "model": MODEL,
        "stream": stream,
        "messages": [{"role": "user", "content": "How are beans grown?"}],
    }
    body = json.dumps(ask).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _gone(gateway: Gateway, expected: int) -> int:
    """Turns that are on record as left by their client; the last ones are given a moment."""
    gone = 0
    try:
        async with asyncio.timeout(WITHIN_S):
            while gone < expected:
                rows = record.read(gateway.home).closed()
                gone = sum(json.loads(row["data"])["client_gone"] for row in rows)
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        return gone
    return gone
