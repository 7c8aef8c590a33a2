"""The one place that decides what happens.  Pure: no I/O, no clock, no randomness.

`decide` reads a policy's tables and then passes the result through a safety floor that lives in code,
so no file can lower it (DESIGN sections 1 and 4; ``docs/adr/0003-policy.md``):

- from S3 up no model speaks, resources are shown, and people are paged within 300 s (S3) or 120 s (S4);
- S2 reaches the reviewers' queue within 4 h, S1 the digest within 24 h;
- what could not be judged never passes, and an unjudged message of a person is queued;
- a harmful or biased reply, or instructions that ask for one, never pass;
- in assistant mode a backend speaks at S1-S2 only if it is trusted at that level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from detectors.api import CATEGORIES, MAX_SEVERITY, OUTPUT_HARMS
from gateway.policy.decision import ROUTE_ORDER, Action, Decision, Escalation, Facts
from gateway.policy.schema import Document, Level, Policy, Stop, levels_of, resolve, stops_of

HOUR_S: Final = 3600
FLOOR: Final[tuple[Escalation | None, ...]] = (
    None,
    Escalation("digest", 24 * HOUR_S),
    Escalation("queue", 4 * HOUR_S),
    Escalation("page", 300),
    Escalation("page_two", 120),
)
"""The least that must happen at each severity."""
SCRIPT_FROM: Final = 3
"""From this severity up only reviewed wording answers."""
LAST_RESORT: Final = "last_resort"
"""Wording that `gateway/policy/wording.py` holds in code, for a policy that names none."""
_UNJUDGED_FLOOR: Final = Escalation("queue", 4 * HOUR_S)
_HARM_FLOOR: Final = Escalation("queue", 4 * HOUR_S)
_ACUTE: Final = ("medical_emergency", "substance_overdose")


def decide(policy: Policy, facts: Facts) -> Decision:
    """Decide one question.  Total: any `Facts` gets a decision, whatever labels it carries."""
    severity = effective_severity(facts)
    category = lead_category(facts, severity)
    level = resolve(policy.rules.modes.of(facts.mode).at(severity), category)
    stops = tuple(_stops(policy.rules, facts, severity))
    return _floor(policy.rules, facts, _draft(policy, facts, severity, category, level, stops))


def effective_severity(facts: Facts) -> int:
    """The severity of the turn or what the conversation carries, whichever is higher, within 0-4."""
    return min(MAX_SEVERITY, max(facts.severity, facts.carried, 0))


def lead_category(facts: Facts, severity: int) -> str | None:
    """The category whose wording serves, or None for the level's own (suicide).

    Someone worried about another person is met as the helper.  From S3 up what needs an ambulance goes
    first.  Suicide goes before everything else, because the wordings of the others do not ask about it.
    """
    named = [category for category in facts.categories if category in CATEGORIES]
    if "worried_about_other" in named and facts.subject in ("self", "victim"):
        named.remove("worried_about_other")
    helping = facts.subject == "other" and bool(named) and "harm_to_others" not in named
    if helping or "worried_about_other" in named:
        return "worried_about_other"
    if severity >= SCRIPT_FROM:
        for acute in _ACUTE:
            if acute in named:
                return acute
    if not named or "suicide" in named:
        return None
    return named[0]


def _stops(rules: Document, facts: Facts, severity: int) -> Iterator[tuple[str, Stop]]:
    """Reasons for which the model may not speak whatever the level, most important first."""
    if facts.stage == "backend":
        yield "backend.failed", rules.stops.backend
    if facts.output_harms and facts.stage == "input":
        yield "instructions.harmful", rules.stops.instructions
    elif facts.output_harms:
        for harm in sorted(facts.output_harms, key=_harm_rank):
            yield f"output.{harm}", rules.output.harms.get(harm, rules.output.other)
    if facts.stage != "backend":
        unjudged = rules.unavailable.input if facts.stage == "input" else rules.unavailable.output
        for task in sorted(facts.unavailable, key=_task_rank):
            yield f"unavailable.{task}", unjudged.of(task)
    for axis in facts.bias_axes if facts.stage == "output" else ():
        yield f"bias.{axis}", rules.output.bias.get(axis, rules.output.other)
    cover = facts.subject in ("fictional", "academic") and facts.stage == "input" and facts.mode == "assistant"
    if cover and 0 < severity < SCRIPT_FROM and facts.severity > 0:
        yield "cover.slipped", rules.stops.cover


def _harm_rank(harm: str) -> int:
    return OUTPUT_HARMS.index(harm) if harm in OUTPUT_HARMS else -1


def _task_rank(task: str) -> int:
    return {"output": 1, "bias": 2}.get(task, 0)


def _draft(
    policy: Policy, facts: Facts, severity: int, category: str | None, level: Level, stops: tuple[tuple[str, Stop], ...]
) -> Decision:
    """What the tables say, before the floor."""
    action, wording = _speech(facts, severity, level, stops)
    speaks = action in ("allow", "guide")
    silent = facts.stage == "output" and speaks
    person_at_risk = severity > 0 and (facts.mode == "assistant" or severity >= SCRIPT_FROM)
    escalation = None if silent else _escalation(level.route, level.ack_within_s)
    for _, stop in stops:
        escalation = strictest(escalation, _escalation(stop.route, stop.ack_within_s))
    reasons = [f"level.S{severity}", *(name for name, _ in stops)]
    if category is not None and severity > 0:
        reasons.insert(1, f"category.{category}")
    if facts.carried > facts.severity:
        reasons.append("carried")
    if severity > 0 and not speaks and not stops and severity < SCRIPT_FROM and level.action in ("allow", "guide"):
        reasons.append("untrusted")
    return Decision(
        action=action,
        stage=facts.stage,
        mode=facts.mode,
        severity=max(severity, 1) if _input_unjudged(facts) else severity,
        categories=facts.categories if severity > 0 else (),
        reasons=tuple(reasons),
        policy_version=policy.version,
        wording=None if speaks else wording,
        guidance=level.guidance if action == "guide" and not silent else None,
        escalation=escalation,
        show_resources=not silent and (any(s.resources for _, s in stops) or (person_at_risk and level.resources)),
        disclose_to_panel=level.panel,
    )


def _speech(
    facts: Facts, severity: int, level: Level, stops: tuple[tuple[str, Stop], ...]
) -> tuple[Action, str | None]:
    """The action and the wording that answers if no model does."""
    own = _level_wording(facts, severity, level)
    if severity >= SCRIPT_FROM:
        return "replace", own
    if stops:
        lead = stops[0][1]
        if facts.mode == "therapeutic":
            return lead.action, lead.exercise or lead.wording
        if severity > 0:
            return ("replace", own) if lead.at_risk is None else (lead.action, lead.at_risk)
        return lead.action, lead.wording
    if not _model_trusted(facts, severity) and level.action in ("allow", "guide"):
        return "replace", own
    if facts.stage == "output" and level.action == "guide":
        return "allow", own
    return level.action, own


def _level_wording(facts: Facts, severity: int, level: Level) -> str | None:
    """The level's wording, or its follow-up when the person has had it lately.

    From S3 up the follow-up serves only while the person is quieter than what the conversation carries:
    someone who says again that they are about to die gets the whole script again.
    """
    quieter = facts.severity < severity
    return level.follow_up if not facts.first_at_level and (quieter or severity < SCRIPT_FROM) else level.wording


def _model_trusted(facts: Facts, severity: int) -> bool:
    """Therapeutic mode below S3: the distress is the exercise's, the person is the therapist, so trust is not asked."""
    return severity == 0 or facts.mode == "therapeutic" or severity <= facts.trusted_to


