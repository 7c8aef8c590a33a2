"""The safety floor and the words: what must hold for every policy, every level, every category.

The floor tests do not trust the shipped files: they take policies apart, put other rules in, hand them
to `decide` directly (as if the loader had let them through), and the floor must still hold.
"""

from __future__ import annotations

import copy
import re
import statistics
import tomllib
from datetime import UTC, date, datetime
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS, Imminence, Subject
from gateway.policy.decision import ROUTE_ORDER, Action, Decision, Facts, Mode, Route, Stage
from gateway.policy.engine import SCRIPT_FROM, decide, effective_severity
from gateway.policy.loader import PolicyError, build_policy, check, default_policy_path, load_policy
from gateway.policy.schema import (
    MODES,
    REQUIRED_REGIONS,
    Document,
    Level,
    Levels,
    Modes,
    OutputRules,
    Override,
    Policy,
    Stop,
    StopRules,
    TaskRules,
    UnavailableRules,
    resolve,
    stops_of,
)
from gateway.policy.wording import LAST_RESORT_TEXT, guidance, render

SHIPPED = load_policy(default_policy_path())
TODAY = date(2026, 11, 25)
ROUTES = get_args(Route)
LEAST = {1: ("digest", 86_400), 2: ("queue", 14_400), 3: ("page", 300), 4: ("page_two", 120)}

labels = st.sampled_from([*CATEGORIES, "a_new_label"])
facts = st.builds(
    Facts,
    stage=st.sampled_from(get_args(Stage)),
    mode=st.sampled_from(MODES),
    severity=st.integers(0, 4),
    carried=st.integers(0, 4),
    categories=st.lists(labels, unique=True, max_size=4).map(tuple),
    subject=st.sampled_from(get_args(Subject)),
    imminence=st.sampled_from(get_args(Imminence)),
    output_harms=st.lists(st.sampled_from([*OUTPUT_HARMS, "a_new_harm"]), unique=True, max_size=2).map(tuple),
    bias_axes=st.lists(st.sampled_from([*BIAS_AXES, "a_new_axis"]), unique=True, max_size=2).map(tuple),
    unavailable=st.lists(st.sampled_from(["crisis", "output", "bias", "a_new_task"]), unique=True, max_size=2).map(
        tuple
    ),
    trusted_to=st.integers(0, 4),
    first_at_level=st.booleans(),
)

names = st.sampled_from([None, "s1", "s4", "holding", "not_there"])
clocks = st.one_of(st.none(), st.integers(1, 604_800))
routes = st.sampled_from([None, *ROUTES])
actions = st.sampled_from(get_args(Action))
overrides = st.builds(
    Override,
    action=st.one_of(st.none(), actions),
    wording=names,
    follow_up=names,
    guidance=names,
    route=routes,
    ack_within_s=clocks,
)
levels = st.builds(
    Level,
    action=actions,
    wording=names,
    follow_up=names,
    guidance=names,
    route=routes,
    ack_within_s=clocks,
    resources=st.booleans(),
    panel=st.booleans(),
    categories=st.dictionaries(labels, overrides, max_size=3),
)
stops = st.builds(
    Stop,
    wording=st.sampled_from(["s1", "not_there"]),
    at_risk=names,
    exercise=names,
    # The file format cannot say "allow" here; a rule built in memory can.
    action=actions,
    route=routes,
    ack_within_s=clocks,
    resources=st.booleans(),
)
tasks = st.builds(TaskRules, crisis=stops, output=stops, bias=stops)
modes = st.builds(Levels, s0=levels, s1=levels, s2=levels, s3=levels, s4=levels)


