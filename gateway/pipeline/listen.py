"""Judge what the person wrote: every one of their messages, each in its context.

A client sends the conversation whole, so earlier messages may never have been seen here; each is
judged (a verdict once given is cached by the panel) and folded into the conversation's risk.
"""

from __future__ import annotations

from typing import Final

import msgspec

from detectors.api import Line, Passage
from detectors.fusion import DetectorState, Reading
from detectors.panel import Panel
from gateway.pipeline.state import Turn
from gateway.session.risk import TurnSignal

CONTEXT_LINES: Final = 3
CONTEXT_CHARS: Final = 2_000
_INSTRUCTION_HARMS: Final = frozenset({"method_information", "encouragement", "secrecy"})
_STATE_ORDER: Final[tuple[DetectorState, ...]] = ("cached", "skipped", "ran", "unavailable")


class Heard(msgspec.Struct, frozen=True):
    """What the panel heard in one turn."""

    last: Reading
    """The person's newest message."""
    earlier: tuple[TurnSignal, ...]
    """Their earlier messages, oldest first."""
    instruction_harms: tuple[str, ...] = ()
    """Harms that the application's own system messages ask the model for."""
    unavailable: tuple[str, ...] = ()
    """Tasks that no verdict covers, over all messages."""
    detectors: dict[str, DetectorState] = {}

    @property
    def signal(self) -> TurnSignal:
        return TurnSignal(self.last.crisis.severity, self.last.crisis.categories)

    @property
    def speaks_up(self) -> bool:
        """This turn itself, not only what came before it, calls for attention."""
        return bool(self.last.crisis.severity or self.instruction_harms)

    @property
    def alarmed(self) -> bool:
        """Anything at all that speaks against starting the model."""
        return self.speaks_up or bool(self.unavailable) or any(signal.severity for signal in self.earlier)


async def listen(panel: Panel, turn: Turn, *, only_cheap: bool = False) -> Heard:
    """Judge the newest message first, then the earlier ones and the application's instructions."""
    last = await panel.read(_passage(turn.lines, len(turn.lines) - 1), only_cheap=only_cheap)
    readings = [last]
    earlier: list[TurnSignal] = []
    harms: set[str] = set()
    for index, line in enumerate(turn.lines[:-1]):
        if line.role == "assistant":
            continue
        reading = await panel.read(_passage(turn.lines, index), only_cheap=only_cheap)
        readings.append(reading)
        if line.role == "user":
            earlier.append(TurnSignal(reading.crisis.severity, reading.crisis.categories))
        else:
            harms.update(_INSTRUCTION_HARMS.intersection(reading.output.labels))
    return Heard(
        last=last,
        earlier=tuple(earlier),
        instruction_harms=tuple(sorted(harms)),
        unavailable=tuple(sorted({task for reading in readings for task in reading.unavailable_tasks})),
        detectors=_worst_states(readings),
    )


def reply_passage(turn: Turn, text: str) -> Passage:
    """A piece of the model's answer, in the context of the person's message."""
    return Passage(text=text, role="assistant", context=_context(turn.lines, len(turn.lines)))


def _passage(lines: tuple[Line, ...], index: int) -> Passage:
    line = lines[index]
    if line.role == "user":
        return Passage(text=line.text, role="user", context=_context(lines, index))
    # Instructions are read as if a model had said them: what they ask for must not come out of its mouth.
    return Passage(text=line.text, role="assistant")


def _context(lines: tuple[Line, ...], before: int) -> tuple[Line, ...]:
    """The last few spoken lines before ``before``, each clipped to its end, oldest first."""
    spoken = [line for line in lines[:before] if line.role != "system"][-CONTEXT_LINES:]
    return tuple(Line(role=line.role, text=line.text[-CONTEXT_CHARS:]) for line in spoken)


def _worst_states(readings: list[Reading]) -> dict[str, DetectorState]:
    worst: dict[str, DetectorState] = {}
    for reading in readings:
        for name, state in reading.detectors.items():
            worst[name] = max(worst.get(name, state), state, key=_STATE_ORDER.index)
    return worst
