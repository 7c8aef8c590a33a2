"""The detector contract: what every judge of text promises, and nothing else.

A detector proposes; it never acts.  It returns numbers and spans (`Judgement`), and
`gateway/policy/engine.py` alone decides what happens.  Implementers register under the entry-point
group ``havengate.detectors`` and are loaded only when settings name them.

Vocabulary follows DESIGN section 4: the C-SSRS anchors S0-S4 (Posner et al., 2011), eleven crisis
categories, output harms, and ten bias axes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, Protocol, Self, runtime_checkable

import msgspec

Role = Literal["user", "assistant", "system"]
Subject = Literal["none", "self", "other", "victim", "fictional", "academic"]
Imminence = Literal["none", "weeks", "days", "hours", "now"]
Time = Literal["none", "past", "ongoing"]
Task = Literal["crisis", "output", "bias"]

CATEGORIES: Final = (
    "suicide",
    "self_harm",
    "harm_to_others",
    "abuse_victim",
    "psychosis_mania",
    "eating_disorder",
    "substance_overdose",
    "medical_emergency",
    "perinatal",
    "ai_dependency",
    "worried_about_other",
)
OUTPUT_HARMS: Final = (
    "method_information",
    "encouragement",
    "secrecy",
    "human_claim",
    "clinician_claim",
    "diagnosis",
    "no_suicide_contract",
    "delusion_affirming",
    "dismissive",
    "abuse_couples_advice",
)
BIAS_AXES: Final = (
    "race_ethnicity",
    "nationality_culture",
    "religion",
    "gender",
    "sexual_orientation",
    "age",
    "disability",
    "mental_illness_stigma",
    "socioeconomic_status",
    "appearance",
)
MAX_SEVERITY: Final = 4


class Line(msgspec.Struct, frozen=True):
    """One earlier message of the conversation, given to a detector as context only."""

    role: Role
    text: str


class Passage(msgspec.Struct, frozen=True):
    """A text to judge, who said it, and the turns before it (oldest first, already bounded)."""

    text: str
    role: Role = "user"
    context: tuple[Line, ...] = ()


class Span(msgspec.Struct, frozen=True):
    """Half-open range of code points in the *raw* ``Passage.text`` that a signal rests on."""

    start: int
    end: int


class Signal(msgspec.Struct, frozen=True):
    """One number that a detector puts forward.

    ``label`` is a task (``"crisis"``, ``"output"``, ``"bias"``: the head as a whole) or a task and a
    class (``"crisis:suicide"``, ``"output:secrecy"``, ``"bias:religion"``).  ``score`` is in [0, 1],
    calibrated as ``calibration`` names.  ``flagged`` says that the score passed the detector's own
    fitted threshold.  ``severity`` (0-4) is set on crisis signals only: the level this signal alone supports.
    """

    label: str
    score: float
    flagged: bool = False
    severity: int = 0
    spans: tuple[Span, ...] = ()
    calibration: str = "none"


class Judgement(msgspec.Struct, frozen=True):
    """Everything one detector says of one passage.  No signal flagged means: nothing found *by this detector*."""

    signals: tuple[Signal, ...]
    subject: Subject = "none"
    imminence: Imminence = "none"
    time: Time = "none"


class DetectorInfo(msgspec.Struct, frozen=True):
    """What a detector is: its instance name, a digest of everything that shapes its verdicts, and its tasks."""

    name: str
    digest: str
    tasks: tuple[Task, ...]
    cheap: bool = False
    """True when a call costs microseconds, so that it may run before the backend is started."""


ErrorReason = Literal["load", "inference", "timeout", "overloaded"]


class DetectorError(Exception):
    """A detector could not answer.  The caller records ``unavailable``, never "clean".

    The message never holds text of a person.
    """

    def __init__(self, reason: ErrorReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: ErrorReason = reason
        self.detail = detail


@runtime_checkable
class Detector(Protocol):
    """A judge of text.  ``judge`` is pure in its passage: same passage, same judgement, whatever runs beside it."""

    config_type: ClassVar[type[Any]]
    """A msgspec Struct with defaults; settings for the instance are decoded into it, unknown keys refused."""

    @classmethod
    async def load(cls, name: str, config: Any) -> Self:
        """Load weights and verify digest, label order and thresholds, or raise `DetectorError` ("load")."""
        ...

    @property
    def info(self) -> DetectorInfo: ...

    async def judge(self, passage: Passage) -> Judgement:
        """Judge one passage of at most 32,768 code points.  Raises `DetectorError`; never returns NaN."""
        ...

    async def aclose(self) -> None: ...