@st.composite
def hostile_policies(draw: st.DrawFn) -> Policy:
    """A policy that no loader would accept: any action at any level, any route, wordings that do not exist."""
    rules: Document = msgspec.structs.replace(
        SHIPPED.rules,
        modes=Modes(assistant=draw(modes), therapeutic=draw(modes)),
        output=OutputRules(
            harms=draw(st.dictionaries(st.sampled_from(OUTPUT_HARMS), stops, max_size=2)),
            bias=draw(st.dictionaries(st.sampled_from(BIAS_AXES), stops, max_size=2)),
            other=draw(stops),
        ),
        unavailable=UnavailableRules(input=draw(tasks), output=draw(tasks)),
        stops=StopRules(backend=draw(stops), instructions=draw(stops), cover=draw(stops)),
    )
    return Policy(version="hostile", rules=rules)


def assert_floor(policy: Policy, asked: Facts) -> None:
    decision = decide(policy, asked)
    severity = effective_severity(asked)
    judged = not asked.unavailable or asked.stage == "backend"
    clean = judged and not asked.output_harms and not (asked.stage == "output" and asked.bias_axes)
    trusted = severity == 0 or asked.mode == "therapeutic" or severity <= asked.trusted_to
    if decision.model_may_speak:
        assert severity < SCRIPT_FROM
        assert asked.stage != "backend"
        assert clean
        assert trusted
    else:
        care = render(policy, decision, "unknown", today=TODAY)
        assert care.text, "a person is never answered with nothing"
    if severity >= SCRIPT_FROM:
        assert decision.action == "replace"
        assert decision.show_resources
    if severity in LEAST and (severity >= SCRIPT_FROM or asked.stage != "output"):
        route, ack_within_s = LEAST[severity]
        assert_told(decision, route, ack_within_s)
    if asked.output_harms or (asked.stage == "input" and "crisis" in asked.unavailable):
        assert_told(decision, "queue", 14_400)
    if asked.stage == "input" and "crisis" in asked.unavailable:
        assert decision.severity >= 1
        assert decision.show_resources


def assert_told(decision: Decision, route: str, ack_within_s: int) -> None:
    assert decision.escalation is not None
    order = [str(r) for r in ROUTE_ORDER]
    assert order.index(decision.escalation.route) >= order.index(route)
    assert decision.escalation.ack_within_s <= ack_within_s


# --- the floor -----------------------------------------------------------------------------------


@given(asked=facts)
@settings(max_examples=300, deadline=None)
def test_the_shipped_policy_keeps_the_floor(asked: Facts) -> None:
    assert_floor(SHIPPED, asked)


@given(policy=hostile_policies(), asked=facts)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_policy_however_hostile_gets_below_the_floor(policy: Policy, asked: Facts) -> None:
    assert_floor(policy, asked)


def test_a_cover_rule_that_allows_does_not_lend_trust_to_a_backend() -> None:
    allows = Stop(wording="refuse_cover", at_risk="refuse_cover", action="allow")  # type: ignore[arg-type]
    rules = msgspec.structs.replace(SHIPPED.rules, stops=msgspec.structs.replace(SHIPPED.rules.stops, cover=allows))
    asked = Facts(
        stage="input", mode="assistant", severity=2, categories=("suicide",), subject="fictional", trusted_to=1
    )
    assert_floor(Policy(version="hostile", rules=rules), asked)


@given(asked=facts)
@settings(max_examples=200, deadline=None)
def test_more_risk_is_never_met_with_less(asked: Facts) -> None:
    """One level up: no quieter escalation, and no model that was silent begins to speak."""
    if effective_severity(asked) == 4:
        return
    worse = msgspec.structs.replace(asked, severity=effective_severity(asked) + 1)
    low, high = decide(SHIPPED, asked), decide(SHIPPED, worse)
    assert not (high.model_may_speak and not low.model_may_speak)
    if low.escalation is not None:
        assert_told(high, low.escalation.route, low.escalation.ack_within_s)


