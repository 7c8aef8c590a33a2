"""What cannot be right is refused by name: a 4xx in OpenAI's shape that says what is wrong and repeats nothing."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.support.calls import MODEL, Answer, call, chat, post
from tests.support.gateway import Gateway

CANARY = "quixotic-marmalade-7193"
CHAT = "/v1/chat/completions"
USER: dict[str, Any] = {"role": "user", "content": f"My secret is {CANARY}."}
DEEP = 100_000


def body(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [USER], **changes}


def message(**changes: Any) -> dict[str, Any]:
    return body(messages=[{**USER, **changes}])


def check_refused(answer: Answer, status: int, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape, nothing of what was sent, and a request id to ask about."""
    assert answer.status == status, answer.raw
    assert CANARY.encode() not in answer.raw
    assert all(CANARY not in value for value in answer.headers.values())
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    assert set(answer.body) == {"error"}
    error: dict[str, Any] = answer.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert error["code"]
    assert error["param"] == param
    return error


REFUSED_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("model is a number", body(model=7), "model"),
    ("model is missing", {"messages": [USER]}, "model"),
    ("messages are missing", {"model": MODEL}, "messages"),
    ("messages are a text", body(messages=CANARY), "messages"),
    ("messages are empty", body(messages=[]), "messages"),
    ("a message is a text", body(messages=[CANARY]), "messages[0]"),
    ("a message without a role", body(messages=[{"content": CANARY}]), "messages[0].role"),
    ("an unknown role", message(role=CANARY), "messages[0].role"),
    ("a tool's message", message(role="tool"), "messages[0].role"),
    ("content is a number", message(content=7), "messages[0].content"),
    ("content is missing", body(messages=[{"role": "user"}]), "messages[0].content"),
    ("content is empty", message(content=""), "messages[0].content"),
    ("content is blank", message(content=" \n\t"), "messages[0].content"),
    ("parts are empty", message(content=[]), "messages[0].content"),
    ("an unknown field in a message", message(secret=CANARY), "messages[0].secret"),
    ("the name is a number", message(name=7), "messages[0].name"),
    ("a message calls a tool", message(tool_calls=[{"id": CANARY}]), "messages[0].tool_calls"),
    ("a message refuses", message(refusal=CANARY), "messages[0].refusal"),
    (
        "a picture",
        message(content=[{"type": "image_url", "image_url": {"url": f"https://example.org/{CANARY}"}}]),
        "messages[0].content[0].type",
    ),
    (
        "sound",
        message(content=[{"type": "input_audio", "input_audio": {"data": CANARY}}]),
        "messages[0].content[0].type",
    ),
    ("the assistant speaks last", message(role="assistant"), "messages[0].role"),
    ("stream is a text", body(stream=CANARY), "stream"),
    ("stream options are a text", body(stream_options=CANARY), "stream_options"),
    ("temperature is a text", body(temperature=CANARY), "temperature"),
    ("temperature is out of range", body(temperature=99), "temperature"),
    ("top_p is out of range", body(top_p=1.1), "top_p"),
    ("presence_penalty is out of range", body(presence_penalty=-3), "presence_penalty"),
    ("frequency_penalty is out of range", body(frequency_penalty=3), "frequency_penalty"),
    ("seed is too large", body(seed=2**63), "seed"),
    ("seed is a text", body(seed=CANARY), "seed"),
    ("max_tokens is zero", body(max_tokens=0), "max_tokens"),
    ("max_tokens is a fraction", body(max_tokens=1.5), "max_tokens"),
    ("max_completion_tokens is negative", body(max_completion_tokens=-1), "max_tokens"),
    ("too many stop strings", body(stop=[CANARY] * 5), "stop"),
    ("an empty stop string", body(stop=[""]), "stop"),
    ("stop is a number", body(stop=7), "stop"),
    ("user is a number", body(user=7), "user"),
    ("user is too long", body(user=CANARY * 30), "user"),
    ("metadata is a list", body(metadata=[CANARY]), "metadata"),
    ("metadata holds a number", body(metadata={"a": 1}), "metadata[...]"),
    ("too much metadata", body(metadata={f"k{i}": CANARY for i in range(17)}), "metadata"),
    ("conversation_id is too long", body(metadata={"conversation_id": CANARY * 30}), "metadata.conversation_id"),
    ("an unknown field", body(secret=CANARY), "secret"),
    ("several answers", body(n=2), "n"),
    ("logprobs", body(logprobs=True), "logprobs"),
    ("top_logprobs", body(top_logprobs=3), "top_logprobs"),
    ("logit_bias", body(logit_bias={"50256": -100}), "logit_bias"),
    ("tools", body(tools=[{"type": "function", "function": {"name": CANARY}}]), "tools"),
    ("tool_choice", body(tool_choice="required"), "tool_choice"),
    ("functions", body(functions=[{"name": CANARY}]), "functions"),
    ("JSON answers", body(response_format={"type": "json_object"}), "response_format"),
    ("a spoken answer", body(modalities=["text", "audio"]), "modalities"),
    ("a prediction", body(prediction={"type": "content", "content": CANARY}), "prediction"),
    ("a web search", body(web_search_options={}), "web_search_options"),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("given", "param"), [case[1:] for case in REFUSED_FIELDS], ids=[case[0] for case in REFUSED_FIELDS]
)
def test_a_field_that_is_wrong_is_named(
    scripted_gateway: Gateway, given: dict[str, Any], param: str, streamed: bool
) -> None:
    answer = post(scripted_gateway, CHAT, {"stream": True, **given} if streamed else given)
    assert check_refused(answer, 400, param)["type"] == "invalid_request_error"


