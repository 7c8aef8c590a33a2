"""One connection of a client: uvicorn's HTTP/1.1, with bounds where it has none.

uvicorn waits for ever for a request's head, keeps a head of any size, and waits for ever for a client that does not
read what it is sent.  Each of these, mostly without a key, would hold connections, memory or the places of
conversations until nobody else is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import NotReady, headers_of, to_openai

RETRY_AFTER_S: Final = 2


class _Deadline:
    """Does something once, unless it is ended in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, within_s: float) -> None:
        self._loop = loop
        self._within_s = within_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self, act: Callable[[], None]) -> None:
        """From now on; a deadline under way is replaced."""
        self.end()
        self._timer = self._loop.call_later(self._within_s, act)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _HeardOut(RequestResponseCycle):
    """A request whose client left right after sending it whole: uvicorn would tell of the leaving only.

    What a person wrote is heard first, and then that they are gone.
    """

    async def receive(self) -> Any:
        if self.disconnected and self.body and not self.more_body and not self.response_complete:
            body, self.body = bytes(self.body), bytearray()
            return {"type": "http.request", "body": body, "more_body": False}
        return await super().receive()


class Connection(HttpToolsProtocol):
    """HTTP/1.1 with a deadline for each head, a bound on all that is not body, and a deadline for whoever must read."""

    head_within_s: ClassVar[float] = 10.0
    """From the connection's start, or the last answer's end, to the end of the next request's head."""
    max_head_bytes: ClassVar[int] = 65_536
    """Of one request: its head, its trailers and what frames its chunks."""
    read_within_s: ClassVar[float] = 30.0
    """Longest time in which a client takes nothing of what waits for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head = _Deadline(self.loop, self.head_within_s)
        self._reading = _Deadline(self.loop, self.read_within_s)
        self._head_bytes = 0
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head.start(transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.end()
        self._reading.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        body_before = self._body_bytes
        super().data_received(data)
        self._head_bytes += len(data) - (self._body_bytes - body_before)
        if self._head_bytes > self.max_head_bytes and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response("The head of the request is too large.")
            else:
                self.transport.abort()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head.end()
        super().on_headers_complete()
        # uvicorn makes the cycle itself; its tasks have not run yet, so it can still become ours.
        if type(self.cycle) is RequestResponseCycle:
            self.cycle.__class__ = _HeardOut

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        more_to_answer = bool(self.pipeline)
        super().on_response_complete()
        if not more_to_answer:
            self._head.start(self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.start(self.transport.abort)

    def resume_writing(self) -> None:
        self._reading.end()
        super().resume_writing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, shed if app is service_unavailable else app)


async def shed(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer where uvicorn has more connections than it may: 503 that says when to come back."""
    error = NotReady("Too many connections at once; retry shortly.", retry_after_s=RETRY_AFTER_S)
    content = msgspec.json.encode(to_openai(error))
    named = headers_of(error) | {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
    }
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})
