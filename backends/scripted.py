"""A backend that replays a script: for tests, for demonstrations, and for rehearsing failures.

It is an ordinary implementer of the contract, with no model behind it.  A script can answer by what the
person said, break off, fail with any of the five error kinds, or fall silent, so that everything around
a backend can be tried against a real one that misbehaves on demand.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, ClassVar, Self

import msgspec

from backends.api import BackendError, BackendInfo, Chunk, ErrorKind, FinishReason, Prompt, Usage

_MAX_SCRIPT_BYTES = 4 * 1024 * 1024
_SILENCE_S = 3600.0
"""How long a turn that hangs stays silent: longer than any caller waits, and still bounded."""
_REMEMBERED_PROMPTS = 32

Count = Annotated[int, msgspec.Meta(ge=0)]


class ScriptedTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer.  The first turn whose ``match`` is found in the last user message is played."""

    chunks: tuple[str, ...] = ()
    match: str | None = None
    """Looked for without regard to case; ``None`` fits every message."""
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    """Before each chunk."""
    finish_reason: FinishReason = "stop"
    fail: ErrorKind | None = None
    fail_after: Count = 0
    """How many chunks are sent before ``fail`` is raised."""
    hang_after: Count | None = None
    """Fall silent after this many chunks, until the caller gives up."""


_STAND_IN = ScriptedTurn(chunks=("Thank you for telling me. ", "This is a scripted answer, not a model's."))


class ScriptedConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    script: tuple[ScriptedTurn, ...] = ()
    script_path: str | None = None
    """A TOML or JSON file with a list ``script``; its turns come after those given in ``script``."""
    model: str = "scripted"
    context_tokens: Annotated[int, msgspec.Meta(ge=1)] = 8192
    trusted_to: Annotated[int, msgspec.Meta(ge=0, le=4)] = 0


class _ScriptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    script: tuple[ScriptedTurn, ...]


class ScriptedBackend:
    """Replays `ScriptedTurn`s.  A token is a chunk of the script, and a word of the prompt.

    ``started``, ``finished``, ``failed`` and ``aborted`` count calls, and ``seen`` holds the latest
    prompts, so that a test can say what reached the model and what was given up.
    """

    config_type: ClassVar[type[ScriptedConfig]] = ScriptedConfig

    def __init__(self, config: ScriptedConfig, script: tuple[ScriptedTurn, ...]) -> None:
        self._config = config
        self._script = script or (_STAND_IN,)
        self._closed = False
        self.started = 0
        self.finished = 0
        self.failed = 0
        self.aborted = 0
        self.seen: deque[Prompt] = deque(maxlen=_REMEMBERED_PROMPTS)

    @classmethod
    async def load(cls, config: ScriptedConfig) -> Self:
        """Raises `BackendError` ``unavailable`` when the script file cannot be used."""
        script = config.script
        if config.script_path is not None:
            script += await asyncio.to_thread(_read_script, Path(config.script_path))
        return cls(config, script)

    @property
    def info(self) -> BackendInfo:
        config = self._config
        return BackendInfo("scripted", config.model, config.context_tokens, trusted_to=config.trusted_to, local=True)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self._require_open()
        self.started += 1
        self.seen.append(prompt)
        settled = False
        try:
            turn = _choose(self._script, prompt)
            for position, text in enumerate(_spoken(turn, prompt)):
                await _obstacle(turn, position)
                await asyncio.sleep(turn.delay_s)
                yield Chunk(text=text)
            await _obstacle(turn, len(turn.chunks))
            settled = True
            self.finished += 1
            yield _ending(turn, prompt)
        except BackendError:
            settled = True
            self.failed += 1
            raise
        finally:
            self.aborted += not settled

    async def health(self) -> None:
        self._require_open()

    async def aclose(self) -> None:
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("unavailable", "the scripted backend is closed")


def _choose(script: tuple[ScriptedTurn, ...], prompt: Prompt) -> ScriptedTurn:
    said = next((message.content for message in reversed(prompt.messages) if message.role == "user"), "").casefold()
    for turn in script:
        if turn.match is None or turn.match.casefold() in said:
            return turn
    raise BackendError("rejected", "no turn of the script fits the message")


def _spoken(turn: ScriptedTurn, prompt: Prompt) -> list[str]:
    """The chunks that are heard: at most ``max_tokens`` of them, cut before the first stop string."""
    chunks = turn.chunks[: prompt.sampling.max_tokens]
    whole = "".join(chunks)
    left = min((at for stop in prompt.sampling.stop if stop and (at := whole.find(stop)) >= 0), default=len(whole))
    spoken: list[str] = []
    for chunk in chunks:
        if left <= 0:
            break
        spoken.append(chunk[:left])
        left -= len(chunk)
    return spoken


def _ending(turn: ScriptedTurn, prompt: Prompt) -> Chunk:
    spoken = _spoken(turn, prompt)
    stopped = "".join(spoken) != "".join(turn.chunks[: prompt.sampling.max_tokens])
    cut = not stopped and len(turn.chunks) > prompt.sampling.max_tokens
    words = sum(len(message.content.split()) for message in prompt.messages)
    return Chunk(
        finish_reason="length" if cut else "stop" if stopped else turn.finish_reason,
        usage=Usage(prompt_tokens=words, completion_tokens=len(spoken)),
    )


async def _obstacle(turn: ScriptedTurn, position: int) -> None:
    """Whatever the script puts in the way of the chunk at ``position``; past the last chunk, of the ending."""
    if turn.hang_after is not None and min(turn.hang_after, len(turn.chunks)) == position:
        await asyncio.sleep(_SILENCE_S)
    if turn.fail is not None and min(turn.fail_after, len(turn.chunks)) == position:
        raise BackendError(turn.fail, "the script says so")


def _read_script(path: Path) -> tuple[ScriptedTurn, ...]:
    decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
    try:
        if path.stat().st_size > _MAX_SCRIPT_BYTES:
            raise BackendError("unavailable", f"script_path: the file passes {_MAX_SCRIPT_BYTES} bytes")
        return decode(path.read_bytes(), type=_ScriptFile).script
    except OSError as error:
        raise BackendError("unavailable", f"script_path: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackendError("unavailable", f"script_path: {error}") from None