NOT_JSON = {
    "empty": b"",
    "cut short": b'{"model": "havengate", "messages": [{"role": "user", "content": "quixotic-marmalade-7193',
    "not JSON": b"quixotic-marmalade-7193",
    "not UTF-8": b'{"model": "\xff\xfe quixotic-marmalade-7193"}',
    "a lone surrogate": b'{"model": "\\ud800", "messages": "quixotic-marmalade-7193"}',
    "two documents": b'{"model": "quixotic-marmalade-7193"}{}',
    "NaN": b'{"model": "havengate", "temperature": NaN, "user": "quixotic-marmalade-7193"}',
    "nested lists": b"[" * DEEP + b"]" * DEEP,
    "nested in an open field": b'{"model":"havengate","messages":[],"tools":' + b"[" * DEEP + b"]" * DEEP + b"}",
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("path", [CHAT, "/v1/moderations"])
def test_a_body_that_is_not_json_is_refused(scripted_gateway: Gateway, path: str, raw: bytes) -> None:
    answer = call(scripted_gateway, "POST", path, raw)
    error = check_refused(answer, 400, answer.body["error"]["param"])
    assert error["code"] == "invalid_request"


@pytest.mark.parametrize("document", ["[]", '"text"', "7", "null", "true"])
def test_a_body_that_is_no_object_is_refused(scripted_gateway: Gateway, document: str) -> None:
    check_refused(call(scripted_gateway, "POST", CHAT, document), 400)


def test_an_unknown_model_is_refused(scripted_gateway: Gateway) -> None:
    assert check_refused(post(scripted_gateway, CHAT, body(model=CANARY)), 404, "model")["code"] == "model_not_found"
    check_refused(call(scripted_gateway, "GET", f"/v1/models/{CANARY}"), 404, "model")


@pytest.mark.parametrize(
    "credential",
    [
        "",
        CANARY,
        f"Bearer {CANARY}",
        "Bearer",
        "Bearer ",
        f"Basic {CANARY}",
        f"Bearer {CANARY * 100}",
        "Bearer hg_aaaaaaaa_x",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("POST", "/v1/moderations"), ("GET", "/v1/models")])
def test_without_a_valid_key_nothing_is_done(
    scripted_gateway: Gateway, method: str, path: str, credential: str
) -> None:
    sent = json.dumps(body()) if method == "POST" else None
    answer = call(scripted_gateway, method, path, sent, {"authorization": credential})
    assert check_refused(answer, 401)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_body_over_the_limit_is_refused(scripted_gateway: Gateway) -> None:
    answer = post(scripted_gateway, CHAT, body(user="x" * 1_100_000))
    assert check_refused(answer, 413)["code"] == "request_too_large"


def test_a_message_over_the_limit_is_refused(scripted_gateway: Gateway) -> None:
    check_refused(post(scripted_gateway, CHAT, message(content="a " * 16_385)), 400, "messages[0].content")
    assert chat(scripted_gateway, "a " * 16_384).text, "a message at the limit is answered"


def test_too_many_messages_are_refused(scripted_gateway: Gateway) -> None:
    check_refused(post(scripted_gateway, CHAT, body(messages=[USER] * 257)), 400, "messages")


def test_a_compressed_body_is_refused(scripted_gateway: Gateway) -> None:
    packed = gzip.compress(json.dumps(body()).encode())
    check_refused(call(scripted_gateway, "POST", CHAT, packed, {"content-encoding": "gzip"}), 400)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_refused(scripted_gateway: Gateway, method: str) -> None:
    answer = call(scripted_gateway, method, CHAT)
    assert check_refused(answer, 405)["code"] == "method_not_allowed"


def test_a_405_says_which_method_is_allowed(scripted_gateway: Gateway) -> None:
    """RFC 9110, section 15.5.6: the answer must carry ``Allow``."""
    assert "POST" in call(scripted_gateway, "GET", CHAT).headers["allow"]


@pytest.mark.parametrize("path", ["/v1", "/v1/embeddings", f"/v1/{CANARY}", f"/v1/files?q={CANARY}"])
def test_an_unknown_route_of_the_api_has_openais_shape(scripted_gateway: Gateway, path: str) -> None:
    check_refused(call(scripted_gateway, "GET", path), 404)


@pytest.mark.parametrize(
    "path", [f"/{CANARY}", f"/static/{CANARY}.css", "/static/../gateway.py", "/static/%2e%2e/home.py"]
)
def test_an_unknown_route_elsewhere_is_a_problem_document(scripted_gateway: Gateway, path: str) -> None:
    answer = call(scripted_gateway, "GET", path)
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.body["status"] == 404
    assert set(answer.body) == {"type", "title", "status", "detail"}
    assert CANARY.encode() not in answer.raw


REFUSED_MODERATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("no input", {}, "input"),
    ("an empty list", {"input": []}, "input"),
    ("too many texts", {"input": [CANARY] * 33}, "input"),
    ("a number", {"input": 7}, "input"),
    ("a picture", {"input": [{"type": "image_url", "image_url": {"url": CANARY}}]}, "input"),
    ("a text too long", {"input": "a" * 32_769}, "input"),
    ("an unknown field", {"input": "hello", "secret": CANARY}, "secret"),
]


@pytest.mark.parametrize(
    ("given", "param"), [case[1:] for case in REFUSED_MODERATIONS], ids=[case[0] for case in REFUSED_MODERATIONS]
)
def test_a_moderation_that_is_wrong_is_refused(scripted_gateway: Gateway, given: dict[str, Any], param: str) -> None:
    check_refused(post(scripted_gateway, "/v1/moderations", given), 400, param)


def test_what_was_refused_left_no_turn_behind(scripted_gateway: Gateway) -> None:
    before = scripted_gateway.rows("SELECT count(*) AS n FROM audit")[0]["n"]
    for _, given, _ in REFUSED_FIELDS:
        assert post(scripted_gateway, CHAT, given).status == 400
    assert scripted_gateway.rows("SELECT count(*) AS n FROM audit")[0]["n"] == before
    assert chat(scripted_gateway, "How does sourdough work?").text