def _shipped_tables() -> dict[str, Any]:
    path = default_policy_path()
    merged: dict[str, Any] = {}
    for name in (path.name, *SHIPPED.rules.meta.include):
        merged |= tomllib.loads((path.parent / name).read_text())
    # One neutral example: what refuses these files must be the floor and not the examples.
    merged["case"] = [
        {"name": "nothing", "given": {"stage": "input", "mode": "assistant"}, "expect": {"action": "allow"}}
    ]
    return merged


TABLES = _shipped_tables()
LOWERED = [
    ("modes/assistant/S1/action", "allow"),
    ("modes/assistant/S2/action", "allow"),
    ("modes/assistant/S2/route", "digest"),
    ("modes/assistant/S2/ack_within_s", 14_401),
    ("modes/assistant/S3/action", "guide"),
    ("modes/assistant/S3/action", "refuse"),
    ("modes/assistant/S3/route", "queue"),
    ("modes/assistant/S3/ack_within_s", 301),
    ("modes/assistant/S3/resources", False),
    ("modes/assistant/S4/action", "allow"),
    ("modes/assistant/S4/route", "page"),
    ("modes/assistant/S4/ack_within_s", 121),
    ("modes/assistant/S4/resources", False),
    ("modes/assistant/S1/categories/perinatal/action", "allow"),
    ("modes/assistant/S3/categories/self_harm/route", "queue"),
    ("modes/assistant/S4/categories/perinatal/ack_within_s", 600),
    ("modes/assistant/S4/categories/perinatal/wording", "perinatal_s3"),
    ("modes/therapeutic/S1/route", None),
    ("modes/therapeutic/S2/route", "digest"),
    ("modes/therapeutic/S3/action", "allow"),
    ("modes/therapeutic/S4/action", "guide"),
    ("modes/therapeutic/S4/ack_within_s", 300),
    ("output/harms/encouragement/route", "digest"),
    ("output/harms/secrecy/ack_within_s", 86_400),
    ("output/other/route", "digest"),
    ("unavailable/input/crisis/route", "digest"),
    ("unavailable/input/crisis/resources", False),
    ("stops/backend/resources", False),
    ("stops/instructions/route", "digest"),
    ("wording/s3", "Please talk with a person now."),
    ("wording/s4", "I'm still here. Please call {emergency}. {resources}"),
    ("wording/s4_follow_up", "I'm still here. Please call {emergency}. {resources}"),
]


@pytest.mark.parametrize(("path", "value"), LOWERED)
def test_a_file_that_asks_for_less_is_refused(path: str, value: Any) -> None:
    tables = copy.deepcopy(TABLES)
    *parents, last = path.split("/")
    rule = tables
    for key in parents:
        rule = rule[key]
    if value is None:
        del rule[last], rule["ack_within_s"]
    else:
        rule[last] = value
    if last == "action" and value == "guide":
        rule["guidance"] = "s2"
    with pytest.raises(PolicyError, match="safety floor"):
        build_policy(tables, version="0" * 12, source="lowered.toml")


def test_the_same_tables_unlowered_are_accepted() -> None:
    assert build_policy(copy.deepcopy(TABLES), version="0" * 12, source="same.toml").rules.case[0].name == "nothing"


@given(
    mode=st.sampled_from(MODES),
    level=st.sampled_from(["S1", "S2", "S3", "S4"]),
    category=st.sampled_from([None, *CATEGORIES]),
    field=st.sampled_from(["action", "route", "ack_within_s", "resources"]),
    data=st.data(),
    asked=facts,
)
@settings(max_examples=150, deadline=None)
def test_a_changed_file_is_refused_or_keeps_the_floor(
    mode: Mode, level: str, category: str | None, field: str, data: st.DataObject, asked: Facts
) -> None:
    tables = copy.deepcopy(TABLES)
    rule = tables["modes"][mode][level]
    if category is not None and field != "resources":
        rule = rule.setdefault("categories", {}).setdefault(category, {})
    choices = {"action": actions, "route": st.sampled_from(ROUTES), "ack_within_s": st.integers(1, 90_000)}
    rule[field] = data.draw(choices.get(field, st.booleans()))
    try:
        policy = build_policy(tables, version="0" * 12, source="changed.toml")
    except PolicyError:
        return
    assert_floor(policy, asked)


