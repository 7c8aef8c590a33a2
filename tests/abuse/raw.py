"""Requests written byte by byte, which no client library would send."""

from __future__ import annotations

import json
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from tests.support.calls import MODEL
from tests.support.gateway import Gateway

LEXICON_ALONE: Final = "\n[detectors.encoder]\nenabled = false\n"
CRISIS: Final = "I want to end my life tonight."
ASK: Final = "How does sourdough work?"
PLACE: Final = "findahelpline.com"
CHAT: Final = "/v1/chat/completions"
WITHIN_S: Final = 60.0


def address(gateway: Gateway) -> tuple[str, int]:
    url = urlsplit(gateway.base_url)
    assert url.hostname
    assert url.port
    return url.hostname, url.port


def connect(gateway: Gateway, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection; with ``receive_bytes`` its own buffer for what arrives is small."""
    connection = socket.socket()
    connection.settimeout(WITHIN_S)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(address(gateway))
    return connection


def body(text: str, **fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}).encode()


def head(gateway: Gateway, *more: str, line: str = f"POST {CHAT} HTTP/1.1") -> bytes:
    """Request line, the fields that every request needs, and ``more``; the gateway closes after its answer."""
    usual = ("host: gateway", "connection: close", f"authorization: Bearer {gateway.key}")
    return "\r\n".join((line, *usual, *more)).encode() + b"\r\n\r\n"


def request(gateway: Gateway, text: str, **fields: Any) -> bytes:
    """One whole chat request."""
    sent = body(text, **fields)
    return head(gateway, f"content-length: {len(sent)}") + sent


def send(gateway: Gateway, raw: bytes) -> bytes:
    """Send it, and read whatever comes until the gateway closes the connection."""
    with connect(gateway) as connection:
        connection.sendall(raw)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    pieces: list[bytes] = []
    try:
        while piece := connection.recv(65_536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def read_until(connection: socket.socket, what: bytes) -> bytes:
    """Read until ``what`` has arrived, or fail when the connection ends without it."""
    raw = b""
    while what not in raw:
        piece = connection.recv(65_536)
        assert piece, f"the connection ended before {what!r}: {raw!r}"
        raw += piece
    return raw


def statuses(raw: bytes) -> list[int]:
    """The status of each HTTP/1.1 answer in ``raw``."""
    return [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
