"""OpenAI's npm package against a running gateway, run by Node as an application would run it (`tests/node/client.mjs`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import scripts
from tests.support.gateway import Gateway

NODE = Path(__file__).parents[1] / "node"
CRISIS = "I want to end my life tonight."
EVERYDAY = "How does sourdough work?"


def node(gateway: Gateway, scenario: str, *arguments: str, key: str | None = None) -> Any:
    if not (NODE / "node_modules" / "openai").is_dir():
        pytest.fail("the openai npm package is missing: run 'npm ci' in tests/node, or 'make test'", pytrace=False)
    done = subprocess.run(
        ["node", "client.mjs", scenario, *arguments],
        cwd=NODE,
        env=os.environ | {"BASE_URL": gateway.api_url, "API_KEY": key or gateway.key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_whole_answer(scripted_gateway: Gateway) -> None:
    answer = node(scripted_gateway, "whole", EVERYDAY)
    assert (answer["text"], answer["finish"], answer["decision"]) == (scripts.BENIGN, "stop", "allow")
    assert answer["usage"]["completion_tokens"] > 0


def test_a_stream(scripted_gateway: Gateway) -> None:
    answer = node(scripted_gateway, "stream", EVERYDAY)
    assert (answer["role"], answer["text"], answer["finish"]) == ("assistant", scripts.BENIGN, ["stop"])
    assert answer["usage"]["total_tokens"] > 0
    assert answer["ids"] == 1


def test_the_real_model_streams(embedded_gateway: Gateway) -> None:
    answer = node(embedded_gateway, "stream", "Name one colour.")
    assert answer["text"].strip()
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["havengate"]["severity"] == 0


def test_the_packages_own_stream_helper_reads_it(scripted_gateway: Gateway) -> None:
    assert node(scripted_gateway, "helper", EVERYDAY) == {"text": scripts.BENIGN, "finish": "stop"}


def test_a_crisis(scripted_gateway: Gateway) -> None:
    answer = node(scripted_gateway, "whole", CRISIS)
    assert (answer["finish"], answer["decision"]) == ("stop", "replace")
    assert "116 123" in answer["text"]
    assert scripted_gateway.incident(answer["havengate"]["incident_id"])["severity"] >= 3


def test_an_answer_that_turns(scripted_gateway: Gateway) -> None:
    answer = node(scripted_gateway, "stream", scripts.ASK_TURNING)
    assert answer["text"].startswith(scripts.SAFE_START)
    assert scripts.HARM not in answer["text"]
    assert answer["finish"] == ["content_filter"]


def test_an_aborted_stream_is_on_record(scripted_gateway: Gateway) -> None:
    assert node(scripted_gateway, "abort", scripts.ASK_HANGING) == {"aborted": True}
    scripted_gateway.output.wait_for('"event":"turn"', '"client_gone":true', '"finish_reason"')


def test_models(scripted_gateway: Gateway) -> None:
    assert node(scripted_gateway, "models") == {"names": ["havengate", "scripted"], "one": "havengate"}


def test_moderations(scripted_gateway: Gateway) -> None:
    assert node(scripted_gateway, "moderations", EVERYDAY, CRISIS) == {"flagged": [False, True], "intent": True}


def test_errors_are_the_packages_own(scripted_gateway: Gateway) -> None:
    assert node(scripted_gateway, "errors") == [
        {"class": "AuthenticationError", "status": 401, "code": "invalid_api_key", "param": None},
        {"class": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        {"class": "BadRequestError", "status": 400, "code": "invalid_request", "param": "messages"},
        {"class": "BadRequestError", "status": 400, "code": "invalid_request", "param": "messages"},
    ]


def test_a_key_without_the_scope(scripted_gateway: Gateway) -> None:
    error = node(scripted_gateway, "forbidden", key=scripted_gateway.create_key("models"))
    assert (error["class"], error["status"], error["code"]) == ("PermissionDeniedError", 403, "insufficient_scope")
