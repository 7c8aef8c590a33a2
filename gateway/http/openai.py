"""OpenAI's JSON, and nothing else knows it: wire Structs, and the two crossings `to_turn` and `from_outcome`.

Shapes follow OpenAI's Chat Completions, Models and Moderations reference.  What becomes of each field of a
request stands in the exposure map (`gateway/http/exposure.py`); a field that is not in it is refused by name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from backends.api import Sampling, Usage
from detectors.api import Line, Role
from gateway.errors import BadRequest, ModelNotFound
from gateway.http import exposure
from gateway.pipeline.state import Outcome, Turn
from gateway.policy.decision import Mode

ROLES: Final[Mapping[str, Role]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_FIELD_NAME: Final = re.compile(r"`([A-Za-z0-9_.-]{1,64})`")
_PATH: Final = re.compile(r"\$[A-Za-z0-9_.\[\]]*")
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 64
MAX_ID_CHARS: Final = 256
MAX_METADATA: Final = 16
T = TypeVar("T")
_REFUSED: Final = exposure.refusals("")
_REFUSED_IN_MESSAGE: Final = exposure.refusals("messages[].")
_REFUSED_IN_PART: Final = exposure.refusals("messages[].content[].")


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class WireMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    messages: list[WireMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    logit_bias: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    store: Any = None
    service_tier: Any = None
    moderation: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


class ModerationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: str | list[str | TextPart]
    model: str | None = None


class Limits(msgspec.Struct, frozen=True):
    """Bounds of a request (DESIGN section 1, "put a limit on everything")."""

    max_messages: int
    max_message_chars: int
    max_total_chars: int
    max_tokens_default: int
    max_tokens_cap: int


class Caller(msgspec.Struct, frozen=True):
    """What the credential says; no body field changes any of it."""

    app_id: str
    mode: Mode
    region: str


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a JSON body, or raise `BadRequest` naming the field, never its value."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _bad_shape(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest("The request body is not valid JSON.", param=None) from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.", param=None) from None


def _bad_shape(reason: str) -> BadRequest:
    """Rewrite msgspec's message, which may quote values, into one that names fields and types only."""
    path = _PATH.search(reason)
    where = path.group(0).removeprefix("$").lstrip(".") if path else ""
    unknown = reason.startswith("Object contains unknown field")
    missing = reason.startswith("Object missing required field")
    name = _FIELD_NAME.search(reason)
    if (unknown or missing) and name:
        where = f"{where}.{name.group(1)}" if where else name.group(1)
    if unknown:
        return BadRequest(f"Unrecognized request argument supplied: {where or 'a field'}", param=where or None)
    if missing:
        return BadRequest(f"Missing required parameter: '{where}'.", param=where or None)
    return BadRequest(f"Invalid type or value for '{where or 'body'}'.", param=where or None)


def to_turn(
    request: ChatRequest,
    caller: Caller,
    limits: Limits,
    *,
    request_id: str,
    models: tuple[str, ...],
    user_hash: str | None,
) -> Turn:
    """Cross from the wire into the house.  Raises `BadRequest` or `ModelNotFound`; wire types end here."""
    if request.model not in models:
        raise ModelNotFound("The model does not exist or you do not have access to it.", param="model")
    _refuse(request, _REFUSED, "")
    metadata = request.metadata or {}
    return Turn(
        request_id=request_id,
        app_id=caller.app_id,
        mode=caller.mode,
        model=request.model,
        lines=_lines(request.messages, limits),
        sampling=_sampling(request, limits),
        conversation_id=_bounded("metadata.conversation_id", metadata.get("conversation_id")),
        end_user_hash=user_hash,
        region=_bounded("metadata.region", metadata.get("region")) or caller.region,
    )


def check_metadata(request: ChatRequest) -> str | None:
    """Bound the fields that name people and conversations; returns the end user's name, to be hashed at once."""
    if request.metadata is not None and len(request.metadata) > MAX_METADATA:
        raise BadRequest(f"At most {MAX_METADATA} metadata entries are allowed.", param="metadata")
    user = _bounded("user", request.user)
    return user or _bounded("safety_identifier", request.safety_identifier)


