"""S11: requests that two servers would read differently, paths that mean something else, bodies that grow, and headers that lie.

Slow clients are in ``test_load.py``; bodies that are no JSON also in ``tests/e2e/test_bad_input.py``.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path
from typing import Final

import pytest

from tests.abuse.raw import ASK, CHAT, CRISIS, PLACE, body, connect, head, read_all, request, send, statuses
from tests.e2e.test_bad_input import NOT_JSON, check_refused
from tests.support import scripts
from tests.support.calls import call
from tests.support.gateway import Gateway

SENT: Final = body(CRISIS)
LENGTH: Final = f"content-length: {len(SENT)}"
CHUNKED: Final = "transfer-encoding: chunked"
IN_CHUNKS: Final = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SENT), SENT)
HIDDEN: Final = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"
MEBIBYTE: Final = 1_048_576

AMBIGUOUS: Final[dict[str, tuple[tuple[str, ...], bytes]]] = {
    "a length and chunks": ((LENGTH, CHUNKED), IN_CHUNKS),
    "chunks and a length": ((CHUNKED, LENGTH), IN_CHUNKS),
    "a request hidden behind the chunks": (("content-length: 6", CHUNKED), HIDDEN),
    "two lengths": ((LENGTH, f"content-length: {len(SENT) - 5}"), SENT),
    "the same length twice": ((LENGTH, LENGTH), SENT),
    "a list of lengths": ((f"{LENGTH}, {len(SENT)}",), SENT),
    "a length with a sign": ((f"content-length: +{len(SENT)}",), SENT),
    "a negative length": (("content-length: -1",), SENT),
    "a length in hexadecimal": ((f"content-length: {len(SENT):#x}",), SENT),
    "chunks twice": ((CHUNKED, CHUNKED), IN_CHUNKS),
    "chunks, but not last": ((f"{CHUNKED}, identity",), IN_CHUNKS),
    "nearly chunks": (("transfer-encoding: xchunked",), IN_CHUNKS),
    "a space before the colon": (("transfer-encoding : chunked",), IN_CHUNKS),
    "a chunk without a size": ((CHUNKED,), b"zz\r\n" + SENT + b"\r\n0\r\n\r\n"),
    "a folded header": ((f"{LENGTH}\r\n x: y",), SENT),
    "a header folded before": (("x-a: b\r\n  more", LENGTH), SENT),
    "a bare carriage return": (("x-a: b\rcontent-length: 3", LENGTH), SENT),
    "a null byte in a header": (("x-a: b\0c", LENGTH), SENT),
}


def audited(gateway: Gateway) -> int:
    return int(gateway.rows("SELECT count(*) FROM audit")[0][0])


@pytest.mark.parametrize(("fields", "sent"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_s11_what_two_servers_would_read_differently_is_refused(
    light_gateway: Gateway, fields: tuple[str, ...], sent: bytes
) -> None:
    """RFC 9112, sections 5 and 6.  One answer, the connection closed, and no turn taken."""
    before = audited(light_gateway)
    answer = send(light_gateway, head(light_gateway, *fields) + sent)
    assert statuses(answer) == [400]
    assert b"end my life" not in answer
    assert audited(light_gateway) == before


def test_s11_lines_without_a_carriage_return_are_refused(light_gateway: Gateway) -> None:
    assert statuses(send(light_gateway, head(light_gateway, LENGTH).replace(b"\r\n", b"\n") + SENT)) == [400]


def test_s11_chunks_alone_are_a_body(light_gateway: Gateway) -> None:
    """The control of the above: the same bytes with one meaning are heard."""
    answer = send(light_gateway, head(light_gateway, CHUNKED) + IN_CHUNKS)
    assert statuses(answer) == [200]
    assert PLACE.encode() in answer


LINES: Final = (
    f"POST http://other.example{CHAT} HTTP/1.1",
    f"POST https://user@other.example:1{CHAT} HTTP/1.1",
    f"POST /{CHAT} HTTP/1.1",
    f"POST {CHAT}/ HTTP/1.1",
    f"POST {CHAT}// HTTP/1.1",
    "POST /v1//chat/completions HTTP/1.1",
    "POST /v1/./chat/completions HTTP/1.1",
    "POST /v1/../v1/chat/completions HTTP/1.1",
    "POST /healthz/../v1/chat/completions HTTP/1.1",
    "POST /static/..%2fv1/chat/completions HTTP/1.1",
    "POST /v1/%63hat/completions HTTP/1.1",
    "POST /v1/chat%2fcompletions HTTP/1.1",
    "POST /v1%2fchat%2fcompletions HTTP/1.1",
    "POST /V1/chat/completions HTTP/1.1",
    f"POST {CHAT};/healthz HTTP/1.1",
    f"POST {CHAT}%00 HTTP/1.1",
    f"POST {CHAT}%0d%0a HTTP/1.1",
    f"POST {CHAT}?path=/healthz HTTP/1.1",
    f"POST {CHAT}#/healthz HTTP/1.1",
    f"POST {CHAT} HTTP/1.0",
    "POST * HTTP/1.1",
)


@pytest.mark.parametrize("line", LINES)
def test_s11_no_way_of_writing_a_path_gets_round_the_key_or_the_judging(light_gateway: Gateway, line: str) -> None:
    with_key = head(light_gateway, LENGTH, line=line) + SENT
    without = with_key.replace(f"authorization: Bearer {light_gateway.key}\r\n".encode(), b"")
    assert statuses(send(light_gateway, without))[0] in (400, 401, 404, 405)
    answer = send(light_gateway, with_key)
    assert statuses(answer)[0] in (200, 400, 404, 405)
    if statuses(answer) == [200]:
        assert PLACE.encode() in answer
    assert scripts.BENIGN[:20].encode() not in answer


@pytest.mark.parametrize(
    "path",
    [
        "/static/../main.py",
        "/static/..%2f..%2fgateway/main.py",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static//etc/passwd",
        "/static/....//home.py",
        "/static/%00",
        "/static/home.css%00.py",
        "/static/",
        "/.git/config",
        "//etc/passwd",
    ],
)
def test_s11_no_file_but_our_own_pages_is_served(light_gateway: Gateway, path: str) -> None:
    answer = send(light_gateway, head(light_gateway, line=f"GET {path} HTTP/1.1"))
    assert statuses(answer)[0] in (400, 404)
    assert b"root:" not in answer
    assert b"import " not in answer


@pytest.mark.parametrize(
    "path", ["/docs", "/schema", "/schema/openapi.json", "/redoc", "/invocations", "/v1/completions", "/v1/responses"]
)
def test_s11_only_the_listed_routes_exist(light_gateway: Gateway, path: str) -> None:
    """What frameworks and model servers add by themselves is not there, whether with a key or without."""
    for method in ("GET", "POST"):
        assert call(light_gateway, method, path).status == 404
        assert call(light_gateway, method, path, headers={"authorization": ""}).status == 404


LIES: Final = {
    "x-forwarded-for": "127.0.0.1",
    "x-real-ip": "127.0.0.1",
    "forwarded": "for=127.0.0.1;host=other.example;proto=https",
    "x-forwarded-host": "other.example",
    "x-forwarded-proto": "https",
    "x-forwarded-user": "admin",
    "x-forwarded-prefix": "/healthz",
    "x-original-url": "/healthz",
    "x-rewrite-url": "/healthz",
    "x-http-method-override": "GET",
    "x-request-id": "chosen-outside",
}


def test_s11_forwarded_headers_change_nothing(light_gateway: Gateway) -> None:
    refused = call(light_gateway, "POST", CHAT, SENT, {"authorization": "", **LIES})
    check_refused(refused, 401)
    answered = call(light_gateway, "POST", CHAT, SENT, LIES)
    assert answered.status == 200
    assert PLACE.encode() in answered.raw
    assert answered.headers["x-request-id"] != "chosen-outside"
    page = call(light_gateway, "GET", "/", headers=LIES)
    assert page.status == 200
    for answer in (refused, answered, page):
        assert b"other.example" not in answer.raw
        assert not any("other.example" in value for value in answer.headers.values())


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON)
def test_s11_json_that_breaks_parsers_is_refused(light_gateway: Gateway, raw: bytes) -> None:
    assert call(light_gateway, "POST", CHAT, raw).status == 400


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"0x10", b"01", b"1_000"])
def test_s11_numbers_that_are_none_are_refused(light_gateway: Gateway, number: bytes) -> None:
    assert call(light_gateway, "POST", CHAT, body(ASK)[:-1] + b',"temperature":' + number + b"}").status == 400


@pytest.mark.parametrize(("first", "last"), [(ASK, CRISIS), (CRISIS, ASK)], ids=["crisis last", "crisis first"])
def test_s11_of_a_doubled_key_judge_and_model_read_the_same(light_gateway: Gateway, first: str, last: str) -> None:
    """RFC 8259 leaves open which one counts; here the last, for both.  The kit's ``in.user.twice_*`` see the prompt."""
    raw = b'{"model":"havengate","messages":[{"role":"user","content":"%b","content":"%b"}]}'
    answer = call(light_gateway, "POST", CHAT, raw % (first.encode(), last.encode()))
    assert answer.status == 200
    assert (answer.body["havengate"]["severity"] >= 3) == (last == CRISIS)


