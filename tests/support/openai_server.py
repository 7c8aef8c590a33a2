"""A small HTTP server that speaks OpenAI's chat completions and misbehaves when told to.

It stands in for a remote model (vLLM, a hosted server) in tests: the sockets, the HTTP and the timing of
disconnects are real, only the words are arranged.  Start one with ``async with StandInServer() as server``
and set ``server.behave`` before the request it is meant for.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

MODEL = "stand-in"


@dataclass(frozen=True)
class Behaviour:
    """What the next answers are like.  By default: the last user message, word by word."""

    words: tuple[str, ...] | None = None
    """Sent one event each; ``None`` echoes the prompt's last message."""
    raw: tuple[bytes, ...] | None = None
    """Sent as they are, each in its own write, instead of ``words``."""
    status: int = 200
    echo_in_error: bool = True
    """An error's body quotes the prompt, as real servers do."""
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    with_usage: bool = True
    hang_before_answer: bool = False
    hang_after: int | None = None
    """Fall silent after this many events."""
    die_after: int | None = None
    """Cut the TCP connection after this many events."""
    keep_open: bool = False
    """Leave the body open after the last byte."""
    listing: bytes = json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode()
    listing_status: int = 200


class StandInServer:
    """``url`` is its base.  ``requests`` holds the decoded bodies, ``peers`` the connections they came by."""

    def __init__(self) -> None:
        self.behave = Behaviour()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[tuple[str, int]] = []
        self.finished = 0
        self.arrived = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.disconnects = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        if self.behave.hang_before_answer:
            await asyncio.sleep(3600)
        return web.Response(
            body=self.behave.listing,
            status=self.behave.listing_status,
            headers=self.behave.headers,
            content_type="application/json",
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        behave = self.behave
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        transport = request.transport
        assert transport is not None
        self.peers.append(transport.get_extra_info("peername")[:2])
        self.arrived.set()
        try:
            if behave.hang_before_answer:
                await asyncio.sleep(3600)
            if behave.status != 200:
                quoted = json.dumps(body) if behave.echo_in_error else "no"
                return web.Response(status=behave.status, text=quoted, headers=behave.headers)
            return await self._answer(request, behave, body)
        except asyncio.CancelledError:
            self.disconnects += 1
            self.disconnected.set()
            raise

    async def _answer(self, request: web.Request, behave: Behaviour, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": behave.content_type, **behave.headers})
        await response.prepare(request)
        pieces = behave.raw if behave.raw is not None else _events(behave, body)
        for position, piece in enumerate(pieces):
            if behave.hang_after == position:
                await asyncio.sleep(3600)
            if behave.die_after == position:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(piece)
            await asyncio.sleep(0)
        if behave.keep_open:
            await asyncio.sleep(3600)
        await response.write_eof()
        self.finished += 1
        return response


def _events(behave: Behaviour, body: dict[str, Any]) -> list[bytes]:
    """A whole stream as vLLM frames it: role, words, ending, usage, ``[DONE]``."""
    said = body["messages"][-1]["content"]
    words = list(behave.words) if behave.words is not None else [word + " " for word in said.split()]
    finish = "length" if len(words) > body["max_tokens"] else "stop"
    words = words[: body["max_tokens"]]
    for stop in body.get("stop", []):
        whole = "".join(words)
        if stop in whole:
            words, finish = [whole[: whole.index(stop)]], "stop"
    events = [_event({"role": "assistant", "content": ""}), *(_event({"content": word}) for word in words)]
    events.append(_event({}, finish))
    if behave.with_usage and body.get("stream_options", {}).get("include_usage"):
        usage = {"prompt_tokens": len(said.split()), "completion_tokens": len(words)}
        events.append(frame({"object": "chat.completion.chunk", "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return frame({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]})


def frame(event: dict[str, Any]) -> bytes:
    """One event as it goes over the wire."""
    return b"data: " + json.dumps(event).encode() + b"\n\n"
