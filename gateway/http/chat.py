"""``POST /v1/chat/completions``: decode, take the turn, render.  Thin on purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import msgspec
from litestar import Request, Response, post
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from gateway.auth.guards import principal_of, scope
from gateway.http import openai, sse
from gateway.http.front import Front, Lease, read_body, request_id_of
from gateway.pipeline.case import Closed, Delta, Opened, Piece
from gateway.pipeline.state import Outcome, Turn
from gateway.pipeline.turn import take_turn

HEARTBEAT_S: Final = 10.0
CLIENT_CLOSED_REQUEST: Final = 499
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before there was anything to answer with."""


@post("/v1/chat/completions", opt=scope("chat"), status_code=200)
async def chat_completions(request: Request[Any, Any, Any], front: Front) -> Response[Any] | Stream:
    """OpenAI's Chat Completions, judged before and after.  A full house still hears a crisis out."""
    body = openai.decode(await read_body(request), openai.ChatRequest)
    turn = _turn(request, front, body)
    lease = front.slots.lease()
    pieces = take_turn(front.house, turn, room=lease is not None)
    if body.stream:
        return await _stream(turn, body, pieces, lease)
    try:
        text, outcome = await _unless_gone(request, _collect(pieces))
    except ClientGone:
        return Response(content=b"", status_code=CLIENT_CLOSED_REQUEST, media_type="text/plain")
    finally:
        await _end(pieces, lease)
    return Response(
        content=msgspec.json.encode(openai.from_outcome(turn, text, outcome)),
        media_type="application/json",
        headers=_headers(turn, outcome.decision.action, outcome.decision.policy_version),
    )


async def _end(pieces: AsyncGenerator[Piece, None], lease: Lease | None) -> None:
    """However an answer ends; safe to call twice, for a stream can end in two ways."""
    await pieces.aclose()
    if lease is not None:
        lease.end()


def _turn(request: Request[Any, Any, Any], front: Front, body: openai.ChatRequest) -> Turn:
    principal = principal_of(request)
    end_user = openai.check_metadata(body)
    return openai.to_turn(
        body,
        openai.Caller(app_id=principal.key_id, mode=principal.mode, region=principal.region),
        front.limits,
        request_id=request_id_of(request),
        models=front.models,
        user_hash=front.store.keyring.blind(end_user, purpose="end_user") if end_user else None,
    )


def _headers(turn: Turn, action: str, policy_version: str) -> dict[str, str]:
    return {
        "x-request-id": turn.request_id,
        "x-havengate-decision": action,
        "x-havengate-policy": policy_version,
    }


async def _collect(pieces: AsyncGenerator[Piece, None]) -> tuple[str, Outcome]:
    text: list[str] = []
    async for piece in pieces:
        # A turn of care never waits outside its shields, so a client that left in it would go unnoticed.
        await anyio.lowlevel.checkpoint_if_cancelled()
        if isinstance(piece, Delta):
            text.append(piece.text)
        elif isinstance(piece, Closed):
            return "".join(text), piece.outcome
    raise AssertionError("a turn ends with its outcome")


async def _stream(
    turn: Turn, body: openai.ChatRequest, pieces: AsyncGenerator[Piece, None], lease: Lease | None
) -> Stream:
    """Judge the input first, so that what fails there is an ordinary HTTP error; then stream."""
    try:
        opened = await anext(pieces)
        if not isinstance(opened, Opened):
            raise AssertionError("a turn opens before it speaks")
    except BaseException:
        await _end(pieces, lease)
        raise
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    frames = sse.with_heartbeat(_frames(turn, include_usage, pieces), HEARTBEAT_S)
    return Stream(
        _ended(frames, lease),
        media_type="text/event-stream",
        headers=_headers(turn, opened.decision.action, opened.decision.policy_version) | dict(sse.HEADERS),
        # Runs even when the client left before the first frame, where the generator never starts.
        background=BackgroundTask(_end, pieces, lease),
    )


async def _frames(turn: Turn, include_usage: bool, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[bytes, None]:
    """The stream as OpenAI's clients read it: role, deltas, finish reason, usage if asked for, ``[DONE]``."""
    base = openai.envelope(turn.request_id, turn.model, "chat.completion.chunk")
    if include_usage:
        base["usage"] = None
    async with contextlib.aclosing(pieces):
        yield sse.frame(openai.chunk(base, {"role": "assistant", "content": ""}))
        async for piece in pieces:
            if isinstance(piece, Delta):
                yield sse.frame(openai.chunk(base, {"content": piece.text}))
            elif isinstance(piece, Closed):
                last = openai.chunk(base, {}, piece.outcome.finish_reason)
                yield sse.frame(last | {"havengate": openai.summary(turn, piece.outcome)})
                if include_usage:
                    yield sse.frame(base | {"choices": [], "usage": openai.usage(piece.outcome.usage)})
    yield sse.DONE


async def _ended(frames: AsyncGenerator[bytes, None], lease: Lease | None) -> AsyncGenerator[bytes, None]:
    """Give the conversation's place back as soon as the stream has ended, however it ends."""
    try:
        async with contextlib.aclosing(frames):
            async for frame in frames:
                yield frame
    finally:
        if lease is not None:
            lease.end()


async def _unless_gone(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """Do the work unless the client leaves first; then cancel it and raise `ClientGone`.

    Litestar does not cancel a handler whose client has gone (litestar#3984), so the wait is ours.
    """

    async def _watch(scope: anyio.CancelScope) -> None:
        # The body has been read whole, so what comes next can only be the disconnect.
        if (await request.receive())["type"] == "http.disconnect":
            scope.cancel()

    with anyio.CancelScope() as scope:
        watch = asyncio.create_task(_watch(scope), name="client gone")
        try:
            return await work
        finally:
            watch.cancel()
    raise ClientGone
