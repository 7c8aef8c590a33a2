"""The page at ``/`` for a person who opens the gateway in a browser: what it is, how to call it, what runs, a box to try.

Server-rendered, with one small script of our own; nothing is fetched from anywhere else, and the
content security policy says so.  The box works for someone who came in by a one-time link or who
pastes an API key; without either the page only tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, select_autoescape
from litestar import Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.handlers.base import BaseRouteHandler
from litestar.response import Redirect
from litestar.static_files import create_static_files_router

from detectors.api import Detector
from gateway.auth.principal import Principal
from gateway.auth.signin import SESSION_COOKIE, SESSION_LIFE_S, SignIn
from gateway.errors import NotFound
from gateway.http.front import Front

_HERE: Final = Path(__file__).parent
MAX_TOKEN_CHARS: Final = 128
PAGE_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
LOCAL_OPERATOR: Final = Principal(
    key_id="local",
    name="local operator",
    scopes=frozenset({"chat", "moderations", "models"}),
    mode="assistant",
    region="unknown",
)


@dataclass(frozen=True, slots=True)
class About:
    """What the page says of this process, beyond what `Front` knows."""

    version: str
    profile: str
    store: str
    detectors: tuple[Detector, ...]


class Pages:
    """Templates, loaded once."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape(), auto_reload=False
        )

    def render(self, name: str, **values: Any) -> str:
        return self._environment.get_template(name).render(**values)


@get("/", media_type="text/html")
async def home(
    request: Request[Any, Any, Any], front: Front, about: About, pages: Pages, signin: SignIn
) -> Response[str]:
    """The status page."""
    policy = front.house.policy.current
    session = request.cookies.get(SESSION_COOKIE)
    text = pages.render(
        "home.html",
        about=about,
        base_url=f"{request.base_url}".rstrip("/"),
        models=front.models,
        backend=front.house.backend.info,
        detectors=[detector.info for detector in about.detectors],
        policy=policy,
        regions=sorted(policy.rules.resources),
        signed_in=session is not None and signin.principal(session) is not None,
    )
    return Response(content=text, media_type="text/html", headers=PAGE_HEADERS)


@get("/login", media_type="text/html")
async def offer_login(request: Request[Any, Any, Any], pages: Pages) -> Response[str]:
    """A link that was opened.  Signing in takes a press of the button: previews and scanners open links too."""
    token = request.query_params.get("token", "")[:MAX_TOKEN_CHARS]
    text = pages.render("login.html", token=token, failed=False)
    return Response(content=text, media_type="text/html", headers=PAGE_HEADERS)


@post("/login", media_type="text/html", status_code=200)
async def login(request: Request[Any, Any, Any], pages: Pages, signin: SignIn) -> Response[str] | Redirect:
    """Trade the one-time token for a session cookie."""
    token = str((await request.form()).get("token", ""))[:MAX_TOKEN_CHARS]
    session = signin.redeem(token, LOCAL_OPERATOR)
    if session is None:
        text = pages.render("login.html", token="", failed=True)
        return Response(content=text, media_type="text/html", headers=PAGE_HEADERS, status_code=403)
    cookie = Cookie(
        key=SESSION_COOKIE,
        value=session,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.base_url.scheme == "https",
        max_age=int(SESSION_LIFE_S),
    )
    return Redirect("/", status_code=303, cookies=[cookie], headers=PAGE_HEADERS)


def static_files() -> Any:
    """The page's own stylesheet and script."""
    return create_static_files_router(path="/static", directories=[_HERE / "static"], guards=[_names_a_file])


def _names_a_file(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A null byte is no part of a file's name; the operating system's complaint about it would be a 500."""
    if "\0" in connection.scope["path"]:
        raise NotFound("There is nothing here.")
