"""What the scripted backend does beyond the contract: it fails, hangs and counts as its script says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.api import BackendError, Chunk, Usage
from backends.scripted import ScriptedBackend, ScriptedConfig
from tests.contract.backend_checks import ask, listen, words_of


async def scripted(*turns: dict[str, Any], **config: Any) -> ScriptedBackend:
    return await ScriptedBackend.load(msgspec.convert({"script": turns, **config}, ScriptedConfig))


async def test_the_first_turn_that_fits_the_last_user_message_is_played() -> None:
    backend = await scripted({"match": "Rain", "chunks": ["wet"]}, {"match": "sun", "chunks": ["dry"]})
    assert words_of(await listen(backend, ask("sun, then RAIN"))) == "wet"
    assert words_of(await listen(backend, ask("sun"))) == "dry"
    with pytest.raises(BackendError) as caught:
        await listen(backend, ask("kind companion"))  # words of the system message, not of the person
    assert caught.value.kind == "rejected"
    assert [prompt.messages[-1].content for prompt in backend.seen] == ["sun, then RAIN", "sun", "kind companion"]
    assert (backend.started, backend.finished, backend.failed, backend.aborted) == (3, 2, 1, 0)


async def test_without_a_script_it_says_what_it_is() -> None:
    backend = await scripted(trusted_to=4, model="demo")
    assert "scripted" in words_of(await listen(backend, ask("Hello")))
    assert (backend.info.trusted_to, backend.info.model) == (4, "demo")


@pytest.mark.parametrize("kind", ["unavailable", "timeout", "overloaded", "rejected", "protocol"])
@pytest.mark.parametrize("after", [0, 1, 2, 9])
async def test_it_fails_after_as_many_chunks_as_told(kind: str, after: int) -> None:
    backend = await scripted({"chunks": ["a", "b"], "fail": kind, "fail_after": after})
    answer = backend.stream(ask("Hello"))
    for expected in "ab"[:after]:
        assert (await anext(answer)).text == expected
    with pytest.raises(BackendError) as caught:
        await anext(answer)
    assert caught.value.kind == kind
    assert (backend.finished, backend.failed, backend.aborted) == (0, 1, 0)


@pytest.mark.parametrize("after", [0, 1, 2, 9])
async def test_it_falls_silent_until_the_caller_gives_up(after: int) -> None:
    backend = await scripted({"chunks": ["a", "b"], "hang_after": after})
    answer = backend.stream(ask("Hello"))
    for expected in "ab"[:after]:
        assert (await anext(answer)).text == expected
    silent = asyncio.ensure_future(anext(answer))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not silent.done()
    silent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await silent
    assert (backend.started, backend.finished, backend.aborted) == (1, 0, 1)


@pytest.mark.parametrize(
    ("stop", "max_tokens", "text", "reason", "spoken"),
    [
        ((), 9, "one two three", "stop", 3),
        ((), 2, "one two ", "length", 2),
        (("o t",), 9, "one tw", "stop", 2),
        (("one",), 9, "", "stop", 0),
        (("three", "two"), 9, "one ", "stop", 1),
        (("three",), 2, "one two ", "length", 2),
    ],
)
async def test_stop_strings_and_token_limits(
    stop: tuple[str, ...], max_tokens: int, text: str, reason: str, spoken: int
) -> None:
    backend = await scripted({"chunks": ["one ", "two ", "three"]})
    chunks = await listen(backend, ask("Hello", stop=stop, max_tokens=max_tokens))
    assert words_of(chunks) == text
    assert chunks[-1] == Chunk(finish_reason=reason, usage=Usage(prompt_tokens=8, completion_tokens=spoken))  # type: ignore[arg-type]


async def test_a_script_may_end_as_cut_off() -> None:
    backend = await scripted({"chunks": ["half a"], "finish_reason": "length"})
    assert (await listen(backend, ask("Hello")))[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("script.toml", '[[script]]\nmatch = "rain"\nchunks = ["wet"]\n'),
        ("script.json", '{"script": [{"match": "rain", "chunks": ["wet"]}]}'),
    ],
)
async def test_a_script_from_a_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    backend = await scripted({"match": "sun", "chunks": ["dry"]}, script_path=str(tmp_path / name))
    assert words_of(await listen(backend, ask("rain"))) == "wet"
    assert words_of(await listen(backend, ask("sun"))) == "dry"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.toml", None),
        ("broken.toml", b"[[script"),
        ("broken.json", b"{"),
        ("latin1.toml", 'note = "é"'.encode("latin-1")),
        ("unknown.json", b'{"script": [{"chunk": ["typo"]}]}'),
        ("huge.json", b" " * (4 * 1024 * 1024 + 1)),
    ],
)
async def test_a_script_that_cannot_be_used_is_one_clear_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BackendError, match=r"^script_path: ") as caught:
        await scripted(script_path=str(tmp_path / name))
    assert caught.value.kind == "unavailable"
    assert "\n" not in caught.value.detail
