"""What may be said about an event without saying anything a person wrote.  Pure.

The rule is about shape, because nobody can list everything a person might write: a value that leaves the
process is a number, or a *code*: one word of at most 200 characters from an identifier's alphabet.  Prose has
spaces, so prose cannot pass.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any, Final

REDACTED: Final = "[redacted]"
MAX_CHARS: Final = 200
MAX_ITEMS: Final = 32
MAX_CAUSES: Final = 5
_CODE: Final = re.compile(r"[A-Za-z0-9_.:/@+,=<>\[\]-]*")
_EVENT: Final = re.compile(r"[a-z0-9_.]{1,64}")


def safe_code(text: str) -> str:
    """``text`` if it is a code, clipped to 200 characters; else ``[redacted]``."""
    return text[:MAX_CHARS] if _CODE.fullmatch(text) else REDACTED


def safe_value(value: Any) -> Any:
    """A number, a truth value, None, a code, or a flat list or mapping of those; anything else is redacted."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return safe_code(value)
    if isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        return {safe_code(str(key)): _safe_scalar(item) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe_scalar(item) for item in list(value)[:MAX_ITEMS]]
    return REDACTED


def _safe_scalar(value: Any) -> Any:
    return safe_value(value) if value is None or isinstance(value, bool | int | float | str) else REDACTED


def safe_fields(fields: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    """The allowed keys of ``fields`` with safe values; every other key is dropped."""
    return {key: safe_value(value) for key, value in fields.items() if key in allowed}


def safe_event(event: object) -> str:
    """The event's name; a sentence in its place (an f-string, say) is not passed on."""
    text = str(event) if isinstance(event, str) else ""
    return text if _EVENT.fullmatch(text) else "unnamed_event"


def error_shape(error: BaseException) -> dict[str, Any]:
    """Type, place and causes of an exception, never its message: messages quote the data they failed on."""
    shape: dict[str, Any] = {"error_type": _type_name(error), "error_where": _where(error)}
    causes: list[str] = []
    seen = error
    while (cause := seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)) is not None:
        if len(causes) == MAX_CAUSES:
            break
        causes.append(f"{_type_name(cause)}@{_where(cause)}")
        seen = cause
    if causes:
        shape["error_causes"] = causes
    return shape


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    if not frames:
        return "unknown"
    frame = frames[-1]
    return f"{PurePath(frame.filename).name}:{frame.name}:{frame.lineno}"
