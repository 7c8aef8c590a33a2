"""Judge what the person wrote: every one of their messages, each in its context.

What they wrote since the last answer is this turn, however many messages it is.  A client sends the
conversation whole, so earlier messages may never have been seen here; each is judged (a verdict once
given is cached by the panel) and folded into the conversation's risk.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from detectors.api import Line, Passage
from detectors.fusion import DetectorState, Reading
from detectors.panel import Panel
from gateway.pipeline.state import Turn
from gateway.session.risk import TurnSignal

CONTEXT_LINES: Final = 3
CONTEXT_CHARS: Final = 2_000
HISTORY_WITHIN_S: Final = 6.0
"""All earlier messages together; this turn's own messages have the panel's deadline each, and come first."""
UNREAD: Final = TurnSignal(1)
"""An earlier message that could not be judged: a weak sign.  It raises, and like every sign it is released in time."""
_INSTRUCTION_HARMS: Final = frozenset({"method_information", "encouragement", "secrecy"})
_TRANSCRIPT_FROM: Final = 3
"""From this severity up a crisis inside an application's system message is taken for a person's."""
_ENDED: Final = (".", "!", "?", "…", "。", "！", "？", ":", ")", '"', "”")
_STATE_ORDER: Final[tuple[DetectorState, ...]] = ("cached", "skipped", "ran", "unavailable")


class Heard(msgspec.Struct, frozen=True):
    """What the panel heard in one turn."""

    last: Reading
    """The message of this turn that counts: the most severe, or the newest."""
    lead: int
    """Its index in the turn's lines; where only earlier messages speak, the index of the most severe of those."""
    earlier: tuple[TurnSignal, ...] = ()
    """Their earlier messages, oldest first."""
    instruction_harms: tuple[str, ...] = ()
    """Harms that the application's own system messages or stop strings ask the model for."""
    unfit: frozenset[int] = frozenset()
    """Indices of earlier answers, as the client sent them, that a model must not read as its own words."""
    unavailable: tuple[str, ...] = ()
    """Tasks that no verdict covers, over this turn's messages and the instructions."""
    detectors: dict[str, DetectorState] = {}

    @property
    def signal(self) -> TurnSignal:
        return TurnSignal(self.last.crisis.severity, self.last.crisis.categories)

    @property
    def speaks_up(self) -> bool:
        """This turn itself, not only what came before it, calls for attention."""
        return bool(self.last.crisis.severity or self.instruction_harms or self.unavailable)

    @property
    def alarmed(self) -> bool:
        """Anything at all that speaks against starting the model."""
        return self.speaks_up or any(signal.severity for signal in self.earlier)


async def listen(panel: Panel, turn: Turn, *, only_cheap: bool = False) -> Heard:
    """Judge this turn's messages first, then the application's instructions and the earlier messages."""
    now = _this_turn(turn.lines)
    fresh = {index: await panel.read(_passage(turn.lines, index), only_cheap=only_cheap) for index in now}
    asked = await _instructions(panel, turn, only_cheap=only_cheap)
    old = await _history(panel, turn, before=now[0], only_cheap=only_cheap)

    lead = max(fresh, key=lambda index: (fresh[index].crisis.severity, index))
    worst = max(old, key=lambda index: _signal(old[index]).severity, default=lead)
    carried = worst != lead and fresh[lead].crisis.severity == 0 and _signal(old[worst]).severity > 0
    known = [reading for reading in old.values() if reading is not None]
    return Heard(
        last=fresh[lead],
        lead=worst if carried else lead,
        earlier=(*_transcripts(asked), *(_signal(reading) for reading in old.values())),
        instruction_harms=_instruction_harms(asked),
        unfit=await _unfit_answers(panel, turn),
        unavailable=_unavailable([*fresh.values(), *asked]),
        detectors=_worst_states([*fresh.values(), *asked, *known]),
    )


def reply_passage(turn: Turn, text: str) -> Passage:
    """A piece of the model's answer, in the context of the person's message."""
    return Passage(text=text, role="assistant", context=_context(turn.lines, len(turn.lines)))


