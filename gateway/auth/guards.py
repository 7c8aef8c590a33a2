"""Who may call what.  Deny by default: a route is open only when `OPEN_ROUTES` names it.

Every other route declares the scope it needs (``opt=scope("chat")``); a route that declares neither
stops the gateway from starting (`check_routes`) and, were it ever reached, answers 403.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gateway.auth.apikeys import ApiKeyAuthenticator
from gateway.auth.principal import Principal
from gateway.auth.signin import SESSION_COOKIE, SignIn
from gateway.errors import Forbidden, StartupError, Unauthenticated

OPEN_ROUTES: Final = frozenset(
    {"/", "/login", "/healthz", "/readyz", "/metrics", "/openapi.json", "/static/{file_path}"}
)
"""Routes that answer without a credential.  They hold no text of a person and change nothing."""

_PARAMETER_TYPE: Final = re.compile(r":[a-z]+\}")
_SCOPE: Final = "havengate_scope"
_PRINCIPAL: Final = "havengate_principal"
MAX_CREDENTIAL_CHARS: Final = 512


def scope(name: str) -> dict[str, Any]:
    """Route option: the caller needs this scope."""
    return {_SCOPE: name}


def principal_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
    """The caller that `Guard` let in."""
    principal = connection.scope.get("state", {}).get(_PRINCIPAL)
    if not isinstance(principal, Principal):
        raise AssertionError("the route was reached without a guard")
    return principal


class Guard:
    """The one guard of the application."""

    def __init__(self, keys: ApiKeyAuthenticator, signin: SignIn) -> None:
        self._keys = keys
        self._signin = signin

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Let the connection through, or raise `Unauthenticated` or `Forbidden`."""
        needed = handler.opt.get(_SCOPE)
        if needed is None:
            if connection.scope.get("path_template") not in OPEN_ROUTES:
                raise Forbidden("This route is not open.")
            return
        principal = await self._authenticate(connection)
        if needed not in principal.scopes:
            raise Forbidden(f"The API key lacks the scope '{needed}'.")
        connection.scope.setdefault("state", {})[_PRINCIPAL] = principal

    async def _authenticate(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
        presented = _bearer(connection.headers)
        if presented is not None:
            principal = await self._keys.authenticate(presented)
            if principal is None:
                raise Unauthenticated("Incorrect API key provided.")
            return principal
        session = connection.cookies.get(SESSION_COOKIE)
        if session is not None and _same_origin(connection):
            principal = self._signin.principal(session)
            if principal is not None:
                return principal
        raise Unauthenticated("You didn't provide an API key: send it as 'Authorization: Bearer KEY'.")


def check_routes(routes: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse to start when a route (path, options) is neither open by name nor guarded by a scope."""
    for path, options in routes:
        if _PARAMETER_TYPE.sub("}", path) not in OPEN_ROUTES and _SCOPE not in options:
            raise StartupError(f"The route {path} is neither open nor guarded; give it a scope.")


def _bearer(headers: Mapping[str, str]) -> str | None:
    value = headers.get("authorization")
    if value is None:
        return None
    kind, _, credential = value.partition(" ")
    credential = credential.strip()
    if kind.lower() != "bearer" or not 0 < len(credential) <= MAX_CREDENTIAL_CHARS:
        raise Unauthenticated("The Authorization header must be 'Bearer KEY'.")
    return credential


def _same_origin(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """A session cookie counts only for requests that our own page made (no cross-site request forgery)."""
    origin = connection.headers.get("origin")
    host = connection.headers.get("host", "")
    return origin is not None and origin.partition("://")[2] == host
