"""The conversation's risk: raised at once, lowered slowly, never locked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.session.risk import (
    HOLD_S,
    HOLD_TURNS,
    Risk,
    TurnSignal,
    answered,
    carried,
    fold,
    fold_all,
    strictest,
)

NOW_S = 1_700_000_000.0
signals = st.builds(TurnSignal, severity=st.integers(0, 4), categories=st.just(("suicide",)))


def quiet(risk: Risk, turns: int) -> Risk:
    return fold_all([TurnSignal(0)] * turns, NOW_S, risk)


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
def test_a_turn_raises_the_level_at_once(severity: int) -> None:
    risk = fold(Risk(), TurnSignal(severity, ("suicide",)), NOW_S)
    assert (risk.level, risk.peak, risk.categories) == (severity, severity, ("suicide",))


@pytest.mark.parametrize("severity", [2, 3, 4])
def test_a_retraction_does_not_lower_the_level(severity: int) -> None:
    disclosed = fold(Risk(), TurnSignal(severity, ("suicide",)), NOW_S)
    assert quiet(disclosed, 1).level == severity
    assert fold(disclosed, TurnSignal(1), NOW_S).level == severity


@given(st.integers(1, 4))
def test_quiet_turns_release_every_level_in_bounded_time(severity: int) -> None:
    disclosed = fold(Risk(), TurnSignal(severity, ("suicide",)), NOW_S)
    released = quiet(disclosed, sum(hold + 1 for hold in HOLD_TURNS[1 : severity + 1]))
    assert released.level == 0
    assert released.peak == severity
    assert released.categories == ()


def test_one_level_is_lost_for_each_quiet_half_day() -> None:
    risk = fold(Risk(), TurnSignal(4, ("suicide",)), NOW_S)
    assert carried(risk, NOW_S + HOLD_S - 1).level == 4
    assert carried(risk, NOW_S + HOLD_S).level == 3
    assert carried(risk, NOW_S + 9 * HOLD_S).level == 0


def test_a_clock_that_goes_back_lowers_nothing() -> None:
    risk = fold(Risk(), TurnSignal(3), NOW_S)
    assert carried(risk, NOW_S - 10 * HOLD_S) == risk
    assert fold(risk, TurnSignal(0), NOW_S - HOLD_S).updated_at_s == NOW_S


def test_weak_signals_add_up() -> None:
    risk = fold_all([TurnSignal(1), TurnSignal(1)], NOW_S)
    assert risk.level == 1
    assert fold(risk, TurnSignal(1), NOW_S).level == 2


def test_wording_is_forgotten_when_the_level_rises() -> None:
    risk = answered(fold(Risk(), TurnSignal(2), NOW_S), 2)
    assert fold(risk, TurnSignal(2), NOW_S).answered == 2
    assert fold(risk, TurnSignal(4), NOW_S).answered == 0


def test_severity_outside_the_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="outside 0-4"):
        fold(Risk(), TurnSignal(5), NOW_S)


@given(st.lists(signals, max_size=30), signals)
def test_the_level_never_stands_below_the_newest_turn(history: list[TurnSignal], newest: TurnSignal) -> None:
    risk = fold(fold_all(history, NOW_S), newest, NOW_S)
    assert newest.severity <= risk.level <= 4
    assert risk.peak >= risk.level
    assert risk.answered <= risk.level


@given(st.lists(signals, max_size=20), st.lists(signals, max_size=20))
def test_the_strictest_of_two_views_is_at_least_both(one: list[TurnSignal], other: list[TurnSignal]) -> None:
    first, second = fold_all(one, NOW_S), fold_all(other, NOW_S)
    joined = strictest(first, second)
    assert joined.level == max(first.level, second.level)
    assert joined.peak == max(first.peak, second.peak)
    assert (joined.level == 0) or joined.categories
