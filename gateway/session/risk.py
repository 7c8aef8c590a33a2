"""What a conversation carries from turn to turn.  Pure: no I/O, no clock.

A crisis is not a property of one message.  A disclosure followed by "never mind, I'm fine" is still
a disclosure, so a quieter turn never lowers the level by itself (retraction never lowers: VERA-MH
rubric, DESIGN section 4).  A level is held for a few quiet turns, or some hours, and then falls by
one; nothing locks a conversation for ever.  Weak signals add up: three S1 turns make an S2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

HOLD_TURNS: Final = (0, 1, 2, 3, 3)
"""Quiet turns for which a level (index) is held before it falls by one."""
HOLD_S: Final = 12 * 3600.0
"""Seconds without any turn after which a level falls by one."""
WEAK_SIGNALS_TO_RAISE: Final = 3
MAX_LEVEL: Final = 4


class Risk(msgspec.Struct, frozen=True):
    """Risk state of one conversation, between turns."""

    level: int = 0
    """Level (0-4) that the conversation still carries."""
    peak: int = 0
    """Highest level ever reached; never falls."""
    quiet_turns: int = 0
    """Turns below ``level`` since it was last reached or last fell."""
    weak_signals: int = 0
    """S1 turns since the last raise or release."""
    answered: int = 0
    """Highest level whose reviewed wording the person has received since the level last rose."""
    categories: tuple[str, ...] = ()
    """Crisis categories that brought the level."""
    updated_at_s: float = 0.0
    """When the last turn was folded in, seconds since the epoch; 0 for never."""
    mark: str = ""
    """Keyed hash of the turn that was folded in last: the same turn sent again is not another turn."""


class TurnSignal(msgspec.Struct, frozen=True):
    """What one turn of the person showed."""

    severity: int
    categories: tuple[str, ...] = ()


def carried(risk: Risk, now_s: float) -> Risk:
    """The state as it stands at ``now_s``, before the next turn: decayed by the time that passed.

    A clock that went back counts as no time passed.
    """
    if risk.level == 0 or risk.updated_at_s <= 0.0:
        return risk
    steps = int(max(0.0, now_s - risk.updated_at_s) // HOLD_S)
    return _lower(risk, steps) if steps else risk


def fold(risk: Risk, turn: TurnSignal, now_s: float) -> Risk:
    """Fold one turn into the state."""
    if not 0 <= turn.severity <= MAX_LEVEL:
        raise ValueError("severity is outside 0-4")
    before = carried(risk, now_s)
    weak = before.weak_signals + (turn.severity == 1)
    severity = 2 if turn.severity == 1 and weak >= WEAK_SIGNALS_TO_RAISE else turn.severity
    if severity >= before.level and severity > 0:
        after = _reached(before, severity, turn.categories, weak)
    elif before.level > 0:
        after = _quiet(before, weak)
    else:
        after = before
    return msgspec.structs.replace(after, updated_at_s=max(now_s, risk.updated_at_s))


def fold_all(turns: Iterable[TurnSignal], now_s: float, start: Risk = Risk()) -> Risk:  # noqa: B008 - frozen
    """Fold turns in order, as for a history that a client sends whole."""
    risk = start
    for turn in turns:
        risk = fold(risk, turn, now_s)
    return risk


def strictest(one: Risk, other: Risk) -> Risk:
    """The more careful of two states of the same conversation (what we stored, what the client's history shows)."""
    lead, second = (one, other) if (one.level, one.answered) >= (other.level, other.answered) else (other, one)
    return msgspec.structs.replace(
        lead,
        peak=max(one.peak, other.peak),
        weak_signals=max(one.weak_signals, other.weak_signals),
        categories=lead.categories or second.categories,
    )


def answered(risk: Risk, level: int) -> Risk:
    """The person has received the reviewed wording of ``level``."""
    return msgspec.structs.replace(risk, answered=max(risk.answered, level))


def _reached(risk: Risk, severity: int, categories: tuple[str, ...], weak: int) -> Risk:
    rose = severity > risk.level
    return msgspec.structs.replace(
        risk,
        level=severity,
        peak=max(risk.peak, severity),
        quiet_turns=0,
        weak_signals=0 if severity > 1 else weak,
        answered=0 if rose else risk.answered,
        categories=categories or risk.categories,
    )


def _quiet(risk: Risk, weak: int) -> Risk:
    quiet = risk.quiet_turns + 1
    held = msgspec.structs.replace(risk, quiet_turns=quiet, weak_signals=weak)
    return held if quiet <= HOLD_TURNS[risk.level] else _lower(held, 1)


def _lower(risk: Risk, steps: int) -> Risk:
    level = max(0, risk.level - steps)
    return msgspec.structs.replace(
        risk,
        level=level,
        quiet_turns=0,
        weak_signals=0 if level == 0 else risk.weak_signals,
        answered=min(risk.answered, level),
        categories=risk.categories if level else (),
    )
