"""What a reviewer needs to understand an incident: the words that raised it first, then where they stood.  Pure.

The result is encrypted before it is stored.
"""

from __future__ import annotations

from typing import Final

from gateway.pipeline.listen import Heard
from gateway.pipeline.state import Turn

LAST_LINES: Final = 4
LEAD_CHARS: Final = 8_000
LINE_CHARS: Final = 4_000
_GAP: Final = " [...] "


def evidence_of(turn: Turn, heard: Heard, said: str = "") -> str:
    """The leading message around the sentence that counted, the last lines, and what the model said, if stopped."""
    parts: list[str] = []
    first_kept = max(0, len(turn.lines) - LAST_LINES)
    if 0 <= heard.lead < len(turn.lines):
        line = turn.lines[heard.lead]
        spans = heard.last.crisis.spans
        centre = spans[0].start if spans and heard.last.crisis.severity > 0 else None
        parts.append(f"{line.role} (raised this): {_around(line.text, centre, LEAD_CHARS)}")
    parts += [
        f"{line.role}: {_around(line.text, None, LINE_CHARS)}"
        for index, line in enumerate(turn.lines)
        if index >= first_kept and index != heard.lead
    ]
    if said:
        parts.append(f"assistant (stopped): {_around(said, len(said), LEAD_CHARS)}")
    return "\n".join(parts)


def _around(text: str, centre: int | None, limit: int) -> str:
    """At most ``limit`` characters: around ``centre``, or else the beginning and the end."""
    if len(text) <= limit:
        return text
    if centre is None:
        return text[: limit // 2] + _GAP + text[-(limit // 2) :]
    start = min(max(0, centre - limit // 2), len(text) - limit)
    before, after = _GAP if start else "", _GAP if start + limit < len(text) else ""
    return before + text[start : start + limit] + after
