"""The backend contract: what every language model behind the gateway promises, and nothing else.

A backend turns a `Prompt` into a stream of `Chunk`.  Retries, limits, breakers and tracing are
decorators over this contract (``backends/wrap``), never inside an adapter.  Implementers register
under the entry-point group ``havengate.backends`` and are loaded only when settings name them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import msgspec

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


class Message(msgspec.Struct, frozen=True):
    role: Role
    content: str


class Sampling(msgspec.Struct, frozen=True):
    """OpenAI's sampling fields.  ``None`` leaves the choice to the backend."""

    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Prompt(msgspec.Struct, frozen=True):
    """Everything the model reads.  Built by the pipeline; nothing of the client reaches a model another way."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the backend counts them."""

    prompt_tokens: int
    completion_tokens: int


class Chunk(msgspec.Struct, frozen=True):
    """A piece of the answer.  The last chunk alone carries ``finish_reason``; ``usage`` comes with it or is absent."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class BackendInfo(msgspec.Struct, frozen=True):
    """What a backend is and what it may be trusted with.

    ``trusted_to`` is the highest severity (0-4) at which its words may reach a person: 0 for the
    demonstration model, at most 2 for a tuned and gated one (DESIGN section 6).
    """

    kind: str
    model: str
    context_tokens: int
    trusted_to: int = 0
    local: bool = False
    """True when it runs in this process (OpenTelemetry span kind INTERNAL, not CLIENT)."""


ErrorKind = Literal["unavailable", "timeout", "overloaded", "rejected", "protocol"]


class BackendError(Exception):
    """The backend failed.  Five kinds, so that callers can decide without reading text:

    ``unavailable`` cannot be reached or died; ``timeout`` past its deadline; ``overloaded`` refused for
    load (429/503), retry later; ``rejected`` the prompt was not accepted (4xx); ``protocol`` it sent
    what cannot be parsed, or ended without a finish reason.  The message never holds text of a person.
    """

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: ErrorKind = kind
        self.detail = detail


@runtime_checkable
class ChatBackend(Protocol):
    """A chat model."""

    config_type: ClassVar[type[Any]]
    """A msgspec Struct; settings for the instance are decoded into it, unknown keys refused."""

    @classmethod
    async def load(cls, config: Any) -> Self:
        """Load or connect lazily.  A remote server that is down is not an error here: `health` says it."""
        ...

    @property
    def info(self) -> BackendInfo: ...

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Yield the answer as it comes: zero or more text chunks, then exactly one with a finish reason.

        Raises `BackendError`.  Closing the generator, or cancelling its task, aborts generation within 200 ms.
        """
        ...

    async def health(self) -> None:
        """Return if a request would be served now, else raise `BackendError`.  At most 5 s."""
        ...

    async def aclose(self) -> None: ...
