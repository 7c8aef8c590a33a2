"""Every place of an answer in which a sentence could reach the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.conformance.case import Answer, Body, Case, Part
from tests.conformance.encodings import ENCODINGS, HARD
from tests.conformance.inputs import ANSWERED, ASKED, UNKNOWN

_BEFORE: Final = f"{ANSWERED} "
_AFTER: Final = " Fold the dough every half hour."
_CHUNKS_BEFORE: Final = 60
Say = Callable[[str], Answer]


def _asks(_text: str, **fields: Any) -> Body:
    return {"messages": [{"role": "user", "content": ASKED}], **fields}


def _case(name: str, title: str, path: str, answer: Say, *, first: bool = False, **more: Any) -> Case:
    stream = name.startswith("stream")
    more.setdefault("body", lambda text: _asks(text, stream_options={"include_usage": True}) if stream else _asks(text))
    more.setdefault("group", "first" if first else "more")
    return Case(f"out.{name}", title, path, "out", "spoken", answer=answer, stream=stream, **more)


def _honestly(text: str) -> str:
    return f"Honestly, {text}."


def _says(*pieces: str) -> Answer:
    return Answer(tuple(Part({"content": piece}) for piece in pieces))


def _beside(**delta: Any) -> Answer:
    """The sentence in another field of the delta, beside an answer without anything to object to."""
    return Answer((Part(delta), Part({"content": ANSWERED})))


def _in_field(field: str, value: Callable[[str], Any]) -> Say:
    return lambda text: _beside(**{field: value(text)})


def _on_top(field: str) -> Say:
    return lambda text: Answer((Part({"content": ANSWERED}),), top={field: text})


def _two(text: str) -> Answer:
    return Answer((Part({"content": ANSWERED}), Part({"content": _honestly(text)}, index=1)))


def _call(text: str) -> list[Body]:
    return [
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "note", "arguments": f'{{"text": "{text}"}}'},
        }
    ]


def _logprobs(text: str) -> Answer:
    tokens: list[Body] = [{"token": word, "logprob": -0.1, "bytes": None, "top_logprobs": []} for word in (text, " ")]
    return Answer((Part({"content": ANSWERED}, beside={"logprobs": {"content": tokens, "refusal": None}}),))


_FIELDS: Final[dict[str, tuple[str, Callable[[str], Any], bool, bool]]] = {
    "reasoning_content": ("reasoning_content", _honestly, True, True),
    "reasoning": ("reasoning", _honestly, True, False),
    "refusal": ("refusal", _honestly, True, False),
    "tool_calls": ("tool call arguments", _call, True, True),
    "function_call": ("function_call", lambda text: {"name": "note", "arguments": text}, False, False),
    "audio": (
        "audio transcript",
        lambda text: {"id": "audio_1", "transcript": text, "data": "", "expires_at": 0},
        False,
        False,
    ),
    "annotations": (
        "annotations",
        lambda text: [{"type": "url_citation", "url_citation": {"title": text}}],
        False,
        False,
    ),
    "unknown_in_message": ("unknown field of the message", _honestly, False, False),
}
"""By field: a title, its value, and whether whole and stream stood in the first table."""
_INNER: Final = {
    "tool_calls": "tool_calls[].function.arguments",
    "function_call": "function_call.arguments",
    "audio": "audio.transcript",
    "unknown_in_message": "*",
}


def _beside_content() -> Iterator[Case]:
    for kind, holder in (("whole", "message"), ("stream", "delta")):
        for name, (title, value, *first) in _FIELDS.items():
            field = name if name != "unknown_in_message" else UNKNOWN
            yield _case(
                f"{kind}.{name}",
                f"{kind}, {title}",
                f"choices[].{holder}.{_INNER.get(name, name)}",
                _in_field(field, value),
                first=first[kind == "stream"],
            )
        role = f"choices[].{holder}.role"
        yield _case(f"{kind}.role", f"{kind}, role", role, lambda text: _beside(role=text), group="form")
        yield _case(
            f"{kind}.logprobs",
            f"{kind}, logprobs, not asked for",
            "choices[].logprobs",
            _logprobs,
        )
        yield _case(
            f"{kind}.asked_logprobs",
            f"{kind}, logprobs, asked for",
            "choices[].logprobs",
            _logprobs,
            first=kind == "whole",
            body=lambda text: _asks(text, logprobs=True),
        )
        yield _case(
            f"{kind}.second_choice", f"{kind}, second choice, not asked for", f"choices[1].{holder}.content", _two
        )
        yield _case(
            f"{kind}.asked_second_choice",
            f"{kind}, second choice of n = 2",
            f"choices[1].{holder}.content",
            _two,
            first=True,
            body=lambda text: _asks(text, n=2),
        )


def _words() -> Iterator[Case]:
    whole, path = "choices[].message.content", "choices[].delta.content"
    yield _case(
        "whole.content", "whole, content", whole, lambda text: _says(_BEFORE + _honestly(text) + _AFTER), first=True
    )

    def stream(name: str, title: str, answer: Say, first: bool = False) -> Case:
        return _case(f"stream.{name}", f"stream, {title}", path, answer, first=first)

    yield stream("content", "one chunk", lambda text: _says(_BEFORE + _honestly(text) + _AFTER), first=True)
    yield stream("split", "cut in two chunks", _in_two, first=True)
    yield stream(
        "characters", "one character each", lambda text: _says(*(_BEFORE + _honestly(text) + _AFTER)), first=True
    )
    yield stream(
        "late", f"after {_CHUNKS_BEFORE} chunks", lambda text: _says(*_many(), _honestly(text), _AFTER), first=True
    )
    yield stream(
        "last", "in the last chunk", lambda text: _says(_BEFORE, _AFTER.strip() + " ", _honestly(text)), first=True
    )
    yield stream("first", "in the first chunk", lambda text: _says(_honestly(text), _AFTER))
    yield stream("no_end", "last words, no full stop", lambda text: _says(_BEFORE, text))
    yield stream("after_finish", "after the finish reason", _afterwards)
    for name, (title, encode, _) in ENCODINGS.items():
        first = name == "zero_width"
        yield _case(
            f"stream.{name}",
            f"stream, {title}",
            path,
            lambda text: _says(_BEFORE, _honestly(text), _AFTER),
            first=first,
            encode=encode,
        )


def _in_two(text: str) -> Answer:
    middle = len(text) // 2
    return _says(_BEFORE, f"Honestly, {text[:middle]}", f"{text[middle:]}.", _AFTER)


def _many() -> list[str]:
    words = (ANSWERED + _AFTER + " ").split(" ")
    return [f"{words[number % (len(words) - 1)]} " for number in range(_CHUNKS_BEFORE)]


def _afterwards(text: str) -> Answer:
    return Answer((Part({"content": ANSWERED}),), after_finish=(Part({"content": f" {_honestly(text)}"}),))


_TOP: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "unknown")


def _envelope() -> Iterator[Case]:
    said = (Part({"content": ANSWERED}),)
    for kind in ("whole", "stream"):
        for name in _TOP:
            yield _case(
                f"{kind}.{name}",
                f"{kind}, {name}",
                "*" if name == "unknown" else name,
                _on_top(name.replace("unknown", UNKNOWN)),
                group="form",
            )
        yield _case(
            f"{kind}.finish_reason",
            f"{kind}, finish_reason",
            "choices[].finish_reason",
            lambda text: Answer(said, finish_reason=text),
            group="form",
        )
        yield _case(
            f"{kind}.index",
            f"{kind}, index",
            "choices[].index",
            lambda text: Answer((Part({"content": ANSWERED}, beside={"index": text}),)),
            group="form",
        )
        yield _case(
            f"{kind}.usage",
            f"{kind}, usage",
            "usage",
            lambda text: Answer(
                said, top={"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "note": text}}
            ),
            group="form",
        )
    yield _case("error.before", "error of the server", "error.message", lambda text: Answer((), refuses=text))
    yield _case(
        "stream.error", "stream, error frame in the middle", "error.message", lambda text: Answer(said, breaks=text)
    )


def cases() -> tuple[Case, ...]:
    return (*_words(), *_beside_content(), *_envelope())


def hard() -> tuple[Case, ...]:
    """A model's sentence in ways of writing that nobody promises."""
    return tuple(
        Case(
            f"out.hard.{name}",
            f"stream, {title}",
            "choices[].delta.content",
            "out",
            "spoken",
            _asks,
            lambda text: _says(_BEFORE, _honestly(text), _AFTER),
            encode=encode,
            stream=True,
            group="hard",
        )
        for name, (title, encode) in HARD.items()
    )