def _input_unjudged(facts: Facts) -> bool:
    return facts.stage == "input" and any(_task_rank(task) == 0 for task in facts.unavailable)


def _escalation(route: str | None, ack_within_s: int | None) -> Escalation | None:
    if route is None or ack_within_s is None:
        return None
    return Escalation(next(r for r in ROUTE_ORDER if r == route), ack_within_s)


def strictest(one: Escalation | None, other: Escalation | None) -> Escalation | None:
    """The higher route and the shorter clock of two escalations."""
    if one is None or other is None:
        return one or other
    route = max(one.route, other.route, key=ROUTE_ORDER.index)
    return Escalation(route, min(one.ack_within_s, other.ack_within_s))


def _least(facts: Facts) -> Escalation | None:
    """The least escalation the floor asks for here.

    A clean reply below S3 asks for nothing: the input decision of the same turn has already raised it.
    """
    severity = effective_severity(facts)
    least = None if facts.stage == "output" and severity < SCRIPT_FROM else FLOOR[severity]
    if facts.output_harms:
        least = strictest(least, _HARM_FLOOR)
    return strictest(least, _UNJUDGED_FLOOR) if _input_unjudged(facts) else least


def _floor(rules: Document, facts: Facts, decision: Decision) -> Decision:
    """Raise ``decision`` to the safety floor.  Nothing here reads a rule that a file could have set lower."""
    severity = effective_severity(facts)
    reasons = list(decision.reasons)
    script = severity >= SCRIPT_FROM
    if script:
        reasons.append(f"floor.S{severity}")
    flagged = bool(facts.output_harms) or (facts.stage == "output" and bool(facts.bias_axes))
    unjudged = bool(facts.unavailable) and facts.stage != "backend"
    silenced = script or flagged or unjudged or facts.stage == "backend" or not _model_trusted(facts, severity)
    action, wording, guidance = decision.action, decision.wording, decision.guidance
    if silenced and (decision.model_may_speak or (script and action != "replace")):
        action, guidance = "replace", None
        reasons.append("floor.silence")
    if action in ("replace", "refuse") and wording not in rules.wording:
        wording = LAST_RESORT
        reasons.append("floor.wording")
    escalation = strictest(decision.escalation, _least(facts))
    if escalation != decision.escalation:
        reasons.append("floor.escalation")
    care_due = script or facts.stage == "backend" or _input_unjudged(facts) or wording == LAST_RESORT
    return msgspec.structs.replace(
        decision,
        action=action,
        wording=wording,
        guidance=guidance,
        escalation=escalation,
        show_resources=decision.show_resources or care_due,
        reasons=tuple(reasons),
    )


