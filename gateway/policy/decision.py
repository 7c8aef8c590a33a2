"""What the policy is asked and what it answers.  Frozen; no I/O.

`Facts` is everything `engine.decide` may look at, `Decision` everything it may say.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from detectors.api import Imminence, Subject

Mode = Literal["assistant", "therapeutic"]
Stage = Literal["input", "output", "backend"]
Action = Literal["allow", "guide", "replace", "refuse"]
Route = Literal["digest", "queue", "page", "page_two"]

ROUTE_ORDER: Final[tuple[Route, ...]] = ("digest", "queue", "page", "page_two")


class Facts(msgspec.Struct, frozen=True):
    """One question to the policy."""

    stage: Stage
    mode: Mode
    severity: int = 0
    """Severity (0-4) of this turn by itself."""
    carried: int = 0
    """Severity the conversation still carries from earlier turns (`session/risk.py`), before this one."""
    categories: tuple[str, ...] = ()
    """Crisis categories of this turn, or of the carried risk when the turn itself has none.  Most important first."""
    subject: Subject = "none"
    imminence: Imminence = "none"
    output_harms: tuple[str, ...] = ()
    """Output stage: harms flagged in the reply (or in what the client wants the model to read as instructions)."""
    bias_axes: tuple[str, ...] = ()
    """Output stage: axes on which the reply is biased."""
    unavailable: tuple[str, ...] = ()
    """Tasks ("crisis", "output", "bias") that could not be judged."""
    trusted_to: int = 0
    """Highest severity at which the backend's own words may reach a person."""
    first_at_level: bool = True
    """False when the person already received this level's wording lately, so the follow-up wording serves."""


class Escalation(msgspec.Struct, frozen=True):
    """People to bring in, and the clock: acknowledge within ``ack_within_s`` seconds."""

    route: Route
    ack_within_s: int


class Decision(msgspec.Struct, frozen=True):
    """What happens.  Only `engine.decide` makes one.

    ``allow`` and ``guide`` let the model speak (``guidance`` is added to its instructions);
    ``replace`` and ``refuse`` answer with reviewed wording, named by ``wording``.
    """

    action: Action
    stage: Stage
    mode: Mode
    severity: int
    """Effective severity: of the turn and what the conversation carries."""
    categories: tuple[str, ...]
    reasons: tuple[str, ...]
    """Names of the rules that counted, for reviewers and tests (``"level.S3"``, ``"floor.S4"``, ``"unavailable.crisis"``)."""
    policy_version: str
    wording: str | None = None
    guidance: str | None = None
    escalation: Escalation | None = None
    show_resources: bool = False
    disclose_to_panel: bool = False
    """Therapeutic mode: the finding goes to the therapist's side panel, not into the exercise."""

    @property
    def model_may_speak(self) -> bool:
        return self.action in ("allow", "guide")


class Resource(msgspec.Struct, frozen=True):
    """One place to turn to, as shown to a person and sent in the ``havengate.resources`` field."""

    name: str
    contact: str
    """What to dial, text or open, as a person would write it."""
    kind: Literal["emergency", "crisis_line", "text_line", "topic_line", "directory"]
    hours: str
    languages: tuple[str, ...]
    region: str


class Care(msgspec.Struct, frozen=True):
    """Reviewed words for a person, resources already woven in."""

    text: str
    resources: tuple[Resource, ...]
