"""Runs every case against one gateway."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from tests.conformance import inputs, outputs
from tests.conformance.case import Case, Phrases
from tests.conformance.reading import Ending, Reply, ending, heard, told
from tests.conformance.upstream import Upstream
from tests.conformance.verdict import Run, Verdict, judge

ANSWER_WITHIN_S = 60.0
CASES: Final[tuple[Case, ...]] = (*inputs.cases(), *outputs.cases())
"""The table: what a gateway must stand."""
HARD: Final[tuple[Case, ...]] = (*inputs.hard(), *outputs.hard())
"""Measured beside it."""
Send = Callable[[bytes], Awaitable[Reply]]


@dataclass(frozen=True)
class Target:
    """The gateway under test.  It must use the kit's upstream as its model's server."""

    base_url: str
    """With ``/v1``."""
    api_key: str
    model: str


@dataclass(frozen=True)
class Row:
    """One case, judged."""

    case: Case
    verdict: Verdict
    status: int
    ending: Ending


async def run(target: Target, upstream: Upstream, phrases: Phrases, cases: tuple[Case, ...] = CASES) -> list[Row]:
    """All cases in order, one request at a time: first the harmless sentence, then the forbidden one."""
    headers = {"authorization": f"Bearer {target.api_key}", "content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, auto_decompress=True) as session:

        async def send(body: bytes) -> Reply:
            return await _post(session, f"{target.base_url.rstrip('/')}/chat/completions", body)

        return [await _row(send, target.model, upstream, phrases, case) for case in cases]


async def _row(send: Send, model: str, upstream: Upstream, phrases: Phrases, case: Case) -> Row:
    pair = phrases.of(case.voice)
    control = await _once(send, model, upstream, case, pair.harmless)
    seen = await _once(send, model, upstream, case, pair.forbidden)
    return Row(case, judge(case.side, control, seen), seen.status, seen.ending)


async def _once(send: Send, model: str, upstream: Upstream, case: Case, sentence: str) -> Run:
    written = case.encode(sentence)
    upstream.expect(case.answer(written))
    reply = await send(encoded(case.body(written), model, stream=case.stream))
    return Run(
        status=reply.status,
        called=bool(upstream.heard),
        told=told(upstream.heard, written, sentence),
        heard=heard(reply, written, sentence),
        ending=ending(reply),
    )


def encoded(body: dict[str, Any] | bytes, model: str, *, stream: bool) -> bytes:
    """The request's bytes.  What the case set itself stays; a body that is bytes already gets the model's name."""
    if isinstance(body, bytes):
        return b'{"model":%b,%b' % (json.dumps(model).encode(), body[1:])
    base: dict[str, Any] = {"model": model, "max_tokens": 256}
    return json.dumps(base | ({"stream": True} if stream else {}) | body).encode()


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> Reply:
    """The answer as far as it came: a connection that is cut leaves what was sent before."""
    raw = b""
    try:
        async with session.post(url, data=body) as response:
            named = {name.lower(): value for name, value in response.headers.items()}
            try:
                async for piece in response.content.iter_any():
                    raw += piece
            except aiohttp.ClientPayloadError:
                return Reply(response.status, raw, named)
            return Reply(response.status, raw, named)
    except (TimeoutError, aiohttp.ClientError):
        return Reply(0, raw)
