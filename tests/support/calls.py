"""Raw HTTP calls to a running gateway, and its answers read by the letter of OpenAI's format.

The SDK suites show that OpenAI's clients are content; these helpers are stricter than any client, and they
give a whole answer and a streamed one the same shape, so that one test can hold for both.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.gateway import Gateway

ANSWER_WITHIN_S = 60.0
MODEL = "havengate"
Messages = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer.  Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Reply:
    """What a person and an application get from one turn, streamed or not."""

    text: str
    finish_reason: str
    usage: dict[str, int] | None
    havengate: dict[str, Any]
    headers: Mapping[str, str]
    deltas: tuple[str, ...] = field(default=())

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]


def call(
    gateway: Gateway,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request with the gateway's key; ``headers`` are added to it and win over it."""
    url = urlsplit(gateway.base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=ANSWER_WITHIN_S)
    try:
        sent = {"content-type": "application/json", **gateway.headers, **(headers or {})}
        connection.request(method, path, body.encode() if isinstance(body, str) else body, sent)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


def post(gateway: Gateway, path: str, body: object, headers: Mapping[str, str] | None = None) -> Answer:
    return call(gateway, "POST", path, json.dumps(body), headers)


def chat(gateway: Gateway, messages: Messages, *, stream: bool = False, key: str | None = None, **fields: Any) -> Reply:
    """One turn, which must be answered with 200.  A text stands for one message of the user."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": MODEL, "messages": messages, "stream": stream, **fields}
    if stream:
        body.setdefault("stream_options", {"include_usage": True})
    answer = post(gateway, "/v1/chat/completions", body, {"authorization": f"Bearer {key}"} if key else None)
    assert answer.status == 200, answer.raw
    return _streamed(answer) if stream else _whole(answer)


def _whole(answer: Answer) -> Reply:
    body = answer.body
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    return Reply(
        text=choice["message"]["content"],
        finish_reason=choice["finish_reason"],
        usage=body["usage"],
        havengate=body["havengate"],
        headers=answer.headers,
    )


def _streamed(answer: Answer) -> Reply:
    """Every event in its place: role, deltas, one finish reason, usage, ``[DONE]``, and nothing after."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.raw.decode().split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    events = [block.removeprefix("data: ") for block in blocks]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len({(chunk["id"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    counted = chunks.pop()
    assert counted["choices"] == []
    (*spoken, last) = chunks[1:]
    assert all(chunk["choices"][0]["finish_reason"] is None and chunk["usage"] is None for chunk in spoken)
    deltas = tuple(chunk["choices"][0]["delta"]["content"] for chunk in spoken)
    assert all(deltas), "an empty delta says nothing"
    assert last["choices"][0]["delta"] == {}
    return Reply(
        text="".join(deltas),
        finish_reason=last["choices"][0]["finish_reason"],
        usage=counted["usage"],
        havengate=last["havengate"],
        headers=answer.headers,
        deltas=deltas,
    )