def cut_off(turn: Turn, most_chars: int) -> str:
    """The end of the last answer, if it was cut off in mid-sentence: what is said now may go on with it.

    A client that asks for one token at a time would else have every piece judged alone.
    """
    last = next((line.text for line in reversed(turn.lines) if line.role == "assistant"), "")
    return "" if last.rstrip().endswith(_ENDED) else last[-most_chars:] if most_chars else ""


async def _instructions(panel: Panel, turn: Turn, *, only_cheap: bool) -> list[Reading]:
    """Read the application's system messages twice: as words a model might act on, and as words a person said.
    Its stop strings are read once: no model acts on them, but they leave the house.

    For the second the cheap detectors serve: they are sure of what they say, and an instruction that only
    speaks about crises must not look like one.
    """
    readings: list[Reading] = []
    for line in turn.lines:
        if line.role == "system":
            readings.append(await panel.read(Passage(text=line.text, role="assistant"), only_cheap=only_cheap))
            readings.append(await panel.read(Passage(text=line.text, role="user"), only_cheap=True))
    stops = [await panel.read(Passage(text=stop, role="assistant"), only_cheap=True) for stop in turn.sampling.stop]
    return readings + stops


async def _unfit_answers(panel: Panel, turn: Turn) -> frozenset[int]:
    """Earlier answers that would not have left this gateway.  The client wrote them here, whoever wrote them first.

    The cheap detectors serve: what was released window by window must not be found unfit as a whole.
    """
    unfit = set()
    for index, line in enumerate(turn.lines):
        if line.role == "assistant":
            reading = await panel.read(Passage(text=line.text, role="assistant"), only_cheap=True)
            if reading.output.flagged or "output" in reading.unavailable_tasks:
                unfit.add(index)
    return frozenset(unfit)


async def _history(panel: Panel, turn: Turn, *, before: int, only_cheap: bool) -> dict[int, Reading | None]:
    """Readings of the person's earlier messages, within one deadline; None for what it did not reach."""
    readings: dict[int, Reading | None] = {
        index: None for index, line in enumerate(turn.lines[:before]) if line.role == "user"
    }
    try:
        async with asyncio.timeout(HISTORY_WITHIN_S):
            for index in readings:
                readings[index] = await panel.read(_passage(turn.lines, index), only_cheap=only_cheap)
    except TimeoutError:
        return readings
    return readings


def _this_turn(lines: tuple[Line, ...]) -> list[int]:
    """Indices of the person's messages since the last answer.  The last line is always theirs."""
    answered = max((index for index, line in enumerate(lines) if line.role == "assistant"), default=-1)
    return [index for index, line in enumerate(lines) if index > answered and line.role == "user"]


def _passage(lines: tuple[Line, ...], index: int) -> Passage:
    return Passage(text=lines[index].text, role="user", context=_context(lines, index))


def _context(lines: tuple[Line, ...], before: int) -> tuple[Line, ...]:
    """The last few spoken lines before ``before``, each clipped to its end, oldest first."""
    spoken = [line for line in lines[:before] if line.role != "system"][-CONTEXT_LINES:]
    return tuple(Line(role=line.role, text=line.text[-CONTEXT_CHARS:]) for line in spoken)


def _signal(reading: Reading | None) -> TurnSignal:
    if reading is None:
        return UNREAD
    crisis = reading.crisis
    if crisis.severity == 0 and "crisis" in reading.unavailable_tasks:
        return UNREAD
    return TurnSignal(crisis.severity, crisis.categories)


def _transcripts(asked: list[Reading]) -> list[TurnSignal]:
    """Some applications put what a person said into the system message; a crisis there is a person's."""
    return [_signal(reading) for reading in asked if reading.crisis.severity >= _TRANSCRIPT_FROM]


def _instruction_harms(asked: list[Reading]) -> tuple[str, ...]:
    return tuple(sorted(_INSTRUCTION_HARMS.intersection(label for reading in asked for label in reading.output.labels)))


def _unavailable(readings: list[Reading]) -> tuple[str, ...]:
    return tuple(sorted({task for reading in readings for task in reading.unavailable_tasks}))


def _worst_states(readings: list[Reading]) -> dict[str, DetectorState]:
    worst: dict[str, DetectorState] = {}
    for reading in readings:
        for name, state in reading.detectors.items():
            worst[name] = max(worst.get(name, state), state, key=_STATE_ORDER.index)
    return worst
