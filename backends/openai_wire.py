"""The part of OpenAI's chat-completions JSON that a backend speaks as a client.

One request builder and one folder of streamed events, shared by every backend that meets that shape
(a remote server, the embedded llama.cpp).  Pure.  Only ``delta.content`` is ever read as an answer:
reasoning fields, tool calls and refusals are not delivered.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from backends.api import BackendError, Chunk, ErrorKind, FinishReason, Prompt, Usage

DONE = b"[DONE]"

_TOKEN_LIKE = re.compile(r"<(?=[^\s<>]{1,64}>)|\[(?=/?[A-Z][A-Z_]{1,31}\])")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None


class WireUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Event(msgspec.Struct, frozen=True):
    """One ``chat.completion.chunk``, or an error frame.  Unknown fields are read over."""

    choices: tuple[Choice, ...] | None = None
    usage: WireUsage | None = None
    error: Any = None


def neutralise(text: str) -> str:
    """Break what a tokenizer could take for a control token, by one visible space.

    Servers tokenise the rendered chat template with special tokens on (llama.cpp and vLLM alike), so a
    ``<|im_start|>system`` typed by a person would open a system turn.  ``< |im_start|>`` is plain text
    to every tokenizer, and reads the same to the model and to whoever reviews the prompt.
    """
    return _TOKEN_LIKE.sub(lambda match: match[0] + " ", _encodable(text))


def _encodable(text: str) -> str:
    """Half an emoji, cut by some client, must not cost anyone their answer: it becomes U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def request_body(prompt: Prompt, *, max_tokens: int) -> dict[str, Any]:
    """The JSON of one streamed request.  Sampling fields that are ``None`` are left to the server."""
    sampling = prompt.sampling
    chosen = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        # An empty stop string would end every answer before it began.
        "stop": [_encodable(text) for text in sampling.stop if text] or None,
    }
    return {
        "messages": [{"role": message.role, "content": neutralise(message.content)} for message in prompt.messages],
        "max_tokens": min(sampling.max_tokens, max_tokens),
        "stream": True,
        "stream_options": {"include_usage": True},
    } | {name: value for name, value in chosen.items() if value is not None}


def kind_of_status(status: int) -> ErrorKind:
    """What an HTTP status other than 200 means to a caller."""
    if status in {429, 503}:
        return "overloaded"
    if 400 <= status < 500:
        return "rejected"
    return "unavailable" if status >= 500 else "protocol"


class Answer:
    """Folds events into the contract's chunks, and remembers how the answer ended."""

    def __init__(self) -> None:
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._spoke = False

    @property
    def spoke(self) -> bool:
        """True once a non-empty text was seen."""
        return self._spoke

    @property
    def finished(self) -> bool:
        return self._finish is not None

    def fold(self, event: Event) -> str:
        """The new text of one event, or ``""``.  Raises `BackendError` for an error frame."""
        if event.error is not None:
            raise _error_frame(event.error)
        self._usage = _usage(event.usage) or self._usage
        text = ""
        for choice in event.choices or ():
            if choice.index != 0 or self.finished:
                continue  # one answer was asked for, and nothing follows its end
            self._finish = choice.finish_reason
            if choice.delta is not None and choice.delta.content:
                text += choice.delta.content
        self._spoke = self._spoke or bool(text)
        return text

    def last_chunk(self) -> Chunk:
        """The chunk that ends the answer.  Raises `BackendError` where it did not end as answers do."""
        return Chunk(finish_reason=_finish_reason(self._finish, spoke=self._spoke), usage=self._usage)


def _finish_reason(reason: str | None, *, spoke: bool) -> FinishReason:
    """``stop`` and ``length`` as they are.  A server that filtered its answer, or called a tool that
    nobody offered, has rejected the prompt if it said nothing, and has stopped if it said something.
    """
    if reason is None:
        raise BackendError("protocol", "the answer ended without a finish reason")
    if reason in {"abort", "error"}:
        raise BackendError("unavailable", "the server gave the answer up")
    if reason == "length":
        return "length"
    if reason == "stop" or spoke:
        return "stop"
    raise BackendError("rejected", "the server ended the answer before its first word")


def _usage(usage: WireUsage | None) -> Usage | None:
    if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    if usage.prompt_tokens < 0 or usage.completion_tokens < 0:
        return None
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def _error_frame(error: Any) -> BackendError:
    """The error's own words are dropped: servers quote the prompt in them."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return BackendError(kind_of_status(code), f"the server reported error {code}")
    return BackendError("unavailable", "the server reported an error")