# --- care where care is due ------------------------------------------------------------------------


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("severity", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [True, False])
def test_every_level_mode_and_category(category: str, mode: Mode, severity: int, first: bool) -> None:
    own = severity if first else 0
    asked = Facts(
        stage="input", mode=mode, severity=own, carried=severity, categories=(category,), first_at_level=first
    )
    decision = decide(SHIPPED, asked)
    assert_told(decision, *LEAST[severity])
    if mode == "therapeutic" and severity < SCRIPT_FROM:
        assert decision.action == "allow"
        assert decision.disclose_to_panel
        return
    for region in (*REQUIRED_REGIONS, "FR", "PT", "BR"):
        care = render(SHIPPED, decision, region, today=TODAY)
        assert decision.action == "replace"
        assert 1 <= len(care.resources) <= 3
        assert "{" not in care.text
        listed = [r for r in care.resources if r.contact in care.text]
        assert listed, "at least one place to turn to stands in the text"
        assert not re.search(r":\n\n", care.text), "no lead-in without a list"
        assert care.text.count("\n- ") <= 3


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [True, False])
def test_s4_begins_with_the_emergency_number_and_never_ends_the_chat(category: str, mode: Mode, first: bool) -> None:
    own = 4 if first else 0
    asked = Facts(stage="input", mode=mode, severity=own, carried=4, categories=(category,), first_at_level=first)
    decision = decide(SHIPPED, asked)
    for region in (*SHIPPED.rules.resources, "PT", "BR"):
        care = render(SHIPPED, decision, region, today=TODAY)
        assert care.resources[0].kind == "emergency"
        assert care.resources[0].contact in re.split(r"\.(?:\s|$)", care.text)[0]
        stays = r"still here|staying here|[Kk]eep writing|safe for you to write|Is everyone safe right now\?"
        assert re.search(stays, care.text)
        assert "?" in care.text or "Write one word" in care.text, "the person is asked something: the talk goes on"


@pytest.mark.parametrize("category", ["abuse_victim", "eating_disorder", "worried_about_other", "harm_to_others"])
def test_traps_of_the_categories(category: str) -> None:
    traps = {
        "abuse_victim": r"couple|both of you|talk to (him|her|them)|confront|leave (him|her|them)\b|police report",
        "eating_disorder": r"\d|calorie|weigh|pound|kilo|diet|avoid eating",
        "worried_about_other": r"are you thinking about hurting yourself|put distance between you",
        "harm_to_others": r"deserve|had it coming|understandable that you want",
    }
    for severity in (1, 2, 3, 4):
        name = resolve(SHIPPED.rules.modes.assistant.at(severity), category).wording
        text = SHIPPED.rules.wording[name or ""].lower()
        assert not re.search(traps[category], text), name


def test_s1_asks_one_direct_question_and_s2_asks_plan_means_and_time() -> None:
    s1, s2 = SHIPPED.rules.wording["s1"], SHIPPED.rules.wording["s2"]
    assert s1.count("?") == 1
    assert "Are you thinking about killing yourself?" in s1
    assert "how you would do it" in s2
    assert "within reach" in s2
    assert "a time you have in mind" in s2
    assert "one person you trust" in s2


# --- the words -------------------------------------------------------------------------------------