def floor_problems(document: Document) -> list[str]:
    """Every rule of a file that asks for less than the floor, one line each, beginning with the field.

    `decide` would raise such a rule anyway; a file that tries is refused at load, so that what a
    reviewer reads is what happens.
    """
    found: list[str] = []
    for path, severity, mode, level in levels_of(document):
        for category in (None, *level.categories):
            rule = resolve(level, category)
            where = path if category is None else f"{path}.categories.{category}"
            found += _below(where, rule.route, rule.ack_within_s, FLOOR[severity])
            if severity >= SCRIPT_FROM:
                found += _script_problems(document, where, severity, rule)
            elif severity > 0 and mode == "assistant" and rule.action == "allow":
                found.append(f"{where}.action: 'allow' is below the safety floor at S{severity}")
    for path, stop in stops_of(document):
        if path.startswith(("output.harms.", "output.other", "stops.instructions")):
            found += _below(path, stop.route, stop.ack_within_s, _HARM_FLOOR)
        elif path == "unavailable.input.crisis":
            found += _below(path, stop.route, stop.ack_within_s, _UNJUDGED_FLOOR)
        if path in ("unavailable.input.crisis", "stops.backend") and not stop.resources:
            found.append(f"{path}.resources: must be true (safety floor)")
    return found


def _below(path: str, route: str | None, ack_within_s: int | None, least: Escalation | None) -> list[str]:
    if least is None:
        return []
    have = _escalation(route, ack_within_s)
    if have is None or ROUTE_ORDER.index(have.route) < ROUTE_ORDER.index(least.route):
        return [f"{path}.route: below the safety floor '{least.route}'"]
    if have.ack_within_s > least.ack_within_s:
        return [f"{path}.ack_within_s: {have.ack_within_s} is above the safety floor of {least.ack_within_s} s"]
    return []


def _script_problems(document: Document, where: str, severity: int, rule: Level) -> list[str]:
    found: list[str] = []
    if rule.action != "replace":
        found.append(f"{where}.action: must be 'replace' at S{severity} (safety floor)")
    if not rule.resources:
        found.append(f"{where}.resources: must be true at S{severity} (safety floor)")
    for name in (rule.wording, rule.follow_up):
        text = document.wording.get(name or "", "")
        if "{resources}" not in text:
            found.append(f"wording.{name}: must show {{resources}} at S{severity} (safety floor)")
        if severity == MAX_SEVERITY and "{emergency}" not in text.split(".", 1)[0]:
            found.append(f"wording.{name}: must name {{emergency}} in its first sentence at S4 (safety floor)")
    return found
