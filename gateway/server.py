"""Run the application under uvicorn until told to stop, and say where it is once it answers."""

from __future__ import annotations

import logging
import socket
from typing import Any

import uvicorn
from litestar import Litestar

from gateway.errors import StartupError
from gateway.main import create_app
from gateway.settings import Settings


class _Server(uvicorn.Server):
    """uvicorn, which says where it is after start-up, not before."""

    def __init__(self, config: uvicorn.Config, banner: str) -> None:
        super().__init__(config)
        self._banner = banner

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            print(self._banner, flush=True)


def run(settings: Settings, listener: socket.socket) -> int:
    """Serve on ``listener``.  Returns the exit code; raises `StartupError` for what keeps it from starting."""
    # When start-up fails, the reason is said once, by us; Python's last-resort handler would add uvicorn's.
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    app = create_app(settings)
    failure = _StartupFailure()
    config = uvicorn.Config(
        failure.watching(app),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.server.graceful_shutdown_s),
        limit_concurrency=4 * settings.server.max_streams + 64,
    )
    listener.listen(config.backlog)
    server = _Server(config, _banner(settings, app, listener))
    try:
        server.run(sockets=[listener])
    except SystemExit:
        # uvicorn's way to say that start-up failed; the reason is ours to tell.
        if failure.error is not None:
            raise failure.error from None
        raise StartupError(f"The gateway could not start ({failure.kind}); this is a fault of ours.") from None
    return 0


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