BANNED = (
    r"\bcontract\b",
    r"\bpromis\w*",
    r"\bdiagnos\w*",
    r"\bdisorder\b",
    r"\bsymptom\w*",
    r"\bcommit(ted)? suicide",
    r"\bjust an ai\b",
    r"\bonly an ai\b",
    r"\bas an ai\b",
    r"language model",
    r"calm down",
    r"\bselfish",
    r"think of your (family|children|loved)",
    r"how (they|others) would feel",
    r"everything (will|is going to) be (fine|ok|okay|alright|all right)",
    r"it will (all )?be (fine|ok|okay|alright|all right)",
    r"i know (exactly )?how you feel",
    r"i understand (exactly|how you feel)",
    r"you('ll| will) get through this",
    r"help is on (the|its) way",
    r"on (the|their) way to you",
    r"(someone|a person|we) (is|are) watching",
    r"you (should|shouldn't) feel",
    r"for attention",
    r"end(ing)? this (chat|conversation)",
    r"goodbye",
    r"don't tell",
    r"i('m| am) (a )?(human|therapist|doctor|nurse|counsel)",
    r"i love you",
)
TEXTS = {**SHIPPED.rules.wording, "last_resort": LAST_RESORT_TEXT}


@pytest.mark.parametrize("name", TEXTS)
def test_no_wording_holds_a_banned_phrase(name: str) -> None:
    assert [phrase for phrase in BANNED if re.search(phrase, TEXTS[name].lower())] == []


def _sentences(text: str) -> list[str]:
    plain = text.replace("{resources}", "").replace("{emergency}", "911")
    return [s for s in re.split(r"(?<=[.?!:])\s+|\n+", plain) if s.strip()]


@pytest.mark.parametrize("name", TEXTS)
def test_sentences_are_short(name: str) -> None:
    lengths = [len(s.split()) for s in _sentences(TEXTS[name])]
    assert max(lengths) <= 26
    assert statistics.mean(lengths) <= 14
    assert sum(lengths) <= 170, "a person in crisis does not read a page"


@pytest.mark.parametrize("name", TEXTS)
def test_an_ai_that_speaks_of_itself_says_so(name: str) -> None:
    """First wordings are honest about what speaks; short follow-ups and notices need not repeat it."""
    repeats = "follow_up" in name or name.startswith(("output_", "backend_", "holding_ex", "helper_s2", "refuse_cover"))
    if not repeats:
        assert re.search(r"\bI'm an AI\b", TEXTS[name]), name


def test_people_are_mentioned_only_where_people_are_paged() -> None:
    reached: set[str] = set()
    for mode in MODES:
        for severity in (0, 1, 2):
            level = SHIPPED.rules.modes.of(mode).at(severity)
            for category in (None, *level.categories):
                rule = resolve(level, category)
                reached |= {n for n in (rule.wording, rule.follow_up) if n}
    for _, stop in stops_of(SHIPPED.rules):
        reached |= {n for n in (stop.wording, stop.at_risk, stop.exercise) if n}
    for name in reached:
        assert "our team" not in SHIPPED.rules.wording[name], name
    assert "our team" in SHIPPED.rules.wording["s3"]


def test_guidance_never_holds_a_number_of_its_own() -> None:
    for name, text in SHIPPED.rules.guidance.items():
        assert not re.search(r"\d", text), name


def test_guided_answers_come_with_real_numbers() -> None:
    asked = Facts(stage="input", mode="assistant", severity=2, categories=("suicide",), trusted_to=2)
    for region in REQUIRED_REGIONS:
        text = guidance(SHIPPED, decide(SHIPPED, asked), region, today=TODAY)
        assert text is not None
        assert "\n- " in text


# --- the places ------------------------------------------------------------------------------------


def test_shipped_resources_are_fresh_today() -> None:
    """Fails on purpose when an entry expires: lists rot, and somebody has to look again."""
    assert [r.error for r in check([default_policy_path()], today=datetime.now(UTC).date())] == [None]


@pytest.mark.parametrize("region", SHIPPED.rules.resources)
def test_every_place_is_dated_sourced_and_honest_about_its_check(region: str) -> None:
    for entry in SHIPPED.rules.resources[region]:
        assert entry.source.startswith("https://")
        assert (entry.expires_at - entry.verified_at).days <= 200
        assert entry.verified_by == "desk check"
        assert entry.languages
        assert entry.channels
