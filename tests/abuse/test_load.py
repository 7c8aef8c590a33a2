"""More people than there is room for: who can wait is told when to come back, whoever is in danger is heard, and every place
is given back.  A gateway in its own process, before a model that falls silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from litestar import Litestar, Request
from litestar import post as litestar_post

from gateway.http import faults, front
from tests.abuse.raw import (
    ASK,
    CHAT,
    CRISIS,
    LEXICON_ALONE,
    PLACE,
    body,
    connect,
    read_all,
    read_until,
    request,
    statuses,
)
from tests.faults.waiting import until
from tests.support import scripts
from tests.support.calls import call, chat, post
from tests.support.gateway import Gateway, havengate, running, scripted

ROOM: Final = 500
CROWD: Final = 40
"""How many arrive at a full house at once."""
FILES_NEEDED: Final = 4 * ROOM
MEGABYTES: Final = 1_000_000
PAGES: Final = 400
BOOK: Final = {"match": "whole book", "chunks": ["🌱 word " * 25] * PAGES}


@pytest.fixture(scope="module", autouse=True)
def enough_files() -> Iterator[None]:
    """Both ends of every connection need a file; a child inherits the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before[1] == resource.RLIM_INFINITY or before[1] >= FILES_NEEDED, "the system allows too few open files"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], FILES_NEEDED), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, enough_files: None) -> Iterator[Gateway]:
    settings = scripted([BOOK, *scripts.SCRIPT]) + LEXICON_ALONE + f"\n[server]\nmax_streams = {ROOM}\n"
    with running(tmp_path_factory.mktemp("load") / "home", settings=settings) as it:
        yield it


def open_streams(gateway: Gateway) -> float:
    """As the gateway's own metric says."""
    lines = call(gateway, "GET", "/metrics").raw.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("havengate_streams_open ")))


def resident_bytes(gateway: Gateway) -> int:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def full(gateway: Gateway) -> Iterator[list[socket.socket]]:
    """Every place taken by a stream that says two sentences and falls silent."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(gateway)) for _ in range(ROOM)]
        for connection in idle:
            connection.sendall(request(gateway, scripts.ASK_HANGING, stream=True))
        for connection in idle:
            read_until(connection, b'"role":"assistant"')
        yield idle
    until(lambda: open_streams(gateway) == 0)


def test_s11_a_full_house_sheds_who_can_wait_and_hears_a_crisis_out(gateway: Gateway) -> None:
    held = resident_bytes(gateway)
    with full(gateway):
        assert open_streams(gateway) == ROOM
        assert resident_bytes(gateway) - held < 200 * MEGABYTES
        for stream in (False, True):
            shed = post(gateway, CHAT, json.loads(body(ASK, stream=stream)))
            assert shed.status == 429
            assert shed.body["error"]["code"] == "overloaded"
            assert int(shed.headers["retry-after"]) > 0
            cared = chat(gateway, CRISIS, stream=stream)
            assert PLACE in cared.text
            assert cared.havengate["severity"] >= 3
            assert cared.havengate["incident_id"]
        assert call(gateway, "GET", "/readyz").status == 200
    assert chat(gateway, ASK).text == scripts.BENIGN, "every place was given back"


def test_s11_a_crowd_at_a_full_house_is_answered_one_and_all(gateway: Gateway) -> None:
    def visit(number: int) -> tuple[int, bool]:
        answer = post(gateway, CHAT, json.loads(body(CRISIS if number % 2 else ASK, stream=number % 4 > 1)))
        return answer.status, PLACE.encode() in answer.raw

    with full(gateway), ThreadPoolExecutor(8) as pool:
        for number, answered in enumerate(pool.map(visit, range(CROWD))):
            assert answered == ((200, True) if number % 2 else (429, False))


@pytest.mark.parametrize("when", ["before the head", "in the body", "before the answer", "in the answer"])
def test_s11_whoever_leaves_gives_their_place_back(gateway: Gateway, when: str) -> None:
    raw = request(gateway, scripts.ASK_HANGING, stream=True)
    cut = {"before the head": 30, "in the body": len(raw) - 9}.get(when, len(raw))
    for _ in range(20):
        with connect(gateway) as connection:
            connection.sendall(raw[:cut])
            if when == "in the answer":
                read_until(connection, b'"content":"Once')
    until(lambda: open_streams(gateway) == 0)
    assert chat(gateway, ASK).text == scripts.BENIGN


def test_s11_an_answer_that_nobody_reads_is_bounded_and_costs_no_place(gateway: Gateway) -> None:
    """The longest answer there is waits in the system's own buffers, not in ours."""
    held = resident_bytes(gateway)
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            deaf = stack.enter_context(connect(gateway, receive_bytes=1_024))
            deaf.sendall(request(gateway, "Read me the whole book.", stream=True, max_tokens=PAGES))
        closed = "SELECT count(*) FROM audit WHERE event = 'turn.closed' AND data LIKE '%\"delivered_chars\":65536%'"
        until(lambda: gateway.rows(closed)[0][0] >= CROWD)
        assert resident_bytes(gateway) - held < 100 * MEGABYTES
    until(lambda: open_streams(gateway) == 0)


def test_s11_a_slow_body_holds_nobody_else_up(gateway: Gateway) -> None:
    """It arrives in two halves; others are answered in between, and so is it in the end."""
    raw = request(gateway, ASK)
    with connect(gateway) as slow:
        slow.sendall(raw[:-10])
        assert chat(gateway, ASK).text == scripts.BENIGN
        slow.sendall(raw[-10:])
        assert statuses(read_all(slow)) == [200]


async def test_s11_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 30 seconds; here sooner.  The rest of the application has no part in it."""
    monkeypatch.setattr(front, "BODY_WITHIN_S", 0.01)
    told: list[tuple[int, str]] = []

    @litestar_post("/v1/read")
    async def read(request: Request[Any, Any, Any]) -> bytes:
        return await front.read_body(request)

    handlers = faults.handlers(lambda status, code, _bug: told.append((status, code)))
    app = Litestar([read], exception_handlers=handlers, openapi_config=None)
    pieces: Iterator[Any] = iter([{"type": "http.request", "body": b'{"model":', "more_body": True}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(pieces, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "POST", "path": "/v1/read", "headers": [], "query_string": b""}
    await app(scope | {"raw_path": b"/v1/read", "root_path": "", "client": None}, receive, send)
    assert told == [(408, "request_timeout")]
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


def test_s11_after_all_this_the_record_is_whole(gateway: Gateway) -> None:
    assert open_streams(gateway) == 0
    verified = havengate("audit", "verify", home=gateway.home)
    assert verified.returncode == 0, verified.stderr
    turns = gateway.rows("SELECT event, count(*) AS n FROM audit WHERE event LIKE 'turn.%' GROUP BY event")
    counted = {row["event"]: row["n"] for row in turns}
    assert counted["turn.closed"] > ROOM
    assert "Traceback" not in gateway.output.text
    assert "internal_error" not in gateway.output.text
