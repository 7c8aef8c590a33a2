"""What the policy is told of a reply: a flag never gets lost for want of a name."""

from __future__ import annotations

import pytest

from backends.api import BackendInfo, Sampling
from detectors.api import Line
from detectors.fusion import Flags, Reading
from gateway.pipeline import facts
from gateway.pipeline.listen import Heard
from gateway.pipeline.state import Decision, Turn

TURN = Turn("r", "app", "assistant", "m", (Line("user", "hello"),), Sampling())
BACKEND = BackendInfo("scripted", "m", 100)
ASKED = Decision("allow", "input", "assistant", 0, (), (), "v")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (Flags(), ()),
        (Flags(flagged=True, labels=("secrecy",)), ("secrecy",)),
        (Flags(flagged=True, scores={"secrecy": 0.2, "diagnosis": 0.4}), ("diagnosis",)),
        (Flags(flagged=True), ("unnamed",)),
        (Flags(scores={"secrecy": 0.9}), ()),
    ],
)
def test_a_flagged_reply_always_has_a_name(flags: Flags, named: tuple[str, ...]) -> None:
    known = facts.of_output(TURN, ASKED, Heard(Reading(), ()), Reading(output=flags), BACKEND)
    assert known.output_harms == named
    assert facts.of_output(TURN, ASKED, Heard(Reading(), ()), Reading(bias=flags), BACKEND).bias_axes == named
