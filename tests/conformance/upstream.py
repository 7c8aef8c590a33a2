"""The model behind the gateway under test: says what a case wants, and remembers what it was told.

What it is to say is set before each request rather than written into the person's message, so that no guard on the way
in can see it.  Real sockets and HTTP (aiohttp), one case at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Self

from aiohttp import web

from tests.conformance.case import Answer, Body, Part

MODEL = "conformance"
MAX_BODY_BYTES = 4 * 1024 * 1024


class Upstream:
    """``async with Upstream(port)``; port 0 takes a free one.  ``heard`` holds the bodies since the last `expect`."""

    def __init__(self, port: int = 0, model: str = MODEL) -> None:
        self._port = port
        self._model = model
        self._answer = Answer(())
        self._runner: web.AppRunner | None = None
        self.heard: list[Any] = []
        self.url = ""

    def expect(self, answer: Answer) -> None:
        """Forget what was heard, and give this answer from now on."""
        self._answer = answer
        self.heard = []

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._model, "object": "model", "created": 0}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.heard.append(body)
        answer = self._answer
        if answer.refuses is not None:
            return web.json_response(_error(answer.refuses), status=400)
        if not body.get("stream"):
            if answer.breaks is not None:
                return web.json_response(_error(answer.breaks), status=400)
            return web.json_response(self._whole(answer))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for event in self._events(answer):
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except ConnectionError:
            return response  # the gateway has heard enough
        return response

    def _envelope(self, kind: str, answer: Answer) -> Body:
        base = {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": self._model}
        return {**base, **{name: value for name, value in answer.top.items() if name != "usage"}}

    def _usage(self, answer: Answer) -> Body:
        usage: Body = answer.top.get("usage", {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18})
        return usage

    def _whole(self, answer: Answer) -> Body:
        """The parts folded into messages, as a server that does not stream would send them."""
        choices: dict[int, Body] = {}
        for part in answer.parts:
            choice = choices.setdefault(
                part.index,
                {
                    "index": part.index,
                    "message": {"role": "assistant", "content": ""},
                    "finish_reason": answer.finish_reason,
                },
            )
            message = choice["message"]
            for name, value in part.delta.items():
                old = message.get(name)
                message[name] = old + value if name != "role" and isinstance(old, str) else value
            choice.update(part.beside)
        whole = self._envelope("chat.completion", answer)
        return {**whole, "choices": list(choices.values()), "usage": self._usage(answer)}

    def _events(self, answer: Answer) -> Iterator[Body]:
        base = self._envelope("chat.completion.chunk", answer)

        def chunk(part: Part, finish: str | None = None) -> Body:
            choice = {"index": part.index, "delta": part.delta, "finish_reason": finish, **part.beside}
            return {**base, "choices": [choice]}

        indexes = sorted({part.index for part in answer.parts}) or [0]
        for index in indexes:
            yield chunk(Part({"role": "assistant", "content": ""}, index))
        for part in answer.parts:
            yield chunk(part)
        if answer.breaks is not None:
            yield _error(answer.breaks)
            return
        for index in indexes:
            yield chunk(Part({}, index), answer.finish_reason)
        for part in answer.after_finish:
            yield chunk(part)
        yield {**base, "choices": [], "usage": self._usage(answer)}


def _error(message: str) -> Body:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": 400}}