def test_s11_a_body_of_ten_megabytes_is_refused_unread(light_gateway: Gateway) -> None:
    size = 10 * MEBIBYTE
    before = peak_bytes(light_gateway)
    for how in (f"content-length: {size}", CHUNKED):
        with connect(light_gateway) as connection:
            connection.sendall(head(light_gateway, how))
            piece = b"a" * 65_536
            if how == CHUNKED:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            # The gateway may answer and close while we are still sending.
            with contextlib.suppress(ConnectionError):
                for _ in range(size // 65_536):
                    connection.sendall(piece)
            assert statuses(read_all(connection))[:1] == [413]
    assert peak_bytes(light_gateway) - before < size


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "identity, gzip"])
def test_s11_a_bomb_is_never_unpacked(light_gateway: Gateway, encoding: str) -> None:
    """64 MiB of nothing, a thousand times smaller when packed."""
    nothing = bytes(64 * MEBIBYTE)
    packed = zlib.compress(nothing) if encoding == "deflate" else gzip.compress(nothing, 6)
    before = peak_bytes(light_gateway)
    check_refused(call(light_gateway, "POST", CHAT, packed, {"content-encoding": encoding}), 400)
    assert peak_bytes(light_gateway) - before < len(nothing) // 4


def peak_bytes(gateway: Gateway) -> int:
    """The most memory that the gateway's process has held so far (proc(5), VmHWM)."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_s11_a_harmless_request_is_still_answered_after_all_this(light_gateway: Gateway) -> None:
    assert statuses(send(light_gateway, request(light_gateway, ASK))) == [200]
