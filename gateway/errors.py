"""Every error a caller can meet, and its two renderings.

    HavengateError
    ├── RequestError                 4xx: the client can mend it
    │   ├── BadRequest               400  malformed JSON, wrong types, limits, unmapped field
    │   ├── Unauthenticated          401  no key, or not a valid one
    │   ├── Forbidden                403  the key lacks the scope
    │   ├── NotFound                 404  unknown route, unknown model
    │   ├── MethodNotAllowed         405
    │   ├── RequestTimeout           408  the body did not arrive in time
    │   ├── BodyTooLarge             413
    │   └── Overloaded               429  shed; Retry-After says when
    ├── NotReady                     503  a part the gateway cannot serve without is down
    └── StartupError                 the process refuses to start; one clear line, exit code 1
        └── UsageError               the command was called wrongly; exit code 2

Under ``/v1`` an error has OpenAI's shape; elsewhere it is an RFC 9457 problem document.  No error
ever holds text of a person: only names of fields, limits and codes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HavengateError(Exception):
    """Root of the tree.  ``message`` is safe to show and to log."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class RequestError(HavengateError):
    status = 400
    type = "invalid_request_error"


class BadRequest(RequestError):
    code = "invalid_request"


class Unauthenticated(RequestError):
    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class Overloaded(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class NotReady(HavengateError):
    status = 503
    code = "not_ready"


class StartupError(HavengateError):
    """Refuses to start.  Printed as one line, without a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(StartupError):
    exit_code = 2


def to_openai(error: HavengateError) -> dict[str, Any]:
    """Render as OpenAI's error JSON: ``{"error": {"message", "type", "param", "code"}}``."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def to_problem(error: HavengateError) -> dict[str, Any]:
    """Render as an RFC 9457 problem document (``application/problem+json``)."""
    return {
        "type": f"urn:havengate:{error.code or error.type}",
        "title": error.code or error.type,
        "status": error.status,
        "detail": error.message,
    }


def headers_of(error: HavengateError) -> dict[str, str]:
    """Headers that belong to the error: ``Retry-After`` and, for 401, ``WWW-Authenticate`` (RFC 9110)."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == Unauthenticated.status:
        headers["www-authenticate"] = 'Bearer realm="havengate"'
    return headers
