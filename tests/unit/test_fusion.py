"""Fusion keeps the most careful voice, and never reads silence as calm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from detectors.api import CATEGORIES, Judgement, Signal, Span
from detectors.fusion import Reading, fuse


def test_nobody_spoke() -> None:
    assert fuse({}, {}) == Reading()


def test_the_highest_severity_leads_and_gives_subject_and_time() -> None:
    reading = fuse(
        {
            "a": Judgement((Signal("crisis:suicide", 0.9, True, 2),), subject="self", time="past"),
            "b": Judgement(
                (Signal("crisis:abuse_victim", 0.6, True, 4),), subject="victim", imminence="now", time="ongoing"
            ),
        },
        {"a": "ran", "b": "ran"},
    )
    assert reading.crisis.severity == 4
    assert (reading.crisis.subject, reading.crisis.time, reading.crisis.imminence) == ("victim", "ongoing", "now")
    assert reading.crisis.categories == ("suicide", "abuse_victim")


def test_an_unflagged_score_raises_nothing_but_is_kept() -> None:
    reading = fuse({"a": Judgement((Signal("crisis:suicide", 0.4, False, 3), Signal("crisis", 0.3)))}, {"a": "ran"})
    assert reading.crisis.severity == 0
    assert reading.crisis.categories == ()
    assert reading.crisis.scores == {"suicide": 0.4}
    assert reading.crisis.score == 0.3
    assert reading.crisis.imminence == "none"


def test_a_severity_always_has_a_category() -> None:
    assert fuse({"a": Judgement((Signal("crisis", 0.9, True, 2),))}, {}).crisis.categories == ("suicide",)
    both = Judgement((Signal("crisis", 0.9, True, 2), Signal("crisis:perinatal", 0.4), Signal("crisis:suicide", 0.1)))
    assert fuse({"a": both}, {}).crisis.categories == ("perinatal",)


def test_one_detector_cannot_clear_what_another_raised() -> None:
    loud = Judgement((Signal("output:secrecy", 0.9, True, spans=(Span(0, 4),)), Signal("output", 0.9, True)))
    calm = Judgement((Signal("output:secrecy", 0.01), Signal("output", 0.01)))
    for order in ({"a": loud, "b": calm}, {"b": calm, "a": loud}):
        reading = fuse(order, {})
        assert reading.output.flagged
        assert reading.output.labels == ("secrecy",)
        assert reading.output.score == 0.9


def test_states_and_silent_tasks_are_carried() -> None:
    reading = fuse({}, {"a": "unavailable", "b": "skipped"}, ("crisis",))
    assert reading.detectors == {"a": "unavailable", "b": "skipped"}
    assert reading.unavailable_tasks == ("crisis",)


_SIGNALS = st.builds(
    Signal,
    label=st.sampled_from(
        ["crisis", "output", "bias", "bias:age", "output:secrecy", *(f"crisis:{c}" for c in CATEGORIES)]
    ),
    score=st.floats(0, 1),
    flagged=st.booleans(),
    severity=st.integers(0, 4),
)
_JUDGEMENTS = st.dictionaries(
    st.sampled_from("abcd"), st.builds(Judgement, signals=st.lists(_SIGNALS, max_size=4).map(tuple)), max_size=4
)


@given(_JUDGEMENTS, st.builds(Judgement, signals=st.lists(_SIGNALS, max_size=4).map(tuple)))
def test_one_more_voice_never_lowers_a_reading(judgements: dict[str, Judgement], more: Judgement) -> None:
    before, after = fuse(judgements, {}), fuse({**judgements, "more": more}, {})
    assert after.crisis.severity >= before.crisis.severity
    assert after.crisis.score >= before.crisis.score
    assert after.output.flagged >= before.output.flagged
    assert after.bias.score >= before.bias.score
    assert set(after.output.labels) >= set(before.output.labels)
    assert bool(after.crisis.categories) == (after.crisis.severity > 0)
