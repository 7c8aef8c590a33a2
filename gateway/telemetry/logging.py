"""Logs: one JSON line per event on stderr, holding only names and shapes that `names.py` and `redact.py` allow.

Libraries that use the standard `logging` module go through the same door.  Of their records the *place* is
kept, and the message template (never its arguments) where the library is known to write constant templates.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import PurePath
from typing import Any, Final, Literal, TextIO, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from gateway.telemetry.names import LOG_KEYS
from gateway.telemetry.redact import MAX_CHARS, error_shape, safe_event, safe_fields

Event = MutableMapping[str, Any]
Format = Literal["json", "console"]
TEMPLATE_LIBRARIES: Final = frozenset({"uvicorn", "litestar", "alembic"})
"""Their templates are constants of their source.  Others may format data into the message before logging it."""
SILENT_LOGGERS: Final = ("uvicorn.access",)
"""An access line quotes the request's path and query; the gateway writes its own line per turn."""


def redact(_: Any, __: str, event: Event) -> Event:
    """structlog processor: drop what is not allowed, keep exceptions by type and place."""
    error = _error_of(event.pop("exc_info", None))
    line: dict[str, Any] = {"event": safe_event(event.pop("event", ""))}
    line.update(safe_fields(event, LOG_KEYS))
    if error is not None:
        line.update(error_shape(error))
    return line


def _error_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _to_json(line: Any, **_: Any) -> str:
    return msgspec.json.encode(line).decode()


def make_logger(level: str, form: Format, stream: TextIO) -> FilteringBoundLogger:
    """A logger that writes redacted lines to ``stream``.  Context of `request_context` is merged in."""
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, redact, *_finishing(form, stream)],
        wrapper_class=structlog.make_filtering_bound_logger(_level_number(level)),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    return cast("FilteringBoundLogger", structlog.get_logger())


def _finishing(form: Format, stream: TextIO) -> list[structlog.typing.Processor]:
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    return [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), render]


def _level_number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


@contextlib.contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Every line logged inside, by whatever module, carries ``request_id``."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield


class Bridge(logging.Handler):
    """Takes the standard library's log records to ``stream`` as lines of our own shape."""

    def __init__(self, level: str, form: Format, stream: TextIO) -> None:
        super().__init__(_level_number(level))
        self._stream = stream
        self._finishing = _finishing(form, stream)

    def emit(self, record: logging.LogRecord) -> None:
        line = self.line(record)
        rendered: Any = line
        for process in self._finishing:
            rendered = process(None, record.levelname.lower(), rendered)
        try:
            self._stream.write(f"{rendered}\n")
        except (OSError, ValueError):  # stderr is gone or closed: there is nowhere left to say so
            return

    def line(self, record: logging.LogRecord) -> dict[str, Any]:
        """The record without its arguments: library, place, error shape, and a constant template if there is one."""
        line: dict[str, Any] = {
            "event": "library_log",
            "library": record.name,
            "where": f"{PurePath(record.pathname).name}:{record.funcName}:{record.lineno}",
        }
        if record.name.partition(".")[0] in TEMPLATE_LIBRARIES and _is_template(record.msg):
            line["template"] = record.msg.strip()
        error = _error_of(record.exc_info)
        if error is not None:
            line.update(error_shape(error))
        return line


def _is_template(message: object) -> bool:
    """One short line.  uvicorn also hands on whole tracebacks as its message; those quote data."""
    return isinstance(message, str) and len(message) <= MAX_CHARS and "\n" not in message.strip()


def route_libraries(level: str, form: Format, stream: TextIO) -> Callable[[], None]:
    """Send every library's records through one `Bridge`.  Returns the undo.

    Handlers that libraries installed for themselves are set aside, else they would print arguments.  Libraries
    speak from ``warning`` up: their everyday lines say little once the arguments are gone.
    """
    root = logging.getLogger()
    bridge = Bridge(level, form, stream)
    before = (root.handlers[:], root.level)
    root.handlers[:] = [bridge]
    root.setLevel(max(_level_number(level), logging.WARNING))
    aside: list[tuple[logging.Logger, list[logging.Handler], bool, bool]] = []
    names = {*TEMPLATE_LIBRARIES, *SILENT_LOGGERS, "uvicorn.error", "uvicorn.asgi"}
    for name in sorted(names):
        logger = logging.getLogger(name)
        aside.append((logger, logger.handlers[:], logger.propagate, logger.disabled))
        logger.handlers[:] = []
        logger.propagate = name not in SILENT_LOGGERS
        logger.disabled = name in SILENT_LOGGERS

    def undo() -> None:
        root.handlers[:], level_before = before
        root.setLevel(level_before)
        for logger, handlers, propagate, disabled in aside:
            logger.handlers[:], logger.propagate, logger.disabled = handlers, propagate, disabled

    return undo
