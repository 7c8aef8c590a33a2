"""The frozen data of one turn: what came in, what was decided, what goes out.

Wire types (`gateway/http/openai.py`) end before this module and begin after it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from backends.api import FinishReason as BackendFinish
from backends.api import Sampling, Usage
from detectors.api import Line
from detectors.fusion import DetectorState, Reading
from gateway.policy.decision import Decision, Mode, Resource, Stage

__all__ = ["Decision", "Mode", "Outcome", "Reading", "Stage", "Turn"]

FinishReason = BackendFinish | Literal["content_filter"]


class Turn(msgspec.Struct, frozen=True):
    """One request of an application on behalf of a person."""

    request_id: str
    app_id: str
    """The API key's id: conversations of two applications never meet."""
    mode: Mode
    model: str
    lines: tuple[Line, ...]
    """The conversation as the client sent it, oldest first; the last line is the person's."""
    sampling: Sampling
    conversation_id: str | None = None
    end_user_hash: str | None = None
    region: str = "unknown"

    @property
    def last(self) -> Line:
        return self.lines[-1]


class Outcome(msgspec.Struct, frozen=True):
    """How a turn ended: everything that the wire, the audit row and the log line need of it.  No text."""

    decision: Decision
    finish_reason: FinishReason
    usage: Usage
    detectors: dict[str, DetectorState]
    incident_id: str | None = None
    resources: tuple[Resource, ...] = ()
    delivered_chars: int = 0
    backend_error: str | None = None
