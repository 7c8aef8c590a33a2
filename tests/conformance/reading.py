"""What came back, and what got through: HTTP answers and upstream bodies searched for a sentence.  Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

MOST: Final = 0.8
"""So much of a sentence, counted from its beginning, is the sentence: who reads that far has read it."""


@dataclass(frozen=True)
class Reply:
    """One HTTP answer of the gateway.  Status 0: none came."""

    status: int
    raw: bytes = b""
    headers: Mapping[str, str] | None = None

    @property
    def streamed(self) -> bool:
        return (self.headers or {}).get("content-type", "").startswith("text/event-stream")


@dataclass(frozen=True)
class Ending:
    """How an answer ended, by the letter of the format."""

    finish_reasons: tuple[str, ...] = ()
    usage: bool = False
    done: bool = False
    error: bool = False
    """An error frame, or an error's status."""


@dataclass(frozen=True)
class Heard:
    """Where a sentence was found in an answer."""

    in_answer: bool
    in_error: bool


def payloads(reply: Reply) -> list[Any]:
    """Every JSON document of the answer; what is no JSON is a document of its own, under ``text``."""
    text = reply.raw.decode("utf-8", "replace")
    if not reply.streamed:
        return [_parsed(text)]
    lines = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    found = [_parsed(line) for line in lines if line and line != "[DONE]"]
    # An error that cut the stream may follow without a frame.
    return found or [{"text": text}]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"text": text}


def ending(reply: Reply) -> Ending:
    documents = [document for document in payloads(reply) if isinstance(document, dict)]
    choices = [choice for document in documents for choice in document.get("choices") or () if isinstance(choice, dict)]
    return Ending(
        finish_reasons=tuple(str(choice["finish_reason"]) for choice in choices if choice.get("finish_reason")),
        usage=any(document.get("usage") for document in documents),
        done=b"data: [DONE]" in reply.raw,
        error=reply.status >= 400 or any(document.get("error") for document in documents),
    )


def heard(reply: Reply, *wanted: str) -> Heard:
    """Whether one of the sentences is in the answer, wherever its pieces lie, or in an error of it."""
    said: dict[str, list[str]] = {}
    for document in payloads(reply):
        for path, text in _leaves(document, ""):
            said.setdefault(path, []).append(text)
    for name, value in (reply.headers or {}).items():
        said.setdefault(f".header.{name}", []).append(value)
    hits = {path for path, pieces in said.items() if _holds("".join(pieces), wanted, MOST)}
    errors = {path for path in hits if reply.status >= 400 or path.startswith(".error")}
    return Heard(in_answer=bool(hits - errors), in_error=bool(errors))


def told(bodies: list[Any], *wanted: str) -> bool:
    """Whether one of the sentences is in what the model's server was sent, also in a key or split over parts."""
    return any(_holds(text, wanted, 1.0) for body in bodies for text in _texts(body))


def _holds(text: str, wanted: tuple[str, ...], most: float) -> bool:
    folded = text.casefold()
    return any(sentence[: math.ceil(len(sentence) * most)].casefold() in folded for sentence in wanted)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text with its path; a choice is known by its index, so that the pieces of a stream come together."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            index = inner.get("index", position) if isinstance(inner, dict) else position
            yield from _leaves(inner, f"{path}[{index}]")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _texts(inner)
    elif isinstance(value, list):
        parts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        yield "".join(parts)
        for inner in value:
            yield from _texts(inner)
