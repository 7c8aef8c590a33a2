"""S11: heads that never end, grow for ever or follow a refused body, and answers that nobody reads.

The protocol class of the gateway under a real uvicorn in this process, with deadlines short enough to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import uvicorn

from gateway.connection import Connection
from tests.abuse.raw import ASK, CRISIS, LEXICON_ALONE, PLACE, head, request, send, statuses
from tests.support.gateway import running, scripted

WITHIN_S: Final = 20.0
SOON_S: Final = 0.3
HELLO: Final = b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n"
ENDLESS: Final = b"word " * 13_000


class Hasty(Connection):
    """The same with little patience."""

    head_within_s: ClassVar[float] = SOON_S
    read_within_s: ClassVar[float] = SOON_S


class House:
    """An application that says hello, or says what never ends, and knows who has left."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self.begun = 0
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
        if scope["path"] == "/":
            await send({"type": "http.response.body", "body": b"hello", "more_body": False})
            return
        if scope["path"] == "/late":
            await asyncio.sleep(3 * SOON_S)
            await send({"type": "http.response.body", "body": b"late", "more_body": False})
            return
        gone = asyncio.ensure_future(_gone(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": ENDLESS, "more_body": True})
        self.left.set()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def serving(protocol: type[Connection], **options: Any) -> AsyncIterator[House]:
    house = House()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        house.address = listener.getsockname()
        config = uvicorn.Config(house, http=protocol, log_config=None, lifespan="off", timeout_keep_alive=60, **options)
        serve = uvicorn.Server(config)
        task = asyncio.create_task(serve.serve(sockets=[listener]))
        try:
            yield house
        finally:
            serve.should_exit = serve.force_exit = True
            await task


async def said(reader: asyncio.StreamReader) -> bytes:
    """Everything until the connection is closed; a test that waits in vain fails by this deadline."""
    async with asyncio.timeout(WITHIN_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "beginning", [b"", b"GET", b"GET / HTTP/1.1\r\nhost: gate", b"POST / HTTP/1.1\r\nhost: gateway\r\n"]
)
async def test_s11_a_head_that_never_ends_is_given_up(beginning: bytes) -> None:
    async with serving(Hasty) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        writer.write(beginning)
        assert await said(reader) == b""
        assert house.begun == 0
        writer.close()


async def test_s11_a_head_that_comes_byte_by_byte_is_given_up() -> None:
    """Each byte comes in time; the head does not."""
    async with serving(Hasty) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        ending = asyncio.ensure_future(said(reader))
        sent = 0
        while not ending.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET / HTTP/1.1\r\nx: "[sent : sent + 1] or b"y")
                await writer.drain()
            sent += 1
            await asyncio.wait({ending}, timeout=SOON_S / 20)
        assert await ending == b""
        assert house.begun == 0


async def test_s11_the_second_head_of_a_connection_has_a_deadline_too() -> None:
    async with serving(Hasty) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        writer.write(HELLO)
        await reader.readuntil(b"hello")
        writer.write(HELLO[:-2])
        assert b"200 OK" not in await said(reader)
        assert house.begun == 1
        writer.close()


async def test_s11_a_body_that_nobody_asked_for_does_not_keep_a_connection() -> None:
    """The answer was given; the rest of the body comes byte by byte."""
    async with serving(Hasty) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        writer.write(b"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000000\r\n\r\n")
        await reader.readuntil(b"hello")
        ending = asyncio.ensure_future(said(reader))
        while not ending.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"a")
                await writer.drain()
            await asyncio.wait({ending}, timeout=SOON_S / 20)


async def test_s11_requests_that_come_together_are_all_answered() -> None:
    """The control of the above: nobody who keeps to the deadlines is cut off."""
    async with serving(Connection) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        writer.write(HELLO * 3)
        async with asyncio.timeout(WITHIN_S):
            for _ in range(3):
                await reader.readuntil(b"hello")
        writer.write(HELLO)
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"hello")
        assert house.begun == 4
        writer.close()


async def test_s11_an_answer_may_take_longer_than_a_head() -> None:
    """Also the second of two that came together."""
    async with serving(Hasty) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        writer.write(HELLO + b"GET /late HTTP/1.1\r\nhost: gateway\r\n\r\n")
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"late")
        writer.close()


