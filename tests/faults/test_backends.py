"""A remote model that refuses, stalls, breaks off or talks nonsense, over real HTTP: the kind of failure is on record, and
the person has words and a place to turn to, whole or streamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.upstream import Upstream, settings, upstream
from tests.support import scripts
from tests.support.calls import chat
from tests.support.gateway import Gateway, running
from tests.support.openai_server import frame

ROLE = frame({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
PLACE = "findahelpline.com"
CARE = "I'm sorry."


def said(text: str) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def ended(reason: str) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


BEGUN = (ROLE, said(scripts.SAFE_START), said(scripts.SAFE_MIDDLE))
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Fault:
    """How the model behaves, the kind of failure that it is, and whether its first words may have left before."""

    name: str
    kind: str
    how: dict[str, Any] = field(default_factory=dict)
    begun: bool = False


FAULTS = (
    Fault("is too busy", "overloaded", {"status": 503}),
    Fault("limits the rate", "overloaded", {"status": 429, "headers": {"retry-after": "7"}}),
    Fault("refuses the prompt", "rejected", {"status": 400}),
    Fault("does not know us", "rejected", {"status": 401}),
    Fault("has a bug", "unavailable", {"status": 500}),
    Fault("sends us elsewhere", "protocol", {"status": 302, "headers": {"location": "http://127.0.0.1:9/"}}),
    Fault("never answers", "timeout", {"hang_before_answer": True}),
    Fault("stalls before a word", "timeout", {"hang_after": 1}),
    Fault("stalls in the middle", "timeout", {"raw": BEGUN, "hang_after": 3, "keep_open": True}, begun=True),
    Fault("stalls at the end", "timeout", {"raw": BEGUN, "keep_open": True}, begun=True),
    Fault("is cut off", "protocol", {"raw": BEGUN}, begun=True),
    Fault("ends without a reason", "protocol", {"raw": (*BEGUN, DONE)}, begun=True),
    Fault("says nothing", "protocol", {"raw": (ROLE, ended("stop"), DONE)}),
    Fault("filters its own answer", "rejected", {"raw": (ROLE, ended("content_filter"), DONE)}),
    Fault("gives up", "unavailable", {"raw": (*BEGUN, ended("abort"), DONE)}, begun=True),
    Fault("dies before a word", "unavailable", {"die_after": 0}),
    Fault("dies between events", "unavailable", {"raw": (*BEGUN, b""), "die_after": 3}, begun=True),
    Fault("dies in an event", "unavailable", {"raw": (*BEGUN, said("And")[:30], b""), "die_after": 4}, begun=True),
    Fault("cuts an event", "protocol", {"raw": (*BEGUN, said("And")[:30])}, begun=True),
    Fault("sends broken JSON", "protocol", {"raw": (*BEGUN, b"data: {nonsense}\n\n")}, begun=True),
    Fault("sends bytes that are no text", "protocol", {"raw": (*BEGUN, b"data: \xff\xfe\x00\xc3\x28\n\n")}, begun=True),
    Fault("sends another shape", "protocol", {"raw": (*BEGUN, b'data: {"choices": 7}\n\n')}, begun=True),
    Fault("sends an endless event", "protocol", {"raw": (*BEGUN, b"data: " + b"x" * 400_000)}, begun=True),
    Fault("sends a web page", "protocol", {"raw": (b"<html>busy</html>",), "content_type": "text/html"}),
    Fault("reports an error", "unavailable", {"raw": (*BEGUN, frame({"error": {"message": "no"}}))}, begun=True),
    Fault("reports overload", "overloaded", {"raw": (*BEGUN, frame({"error": {"code": 503}}))}, begun=True),
)


@pytest.fixture(scope="module")
def model() -> Iterator[Upstream]:
    with upstream() as it:
        yield it


@pytest.fixture(scope="module")
def gateway(model: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Before a model for which it waits half a second at most."""
    folder = tmp_path_factory.mktemp("backends")
    with running(folder / "home", settings=settings(model.url, first_token_s=0.5, idle_s=0.5)) as it:
        yield it


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_model_that(gateway: Gateway, model: Upstream, fault: Fault, stream: bool) -> None:
    model.behave(**fault.how)
    reply = chat(gateway, "How do I bake bread?", stream=stream)
    data = closed(gateway, reply.request_id)
    assert data["backend_error"] == fault.kind
    assert data["delivered_chars"] == len(reply.text)
    assert PLACE in reply.text
    assert (reply.finish_reason, reply.havengate["stage"]) == ("stop", "backend")
    assert (reply.havengate["decision"], reply.havengate["incident_id"]) == ("replace", None)
    words = reply.text.partition(CARE)[0].rstrip()
    # What came in one piece with the fault may be lost with it; a silence loses nothing that was released.
    assert (scripts.SAFE_START + scripts.SAFE_MIDDLE).startswith(words) if fault.begun else words == ""
    assert words or fault.kind != "timeout" or not fault.begun


def test_a_crisis_needs_no_model(gateway: Gateway, model: Upstream) -> None:
    """Whatever the model would do, it is not asked."""
    model.behave(status=500)
    before = model.calls
    reply = chat(gateway, "I want to end my life tonight.", stream=True)
    assert reply.havengate["decision"] == "replace"
    assert PLACE in reply.text
    assert closed(gateway, reply.request_id)["backend_error"] == "none"
    assert model.calls == before


def test_after_all_that_a_sound_answer_is_delivered(gateway: Gateway, model: Upstream) -> None:
    model.behave(words=("Boil it ", "for eight minutes."))
    reply = chat(gateway, "How do I boil an egg?", stream=True)
    assert (reply.text, reply.havengate["decision"]) == ("Boil it for eight minutes.", "allow")


def closed(gateway: Gateway, request_id: str) -> dict[str, Any]:
    (row,) = gateway.rows("SELECT data FROM audit WHERE request_id = ? AND event = 'turn.closed'", request_id)
    data: dict[str, Any] = json.loads(row["data"])
    return data
