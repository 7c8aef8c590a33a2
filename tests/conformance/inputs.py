"""Every place of a request in which a sentence could reach the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.conformance.case import Answer, Body, Case, Part, Voice
from tests.conformance.encodings import ENCODINGS, HARD

ASKED: Final = "How does sourdough work?"
ANSWERED: Final = "Sourdough likes patience."
UNKNOWN: Final = "whisper"
"""The name of a field that nobody knows."""
_USER: Final[Body] = {"role": "user", "content": ASKED}
_ASSISTANT: Final[Body] = {"role": "assistant", "content": ANSWERED}
Build = Callable[[str], Body | bytes]


def calm(_text: str) -> Answer:
    """An answer without anything to object to."""
    return Answer((Part({"content": ANSWERED}),))


def _case(
    name: str, title: str, path: str, body: Build, *, voice: Voice = "told", first: bool = False, **more: Any
) -> Case:
    more.setdefault("group", "first" if first else "more")
    return Case(f"in.{name}", title, path, "in", voice, body, calm, **more)


def _chat(*messages: Body) -> Body:
    return {"messages": list(messages)}


def _said(text: str) -> str:
    return f"Hello. {text}."


def _asked_for(text: str) -> str:
    return f"Be brief. Honestly, {text}."


def _user(text: str) -> Body:
    return {"role": "user", "content": _said(text)}


def _parts(*parts: Body) -> Body:
    return _chat({"role": "user", "content": list(parts)})


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _with(**fields: Any) -> Body:
    return {**_chat(_USER), **fields}


def _halves(text: str) -> Body:
    middle = len(text) // 2
    return _parts(_text(f"Hello. {text[:middle]}"), _text(f"{text[middle:]}."))


def _call(text: str) -> Body:
    return {"id": "call_1", "type": "function", "function": {"name": "note", "arguments": json.dumps({"text": text})}}


def _as_name(text: str) -> str:
    return text.replace(" ", "_")


def _tool(**function: Any) -> Body:
    return {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}, **function}}


def _schema(text: str) -> Body:
    schema = {"type": "object", "properties": {"word": {"type": "string", "description": text}}}
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


def _conversation() -> Iterator[Case]:
    where = "messages[].content"
    yield _case("user.plain", "user", where, lambda t: _chat(_user(t)), voice="heard", first=True)
    yield _case(
        "user.earlier",
        "earlier user turn, a calm one last",
        where,
        lambda t: _chat(_user(t), _USER),
        voice="heard",
        first=True,
    )
    yield _case(
        "user.before_answer",
        "earlier user turn, the assistant between",
        where,
        lambda t: _chat(_user(t), _ASSISTANT, _USER),
        voice="heard",
        first=True,
    )
    yield _case("system", "system message", where, lambda t: _chat(_role("system", t), _USER), first=True)
    yield _case("developer", "developer message", where, lambda t: _chat(_role("developer", t), _USER), first=True)
    yield _case(
        "assistant.prefill",
        "assistant message, last (prefill)",
        where,
        lambda t: _chat(_USER, _role("assistant", t)),
        first=True,
    )
    yield _case(
        "assistant.history",
        "assistant message in the history",
        where,
        lambda t: _chat(_USER, _role("assistant", t), _USER),
    )
    result = {"role": "tool", "tool_call_id": "call_1"}
    yield _case(
        "tool.result",
        "tool message (result)",
        where,
        lambda t: _chat(_USER, _calls("beans"), {**result, "content": _asked_for(t)}),
        first=True,
    )
    yield _case(
        "tool.call",
        "tool call arguments in the history",
        "messages[].tool_calls[].function.arguments",
        lambda t: _chat(_USER, _calls(_asked_for(t)), {**result, "content": "noted"}, _USER),
        first=True,
    )


def _role(role: str, text: str) -> Body:
    return {"role": role, "content": _asked_for(text)}


def _calls(text: str) -> Body:
    return {"role": "assistant", "content": None, "tool_calls": [_call(text)]}


def _pieces() -> Iterator[Case]:
    path = "messages[].content[].text"
    yield _case("user.parts", "user, text part", path, lambda t: _parts(_text(_said(t))), voice="heard", first=True)
    yield _case("user.split_parts", "user, split over two parts", path, _halves, voice="heard", first=True)
    parts: dict[str, Callable[[str], Body]] = {
        "image_url": lambda t: {"type": "image_url", "image_url": {"url": f"https://example.org/{t}"}},
        "input_audio": lambda t: {"type": "input_audio", "input_audio": {"data": t, "format": "wav"}},
        "file": lambda t: {"type": "file", "file": {"filename": t, "file_data": "data:text/plain;base64,aGk="}},
        "refusal": lambda t: {"type": "refusal", "refusal": _asked_for(t)},
    }
    for name, part in parts.items():
        yield _case(
            f"part.{name}",
            f"content part of type {name}",
            f"messages[].content[].{name}",
            _part(part),
        )
    for name, (title, encode, first) in ENCODINGS.items():
        yield _case(
            f"user.{name}",
            f"user, {title}",
            "messages[].content",
            lambda t: _chat(_user(t)),
            voice="heard",
            first=first,
            encode=encode,
        )
    yield _case(
        "user.twice_first", "user, the field given twice, in the first", "messages[].content", _twice(0), voice="heard"
    )
    yield _case(
        "user.twice_last", "user, the field given twice, in the last", "messages[].content", _twice(1), voice="heard"
    )


def _part(part: Callable[[str], Body]) -> Build:
    return lambda t: _parts(_text(ASKED), part(t))


def _twice(place: int) -> Build:
    """A body with a duplicate key; parsers differ in which one they keep (RFC 8259, section 4)."""

    def build(text: str) -> bytes:
        first, last = (json.dumps(_said(text)) if place == number else json.dumps(ASKED) for number in (0, 1))
        return b'{"messages":[{"role":"user","content":%b,"content":%b}]}' % (first.encode(), last.encode())

    return build


def _beside_content() -> Iterator[Case]:
    def case(name: str, field: str, title: str, value: Callable[[str], Any], first: bool = False) -> Case:
        key = field.partition("[")[0].replace("*", UNKNOWN)
        return _case(
            name,
            title,
            f"messages[].{field}",
            lambda t: _chat(_USER, {**_ASSISTANT, key: value(t)}, _USER),
            first=first,
        )

    yield _case("name", "name of a message", "messages[].name", lambda t: _chat({**_USER, "name": t}), first=True)
    yield case("tool.call_name", "tool_calls[].function.name", "tool call's name in the history", lambda t: [_named(t)])
    yield case("tool.call_id", "tool_call_id", "tool_call_id", lambda t: t)
    yield case(
        "message.function_call",
        "function_call",
        "function_call in the history",
        lambda t: {"name": "note", "arguments": t},
    )
    yield case("message.refusal", "refusal", "refusal in the history", _asked_for)
    yield case("message.audio", "audio", "audio in the history", lambda t: {"id": t})
    yield case(
        "message.annotations", "annotations", "annotations in the history", lambda t: [{"type": "note", "text": t}]
    )
    yield case("message.unknown", "*", "unknown field of a message", _asked_for)
    yield _case(
        "message.reasoning",
        "reasoning_content in the history",
        "messages[].*",
        lambda t: _chat(_USER, {**_ASSISTANT, "reasoning_content": _asked_for(t)}, _USER),
    )


def _named(text: str) -> Body:
    return {"id": "call_1", "type": "function", "function": {"name": text, "arguments": "{}"}}


def _fields() -> Iterator[Case]:
    def case(name: str, path: str, title: str, value: Callable[[str], Any], first: bool = False, **more: Any) -> Case:
        field = path.partition("[")[0].partition(".")[0].replace("*", UNKNOWN)
        return _case(name, title, path, lambda t: _with(**{field: value(t)}), first=first, **more)

    tools = "tools[].function."
    yield case("tools", f"{tools}description", "tool's description", lambda t: [_tool(description=_asked_for(t))], True)
    yield case("tools.name", f"{tools}name", "tool's name", lambda t: [_tool(name=t)], encode=_as_name)
    yield case(
        "tools.parameters", f"{tools}parameters", "tool's parameters", lambda t: [_tool(parameters={"description": t})]
    )
    yield case(
        "functions", "functions", "function's description", lambda t: [{"name": "note", "description": _asked_for(t)}]
    )
    yield case(
        "response_format", "response_format", "schema in response_format", lambda t: _schema(_asked_for(t)), True
    )
    yield case("stop", "stop", "stop string", lambda t: [t], True)
    yield case("user_field", "user", "user field", lambda t: t, True)
    yield case("safety_identifier", "safety_identifier", "safety_identifier", lambda t: t)
    yield case("metadata", "metadata", "metadata value", lambda t: {"note": _asked_for(t)})
    yield case(
        "metadata.conversation_id", "metadata.conversation_id", "conversation id", lambda t: {"conversation_id": t}
    )
    yield case("metadata.region", "metadata.region", "region", lambda t: {"region": t})
    yield case("prompt_cache_key", "prompt_cache_key", "prompt_cache_key", lambda t: t)
    yield case("prediction", "prediction", "prediction", lambda t: {"type": "content", "content": _asked_for(t)})
    yield case("tool_choice", "tool_choice", "tool_choice", lambda t: {"type": "function", "function": {"name": t}})
    yield case("function_call", "function_call", "function_call", lambda t: {"name": t})
    yield case(
        "web_search_options",
        "web_search_options",
        "web search's place",
        lambda t: {"user_location": {"type": "approximate", "approximate": {"city": t}}},
    )
    yield case("audio", "audio", "audio's voice", lambda t: {"voice": t, "format": "wav"})
    yield case("modalities", "modalities", "modalities", lambda t: [t])
    yield case("logit_bias", "logit_bias", "logit_bias", lambda t: {t: 1})
    yield case("prompt_cache_options", "prompt_cache_options", "prompt_cache_options", lambda t: {"note": t})
    yield case("moderation", "moderation", "moderation", lambda t: {"note": t})
    yield case("unknown", "*", "unknown field", _asked_for)
    for name in _PLAIN:
        yield _case(name, f"text in {name}", name, _field(name), group="form")


_PLAIN: Final = (
    "n",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "prompt_cache_retention",
    "store",
    "service_tier",
)
"""Fields that hold a number, a switch or a word; text does not belong there."""

SERVER_FIELDS: Final = (
    "prompt",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "guided_regex",
    "guided_json",
    "guided_choice",
    "structured_outputs",
    "extra_body",
    "vllm_xargs",
    "mm_processor_kwargs",
    "system",
    "instructions",
)
"""Fields that some servers add to OpenAI's, and that some of them put before the model."""