def _refuse(given: msgspec.Struct, refused: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Raise `BadRequest` for the first field that the exposure map refuses and that says something."""
    for name, neutral in refused.items():
        if exposure.says_something(getattr(given, name), neutral):
            message = f"'{name}' is not supported by this gateway with this value."
            raise BadRequest(message, param=where + name)


def _bounded(name: str, value: str | None) -> str | None:
    if value is not None and len(value) > MAX_ID_CHARS:
        raise BadRequest(f"'{name}' is longer than {MAX_ID_CHARS} characters.", param=name)
    return value or None


def _lines(messages: list[WireMessage], limits: Limits) -> tuple[Line, ...]:
    if not messages:
        raise BadRequest("'messages' must hold at least one message.", param="messages")
    if len(messages) > limits.max_messages:
        raise BadRequest(f"'messages' holds more than {limits.max_messages} messages.", param="messages")
    if ROLES.get(messages[-1].role) != "user":
        raise BadRequest("The last message must have the role 'user'.", param=f"messages[{len(messages) - 1}].role")
    lines = [_line(message, index, limits) for index, message in enumerate(messages)]
    if sum(len(line.text) for line in lines) > limits.max_total_chars:
        # Every character is judged: one endless history would keep others waiting for their verdict.
        raise BadRequest(f"'messages' hold more than {limits.max_total_chars} characters in all.", param="messages")
    return tuple(line for line in lines if line.text)


def _line(message: WireMessage, index: int, limits: Limits) -> Line:
    where = f"messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        raise BadRequest("The role must be one of 'system', 'developer', 'user' or 'assistant'.", param=f"{where}.role")
    _refuse(message, _REFUSED_IN_MESSAGE, f"{where}.")
    text = _text(message.content, where)
    if role == "user" and not text.strip():
        raise BadRequest("The content of a message must not be empty.", param=f"{where}.content")
    if len(text) > limits.max_message_chars:
        raise BadRequest(
            f"The content of a message is longer than {limits.max_message_chars} characters.", param=f"{where}.content"
        )
    return Line(role=role, text=text)


def _text(content: str | list[TextPart] | None, where: str) -> str:
    """A message's text.  Parts are joined without a separator: what was split over parts is judged whole."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    pieces: list[str] = []
    for number, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise BadRequest(
                "Only content parts of type 'text' are supported.", param=f"{where}.content[{number}].type"
            )
        _refuse(part, _REFUSED_IN_PART, f"{where}.content[{number}].")
        pieces.append(part.text)
    return "".join(pieces)


def _sampling(request: ChatRequest, limits: Limits) -> Sampling:
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if asked is not None and asked < 1:
        raise BadRequest("'max_tokens' must be at least 1.", param="max_tokens")
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise BadRequest(f"'stop' takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters.", param="stop")
    return Sampling(
        max_tokens=min(asked or limits.max_tokens_default, limits.max_tokens_cap),
        temperature=_within("temperature", request.temperature, 0.0, 2.0),
        top_p=_within("top_p", request.top_p, 0.0, 1.0),
        presence_penalty=_within("presence_penalty", request.presence_penalty, -2.0, 2.0),
        frequency_penalty=_within("frequency_penalty", request.frequency_penalty, -2.0, 2.0),
        seed=_seed(request.seed),
        stop=stops,
    )


def _within(name: str, value: float | None, low: float, high: float) -> float | None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"'{name}' must lie between {low:g} and {high:g}.", param=name)
    return value


def _seed(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**63:
        raise BadRequest("'seed' must be a 64-bit integer.", param="seed")
    return value


# --- out of the house --------------------------------------------------------------------------


def envelope(request_id: str, model: str, kind: str) -> dict[str, Any]:
    """The fields that a completion and each of its chunks share."""
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": int(time.time()), "model": model}


def from_outcome(turn: Turn, text: str, outcome: Outcome) -> dict[str, Any]:
    """A whole ``chat.completion``."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": outcome.finish_reason,
    }
    return envelope(turn.request_id, turn.model, "chat.completion") | {
        "choices": [choice],
        "usage": usage(outcome.usage),
        "havengate": summary(turn, outcome),
    }


def chunk(base: Mapping[str, Any], delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """One ``chat.completion.chunk``."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
    return {**base, "choices": [choice]}


def usage(counted: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
    }


def summary(turn: Turn, outcome: Outcome) -> dict[str, Any]:
    """The ``havengate`` object: what was decided and why, for the application.  Never evidence words."""
    decision = outcome.decision
    return {
        "decision": decision.action,
        "stage": decision.stage,
        "severity": decision.severity,
        "categories": list(decision.categories),
        "mode": turn.mode,
        "policy_version": decision.policy_version,
        "incident_id": outcome.incident_id,
        "resources": [msgspec.to_builtins(resource) for resource in outcome.resources],
        "detectors": outcome.detectors,
    }
