"""A remote model on a thread of its own, for tests that talk to a gateway without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

from tests.support.openai_server import Behaviour, StandInServer

WITHIN_S: Final = 20.0
T = TypeVar("T")


class Upstream:
    """`StandInServer` from outside its loop."""

    def __init__(self, server: StandInServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def finished(self) -> int:
        return self._server.finished

    @property
    def calls(self) -> int:
        return len(self._server.requests)

    def behave(self, **how: Any) -> None:
        """How the next answers are; what has happened before is forgotten."""
        self._wait(self._set(Behaviour(**how)))

    def wait_until_called(self) -> None:
        self._wait(self._server.arrived.wait())

    def wait_until_left(self) -> None:
        """Until the gateway has closed the connection of a call under way."""
        self._wait(self._server.disconnected.wait())

    async def _set(self, behaviour: Behaviour) -> None:
        server = self._server
        server.behave = behaviour
        server.arrived.clear()
        server.disconnected.clear()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WITHIN_S)


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """Serve until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = StandInServer()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(WITHIN_S)
        yield Upstream(server, loop)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(WITHIN_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WITHIN_S)
        loop.close()


def settings(url: str, *, first_token_s: float = 60.0, idle_s: float = 60.0, more: str = "") -> str:
    """Settings (TOML) of a gateway before the model at ``url``, with the lexicon alone."""
    return (
        f'[backend]\nkind = "openai_http"\n[backend.options]\nurl = "{url}"\nmodel = "stand-in"\n'
        f"first_token_timeout_s = {first_token_s}\nidle_timeout_s = {idle_s}\n"
        f"[detectors.encoder]\nenabled = false\n{more}"
    )


class Client:
    """One request by hand, so that its connection can be dropped at any byte.  Use as a context manager."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self._socket = socket.create_connection(address, timeout=WITHIN_S)
        self._socket.sendall(request)
        self.raw = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def read_until(self, what: bytes) -> bytes:
        """Read until ``what`` has arrived; everything read so far."""
        while what not in self.raw:
            piece = self._socket.recv(65_536)
            assert piece, f"the connection ended before {what!r}; it brought:\n{self.raw!r}"
            self.raw += piece
        return self.raw

    def leave(self) -> None:
        """Close the connection, as a browser whose page is closed does."""
        self._socket.close()
