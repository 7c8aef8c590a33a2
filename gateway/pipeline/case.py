"""One turn under way: the house it runs in, what it was asked, how far it is, and what it gives out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import msgspec

from backends.api import ChatBackend, Usage
from detectors.fusion import DetectorState, Reading
from detectors.panel import Panel
from gateway.pipeline.holdback import Rules
from gateway.pipeline.listen import Heard
from gateway.pipeline.observe import Observer, TurnView
from gateway.pipeline.record import Clock, Kept, Recorder
from gateway.pipeline.speculation import Speculation, Speeches
from gateway.pipeline.state import Decision, FinishReason, Outcome, Turn
from gateway.policy.decision import Resource
from gateway.policy.loader import PolicyHolder
from gateway.policy.schema import Policy

MAX_STOPS: Final = 3
UNHEARD: Final = Heard(last=Reading(unavailable_tasks=("crisis",)), lead=-1, unavailable=("crisis",))


class Opened(msgspec.Struct, frozen=True):
    """The input is judged, and what must be recorded is recorded: headers may go out."""

    decision: Decision


class Delta(msgspec.Struct, frozen=True):
    """Text that may reach the person now."""

    text: str


class Closed(msgspec.Struct, frozen=True):
    """The turn is over and on record."""

    outcome: Outcome


Piece = Opened | Delta | Closed


class Marks:
    """How often each turn, known by its keyed hash, was met lately.  Bounded: the one not met for longest is forgotten."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._counts: OrderedDict[str, int] = OrderedDict()

    def add(self, mark: str) -> int:
        """Count a turn; returns how often it was counted before."""
        before = self._counts.pop(mark, 0)
        self._counts[mark] = before + 1
        if len(self._counts) > self._limit:
            self._counts.popitem(last=False)
        return before

    def count(self, mark: str) -> int:
        return self._counts.get(mark, 0)


@dataclass(frozen=True, slots=True)
class House:
    """Everything a turn works with.  Built once, in `gateway/main.py`."""

    panel: Panel
    policy: PolicyHolder
    backend: ChatBackend
    recorder: Recorder
    clock: Clock
    observer: Observer
    persona: str
    holdback: Rules = field(default_factory=Rules)
    speeches: Speeches = field(default_factory=Speeches)
    raised: Marks = field(default_factory=Marks)
    """Crises that people were told of; one that is forgotten only tells them twice."""
    stops: Marks = field(default_factory=Marks)
    """Turns whose answer was stopped: asking again until one passes ends at `MAX_STOPS`."""
    silence_s: float = 60.0
    """Longest wait for the backend's next word; then it counts as failed."""


@dataclass(slots=True)
class Progress:
    """How far the turn has come: what a client that leaves at any moment leaves behind."""

    heard: Heard | None = None
    decision: Decision | None = None
    kept: Kept | None = None
    """What the conversation carries after this turn; None until that is known."""
    mark: str = ""
    """Keyed hash of this turn: the same turn sent again has the same."""
    speech: Speculation | None = None
    incident_id: str | None = None
    resources: tuple[Resource, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage | None = None
    opened: bool = False
    cared: bool = False
    delivered_chars: int = 0
    generated_chunks: int = 0
    backend_error: str | None = None
    detectors: dict[str, DetectorState] = field(default_factory=dict)
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One turn under way: the house, the request, the policy that holds for all of it, and how far it is."""

    house: House
    turn: Turn
    policy: Policy
    seen: TurnView
    progress: Progress = field(default_factory=Progress)

    @property
    def heard(self) -> Heard:
        """What was heard; before that, nothing was, and that is not calm."""
        return self.progress.heard or UNHEARD

    @property
    def decision(self) -> Decision:
        if self.progress.decision is None:
            raise AssertionError("nothing is said before the policy has decided")
        return self.progress.decision