def _server_fields() -> Iterator[Case]:
    for name in SERVER_FIELDS:
        yield _case(f"server.{name}", f"server's own field: {name}", "*", _field(name, "text"))


def _field(name: str, inner: str = "") -> Build:
    """A request with the sentence in one field, or in a field inside it."""
    return lambda t: _with(**{name: {inner: t} if inner else t})


SETTINGS: Final = (
    "model",
    "stream",
    "stream_options",
    "stream_options.include_usage",
    "stream_options.include_obfuscation",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def _settings() -> Iterator[Case]:
    for path in SETTINGS:
        name, _, inner = path.partition(".")
        yield _case(f"setting.{path}", f"text in {path}", path, _field(name, inner), group="form")
    yield _case(
        "setting.messages[].role",
        "text in role",
        "messages[].role",
        lambda t: _chat(_USER, {"role": t, "content": ASKED}),
        group="form",
    )
    yield _case(
        "setting.messages[].content[].type",
        "text in a part's type",
        "messages[].content[].type",
        lambda t: _parts({"type": t, "text": ASKED}),
        group="form",
    )


def cases() -> tuple[Case, ...]:
    """All of them, the first table's in its own order as far as the groups allow."""
    return (*_conversation(), *_pieces(), *_beside_content(), *_fields(), *_server_fields(), *_settings())


def hard() -> tuple[Case, ...]:
    """A person's sentence in ways of writing that nobody promises."""
    where = "messages[].content"
    return tuple(
        _case(
            f"hard.{name}",
            f"user, {title}",
            where,
            lambda t: _chat(_user(t)),
            voice="heard",
            group="hard",
            encode=encode,
        )
        for name, (title, encode) in HARD.items()
    )
