"""``GET /openapi.json``: the API in OpenAPI 3.1, for clients and for tests that read it.

Requests are described by the wire Structs that decode them and by the exposure map, so the description cannot say
anything else than the code does.  Answers are described by the Structs below, and `tests/abuse/test_openapi.py` holds
them against what a running gateway sends.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final, Literal

import msgspec
from litestar import Response, get

from detectors.fusion import DetectorState
from gateway import errors
from gateway.http import exposure, openai
from gateway.pipeline.state import FinishReason
from gateway.policy.decision import Action, Mode, Resource, Stage

Schema = dict[str, Any]


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer, each of its fields named."""


class TokenUsage(_Wire, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Havengate(_Wire, frozen=True):
    """What was decided about this turn and why, for the application.  It never quotes a person."""

    decision: Action
    stage: Stage
    severity: int
    categories: tuple[str, ...]
    mode: Mode
    policy_version: str
    incident_id: str | None
    resources: tuple[Resource, ...]
    detectors: dict[str, DetectorState]


class AnswerMessage(_Wire, frozen=True):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(_Wire, frozen=True):
    index: Literal[0]
    message: AnswerMessage
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(_Wire, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[Choice]
    usage: TokenUsage
    havengate: Havengate


class AnswerDelta(_Wire, frozen=True):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(_Wire, frozen=True):
    index: Literal[0]
    delta: AnswerDelta
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Wire, frozen=True):
    """The data of one event of a stream.  ``havengate`` comes with the finish reason, ``usage`` last if asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET
    havengate: Havengate | msgspec.UnsetType = msgspec.UNSET


class Model(_Wire, frozen=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Wire, frozen=True):
    object: Literal["list"]
    data: tuple[Model, ...]


class ModerationFindings(_Wire, frozen=True):
    severity: int
    score: float
    subject: str
    imminence: str
    detectors: dict[str, DetectorState]


class ModerationResult(_Wire, frozen=True):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, tuple[str, ...]]
    havengate: ModerationFindings


class Moderation(_Wire, frozen=True):
    id: str
    model: str
    results: tuple[ModerationResult, ...]


class ErrorDetails(_Wire, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ApiError(_Wire, frozen=True):
    """OpenAI's error object.  It names fields and limits, and repeats nothing of the request."""

    error: ErrorDetails


class Problem(_Wire, frozen=True):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class Alive(_Wire, frozen=True):
    status: Literal["alive"]


class ReadyChecks(_Wire, frozen=True):
    detectors: str
    store: str
    backend: str


class Ready(_Wire, frozen=True):
    """Each part with ``ok`` or why not."""

    status: Literal["ready", "not_ready"]
    checks: ReadyChecks


_DESCRIBED: Final = (
    openai.ChatRequest,
    openai.ModerationRequest,
    ChatCompletion,
    ChatCompletionChunk,
    Model,
    ModelList,
    Moderation,
    ApiError,
    Problem,
    Alive,
    Ready,
)
_REFUSED_IN: Final[Mapping[str, str]] = {
    "ChatRequest": "",
    "WireMessage": "messages[].",
    "TextPart": "messages[].content[].",
}
_BOUNDS: Final[Mapping[str, Schema]] = {
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"minimum": 0, "maximum": 1},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "max_tokens": {"minimum": 1},
    "max_completion_tokens": {"minimum": 1},
    "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "user": {"maxLength": openai.MAX_ID_CHARS},
    "safety_identifier": {"maxLength": openai.MAX_ID_CHARS},
    "messages": {"minItems": 1},
    "metadata": {
        "maxProperties": openai.MAX_METADATA,
        "properties": {name: {"maxLength": openai.MAX_ID_CHARS} for name in ("conversation_id", "region")},
    },
    "stop": {
        "minLength": 1,
        "maxLength": openai.MAX_STOP_CHARS,
        "maxItems": openai.MAX_STOPS,
        "items": {"minLength": 1, "maxLength": openai.MAX_STOP_CHARS},
    },
}
"""What `openai.to_turn` asks of a field beyond its type."""
_CHAT_ERRORS: Final = (
    errors.BadRequest,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.ModelNotFound,
    errors.RequestTimeout,
    errors.BodyTooLarge,
    errors.Overloaded,
)
_MODERATION_ERRORS: Final = (*_CHAT_ERRORS[:3], errors.RequestTimeout, errors.BodyTooLarge, errors.NotReady)
_MODEL_ERRORS: Final = (errors.Unauthenticated, errors.Forbidden)
_OPEN: Final[Schema] = {"security": []}


