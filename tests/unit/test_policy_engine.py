"""`decide` on the shipped policy: who speaks, what is said, who is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from detectors.api import BIAS_AXES, OUTPUT_HARMS
from gateway.policy.decision import Decision, Escalation, Facts, Mode
from gateway.policy.engine import FLOOR, decide, effective_severity, lead_category, strictest
from gateway.policy.loader import default_policy_path, load_policy
from gateway.policy.schema import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(default_policy_path())


def ask(policy: Policy, stage: str = "input", mode: Mode = "assistant", **facts: Any) -> Decision:
    return decide(policy, msgspec.convert({"stage": stage, "mode": mode, **facts}, Facts))


def test_it_is_pure(policy: Policy) -> None:
    facts = Facts(stage="input", mode="assistant", severity=3, categories=("suicide",))
    assert decide(policy, facts) == decide(policy, facts)
    assert decide(policy, facts).policy_version == policy.version


def test_severity_is_the_higher_of_turn_and_conversation() -> None:
    assert effective_severity(Facts(stage="input", mode="assistant", severity=1, carried=3)) == 3
    assert effective_severity(Facts(stage="input", mode="assistant", severity=3, carried=1)) == 3


def test_a_severity_out_of_range_is_met_at_the_nearest_level(policy: Policy) -> None:
    assert ask(policy, severity=9).severity == 4
    assert ask(policy, severity=-1).severity == 0


@pytest.mark.parametrize("mode", ["assistant", "therapeutic"])
def test_nothing_found_is_left_alone(policy: Policy, mode: Mode) -> None:
    decision = ask(policy, mode=mode)
    assert decision == Decision(
        action="allow",
        stage="input",
        mode=mode,
        severity=0,
        categories=(),
        reasons=("level.S0",),
        policy_version=policy.version,
    )


@pytest.mark.parametrize("severity", [1, 2])
@pytest.mark.parametrize("trusted_to", [0, 1, 2, 3, 4])
def test_a_model_speaks_at_s1_and_s2_only_when_trusted_there(policy: Policy, severity: int, trusted_to: int) -> None:
    decision = ask(policy, severity=severity, categories=("suicide",), trusted_to=trusted_to)
    assert decision.model_may_speak == (severity <= trusted_to)
    assert (decision.guidance is not None) == decision.model_may_speak
    assert (decision.wording is None) == decision.model_may_speak
    assert decision.show_resources
    assert decision.escalation == FLOOR[severity]


@pytest.mark.parametrize("severity", [1, 2])
def test_nothing_enters_an_exercise_below_s3(policy: Policy, severity: int) -> None:
    decision = ask(policy, mode="therapeutic", severity=severity, categories=("suicide",))
    assert decision.action == "allow"
    assert decision.guidance is None
    assert decision.wording is None
    assert not decision.show_resources
    assert decision.disclose_to_panel
    assert decision.escalation == FLOOR[severity]


@pytest.mark.parametrize(
    ("severity", "carried", "wording"),
    [(0, 1, "s1_follow_up"), (1, 1, "s1_follow_up"), (0, 3, "s3_follow_up"), (3, 3, "s3"), (4, 4, "s4")],
)
def test_follow_up_wording(policy: Policy, severity: int, carried: int, wording: str) -> None:
    decision = ask(policy, severity=severity, carried=carried, categories=("suicide",), first_at_level=False)
    assert decision.wording == wording


@pytest.mark.parametrize(
    ("categories", "subject", "severity", "lead"),
    [
        ((), "self", 2, None),
        (("suicide",), "self", 2, None),
        (("self_harm", "suicide"), "self", 2, None),
        (("perinatal", "eating_disorder"), "self", 2, "perinatal"),
        (("suicide", "substance_overdose"), "self", 2, None),
        (("suicide", "substance_overdose"), "self", 4, "substance_overdose"),
        (("substance_overdose", "medical_emergency"), "self", 3, "medical_emergency"),
        (("suicide",), "other", 4, "worried_about_other"),
        (("suicide", "worried_about_other"), "none", 1, "worried_about_other"),
        (("worried_about_other", "suicide"), "self", 1, None),
        (("worried_about_other",), "self", 1, None),
        (("harm_to_others",), "other", 3, "harm_to_others"),
        (("abuse_victim",), "victim", 3, "abuse_victim"),
        (("new_label",), "self", 2, None),
    ],
)
def test_lead_category(categories: tuple[str, ...], subject: str, severity: int, lead: str | None) -> None:
    facts = msgspec.convert(
        {"stage": "input", "mode": "assistant", "categories": categories, "subject": subject}, Facts
    )
    assert lead_category(facts, severity) == lead


@pytest.mark.parametrize("harm", [*OUTPUT_HARMS, "unheard_of"])
@pytest.mark.parametrize("mode", ["assistant", "therapeutic"])
@pytest.mark.parametrize("severity", [0, 1, 2, 3, 4])
def test_a_harmful_reply_never_passes(policy: Policy, harm: str, mode: Mode, severity: int) -> None:
    decision = ask(policy, "output", mode, severity=severity, output_harms=(harm,), trusted_to=4)
    assert decision.action == "replace"
    assert decision.wording in policy.rules.wording
    assert decision.escalation is not None
    assert decision.escalation.route == ("queue", "page", "page_two")[max(0, severity - 2)]
    assert f"output.{harm}" in decision.reasons


@pytest.mark.parametrize("axis", [*BIAS_AXES, "unheard_of"])
@pytest.mark.parametrize("mode", ["assistant", "therapeutic"])
def test_a_biased_reply_never_passes(policy: Policy, axis: str, mode: Mode) -> None:
    decision = ask(policy, "output", mode, bias_axes=(axis,))
    assert decision.action == "replace"
    assert decision.escalation is not None


def test_bias_in_what_a_person_writes_is_not_answered_with_a_stop(policy: Policy) -> None:
    assert ask(policy, bias_axes=("religion",)).action == "allow"


@pytest.mark.parametrize("mode", ["assistant", "therapeutic"])
def test_harmful_instructions_are_refused_with_an_explanation(policy: Policy, mode: Mode) -> None:
    decision = ask(policy, mode=mode, output_harms=("encouragement",), trusted_to=4)
    assert (decision.action, decision.wording) == ("refuse", "refuse_instructions")


def test_harmful_instructions_leave_a_person_at_s2_with_care(policy: Policy) -> None:
    decision = ask(policy, severity=2, categories=("suicide",), output_harms=("encouragement",))
    assert (decision.action, decision.wording) == ("replace", "s2")


@pytest.mark.parametrize("task", ["crisis", "output", "bias", "unheard_of"])
@pytest.mark.parametrize("stage", ["input", "output"])
@pytest.mark.parametrize("mode", ["assistant", "therapeutic"])
@pytest.mark.parametrize("severity", [0, 1, 2, 3, 4])
def test_what_was_not_judged_never_passes(policy: Policy, task: str, stage: str, mode: Mode, severity: int) -> None:
    decision = ask(policy, stage, mode, severity=severity, unavailable=(task,), trusted_to=4)
    assert decision.action == "replace"
    assert f"unavailable.{task}" in decision.reasons


def test_an_unjudged_message_raises_the_level(policy: Policy) -> None:
    assert ask(policy, unavailable=("crisis",)).severity == 1
    assert ask(policy, carried=2, unavailable=("crisis",)).severity == 2
    assert ask(policy, "output", unavailable=("output",)).severity == 0


@pytest.mark.parametrize("subject", ["fictional", "academic"])
def test_a_cover_that_slipped(policy: Policy, subject: str) -> None:
    slipped = ask(policy, severity=1, subject=subject, categories=("harm_to_others",), trusted_to=2)
    assert (slipped.action, slipped.wording, slipped.show_resources) == ("refuse", "refuse_cover", True)
    assert ask(policy, severity=0, subject=subject).action == "allow"
    assert ask(policy, severity=0, carried=1, subject=subject, trusted_to=2).action == "guide"
    assert ask(policy, severity=3, subject=subject, categories=("suicide",)).wording == "s3"
    assert ask(policy, mode="therapeutic", severity=2, subject=subject).action == "allow"


@pytest.mark.parametrize(("severity", "wording"), [(0, "backend_down"), (2, "backend_down_care"), (3, "s3"), (4, "s4")])
def test_a_failed_backend(policy: Policy, severity: int, wording: str) -> None:
    decision = ask(policy, "backend", severity=severity, trusted_to=4)
    assert (decision.action, decision.wording, decision.show_resources) == ("replace", wording, True)
    assert decision.escalation == FLOOR[severity]


def test_a_clean_reply_does_not_tell_people_a_second_time(policy: Policy) -> None:
    decision = ask(policy, "output", severity=2, categories=("suicide",), trusted_to=2)
    assert (decision.action, decision.escalation, decision.guidance) == ("allow", None, None)


def test_strictest_takes_the_higher_route_and_the_shorter_clock() -> None:
    assert strictest(None, None) is None
    assert strictest(Escalation("queue", 60), None) == Escalation("queue", 60)
    assert strictest(Escalation("queue", 60), Escalation("page", 300)) == Escalation("page", 60)
