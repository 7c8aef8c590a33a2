"""A call that started early: bounded, aborted without trace, and never a bare exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from backends.api import BackendError, Chunk, Message, Prompt
from backends.scripted import ScriptedBackend, ScriptedConfig, ScriptedTurn
from gateway.pipeline.speculation import QUEUE_CHUNKS, Speculation

PROMPT = Prompt("r", (Message("user", "hello"),))
WITHIN_S = 10.0


async def scripted(*chunks: str, **more: Any) -> ScriptedBackend:
    return await ScriptedBackend.load(ScriptedConfig(script=(ScriptedTurn(chunks=chunks, **more),)))


async def test_chunks_come_in_order_and_end() -> None:
    backend = await scripted("a", "b", "c")
    heard = [chunk async for chunk in Speculation(backend, PROMPT).chunks()]
    assert "".join(chunk.text for chunk in heard) == "abc"
    assert heard[-1].finish_reason == "stop"
    assert backend.finished == 1


async def test_until_it_is_wanted_only_the_first_chunk_is_fetched() -> None:
    backend = await scripted("a")
    speech = Speculation(backend, PROMPT)
    for _ in range(8 * QUEUE_CHUNKS):
        await asyncio.sleep(0)
    assert (backend.started, backend.finished) == (1, 0)
    await speech.abort()
    assert (backend.aborted, backend.finished) == (1, 0)


async def test_what_waits_is_bounded() -> None:
    backend = await scripted(*("x" for _ in range(4 * QUEUE_CHUNKS)))
    chunks = Speculation(backend, PROMPT).chunks()
    assert (await anext(chunks)).text == "x"
    for _ in range(8 * QUEUE_CHUNKS):
        await asyncio.sleep(0)
    assert backend.finished == 0
    assert len([chunk async for chunk in chunks if chunk.text]) == 4 * QUEUE_CHUNKS - 1


async def test_an_abort_ends_the_backend_and_may_come_twice() -> None:
    backend = await scripted("a", hang_after=1)
    speech = Speculation(backend, PROMPT)
    assert (await asyncio.wait_for(anext(speech.chunks()), WITHIN_S)).text == "a"
    await speech.abort()
    await speech.abort()
    assert (backend.aborted, backend.finished) == (1, 0)


async def test_an_error_of_the_backend_comes_after_its_words() -> None:
    backend = await scripted("a", "b", fail="timeout", fail_after=1)
    chunks = Speculation(backend, PROMPT).chunks()
    assert (await anext(chunks)).text == "a"
    with pytest.raises(BackendError) as caught:
        await anext(chunks)
    assert caught.value.kind == "timeout"


class Careless:
    """Raises what no backend should."""

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        yield Chunk("a")
        raise ZeroDivisionError(prompt.messages[0].content)


async def test_a_backend_outside_its_contract_is_a_protocol_error_without_text() -> None:
    careless: Any = Careless()
    chunks = Speculation(careless, PROMPT).chunks()
    assert (await anext(chunks)).text == "a"
    with pytest.raises(BackendError) as caught:
        await anext(chunks)
    assert caught.value.kind == "protocol"
    assert "hello" not in caught.value.detail
