"""A policy file says exactly what it says: unknown keys, dangling names and gaps are refused with one line."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from detectors.api import BIAS_AXES, OUTPUT_HARMS
from gateway.policy.loader import PolicyError, build_policy, default_policy_path, load_policy
from gateway.policy.schema import MODES, Level, Override, problems, resolve, stops_of

Tables = dict[str, Any]
EMERGENCY = {
    "name": "Emergency services",
    "contact": "your local emergency number",
    "kind": "emergency",
    "channels": ["call"],
    "hours": "any time",
    "languages": ["local"],
    "source": "https://example.org/",
    "verified_at": date(2026, 11, 1),
    "expires_at": date(2027, 5, 1),
    "verified_by": "desk check",
}


@pytest.fixture(scope="module")
def shipped() -> Tables:
    path = default_policy_path()
    merged: Tables = {}
    for name in ("default.toml", "wording.toml", "resources.toml"):
        merged |= tomllib.loads((path.parent / name).read_text())
    return merged


@pytest.fixture
def tables(shipped: Tables) -> Tables:
    return copy.deepcopy(shipped)


def test_the_shipped_policy_has_no_problems() -> None:
    assert problems(load_policy(default_policy_path()).rules) == []


def test_it_carries_at_least_forty_examples_and_every_rule_is_covered() -> None:
    rules = load_policy(default_policy_path()).rules
    assert len(rules.case) >= 40
    assert set(rules.output.harms) == set(OUTPUT_HARMS)
    assert set(rules.output.bias) == set(BIAS_AXES)
    paths = [path for path, _ in stops_of(rules)]
    assert len(paths) == len(set(paths)) == len(OUTPUT_HARMS) + len(BIAS_AXES) + 1 + 6 + 3


def test_every_wording_and_guidance_is_used() -> None:
    rules = load_policy(default_policy_path()).rules
    used: set[str | None] = {"common"}
    for _, stop in stops_of(rules):
        used |= {stop.wording, stop.at_risk, stop.exercise}
    for mode in MODES:
        for level in rules.modes.of(mode):
            for category in (None, *level.categories):
                rule = resolve(level, category)
                used |= {rule.wording, rule.follow_up, rule.guidance}
    assert set(rules.wording) - used == set()
    assert set(rules.guidance) - used == set()


def test_an_override_changes_only_what_it_names() -> None:
    level = Level(
        action="guide", wording="a", follow_up="b", guidance="c", categories={"suicide": Override(wording="d")}
    )
    assert resolve(level, "suicide") == Level(
        action="guide", wording="d", follow_up="b", guidance="c", categories=level.categories
    )
    assert resolve(level, "perinatal") is level
    assert resolve(level, None) is level


def _set(path: str, value: Any) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        *parents, last = path.split("/")
        for key in parents:
            tables = tables[key] if isinstance(tables, dict) else tables[int(key)]
        if value is None:
            del tables[last]
        else:
            tables[last] = value

    return change


BROKEN = {
    "unknown key": (_set("modes/assistant/S1/wordng", "s1"), "unknown field `wordng`"),
    "unknown table": (_set("extra", {}), "unknown field `extra`"),
    "missing level": (_set("modes/assistant/S3", None), "missing required field `S3`"),
    "missing mode": (_set("modes/therapeutic", None), "missing required field `therapeutic`"),
    "unknown route": (_set("modes/assistant/S1/route", "pigeon"), "Invalid enum value 'pigeon'"),
    "clock out of range": (_set("modes/assistant/S1/ack_within_s", 0), "Expected `int` >= 1"),
    "stop cannot allow": (_set("output/other/action", "allow"), "Invalid enum value 'allow'"),
    "dangling wording": (_set("modes/assistant/S2/wording", "nowhere"), "modes.assistant.S2: wording 'nowhere'"),
    "dangling follow-up": (_set("modes/assistant/S2/follow_up", "nowhere"), "wording 'nowhere' does not exist"),
    "dangling guidance": (_set("modes/assistant/S2/guidance", "nowhere"), "guidance 'nowhere' does not exist"),
    "dangling stop": (_set("stops/backend/at_risk", "nowhere"), "stops.backend: wording 'nowhere'"),
    "no wording": (_set("modes/assistant/S2/wording", None), "wording and follow_up are required"),
    "guide without guidance": (_set("modes/assistant/S2/guidance", None), "action 'guide' needs guidance"),
    "route without clock": (_set("stops/cover/route", "queue"), "route and ack_within_s go together"),
    "not a category": (_set("modes/assistant/S1/categories/boredom", {}), "categories.boredom: not a category"),
    "harm without a rule": (_set("output/harms/secrecy", None), "output.harms.secrecy: required"),
    "axis without a rule": (_set("output/bias/age", None), "output.bias.age: required"),
    "unknown harm": (
        _set("output/harms/rudeness", {"wording": "output_stopped", "route": "queue", "ack_within_s": 60}),
        "output.harms.rudeness: not a known label",
    ),
    "unknown placeholder": (_set("wording/s1", "Hello {name} {resources}"), "wording.s1: unknown placeholder '{name}'"),
    "no common guidance": (_set("guidance/common", None), "guidance.common: required"),
    "region missing": (_set("resources/NZ", None), "resources.NZ: required"),
    "no emergency number": (_set("resources/NZ/0/kind", "crisis_line"), "exactly one entry of kind 'emergency'"),
    "source is not a link": (_set("resources/NZ/0/source", "a friend"), "matching regex"),
    "expires before it was verified": (
        _set("resources/NZ/0/expires_at", date(2026, 1, 1)),
        "must be after verified_at",
    ),
    "topic line without a topic": (_set("resources/US/3/categories", None), "topic lines, and only they"),
    "topic is not a category": (_set("resources/US/3/categories", ["rain"]), "'rain' is not a category"),
    "no directory": (_set("resources/unknown", [EMERGENCY]), "resources.unknown: an entry of kind 'directory'"),
    "no cases": (_set("case", []), "Expected `array` of length >= 1"),
    "misspelt fact": (_set("case/0/given/severty", 1), "unknown field `severty`"),
    "misspelt expectation": (_set("case/0/expect/actoin", "allow"), "unknown field `actoin`"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_one_line_naming_the_field(name: str, tables: Tables) -> None:
    change, words = BROKEN[name]
    change(tables)
    with pytest.raises(PolicyError) as caught:
        build_policy(tables, version="0" * 12, source="mine.toml")
    assert caught.value.message.startswith("mine.toml: ")
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_two_examples_may_not_share_a_name(tables: Tables) -> None:
    tables["case"][1]["name"] = tables["case"][0]["name"]
    with pytest.raises(PolicyError, match="name used twice"):
        build_policy(tables, version="0" * 12, source="mine.toml")
