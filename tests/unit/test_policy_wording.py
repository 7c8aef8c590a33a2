"""Rendering: places of the right region, at most three, never stale, never a guessed country."""

from __future__ import annotations

from datetime import date

import msgspec
import pytest

from gateway.policy.decision import Decision, Facts
from gateway.policy.engine import decide
from gateway.policy.loader import default_policy_path, load_policy
from gateway.policy.schema import Policy
from gateway.policy.wording import emergency, guidance, region_key, render, stale

TODAY = date(2026, 11, 25)
LATER = date(2027, 12, 1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(default_policy_path())


def at(policy: Policy, severity: int, *categories: str, trusted_to: int = 0) -> Decision:
    facts = Facts(
        stage="input", mode="assistant", severity=severity, categories=categories or ("suicide",), trusted_to=trusted_to
    )
    return decide(policy, facts)


@pytest.mark.parametrize(
    ("region", "key"),
    [
        ("US", "US"),
        ("us", "US"),
        (" us-ca ", "US"),
        ("en-GB", "GB"),
        ("en_us", "US"),
        ("de-AT", "EU"),
        ("zh-Hans-CN", "unknown"),
        ("gbr", "GB"),
        ("UK", "GB"),
        ("GB", "GB"),
        ("IE", "IE"),
        ("FR", "FR"),
        ("PT", "EU"),
        ("EL", "EU"),
        ("EU", "EU"),
        ("CH", "unknown"),
        ("BR", "unknown"),
        ("", "unknown"),
        ("unknown", "unknown"),
        ("🙂", "unknown"),
    ],
)
def test_region(policy: Policy, region: str, key: str) -> None:
    assert region_key(policy, region) == key


def test_an_unknown_region_names_no_single_country(policy: Policy) -> None:
    care = render(policy, at(policy, 4), "BR", today=TODAY)
    assert care.text.startswith("Please call your local emergency number (112 works in many countries, 911 in North")
    assert [r.kind for r in care.resources] == ["emergency", "directory", "directory"]
    assert {r.region for r in care.resources} == {"unknown"}
    assert "988" not in care.text


@pytest.mark.parametrize(
    ("severity", "kinds"),
    [
        (1, ["crisis_line", "text_line"]),
        (2, ["crisis_line", "text_line", "emergency"]),
        (3, ["crisis_line", "emergency", "text_line"]),
        (4, ["emergency", "crisis_line", "text_line"]),
    ],
)
def test_order_by_level(policy: Policy, severity: int, kinds: list[str]) -> None:
    assert [r.kind for r in render(policy, at(policy, severity), "GB", today=TODAY).resources] == kinds


@pytest.mark.parametrize(
    ("region", "category", "severity", "names"),
    [
        ("US", "substance_overdose", 4, ["Emergency services", "Poison Help", "988 Suicide & Crisis Lifeline"]),
        ("US", "perinatal", 1, ["National Maternal Mental Health Hotline", "988 Suicide & Crisis Lifeline"]),
        (
            "US",
            "substance_overdose",
            1,
            ["SAMHSA National Helpline (alcohol and drugs)", "988 Suicide & Crisis Lifeline"],
        ),
        ("IE", "abuse_victim", 3, ["Women's Aid", "Emergency services", "Samaritans"]),
        ("AU", "medical_emergency", 3, ["Emergency services", "Lifeline", "Lifeline Text"]),
    ],
)
def test_topic_lines(policy: Policy, region: str, category: str, severity: int, names: list[str]) -> None:
    assert [r.name for r in render(policy, at(policy, severity, category), region, today=TODAY).resources] == names


def test_abuse_shows_no_text_line(policy: Policy) -> None:
    for severity in (1, 2, 3, 4):
        care = render(policy, at(policy, severity, "abuse_victim"), "GB", today=TODAY)
        assert "text_line" not in {r.kind for r in care.resources}


def test_what_the_sentences_name_is_not_listed_again(policy: Policy) -> None:
    text = render(policy, at(policy, 4), "US", today=TODAY).text
    assert text.startswith("Please call 911 now.")
    assert text.count("911") == 1
    assert "- 988 Suicide & Crisis Lifeline: call or text 988" in text


def test_later_mentions_of_the_emergency_number_are_short(policy: Policy) -> None:
    text = render(policy, at(policy, 3, "harm_to_others"), "ZZ", today=TODAY).text
    assert text.count("(112 works") == 1


@pytest.mark.parametrize("region", ["US", "GB", "EU", "FR", "unknown"])
@pytest.mark.parametrize("severity", [1, 2, 3, 4])
def test_stale_entries_fall_back(policy: Policy, region: str, severity: int) -> None:
    care = render(policy, at(policy, severity), region, today=LATER)
    assert care.resources[0].kind == "emergency"
    assert {r.kind for r in care.resources[1:]} == {"directory"}
    assert "findahelpline.com" in care.text
    assert len(care.resources) <= 3


def test_one_stale_entry_leaves_the_others(policy: Policy) -> None:
    lines = policy.rules.resources["NZ"]
    old = tuple(
        msgspec.structs.replace(e, expires_at=date(2026, 11, 24)) if e.contact == "call or text 1737" else e
        for e in lines
    )
    rules = msgspec.structs.replace(policy.rules, resources={**policy.rules.resources, "NZ": old})
    mended = msgspec.structs.replace(policy, rules=rules)
    text = render(mended, at(policy, 3), "NZ", today=TODAY).text
    assert "1737" not in text
    assert "Lifeline Aotearoa" in text
    assert stale(mended, TODAY) == ("NZ: 1737 Need to talk?",)


def test_an_entry_is_shown_up_to_and_on_its_last_day(policy: Policy) -> None:
    last = policy.rules.resources["US"][1].expires_at
    assert stale(policy, last) == ()
    assert "988" in render(policy, at(policy, 1), "US", today=last).text


def test_a_wording_that_is_missing_is_answered_from_code(policy: Policy) -> None:
    decision = msgspec.structs.replace(at(policy, 4), wording="gone")
    text = render(policy, decision, "AU", today=TODAY).text
    assert text.startswith("Please call 000 now")
    assert "13 11 14" in text
    assert "{" not in text


def test_a_wording_without_a_place_for_them_gets_resources_at_the_end(policy: Policy) -> None:
    decision = msgspec.structs.replace(at(policy, 1), wording="output_diagnosis")
    assert render(policy, decision, "IE", today=TODAY).text.endswith("- Text About It: text HELLO to 50808 (any time)")


def test_no_resources_when_the_decision_shows_none(policy: Policy) -> None:
    decision = decide(policy, Facts(stage="output", mode="assistant", output_harms=("human_claim",)))
    care = render(policy, decision, "US", today=TODAY)
    assert care.resources == ()
    assert "{" not in care.text


def test_when_the_model_speaks_there_is_no_text_but_the_places_are_given(policy: Policy) -> None:
    care = render(policy, at(policy, 1, trusted_to=2), "US", today=TODAY)
    assert care.text == ""
    assert care.resources[0].contact.startswith("call or text 988")


def test_guidance_gives_the_model_the_numbers_word_for_word(policy: Policy) -> None:
    text = guidance(policy, at(policy, 2, trusted_to=2), "IE", today=TODAY)
    assert text is not None
    assert "Samaritans: 116 123" in text
    assert "safety plan" in text
    assert "{" not in text
    assert guidance(policy, at(policy, 2), "IE", today=TODAY) is None


def test_the_emergency_number_of_a_policy_without_the_region_is_not_a_guess(policy: Policy) -> None:
    bare = msgspec.structs.replace(policy, rules=msgspec.structs.replace(policy.rules, resources={}))
    assert emergency(bare, "US").startswith("your local emergency number")
    text = render(bare, at(policy, 4), "US", today=TODAY).text
    assert text.startswith("Please call your local emergency number")
