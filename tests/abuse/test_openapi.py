"""The OpenAPI document says what the gateway does, and Schemathesis finds no request that gets anything else from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from gateway import main
from gateway.http import openapi
from tests.abuse.raw import ASK, CHAT, CRISIS, PLACE
from tests.support import scripts
from tests.support.calls import MODEL, Answer, call, post
from tests.support.gateway import Gateway

PAGES: Final = {"/", "/login"}
"""For people with a browser, not part of the API."""
EXAMPLES: Final = 40


def of_this_gateway() -> Any:
    """The document, and the names of models that this gateway has: a request for another one goes no further."""
    document = openapi.document()
    document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] = [MODEL]
    generation = {"with-security-parameters": False, "database": "none"}
    # What fits the types may still be refused: a blank message, a conversation that does not end with the person.
    checks = {"positive_data_acceptance": {"enabled": False}}
    config = SchemathesisConfig.from_dict({"generation": generation, "checks": checks})
    return schemathesis.openapi.from_dict(document, config=config)


schema = of_this_gateway()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_no_request_gets_anything_but_a_documented_answer(light_gateway: Gateway, case: Any) -> None:
    """No 5xx; status, media type and shape as documented; what does not fit the types, or brings no key, is refused."""
    key = {"Authorization": f"Bearer {light_gateway.key}"}
    case.call_and_validate(base_url=light_gateway.base_url, headers=key, timeout=60)


def test_it_is_served_to_anybody(light_gateway: Gateway) -> None:
    answer = call(light_gateway, "GET", "/openapi.json", headers={"authorization": ""})
    assert answer.status == 200
    assert answer.body == json.loads(json.dumps(openapi.document()))


def test_it_is_an_openapi_document() -> None:
    schemathesis.openapi.from_dict(openapi.document()).validate()


def test_it_describes_every_route() -> None:
    served = {path.replace(":str}", "}") for handler in main._ROUTES for path in handler.paths}
    assert served - PAGES == set(openapi.document()["paths"])


def asked(name: str) -> dict[str, Any]:
    found: dict[str, Any] = openapi.document()["components"]["schemas"][name]["properties"]
    return found


def over_bounds() -> Iterator[tuple[str, Any, Any]]:
    """A field, a value at its bound and one just past it, for every bound that the document names for a request."""
    for name, described in asked("ChatRequest").items():
        yield from ((name, *pair) for pair in pairs(described))
    for name, described in asked("ChatRequest")["metadata"]["properties"].items():
        yield from (("metadata", {name: at}, {name: past}) for at, past in pairs(described))
    yield from (("stop", [at], [past]) for at, past in pairs(asked("ChatRequest")["stop"]["items"]))


def pairs(described: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    step = 1 if any(kind.get("type") == "integer" for kind in described.get("anyOf", ())) else 0.125
    if (low := described.get("minimum")) is not None:
        yield low, low - step
    if (high := described.get("maximum")) is not None:
        yield high, high + step
    if (most := described.get("maxLength")) is not None:
        yield "a" * most, "a" * (most + 1)
    if (least := described.get("minLength")) is not None:
        yield "a" * least, "a" * (least - 1)
    if (items := described.get("maxItems")) is not None:
        yield ["a"] * items, ["a"] * (items + 1)
    if (names := described.get("maxProperties")) is not None:
        yield {f"k{n}": "a" for n in range(names)}, {f"k{n}": "a" for n in range(names + 1)}


@pytest.mark.parametrize(("name", "at", "past"), list(over_bounds()), ids=lambda value: str(value)[:24])
def test_its_bounds_are_the_gateways(light_gateway: Gateway, name: str, at: Any, past: Any) -> None:
    message = {"role": "user", "content": ASK}
    assert post(light_gateway, CHAT, {"model": MODEL, "messages": [message], name: at}).status == 200
    assert post(light_gateway, CHAT, {"model": MODEL, "messages": [message], name: past}).status == 400


@pytest.mark.parametrize("text", [ASK, CRISIS, scripts.ASK_TURNING, scripts.ASK_FAILING])
def test_answers_are_read_strictly_as_described(light_gateway: Gateway, text: str) -> None:
    """Whole and streamed; ``forbid_unknown_fields`` refuses what the document does not name."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    whole = msgspec.json.decode(post(light_gateway, CHAT, asked).raw, type=openapi.ChatCompletion)
    assert whole.choices[0].message.content
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(streamed(post(light_gateway, CHAT, asked | options)))
    assert chunks[-1].usage is not None
    (told,) = (chunk.havengate for chunk in chunks if chunk.havengate is not msgspec.UNSET)
    assert isinstance(told, openapi.Havengate)
    assert (told.decision, told.severity) == (whole.havengate.decision, whole.havengate.severity)
    assert bool(told.resources) == (text != ASK)
    assert any(PLACE in place.contact for place in told.resources) == (text != ASK)


def streamed(answer: Answer) -> Iterator[openapi.ChatCompletionChunk]:
    for block in answer.raw.decode().split("\n\n"):
        if block.startswith("data: {"):
            yield msgspec.json.decode(block.removeprefix("data: "), type=openapi.ChatCompletionChunk)


def test_the_other_answers_are_read_strictly_as_described(light_gateway: Gateway) -> None:
    def read(kind: type[Any], answer: Answer) -> Any:
        return msgspec.json.decode(answer.raw, type=kind)

    assert read(openapi.Moderation, post(light_gateway, "/v1/moderations", {"input": [ASK, CRISIS]})).results[1].flagged
    models = read(openapi.ModelList, call(light_gateway, "GET", "/v1/models")).data
    assert read(openapi.Model, call(light_gateway, "GET", f"/v1/models/{MODEL}")) in models
    assert read(openapi.Ready, call(light_gateway, "GET", "/readyz")).checks.backend == "ok"
    assert read(openapi.ApiError, call(light_gateway, "GET", "/v1/models/other")).error.param == "model"
    assert read(openapi.Problem, call(light_gateway, "GET", "/nothing")).status == 404
