"""Judge a file of conversations, one JSON object per line in, one per line out, in the same order.

The logic of ``havengate detect`` (DESIGN section 5).  Crisis judges each message of the user with the messages before it
and keeps the highest; output and bias judge the last message of the assistant; bias judges the text itself where
no assistant spoke.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, BinaryIO, Final

import msgspec

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS, Line, Passage, Role
from detectors.canonical import MAX_CHARS
from detectors.fusion import Crisis, Flags, Reading
from detectors.panel import Panel

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
MAX_MESSAGES: Final = 1_000
MAX_CONTEXT_LINES: Final = 16
"""Earlier messages that a detector is given; older ones are left out."""


class _Message(msgspec.Struct, frozen=True):
    role: Role
    content: str


class _Row(msgspec.Struct, frozen=True):
    id: str | int
    messages: list[_Message] | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET


class _Id(msgspec.Struct, frozen=True):
    id: str | int | None = None


class _BadRow(Exception):
    """Why a row cannot be judged.  The message never holds text of the row."""


async def detect_rows(panel: Panel, lines: Iterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield one result per line of ``lines``; blank lines are passed over.

    A line that cannot be judged yields ``{"id", "error"}`` (``id`` is None where it cannot be read); the error names the
    line and the problem, without the text.  A detector that did not answer for any message of a row is
    ``"unavailable"`` in that row.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            lines_of_row, row_id = _read_row(line)
        except _BadRow as problem:
            yield {"id": _id_of(line), "error": f"line {number}: {problem}"}
            continue
        yield {"id": row_id, **await _judge(panel, lines_of_row)}


async def detect_file(panel: Panel, source: BinaryIO, target: BinaryIO) -> int:
    """Judge ``source`` into ``target`` line by line and return the number of rows that held an error.

    The caller opens and closes both; exit code 1 is due when the number is not zero.
    """
    failed = 0
    async for result in detect_rows(panel, source):
        failed += "error" in result
        target.write(msgspec.json.encode(result) + b"\n")
    return failed


def _read_row(line: bytes) -> tuple[tuple[Line, ...], str | int]:
    if len(line) > MAX_LINE_BYTES:
        raise _BadRow(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        row = msgspec.json.decode(line, type=_Row)
    except msgspec.ValidationError as error:
        raise _BadRow(_without_values(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _BadRow("not valid JSON") from None
    if (row.messages is msgspec.UNSET) == (row.text is msgspec.UNSET):
        raise _BadRow("needs either 'messages' or 'text'")
    if isinstance(row.text, str):
        said: tuple[Line, ...] = (Line("user", row.text),)
    else:
        messages = row.messages if isinstance(row.messages, list) else []
        said = tuple(Line(message.role, message.content) for message in messages)
    if not 1 <= len(said) <= MAX_MESSAGES:
        raise _BadRow(f"needs 1 to {MAX_MESSAGES} messages")
    if any(len(one.text) > MAX_CHARS for one in said):
        raise _BadRow(f"a message is longer than {MAX_CHARS} characters")
    return said, row.id


def _without_values(message: str) -> str:
    """msgspec quotes an invalid enumeration value, which may be a person's text: keep the rule and the path only."""
    if message.startswith("Invalid enum value"):
        return "Invalid value" + (f" - at{message.rsplit(' - at', 1)[1]}" if " - at" in message else "")
    return message


def _id_of(line: bytes) -> str | int | None:
    try:
        return msgspec.json.decode(line[:MAX_LINE_BYTES], type=_Id).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _passage(said: tuple[Line, ...], index: int) -> Passage:
    line = said[index]
    return Passage(line.text, line.role, said[max(0, index - MAX_CONTEXT_LINES) : index])


async def _judge(panel: Panel, said: tuple[Line, ...]) -> dict[str, Any]:
    heard = [await panel.read(_passage(said, i)) for i, line in enumerate(said) if line.role == "user"]
    answers = [i for i, line in enumerate(said) if line.role == "assistant"]
    reply = await panel.read(_passage(said, answers[-1])) if answers else None
    readings = [*heard, reply] if reply else heard
    if not readings:  # a system prompt alone is still a text
        readings = heard = [await panel.read(_passage(said, len(said) - 1))]
    last = reply or readings[-1]
    return {
        "crisis": _crisis([reading.crisis for reading in heard]),
        "output": _flags(reply.output if reply else Flags(), OUTPUT_HARMS, "categories"),
        "bias": _flags(last.bias, BIAS_AXES, "axes"),
        "detectors": _states(readings),
    }


def _crisis(heard: list[Crisis]) -> dict[str, Any]:
    """The conversation's crisis: the maximum of each number; subject and imminence of the message that leads."""
    leader = max(heard, key=lambda one: (one.severity, one.score), default=Crisis())
    return {
        "severity": leader.severity,
        "score": max((one.score for one in heard), default=0.0),
        "categories": {name: max((one.scores.get(name, 0.0) for one in heard), default=0.0) for name in CATEGORIES},
        "subject": leader.subject,
        "imminence": leader.imminence,
    }


def _flags(flags: Flags, names: tuple[str, ...], key: str) -> dict[str, Any]:
    scores = {name: flags.scores.get(name, 0.0) for name in names}
    return {"flagged": flags.flagged, "score": flags.score, key: scores}


def _states(readings: list[Reading]) -> dict[str, str]:
    """A verdict from the cache was run once; one message without an answer marks the row."""
    states: dict[str, str] = {}
    for reading in readings:
        for name, state in reading.detectors.items():
            missing = state == "unavailable" or states.get(name) == "unavailable"
            states[name] = "unavailable" if missing else "ran"
    return states
