"""A gateway that is told to stop, and clients that leave at each moment: words for whoever waits, the backend let go, and a
record of what was delivered.  A real process, a real remote model, real connections.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartGateway
from tests.faults import plugins
from tests.faults.kills import ROOT
from tests.faults.upstream import Client, Upstream, settings, upstream
from tests.faults.waiting import until
from tests.support import scripts
from tests.support.calls import MODEL, call, chat
from tests.support.gateway import STOP_WITHIN_S, Gateway, running

CRISIS = "I want to end my life tonight."
ASK = "How do I bake bread?"
GRACE_S = 3
GRACE = f"[server]\ngraceful_shutdown_s = {GRACE_S}\n"
SLOWLY = "Slowly."
PONDERING = (
    f'[detectors.pondering]\nkind = "pondering"\noptions = {{ over = "{SLOWLY}", least_s = 1.5, most_s = 1.5 }}\n'
)
PLACE = "findahelpline.com"


@pytest.fixture(scope="module")
def model() -> Iterator[Upstream]:
    with upstream() as it:
        yield it


@pytest.fixture(scope="module")
def gateway(model: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Before a patient client of that model; its second detector takes its time over some messages."""
    folder = tmp_path_factory.mktemp("leaving")
    path = f"{plugins.install(folder / 'site')}:{ROOT}"
    with running(folder / "home", settings=settings(model.url, more=PONDERING), PYTHONPATH=path) as it:
        yield it


def ask(gateway: Gateway, text: str, *, stream: bool = True) -> Client:
    """Send a request by hand."""
    body = json.dumps({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    url = urlsplit(gateway.base_url)
    assert url.hostname
    assert url.port
    return Client((url.hostname, url.port), head.encode() + body)


# --- a client that leaves ------------------------------------------------------------------------


def rows_after(gateway: Gateway, seq: int) -> dict[str, dict[str, Any]]:
    """Audit data by event, as soon as the turn that began after ``seq`` is closed."""

    def closed() -> bool:
        return bool(gateway.rows("SELECT 1 FROM audit WHERE event = 'turn.closed' AND seq > ?", seq))

    until(closed)
    return {row["event"]: json.loads(row["data"]) for row in gateway.rows("SELECT * FROM audit WHERE seq > ?", seq)}


def newest(gateway: Gateway) -> int:
    return int(gateway.rows("SELECT coalesce(max(seq), 0) FROM audit")[0][0])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_leaves_before_the_first_word_leaves_no_call_behind(
    gateway: Gateway, model: Upstream, stream: bool
) -> None:
    model.behave(hang_before_answer=True)
    seq = newest(gateway)
    with ask(gateway, ASK, stream=stream):
        model.wait_until_called()
    model.wait_until_left()
    closed = rows_after(gateway, seq)["turn.closed"]
    assert (closed["client_gone"], closed["delivered_chars"], closed["action"]) == (True, 0, "allow")


def test_who_leaves_in_the_hold_back_was_given_nothing(gateway: Gateway, model: Upstream) -> None:
    model.behave(words=("Knead ", "it"), hang_after=3)
    seq = newest(gateway)
    with ask(gateway, ASK) as client:
        client.read_until(b'"role":"assistant"')
        model.wait_until_called()
        assert b"Knead" not in client.raw
    model.wait_until_left()
    closed = rows_after(gateway, seq)["turn.closed"]
    assert (closed["client_gone"], closed["delivered_chars"]) == (True, 0)


def test_who_leaves_in_the_middle_is_on_record_with_what_they_got(gateway: Gateway, model: Upstream) -> None:
    words = (scripts.SAFE_START, scripts.SAFE_MIDDLE, "And ")
    model.behave(words=words, hang_after=4)
    seq = newest(gateway)
    with ask(gateway, ASK) as client:
        client.read_until(scripts.SAFE_START[-20:-2].encode())
    model.wait_until_left()
    closed = rows_after(gateway, seq)["turn.closed"]
    assert closed["client_gone"] is True
    assert len(scripts.SAFE_START) - 2 <= closed["delivered_chars"] <= len("".join(words))
    assert model.finished == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_leaves_while_a_crisis_is_judged_is_heard(gateway: Gateway, model: Upstream, stream: bool) -> None:
    """The connection closes long before the slow detector has answered."""
    model.behave()
    seq, calls = newest(gateway), model.calls
    # Not said before: a verdict that is remembered takes no time.
    with ask(gateway, f"{CRISIS} {SLOWLY} {stream}", stream=stream):
        until(lambda: b"havengate_streams_open 1.0" in call(gateway, "GET", "/metrics").raw)
    rows = rows_after(gateway, seq)
    assert (rows["turn.closed"]["client_gone"], rows["turn.closed"]["delivered_chars"]) == (True, 0)
    assert rows["incident.opened"]["severity"] >= 3
    assert model.calls == calls, "no model is asked"


def test_who_leaves_with_the_first_words_of_care_has_an_incident(gateway: Gateway) -> None:
    seq = newest(gateway)
    with ask(gateway, CRISIS) as client:
        client.read_until(b'"content":"')
        assert gateway.rows("SELECT 1 FROM audit WHERE event = 'incident.opened' AND seq > ?", seq)
    assert rows_after(gateway, seq)["turn.closed"]["severity"] >= 3


# --- a gateway that is told to stop ----------------------------------------------------------------


def test_a_gateway_that_stops_ends_every_open_answer_with_words(
    start_gateway: StartGateway, model: Upstream, tmp_path: Path
) -> None:
    """Three wait: a stream in the middle, a stream before its first word, an answer that is not streamed."""
    model.behave(words=(scripts.SAFE_START, scripts.SAFE_MIDDLE), hang_after=3)
    it = start_gateway(settings=settings(model.url, more=GRACE))
    with ThreadPoolExecutor() as pool:
        spoken = pool.submit(chat, it, ASK, stream=True)
        model.wait_until_called()
        model.behave(hang_before_answer=True)
        silent = pool.submit(chat, it, ASK, stream=True)
        model.wait_until_called()
        model.behave(hang_before_answer=True)
        whole = pool.submit(chat, it, ASK)
        model.wait_until_called()
        it.process.send_signal(signal.SIGTERM)
        replies = [waiting.result(STOP_WITHIN_S) for waiting in (spoken, silent, whole)]
    it.process.wait(STOP_WITHIN_S)
    assert replies[0].text.startswith(scripts.SAFE_START[:20])
    for reply in replies:
        assert PLACE in reply.text
        assert (reply.finish_reason, reply.havengate["stage"]) == ("stop", "backend")
        (row,) = it.rows("SELECT data FROM audit WHERE request_id = ? AND event = 'turn.closed'", reply.request_id)
        data = json.loads(row["data"])
        assert (data["backend_error"], data["client_gone"]) == ("unavailable", False)
        assert data["delivered_chars"] == len(reply.text)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_an_idle_gateway_is_ready_and_stops_at_once(
    start_gateway: StartGateway, model: Upstream, number: signal.Signals, code: int
) -> None:
    """It does not sit its grace out: that is far longer than this test waits.  Its code names the signal."""
    model.behave()
    it = start_gateway(settings=settings(model.url, more="[server]\ngraceful_shutdown_s = 600\n"))
    assert call(it, "GET", "/readyz").status == 200
    it.process.send_signal(number)
    assert it.process.wait(STOP_WITHIN_S) == code
    assert "Traceback" not in it.output.text
