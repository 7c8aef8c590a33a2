"""S5, S8 and S9: a model that hides its harm in the stream, a client that leaves in the middle of it, a judge that fails.

In more depth: ``tests/unit/test_holdback.py`` (every cut), ``tests/unit/test_openai_http.py`` (every fault of a model's
server), ``tests/faults`` (every moment of leaving), ``tests/integration/test_faults_detectors.py`` (every fault of a judge).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.abuse.raw import ASK, CHAT, CRISIS, PLACE, address, request
from tests.faults import plugins
from tests.faults.kills import ROOT
from tests.faults.upstream import Client, Upstream, settings, upstream
from tests.faults.waiting import until
from tests.support import scripts
from tests.support.calls import chat, post
from tests.support.gateway import Gateway, running
from tests.support.openai_server import frame

HARM: Final = f"Honestly, {scripts.HARM}."


@pytest.fixture(scope="module")
def model() -> Iterator[Upstream]:
    with upstream() as it:
        yield it


@pytest.fixture(scope="module")
def gateway(model: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("streams") / "home", settings=settings(model.url)) as it:
        yield it


def event(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    return frame({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


DONE: Final = b"data: [DONE]\n\n"
USAGE: Final = frame({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})
SAFE: Final = event(scripts.SAFE_START)
END: Final = event(None, "stop")
HELD: Final = event(HARM)


def stopped(gateway: Gateway, model: Upstream, *raw: bytes) -> None:
    """The model's server sends this; the client gets no part of the harm that says it, and a whole ending."""
    model.behave(raw=raw)
    reply = chat(gateway, ASK, stream=True)
    assert reply.finish_reason == "content_filter"
    assert reply.havengate["stage"] == "output"
    assert "better without you" not in reply.text
    assert reply.usage is not None


@pytest.mark.parametrize("cut", range(1, len(HARM)))
def test_s05_harm_is_stopped_wherever_the_model_cuts_it(gateway: Gateway, model: Upstream, cut: int) -> None:
    stopped(gateway, model, SAFE, event(HARM[:cut]), event(HARM[cut:]), END, DONE)


SPLIT: Final = "é 🌧️ 語 " + HARM
FRAMED: Final[dict[str, tuple[bytes, ...]]] = {
    "comments between": (b": ping\n\n", SAFE, b": ping\n: pong\n\n", HELD, b":\n\n", END, DONE),
    "CRLF": tuple(piece.replace(b"\n", b"\r\n") for piece in (SAFE, HELD, END, DONE)),
    "CR": tuple(piece.replace(b"\n", b"\r") for piece in (SAFE, HELD, END, DONE)),
    "no space after the colon": tuple(piece.replace(b"data: ", b"data:") for piece in (SAFE, HELD, END, DONE)),
    "all at once": (SAFE + HELD + END + USAGE + DONE,),
    "byte by byte": tuple(bytes([byte]) for byte in SAFE + HELD + END + DONE),
    "in the first window": (HELD, END, DONE),
    "in the last window": (SAFE, event(scripts.SAFE_MIDDLE), event(scripts.SAFE_START), HELD, END, DONE),
    "with the finish reason": (SAFE, event(HARM, "stop"), DONE),
    "usage after it": (SAFE, HELD, END, USAGE, DONE),
    "no end at all": (SAFE, HELD, *[event(scripts.SAFE_MIDDLE)] * 8),
    "escaped characters, cut": tuple(bytes([byte]) for byte in event(SPLIT) + END + DONE),
    "raw UTF-8, cut": tuple(
        bytes([byte])
        for byte in b'data: {"choices":[{"index":0,"delta":{"content":'
        + json.dumps(SPLIT, ensure_ascii=False).encode()
        + b'},"finish_reason":null}]}\n\n'
        + END
        + DONE
    ),
}


@pytest.mark.parametrize("raw", FRAMED.values(), ids=FRAMED)
def test_s05_harm_is_stopped_however_it_is_framed(gateway: Gateway, model: Upstream, raw: tuple[bytes, ...]) -> None:
    stopped(gateway, model, *raw)


def test_s05_what_follows_the_finish_reason_is_not_heard(gateway: Gateway, model: Upstream) -> None:
    model.behave(raw=(SAFE, END, HELD, USAGE, DONE))
    reply = chat(gateway, ASK, stream=True)
    assert (reply.text, reply.finish_reason) == (scripts.SAFE_START, "stop")


@pytest.mark.parametrize(
    "raw",
    [
        (SAFE, HELD[:-20]),
        (SAFE, b"data: " + b"a" * 2_000_000),
        (SAFE, b"data: {not json}\n\n"),
        (SAFE, b"\xff\xfe\n\n" * 9),
    ],
    ids=["in mid-event", "a giant event", "no JSON", "no text"],
)
def test_s05_a_stream_that_breaks_ends_in_words(gateway: Gateway, model: Upstream, raw: tuple[bytes, ...]) -> None:
    model.behave(raw=raw)
    reply = chat(gateway, ASK, stream=True)
    assert PLACE in reply.text
    assert "better without you" not in reply.text
    assert reply.havengate["stage"] == "backend"


def test_s08_whoever_leaves_a_stream_lets_the_model_go_and_is_on_record(gateway: Gateway, model: Upstream) -> None:
    words = (scripts.SAFE_START, scripts.SAFE_MIDDLE, "And ")
    model.behave(words=words, hang_after=4)
    seq = gateway.rows("SELECT coalesce(max(seq), 0) FROM audit")[0][0]
    with Client(address(gateway), request(gateway, ASK, stream=True)) as client:
        client.read_until(scripts.SAFE_START[-12:-2].encode())
    model.wait_until_left()
    closed = "SELECT data FROM audit WHERE event = 'turn.closed' AND seq > ?"
    until(lambda: bool(gateway.rows(closed, seq)))
    data = json.loads(gateway.rows(closed, seq)[0]["data"])
    assert data["client_gone"] is True
    assert 0 < data["delivered_chars"] <= len("".join(words))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_s08_a_crisis_is_raised_for_somebody_who_did_not_wait(gateway: Gateway, model: Upstream, stream: bool) -> None:
    found = "SELECT count(*) FROM audit WHERE event = 'incident.opened'"
    before = gateway.rows(found)[0][0]
    with Client(address(gateway), request(gateway, CRISIS, stream=stream)):
        pass
    until(lambda: gateway.rows(found)[0][0] == before + 1)


@pytest.mark.parametrize("fault", ["raises", "hangs", "nan"])
def test_s09_a_judge_that_fails_is_never_taken_for_a_clean_verdict(model: Upstream, tmp_path: Path, fault: str) -> None:
    path = f"{plugins.install(tmp_path / 'site')}:{ROOT}"
    more = f'[judge]\ntimeout_s = 0.5\n[detectors.stranger]\nkind = "stranger"\noptions = {{ fault = "{fault}" }}\n'
    model.behave(words=(scripts.SAFE_START,))
    with running(tmp_path / "home", settings=settings(model.url, more=more), PYTHONPATH=path) as it:
        for stream in (False, True):
            reply = chat(it, ASK, stream=stream)
            assert reply.havengate["detectors"]["stranger"] == "unavailable"
            assert reply.havengate["decision"] == "replace"
            assert reply.havengate["incident_id"]
            assert scripts.SAFE_START not in reply.text
            assert PLACE in chat(it, CRISIS, stream=stream).text
        refused = post(it, "/v1/moderations", {"input": ASK})
        assert (refused.status, bool(refused.headers.get("retry-after"))) == (503, True)
        assert post(it, CHAT, {}).status == 400
