"""What the policy may know of each moment of a turn.  Pure."""

from __future__ import annotations

from backends.api import BackendInfo
from detectors.fusion import Flags, Reading
from gateway.pipeline.listen import Heard
from gateway.pipeline.state import Decision, Turn
from gateway.policy.decision import Facts
from gateway.session.risk import Risk


def of_input(turn: Turn, heard: Heard, before: Risk, after: Risk, backend: BackendInfo, *, recalled: bool) -> Facts:
    """The person's message.  Weak signals that added up count as the level they made.

    A conversation that could not be recalled is as unjudged as a message that could not be read.
    """
    crisis = heard.last.crisis
    added_up = after.level > max(before.level, crisis.severity)
    severity = after.level if added_up else crisis.severity
    unjudged = not recalled or "crisis" in heard.unavailable
    return Facts(
        stage="input",
        mode=turn.mode,
        severity=severity,
        carried=before.level,
        categories=crisis.categories or before.categories,
        subject=crisis.subject,
        imminence=crisis.imminence,
        output_harms=heard.instruction_harms,
        unavailable=("crisis",) if unjudged else (),
        trusted_to=backend.trusted_to,
        first_at_level=before.answered < max(severity, before.level),
    )


def of_output(turn: Turn, asked: Decision, heard: Heard, reading: Reading, backend: BackendInfo) -> Facts:
    """A window of the model's answer, on top of what the person's message brought."""
    return Facts(
        stage="output",
        mode=turn.mode,
        severity=asked.severity,
        categories=asked.categories,
        subject=heard.last.crisis.subject,
        imminence=heard.last.crisis.imminence,
        output_harms=_named(reading.output),
        bias_axes=_named(reading.bias),
        unavailable=tuple(task for task in reading.unavailable_tasks if task != "crisis"),
        trusted_to=backend.trusted_to,
    )


def of_backend_failure(turn: Turn, asked: Decision | None, heard: Heard, backend: BackendInfo) -> Facts:
    """The model, or the gateway itself, failed to answer.  What was asked may not be known: then it is not calm."""
    return Facts(
        stage="backend",
        mode=turn.mode,
        severity=asked.severity if asked else 1,
        categories=asked.categories if asked else (),
        subject=heard.last.crisis.subject,
        imminence=heard.last.crisis.imminence,
        trusted_to=backend.trusted_to,
    )


def _named(flags: Flags) -> tuple[str, ...]:
    """The classes of a flagged head; when only the head as a whole is flagged, its likeliest class, or ``unnamed``."""
    if not flags.flagged or flags.labels:
        return flags.labels
    return (max(flags.scores, key=lambda name: flags.scores[name], default="unnamed"),)