@get("/openapi.json")
async def openapi_json() -> Response[bytes]:
    """The description of this API."""
    return Response(content=_encoded(), media_type="application/json")


@functools.cache
def _encoded() -> bytes:
    return msgspec.json.encode(document())


def document() -> Schema:
    """The whole OpenAPI document.  The pages for people (``/`` and ``/login``) are no part of it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Havengate",
            "version": version("havengate"),
            "description": "OpenAI's Chat Completions, Models and Moderations, with every message and every answer "
            "judged for crisis and harm.  Fields that are refused are named by a 400.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas() -> Schema:
    _, schemas = msgspec.json.schema_components(_DESCRIBED, ref_template="#/components/schemas/{name}")
    for name, parent in _REFUSED_IN.items():
        for field, neutral in exposure.refusals(parent).items():
            schemas[name]["properties"][field]["enum"] = list(neutral)
    asked = schemas["ChatRequest"]["properties"]
    for field, bounds in _BOUNDS.items():
        asked[field] |= bounds
    schemas["WireMessage"]["properties"]["role"]["enum"] = list(openai.ROLES)
    schemas["TextPart"]["properties"]["type"]["enum"] = ["text"]
    return schemas


def _paths() -> Schema:
    chat = _operation("createChatCompletion", "ChatCompletion", _CHAT_ERRORS, asks="ChatRequest")
    chat["responses"]["200"]["content"]["text/event-stream"] = {
        "schema": {"type": "string", "description": "Server-sent events: ChatCompletionChunk objects, then [DONE]."}
    }
    one = _operation("retrieveModel", "Model", (*_MODEL_ERRORS, errors.ModelNotFound))
    one["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    ready = _operation("ready", "Ready") | _OPEN
    ready["responses"]["503"] = _answer("A part that a turn needs is down", "Ready")
    text: Schema = {"type": "string"}
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/models": {"get": _operation("listModels", "ModelList", _MODEL_ERRORS)},
        "/v1/models/{model}": {"get": one},
        "/v1/moderations": {
            "post": _operation("createModeration", "Moderation", _MODERATION_ERRORS, asks="ModerationRequest")
        },
        "/healthz": {"get": _operation("alive", "Alive") | _OPEN},
        "/readyz": {"get": ready},
        "/metrics": {
            "get": {"operationId": "metrics", "responses": {"200": _content("Numbers", "text/plain", text)}} | _OPEN
        },
        "/openapi.json": {
            "get": {
                "operationId": "describe",
                "responses": {"200": _content("This document", "application/json", {"type": "object"})},
            }
            | _OPEN
        },
    }


def _operation(
    name: str, gives: str, fails: tuple[type[errors.HavengateError], ...] = (), *, asks: str | None = None
) -> Schema:
    operation: Schema = {"operationId": name, "responses": {"200": _answer("OK", gives)}}
    for error in fails:
        operation["responses"][str(error.status)] = _answer(error.code or error.type, "ApiError")
    if asks is not None:
        content = {"application/json": {"schema": _ref(asks)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answer(said: str, name: str) -> Schema:
    return _content(said, "application/json", _ref(name))


def _content(said: str, media_type: str, schema: Schema) -> Schema:
    return {"description": said, "content": {media_type: {"schema": schema}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
