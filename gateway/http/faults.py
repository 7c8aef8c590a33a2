"""Errors on their way out: one handler each for ours, Litestar's and everything else.

Under ``/v1`` an error has OpenAI's shape, elsewhere it is a problem document (RFC 9457).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    HavengateError,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
    headers_of,
    to_openai,
    to_problem,
)
from gateway.http.front import request_id_of

_BY_STATUS: Final[dict[int, tuple[type[HavengateError], str]]] = {
    401: (Unauthenticated, "A valid API key is needed."),
    403: (Forbidden, "This is not allowed."),
    404: (NotFound, "There is nothing here."),
    405: (MethodNotAllowed, "The method is not allowed here."),
    413: (BodyTooLarge, "The request body is too large."),
}
Observe = Callable[[int, str, BaseException | None], None]


def handlers(observe: Observe) -> dict[int | type[Exception], Any]:
    """Litestar's ``exception_handlers``.  ``observe`` is told status, code and, for a bug, the exception."""

    def ours(request: Request[Any, Any, Any], error: HavengateError) -> Response[bytes]:
        observe(error.status, error.code or error.type, None)
        return render(request, error)

    def litestars(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        known, message = _BY_STATUS.get(error.status_code, (BadRequest, "The request could not be read."))
        if error.status_code >= HavengateError.status:
            return bugs(request, error)
        response = ours(request, known(message))
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    def bugs(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        observe(HavengateError.status, "internal_error", error)
        return render(request, HavengateError("Something went wrong here; it is on our side."))

    return {HavengateError: ours, HTTPException: litestars, Exception: bugs}


def render(request: Request[Any, Any, Any], error: HavengateError) -> Response[bytes]:
    """The error as its route's callers expect it."""
    api = request.scope["path"].startswith("/v1")
    return Response(
        content=msgspec.json.encode(to_openai(error) if api else to_problem(error)),
        media_type="application/json" if api else "application/problem+json",
        status_code=error.status,
        headers=headers_of(error) | {"x-request-id": request_id_of(request)},
    )
