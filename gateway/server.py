"""Run the application under uvicorn until told to stop, and say where it is once it answers."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from types import FrameType
from typing import Any, Final

import uvicorn
from litestar import Litestar

from backends.api import BackendError
from gateway.connection import Connection
from gateway.errors import StartupError
from gateway.http.front import Front
from gateway.main import create_app
from gateway.settings import Settings

ANSWERS_SHARE_OF_GRACE: Final = 0.8


class _Server(uvicorn.Server):
    """uvicorn, which says where it is after start-up, and ends open answers with words when it must stop."""

    def __init__(self, config: uvicorn.Config, app: Litestar, banner: str) -> None:
        super().__init__(config)
        self._app = app
        self._banner = banner
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            print(self._banner, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let answers finish for most of the grace, then end those that have not; uvicorn would cut them off."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hush_later, self._loop)

    def _hush_later(self, loop: asyncio.AbstractEventLoop) -> None:
        grace_s = float(self.config.timeout_graceful_shutdown or 0)
        loop.call_later(grace_s * ANSWERS_SHARE_OF_GRACE, self._hush)

    def _hush(self) -> None:
        front: Front | None = self._app.state.get("front")
        if front is not None:
            front.house.speeches.fail_all(BackendError("unavailable", "the gateway is stopping"))


def run(settings: Settings, listener: socket.socket) -> int:
    """Serve on ``listener``.  Returns the exit code; raises `StartupError` for what keeps it from starting."""
    # When start-up fails, the reason is said once, by us; Python's last-resort handler would add uvicorn's.
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    _allow_files(4 * settings.server.max_streams + 128)
    app = create_app(settings)
    failure = _StartupFailure()
    config = uvicorn.Config(
        failure.watching(app),
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.server.graceful_shutdown_s),
        limit_concurrency=4 * settings.server.max_streams + 64,
    )
    listener.listen(config.backlog)
    server = _Server(config, app, _banner(settings, app, listener))
    try:
        server.run(sockets=[listener])
    except SystemExit:
        # uvicorn's way to say that start-up failed; the reason is ours to tell.
        if failure.error is not None:
            raise failure.error from None
        raise StartupError(f"The gateway could not start ({failure.kind}); this is a fault of ours.") from None
    return 0


def _allow_files(wanted: int) -> None:
    """Raise this process's own limit of open files, as far as it may: each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < best:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))


class _StartupFailure:
    """Keeps the reason why the lifespan failed, and its traceback away from people: uvicorn would print it."""

    def __init__(self) -> None:
        self.error: StartupError | None = None
        self.kind = "unknown"

    def watching(self, app: Litestar) -> Any:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            try:
                await app(scope, receive, _without_traceback(send))
            except BaseException as error:
                first = _first(error)
                self.kind = type(first).__name__
                self.error = first if isinstance(first, StartupError) else None
                raise

        return watched


def _without_traceback(send: Any) -> Any:
    async def quiet(message: Any) -> None:
        failed = message["type"] == "lifespan.startup.failed"
        await send({"type": message["type"], "message": ""} if failed else message)

    return quiet


def _first(error: BaseException) -> BaseException:
    """The error behind whatever groups it came wrapped in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _banner(settings: Settings, app: Litestar, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    base = f"http://{host}:{port}"
    lines = [f"Havengate is ready at {base}  (status page; OpenAI base URL: {base}/v1)"]
    if settings.auth.dev_api_key is not None:
        lines.append(f"Development API key: {settings.auth.dev_api_key.get_secret_value()}")
    if settings.profile == "embedded":
        lines.append(f"Sign in once, in a browser: {base}/login?token={app.state.signin.new_link_token()}")
    return "\n".join(lines)
