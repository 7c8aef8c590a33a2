"""The HTTP backend against a real server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from backends.api import BackendError, Chunk, Message, Prompt, Sampling, Usage
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPConfig, base_url
from backends.openai_wire import neutralise
from tests.support.openai_server import MODEL, Behaviour, StandInServer, frame

CANARY = "terracotta-8841-stairwell"
BOUND_S = 30.0
DONE = b"data: [DONE]\n\n"


def ask(text: str = "Good evening my friend", **sampling: Any) -> Prompt:
    return Prompt("unit", (Message("system", "Be kind."), Message("user", text)), Sampling(**sampling))


def say(text: str, finish: str | None = None, **more: Any) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more})


Load = Callable[..., Any]


@pytest.fixture
async def server() -> AsyncIterator[StandInServer]:
    async with StandInServer() as running:
        yield running


@pytest.fixture
async def load(server: StandInServer) -> AsyncIterator[Load]:
    opened: list[OpenAIHTTPBackend] = []

    async def open_one(**config: Any) -> OpenAIHTTPBackend:
        backend = await OpenAIHTTPBackend.load(OpenAIHTTPConfig(**{"url": server.url, "model": MODEL, **config}))
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        await backend.aclose()


async def listen(backend: OpenAIHTTPBackend, prompt: Prompt | None = None) -> list[Chunk]:
    async with asyncio.timeout(BOUND_S):
        return [chunk async for chunk in backend.stream(prompt or ask())]


async def failure(backend: OpenAIHTTPBackend, prompt: Prompt | None = None) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await listen(backend, prompt)
    return caught.value


def words(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks if chunk.text]


# What is sent


async def test_the_request_is_openais(server: StandInServer, load: Load) -> None:
    backend = await load(api_key="sk-secret")
    await listen(
        backend, ask(temperature=0.5, top_p=0.9, seed=3, stop=("\n\n", ""), presence_penalty=0.1, max_tokens=9)
    )
    await listen(backend, ask(max_tokens=10**9))
    assert server.requests[0] == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Good evening my friend"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "seed": 3,
        "stop": ["\n\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert server.requests[1]["max_tokens"] == 4096
    assert set(server.requests[1]) == {"model", "messages", "max_tokens", "stream", "stream_options"}


async def test_without_a_key_none_is_sent(server: StandInServer, load: Load) -> None:
    await listen(await load())
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("<|im_start|>system", "< |im_start|>system"),
        ("a<|im_end|>b</s>", "a< |im_end|>b< /s>"),
        ("<<SYS>> [INST] [/INST]", "<< SYS>> [ INST] [ /INST]"),
        ("<｜User｜><start_of_turn>", "< ｜User｜>< start_of_turn>"),
        ("I <3 you, 2 < 3 > 1, [sic], [A]", "I <3 you, 2 < 3 > 1, [sic], [A]"),
        ("half an emoji \ud83d", "half an emoji \ufffd"),
        ("día 🌧️", "día 🌧️"),
    ],
)
async def test_control_tokens_are_sent_as_text(server: StandInServer, load: Load, typed: str, sent: str) -> None:
    await listen(await load(), ask(typed))
    assert server.requests[0]["messages"][-1]["content"] == sent
    assert neutralise(sent) == sent


# What is understood


async def test_streams_words_then_the_end_with_usage(load: Load) -> None:
    chunks = await listen(await load())
    assert words(chunks) == ["Good ", "evening ", "my ", "friend "]
    assert chunks[-1] == Chunk(finish_reason="stop", usage=Usage(prompt_tokens=4, completion_tokens=4))


async def test_a_server_without_usage_gives_none(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(with_usage=False)
    assert (await listen(await load()))[-1] == Chunk(finish_reason="stop")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ((b": hi\r\n\r\ndata:" + say("one ")[6:].replace(b"\n", b"\r\n"), say("two", "stop"), DONE), ["one ", "two"]),
        ((say("one ") + say("two ") + say("three", "stop") + DONE,), ["one ", "two ", "three"]),
        ((say("one", "stop"),), ["one"]),
        ((say("one"), say("", "stop"), say("after the end"), DONE), ["one"]),
        ((say("one", "stop"), DONE, say("after done")), ["one"]),
        ((b"data:\n\n", frame({"choices": None}), say("one", "stop", usage={"prompt_tokens": -1})), ["one"]),
        ((frame({"choices": [{"index": 1, "delta": {"content": "other"}}]}), say("one", "stop")), ["one"]),
        ((frame({"choices": [{"delta": {"reasoning_content": "hm", "content": None}}]}), say("one", "stop")), ["one"]),
    ],
    ids=["crlf, comment, no space", "one write", "no done", "text after the end", "after done", "odd but harmless",
         "a second choice", "reasoning"],
)  # fmt: skip
async def test_tolerates(server: StandInServer, load: Load, raw: tuple[bytes, ...], expected: list[str]) -> None:
    server.behave = Behaviour(raw=raw)
    chunks = await listen(await load())
    assert words(chunks) == expected
    assert chunks[-1] == Chunk(finish_reason="stop")


async def test_events_and_characters_cut_at_any_byte(server: StandInServer, load: Load) -> None:
    backend = await load()
    event = 'data: {"choices":[{"delta":{"content":"día 🌧️"},"finish_reason":"stop"}]}\n\n'.encode()
    for cut in range(1, len(event)):
        server.behave = Behaviour(raw=(event[:cut], event[cut:]))
        assert words(await listen(backend)) == ["día 🌧️"], f"cut at byte {cut}"
    server.behave = Behaviour(raw=tuple(event[at : at + 1] for at in range(len(event))))
    assert words(await listen(backend)) == ["día 🌧️"]


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "something_new"])
async def test_an_unusual_ending(server: StandInServer, load: Load, reason: str) -> None:
    backend = await load()
    server.behave = Behaviour(raw=(say("One thing is"), say("", reason), DONE))
    assert (await listen(backend))[-1].finish_reason == "stop"
    server.behave = Behaviour(raw=(say("", reason), DONE))
    assert (await failure(backend)).kind == "rejected"


# What goes wrong


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "rejected"), (401, "rejected"), (404, "rejected"), (429, "overloaded"), (500, "unavailable"),
     (502, "unavailable"), (503, "overloaded"), (204, "protocol")],
)  # fmt: skip
async def test_a_status_becomes_a_kind_and_the_body_is_not_quoted(
    server: StandInServer, load: Load, status: int, kind: str
) -> None:
    server.behave = Behaviour(status=status)
    error = await failure(await load(), ask(CANARY))
    assert (error.kind, error.detail) == (kind, f"the server answered {status}")


async def test_redirects_are_not_followed(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(status=307, headers={"Location": "/v1/chat/completions"})
    assert (await failure(await load())).kind == "protocol"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("frame_error", "kind"),
    [
        ({"error": {"message": CANARY, "code": 429}}, "overloaded"),
        ({"error": {"message": CANARY, "code": 400}}, "rejected"),
        ({"error": {"message": CANARY, "code": "server_error"}}, "unavailable"),
        ({"error": {"message": CANARY, "code": 7}}, "unavailable"),
        ({"error": CANARY}, "unavailable"),
        ({"choices": [{"delta": {}, "finish_reason": "abort"}]}, "unavailable"),
    ],
)
async def test_an_error_in_mid_stream(
    server: StandInServer, load: Load, frame_error: dict[str, Any], kind: str
) -> None:
    server.behave = Behaviour(raw=(say("One thing "), frame(frame_error), DONE))
    error = await failure(await load(), ask(CANARY))
    assert error.kind == kind
    assert CANARY not in str(error)


@pytest.mark.parametrize(
    "raw",
    [
        (say("One"),),
        (say("One"), DONE),
        (),
        (say("One"), b"data: {nonsense\n\n"),
        (b"data: [1]\n\n",),
        (b'data: {"choices":[{"delta":{"content":7}}]}\n\n',),
        (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',),
        (say("One", "stop")[:-1],),
        (b"data: " + b"x" * 5000,),
        (say("One") * 200, say("", "stop"), DONE),
    ],
    ids=["no finish reason", "done without one", "empty", "not json", "not an object", "not text", "not utf-8",
         "cut before its blank line", "giant event", "endless answer"],
)  # fmt: skip
async def test_what_cannot_be_an_answer_is_a_protocol_error(
    server: StandInServer, load: Load, raw: tuple[bytes, ...]
) -> None:
    server.behave = Behaviour(raw=raw)
    error = await failure(await load(max_event_bytes=2048, max_answer_bytes=10_000), ask(CANARY))
    assert error.kind == "protocol"
    assert error.__cause__ is None


async def test_an_answer_that_is_no_event_stream(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(content_type="application/json", raw=(b"{}",))
    assert (await failure(await load())).kind == "protocol"


async def test_a_compressed_answer_was_not_asked_for(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(headers={"Content-Encoding": "gzip"}, raw=(b"\x1f\x8b\x08\x00",))
    assert (await failure(await load())).kind == "protocol"
    assert server.headers[0]["Accept-Encoding"] == "identity"


async def test_a_connection_that_breaks_is_unavailable(server: StandInServer, load: Load) -> None:
    backend = await load()
    for events in (0, 3):
        server.behave = Behaviour(die_after=events)
        assert (await failure(backend)).kind == "unavailable"


async def test_a_break_after_the_end_costs_only_the_usage(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(raw=(say("One", "stop"), b""), die_after=1)
    assert await listen(await load()) == [Chunk(text="One"), Chunk(finish_reason="stop")]


async def test_what_is_not_http_is_a_protocol_error(load: Load) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    assert (await failure(await load(url=f"http://127.0.0.1:{port}"))).kind == "protocol"
    listener.close()


async def test_a_server_that_is_down_is_unavailable(server: StandInServer, load: Load) -> None:
    backend = await load()
    await server.stop()
    assert (await failure(backend)).kind == "unavailable"
    with pytest.raises(BackendError) as sick:
        await backend.health()
    assert sick.value.kind == "unavailable"


# Patience


@pytest.mark.parametrize(
    ("behave", "config"),
    [
        (Behaviour(hang_before_answer=True), {"first_token_timeout_s": 0.05}),
        (Behaviour(hang_after=0), {"first_token_timeout_s": 0.05}),
        (Behaviour(hang_after=1), {"first_token_timeout_s": 0.2}),
        (Behaviour(hang_after=3), {"idle_timeout_s": 0.05}),
        (Behaviour(hang_after=3), {"total_timeout_s": 0.2}),
    ],
    ids=["before the headers", "after the headers", "a role but no text", "between words", "in all"],
)
async def test_silence_is_a_timeout_and_hangs_up(
    server: StandInServer, load: Load, behave: Behaviour, config: dict[str, Any]
) -> None:
    server.behave = behave
    assert (await failure(await load(**config))).kind == "timeout"
    async with asyncio.timeout(BOUND_S):
        await server.disconnected.wait()


async def test_connecting_has_its_own_bound(load: Load) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for each in (first, second):  # fill the queue, so that the next connection stays unanswered
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            backend = await load(url=f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_s=0.05)
            assert (await failure(backend)).kind == "timeout"


async def test_a_body_left_open_after_done_is_not_waited_for(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(keep_open=True)
    assert (await listen(await load()))[-1].finish_reason == "stop"
    async with asyncio.timeout(BOUND_S):
        await server.disconnected.wait()


# Connections


async def test_one_connection_serves_answer_after_answer(server: StandInServer, load: Load) -> None:
    backend = await load()
    for _ in range(4):
        await listen(backend)
    assert len(set(server.peers)) == 1


@pytest.mark.parametrize("heard", [0, 2], ids=["before the first word", "in the middle"])
async def test_leaving_hangs_up_on_the_server(server: StandInServer, load: Load, heard: int) -> None:
    server.behave = Behaviour(hang_after=1 + heard)
    answer = (await load()).stream(ask())
    async with asyncio.timeout(BOUND_S):
        for _ in range(heard):
            await anext(answer)
        waiting = asyncio.ensure_future(anext(answer))
        await server.arrived.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await answer.aclose()
        await server.disconnected.wait()
    assert server.finished == 0


async def test_closing_the_generator_hangs_up(server: StandInServer, load: Load) -> None:
    server.behave = Behaviour(hang_after=2)
    answer = (await load()).stream(ask())
    async with asyncio.timeout(BOUND_S):
        await anext(answer)
        await answer.aclose()
        await server.disconnected.wait()
    assert server.finished == 0


# Health


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (Behaviour(listing_status=500), "unavailable"),
        (Behaviour(listing_status=401), "rejected"),
        (Behaviour(listing_status=302, headers={"Location": "/v1/models"}), "protocol"),
        (Behaviour(listing=b"<html>"), "protocol"),
        (Behaviour(listing=b'{"data": [{"id": "\xff"}]}'), "protocol"),
        (Behaviour(listing=b" " * 2_000_000), "protocol"),
        (Behaviour(listing=json.dumps({"data": [{"id": "another"}]}).encode()), "rejected"),
    ],
    ids=["down", "bad key", "redirect", "not json", "not utf-8", "endless", "another model"],
)
async def test_ill_health_is_told(server: StandInServer, load: Load, behave: Behaviour, kind: str) -> None:
    server.behave = behave
    with pytest.raises(BackendError) as sick:
        await (await load()).health()
    assert sick.value.kind == kind


async def test_health_without_a_useful_list(server: StandInServer, load: Load) -> None:
    for behave, config in (
        (Behaviour(listing_status=404), {}),
        (Behaviour(listing=b'{"data": []}'), {}),
        (Behaviour(listing=json.dumps({"data": [{"id": "another"}]}).encode()), {"check_model": False}),
    ):
        server.behave = behave
        assert await (await load(**config)).health() is None


async def test_health_does_not_wait_for_ever(
    server: StandInServer, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.openai_http._HEALTH_S", 0.05)
    server.behave = Behaviour(hang_before_answer=True)
    with pytest.raises(BackendError) as sick:
        await (await load()).health()
    assert sick.value.kind == "timeout"


# Configuration


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:8001", "http://h:8001/v1"),
        ("http://h:8001/", "http://h:8001/v1"),
        ("https://h/v1", "https://h/v1"),
        (" https://h/v1/ ", "https://h/v1"),
        ("https://h/openai/v1", "https://h/openai/v1"),
        ("https://h/openai", "https://h/openai/v1"),
        ("https://h/api/v4", "https://h/api/v4"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_base_url(given: str, base: str) -> None:
    assert base_url(given) == base


@pytest.mark.parametrize(
    "url",
    ["", "h:8001", "ftp://h", "http://", "http://u:p@h", "http://h?x=1", "http://h#x", "http://h:0", "http://h:x"],
)
def test_a_url_that_cannot_be_called_is_refused_with_the_settings(url: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": url, "model": "m"}, OpenAIHTTPConfig)


def test_the_key_is_not_in_the_repr() -> None:
    assert "sk-secret" not in repr(OpenAIHTTPConfig(url="http://h", model="m", api_key="sk-secret"))


def test_trust_stops_at_two() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": "http://h", "model": "m", "trusted_to": 3}, OpenAIHTTPConfig)


def test_importing_it_opens_nothing() -> None:
    program = "import asyncio, backends.openai_http; asyncio.run(asyncio.sleep(0))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, timeout=60)
    assert done.stderr == b""
