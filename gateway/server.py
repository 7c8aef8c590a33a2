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
    app = create_app(settings)
    failure = _StartupFailure()
    config = uvicorn.Config(
        failure.watching(app),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.server.graceful_shutdown_s),
        h11_max_incomplete_event_size=64 * 1024,
    )
    # When start-up fails, the reason is said once, by us; Python's last-resort handler would add uvicorn's.
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    listener.listen(config.backlog)
    server = _Server(config, _banner(settings, app, listener))
    server.run(sockets=[listener])
    if failure.error is not None:
        raise failure.error
    return 0 if server.started else 1


class _StartupFailure:
    """Keeps the reason why the lifespan failed, and its traceback away from people: uvicorn would print it."""

    def __init__(self) -> None:
        self.error: StartupError | None = None

    def watching(self, app: Litestar) -> Any:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            try:
                await app(scope, receive, _without_traceback(send))
            except BaseException as error:
                self.error = _startup_error(error)
                raise

        return watched


def _without_traceback(send: Any) -> Any:
    async def quiet(message: Any) -> None:
        failed = message["type"] == "lifespan.startup.failed"
        await send({"type": message["type"], "message": ""} if failed else message)

    return quiet


def _startup_error(error: BaseException) -> StartupError | None:
    """The refusal behind whatever groups it came wrapped in; None when it was something else, a bug."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, StartupError) else None


def _banner(settings: Settings, app: Litestar, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    base = f"http://{host}:{port}"
    lines = [f"Havengate is ready at {base}  (status page; OpenAI base URL: {base}/v1)"]
    if settings.auth.dev_api_key is not None:
        lines.append(f"Development API key: {settings.auth.dev_api_key.get_secret_value()}")
    if settings.profile == "embedded":
        lines.append(f"Sign in once, in a browser: {base}/login?token={app.state.signin.new_link_token()}")
    return "\n".join(lines)
