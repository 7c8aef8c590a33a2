"""The two ends of the cost measurement, each a process of its own: ``bench_servers.py upstream|floor PORT [UPSTREAM]``.

``upstream`` is a model that answers at once: one fixed JSON document, or one fixed list of SSE events; ``POST /pace/MS``
makes it wait so long before each event.  ``floor`` is the least that a Python gateway can be: Litestar and one pooled
aiohttp client, which pass bytes on and look at nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

MODEL: Final = "conformance"
REPLY: Final = (
    "Start with the leeks, they want slow heat and a little butter. Add the potatoes and the stock after ten minutes, "
    "and let it simmer while the bread warms up."
)
CHUNKS: Final = tuple(REPLY[at : at + 5] for at in range(0, len(REPLY), 5))[:32]
"""About a token each, as a model would send them."""
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return _data({**_BASE, "object": "chat.completion.chunk", "choices": choices})


def _data(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


_BASE: Final[dict[str, Any]] = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": MODEL}
_USAGE: Final = {"prompt_tokens": 60, "completion_tokens": len(CHUNKS), "total_tokens": 60 + len(CHUNKS)}
_WHOLE: Final = json.dumps(
    {
        **_BASE,
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "".join(CHUNKS)}, "finish_reason": "stop"}
        ],
        "usage": _USAGE,
    }
).encode()
_EVENTS: Final = (
    _event({"role": "assistant", "content": ""}),
    *(_event({"content": chunk}) for chunk in CHUNKS),
    _event({}, "stop"),
    _data({**_BASE, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}),
    b"data: [DONE]\n\n",
)


class Upstream:
    """A raw ASGI application, so that the model's own cost is small beside any gateway's."""

    def __init__(self) -> None:
        self._pace_s = 0.0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        path, body = scope["path"], b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if path.startswith("/pace/"):
            self._pace_s = int(path.rpartition("/")[2]) / 1_000
            await _answer(send, b"{}")
        elif path.endswith("/chat/completions"):
            await (self._stream(send) if json.loads(body).get("stream") else _answer(send, _WHOLE))
        else:
            await _answer(send, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in _EVENTS:
            if self._pace_s:
                await asyncio.sleep(self._pace_s)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def floor(upstream: str) -> Any:
    """The pass-through."""
    import aiohttp
    from litestar import Litestar, Request, Response, get, post
    from litestar.response import Stream

    sessions: list[aiohttp.ClientSession] = []

    async def opened(_: Litestar) -> None:
        sessions.append(aiohttp.ClientSession())

    async def closed(_: Litestar) -> None:
        await sessions.pop().close()

    async def passed(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async with response:
            async for piece in response.content.iter_any():
                yield piece

    @post("/v1/chat/completions", status_code=200)
    async def chat(request: Request[Any, Any, Any]) -> Response[bytes] | Stream:
        body = await request.body()
        headers = {"content-type": "application/json"}
        response = await sessions[0].post(f"{upstream}/v1/chat/completions", data=body, headers=headers)
        if json.loads(body).get("stream"):
            return Stream(passed(response), media_type="text/event-stream")
        async with response:
            return Response(await response.read(), media_type="application/json")

    @get("/readyz", sync_to_thread=False)
    def readyz() -> str:
        return "ok"

    # These annotations are strings here, and Litestar reads them from the module.
    globals().update(Request=Request, Response=Response, Stream=Stream)
    return Litestar([chat, readyz], on_startup=[opened], on_shutdown=[closed], openapi_config=None, logging_config=None)


def main(arguments: list[str]) -> None:
    import uvicorn

    kind, port, *rest = arguments
    app: Any = Upstream() if kind == "upstream" else floor(rest[0])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_config=None, access_log=False, server_header=False)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(sys.argv[1:])