async def test_s11_the_bound_is_per_request_not_per_connection() -> None:
    async with serving(Connection) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        for _ in range(100):
            writer.write(HELLO[:-2] + b"x: " + b"a" * 1_000 + b"\r\n\r\n")
            async with asyncio.timeout(WITHIN_S):
                await reader.readuntil(b"hello")
        writer.close()


GROWING: Final = {
    "one header": (b"GET / HTTP/1.1\r\nx: ", b"a" * 4_096, 400),
    "many headers": (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 500, 400),
    "a path": (b"GET /", b"a" * 4_096, 400),
    "trailers": (b"POST /slow HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 500, None),
    "a chunk's extension": (
        b"POST /slow HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;",
        b"a" * 4_096,
        None,
    ),
}


@pytest.mark.parametrize("what", GROWING)
async def test_s11_what_is_no_body_has_a_bound(what: str) -> None:
    start, more, status = GROWING[what]
    async with serving(Connection) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        reading = asyncio.ensure_future(said(reader))
        writer.write(start)
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WITHIN_S):
                while not reading.done():
                    writer.write(more)
                    await writer.drain()
                    sent += len(more)
                    await asyncio.sleep(0)
        assert sent < 64 * Connection.max_head_bytes, "the system's buffers, and no more"
        answer = await reading
        assert status is None or statuses(answer) in ([status], [])
        writer.close()


async def test_s11_a_large_body_is_not_taken_for_a_head() -> None:
    async with serving(Connection) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        body = b"a" * (4 * Connection.max_head_bytes)
        chunks = b"".join(b"%x\r\n%b\r\n" % (4_096, body[:4_096]) for _ in range(64)) + b"0\r\n\r\n"
        writer.write(b"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"hello")
        writer.write(b"POST / HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
        writer.write(HELLO)
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"hello")
            await reader.readuntil(b"hello")
        writer.close()


async def test_s11_whoever_does_not_read_is_let_go() -> None:
    async with serving(Hasty) as house:
        _, writer = await asyncio.open_connection(*house.address, limit=1_024)
        writer.write(b"GET /endless HTTP/1.1\r\nhost: gateway\r\n\r\n")
        async with asyncio.timeout(WITHIN_S):
            await house.left.wait()
        writer.transport.abort()


async def test_s11_more_connections_than_there_may_be_are_told_when_to_come_back() -> None:
    async with serving(Connection, limit_concurrency=2) as house:
        _, first = await asyncio.open_connection(*house.address)
        first.write(HELLO[:-2])
        reader, second = await asyncio.open_connection(*house.address)
        second.write(HELLO)
        answer = await said(reader)
        assert statuses(answer) == [503]
        assert b"retry-after: 2" in answer
        error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
        assert (error["code"], error["type"]) == ("not_ready", "server_error")
        for writer in (first, second):
            writer.close()


def test_s11_the_gateway_serves_by_it(tmp_path: Path) -> None:
    """A head of 200 kB at the real process: refused, and everybody else is answered."""
    with running(tmp_path / "home", settings=scripted([{"chunks": ["Hello there."]}]) + LEXICON_ALONE) as gateway:
        large = head(gateway, "x: " + "a" * 200_000, line="GET /healthz HTTP/1.1")
        assert statuses(send(gateway, large)) in ([400], [])
        assert statuses(send(gateway, request(gateway, ASK))) == [200]
        assert PLACE.encode() in send(gateway, request(gateway, CRISIS))


async def test_a_message_sent_whole_by_a_client_that_left_at_once_is_heard(tmp_path: Path) -> None:
    """Nobody waits for the answer; what was said is judged all the same, and people are told."""
    with running(tmp_path, settings=LEXICON_ALONE + scripted([{"chunks": ["Hello."]}])) as gateway:
        for number in range(12):
            said = {"model": "havengate", "messages": [{"role": "user", "content": CRISIS}], "stream": bool(number % 2)}
            said["metadata"] = {"conversation_id": f"left-{number}"}
            await asyncio.to_thread(say_and_leave, gateway.base_url, gateway.key, said)
        async with asyncio.timeout(WITHIN_S):
            while len(gateway.rows("SELECT seq FROM audit WHERE event = 'turn.closed'")) < 12:
                await asyncio.sleep(0.05)
        assert len(gateway.rows("SELECT id FROM incidents")) == 12


def say_and_leave(base_url: str, key: str, said: dict[str, Any]) -> None:
    body = json.dumps(said).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: gateway",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    host, _, port = base_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=WITHIN_S) as client:
        client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
