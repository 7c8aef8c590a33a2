"""The shape of a policy file, and what can be said about it without running it.

A file is TOML.  Unknown keys are refused, so a misspelt rule is an error at load and never a rule
that silently does nothing.  `problems` checks what types cannot: that every name points somewhere.
Layout and meaning, for the people who edit these files: ``docs/policy-guide.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Annotated, Final, Literal

import msgspec

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS
from gateway.policy.decision import Action, Facts, Resource, Route
from gateway.policy.decision import Mode as ModeName

MODES: Final[tuple[ModeName, ...]] = ("assistant", "therapeutic")
TASKS: Final = ("crisis", "output", "bias")
REQUIRED_REGIONS: Final = ("US", "CA", "GB", "IE", "AU", "NZ", "IN", "EU", "unknown")
PLACEHOLDERS: Final = frozenset({"resources", "emergency"})

Id = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,64}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
AckSeconds = Annotated[int, msgspec.Meta(ge=1, le=604_800)]
Severity = Annotated[int, msgspec.Meta(ge=0, le=4)]


class Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which policy this is.  ``clinical_review`` says where the review of its wording stands."""

    name: Short
    version: Short
    reviewed_at: date
    clinical_review: Short
    include: Annotated[tuple[Short, ...], msgspec.Meta(max_length=8)] = ()
    """Fragments in the same folder, merged into this file.  No table may be defined twice."""


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one crisis category changes at one level.  A field left out follows the level."""

    action: Action | None = None
    wording: Id | None = None
    follow_up: Id | None = None
    guidance: Id | None = None
    route: Route | None = None
    ack_within_s: AckSeconds | None = None


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person gets at one severity in one mode.

    ``action`` is what happens when the backend is trusted at this level; otherwise ``wording`` answers
    (``follow_up`` when the person has had it lately).
    """

    action: Action
    wording: Id | None = None
    follow_up: Id | None = None
    guidance: Id | None = None
    route: Route | None = None
    ack_within_s: AckSeconds | None = None
    resources: bool = False
    panel: bool = False
    categories: Mapping[str, Override] = {}


class Levels(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="upper"):
    """S0 to S4; none may be missing."""

    s0: Level
    s1: Level
    s2: Level
    s3: Level
    s4: Level

    def at(self, severity: int) -> Level:
        return (self.s0, self.s1, self.s2, self.s3, self.s4)[severity]

    def __iter__(self) -> Iterator[Level]:
        return iter((self.s0, self.s1, self.s2, self.s3, self.s4))


class Modes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    assistant: Levels
    therapeutic: Levels

    def of(self, mode: ModeName) -> Levels:
        return self.therapeutic if mode == "therapeutic" else self.assistant


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reason for which the model does not speak, whatever the level, and what is said instead.

    ``wording`` serves at S0; ``at_risk`` at S1-S2 (left out: the level's own wording); ``exercise``
    in therapeutic mode up to S2.  From S3 up the level's wording always serves.  ``action`` cannot be
    ``allow``: the type has no way to say it.
    """

    wording: Id
    at_risk: Id | None = None
    exercise: Id | None = None
    action: Literal["replace", "refuse"] = "replace"
    route: Route | None = None
    ack_within_s: AckSeconds | None = None
    resources: bool = False


class OutputRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when a reply is harmful or biased.  ``other`` serves labels this file does not know."""

    harms: Mapping[str, Stop]
    bias: Mapping[str, Stop]
    other: Stop


class TaskRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule for each task that could not be judged."""

    crisis: Stop
    output: Stop
    bias: Stop

    def of(self, task: str) -> Stop:
        """The rule for ``task``; a task this file does not know gets the most careful one, crisis."""
        return {"output": self.output, "bias": self.bias}.get(task, self.crisis)


class UnavailableRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: TaskRules
    output: TaskRules


class StopRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``backend``: the model failed.  ``instructions``: the client's instructions ask for harm.
    ``cover``: story or study as a cover for the real thing, at S1-S2 in assistant mode."""

    backend: Stop
    instructions: Stop
    cover: Stop


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place to turn to.  ``categories`` with ``severities`` limit a topic line to where it fits."""

    name: Short
    contact: Short
    kind: Literal["emergency", "crisis_line", "text_line", "topic_line", "directory"]
    channels: tuple[Literal["call", "text", "chat", "web"], ...]
    hours: Short
    languages: tuple[Short, ...]
    source: Annotated[str, msgspec.Meta(pattern=r"^https://")]
    verified_at: date
    expires_at: date
    verified_by: Short
    categories: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = (0, 1, 2, 3, 4)

    def shown(self, region: str) -> Resource:
        return Resource(
            name=self.name,
            contact=self.contact,
            kind=self.kind,
            hours=self.hours,
            languages=self.languages,
            region=region,
        )


class Given(Facts, frozen=True, forbid_unknown_fields=True):
    """The facts of one example, as `Facts`, with misspelt fields refused."""


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields of the decision that the example pins.  ``route = "none"`` means: nobody is told."""

    action: Action
    severity: Severity | None = None
    wording: str | None = None
    guidance: str | None = None
    route: Route | Literal["none"] | None = None
    ack_within_s: int | None = None
    resources: bool | None = None
    panel: bool | None = None
    reasons: tuple[str, ...] = ()
    """Each must be among the decision's reasons."""
    says: tuple[str, ...] = ()
    """Each must appear in the rendered text."""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the example table that a policy file carries."""

    name: Short
    given: Given
    expect: Expect
    region: Short = "unknown"


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole policy, fragments merged."""

    meta: Meta
    modes: Modes
    output: OutputRules
    unavailable: UnavailableRules
    stops: StopRules
    wording: Mapping[Id, Text]
    guidance: Mapping[Id, Text]
    resources: Mapping[str, tuple[Entry, ...]]
    case: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1, max_length=500)]


class Policy(msgspec.Struct, frozen=True):
    """A policy in force: its rules, and ``version``, the first 12 hex digits of SHA-256 over its files."""

    version: str
    rules: Document


def stops_of(document: Document) -> Iterator[tuple[str, Stop]]:
    """Every stop rule with the path a person would look for in the file."""
    for harm, rule in document.output.harms.items():
        yield f"output.harms.{harm}", rule
    for axis, rule in document.output.bias.items():
        yield f"output.bias.{axis}", rule
    yield "output.other", document.output.other
    for stage, rules in (("input", document.unavailable.input), ("output", document.unavailable.output)):
        for task in TASKS:
            yield f"unavailable.{stage}.{task}", rules.of(task)
    yield "stops.backend", document.stops.backend
    yield "stops.instructions", document.stops.instructions
    yield "stops.cover", document.stops.cover


def levels_of(document: Document) -> Iterator[tuple[str, int, ModeName, Level]]:
    """Every level with its path, severity and mode."""
    for mode in MODES:
        for severity, level in enumerate(document.modes.of(mode)):
            yield f"modes.{mode}.S{severity}", severity, mode, level


def resolve(level: Level, category: str | None) -> Level:
    """The level as it stands for ``category``: the override's fields where it has them."""
    override = level.categories.get(category or "")
    if override is None:
        return level
    changes = {name: value for name in override.__struct_fields__ if (value := getattr(override, name)) is not None}
    return msgspec.structs.replace(level, **changes)


def problems(document: Document) -> list[str]:
    """Every broken reference and gap, one line each, beginning with the field.  Empty when sound."""
    return [
        *_level_problems(document),
        *_stop_problems(document),
        *_coverage_problems(document),
        *_text_problems("wording", document.wording),
        *_text_problems("guidance", document.guidance),
        *_resource_problems(document.resources),
        *_case_problems(document.case),
    ]


def _missing(path: str, table: str, name: str | None, known: Mapping[str, str]) -> list[str]:
    return [f"{path}: {table} '{name}' does not exist"] if name is not None and name not in known else []


def _clock(path: str, route: Route | None, ack_within_s: int | None) -> list[str]:
    return [f"{path}: route and ack_within_s go together"] if (route is None) != (ack_within_s is None) else []


def _level_problems(document: Document) -> list[str]:
    found: list[str] = []
    for path, severity, _mode, level in levels_of(document):
        found += [f"{path}.categories.{c}: not a category" for c in level.categories if c not in CATEGORIES]
        for category in (None, *level.categories):
            where = path if category is None else f"{path}.categories.{category}"
            rule = resolve(level, category)
            found += _missing(where, "wording", rule.wording, document.wording)
            found += _missing(where, "wording", rule.follow_up, document.wording)
            found += _missing(where, "guidance", rule.guidance, document.guidance)
            found += _clock(where, rule.route, rule.ack_within_s)
            if severity > 0 and (rule.wording is None or rule.follow_up is None):
                found.append(f"{where}: wording and follow_up are required from S1 up")
            if rule.action == "guide" and rule.guidance is None:
                found.append(f"{where}: action 'guide' needs guidance")
    return found


def _stop_problems(document: Document) -> list[str]:
    found: list[str] = []
    for path, rule in stops_of(document):
        for name in (rule.wording, rule.at_risk, rule.exercise):
            found += _missing(path, "wording", name, document.wording)
        found += _clock(path, rule.route, rule.ack_within_s)
    return found


def _coverage_problems(document: Document) -> list[str]:
    found = [] if "common" in document.guidance else ["guidance.common: required"]
    tables: tuple[tuple[str, Iterable[str], tuple[str, ...]], ...] = (
        ("output.harms", document.output.harms, OUTPUT_HARMS),
        ("output.bias", document.output.bias, BIAS_AXES),
    )
    for table, have, need in tables:
        found += [f"{table}.{name}: required" for name in need if name not in have]
        found += [f"{table}.{name}: not a known label" for name in have if name not in need]
    return found


def _text_problems(table: str, texts: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    for name, text in texts.items():
        unknown = sorted(set(re.findall(r"\{([^{}]*)\}", text)) - PLACEHOLDERS)
        found += [f"{table}.{name}: unknown placeholder '{{{p}}}'" for p in unknown]
    return found


def _resource_problems(resources: Mapping[str, tuple[Entry, ...]]) -> list[str]:
    found = [f"resources.{region}: required" for region in REQUIRED_REGIONS if region not in resources]
    for region, entries in resources.items():
        if sum(entry.kind == "emergency" for entry in entries) != 1:
            found.append(f"resources.{region}: exactly one entry of kind 'emergency' is required")
        for entry in entries:
            where = f"resources.{region} '{entry.name}'"
            found += [f"{where}: '{c}' is not a category" for c in entry.categories if c not in CATEGORIES]
            if (entry.kind == "topic_line") != bool(entry.categories):
                found.append(f"{where}: topic lines, and only they, name categories")
            if entry.expires_at <= entry.verified_at:
                found.append(f"{where}: expires_at must be after verified_at")
    if not any(entry.kind == "directory" for entry in resources.get("unknown", ())):
        found.append("resources.unknown: an entry of kind 'directory' is required")
    return found


def _case_problems(cases: tuple[Case, ...]) -> list[str]:
    names = [case.name for case in cases]
    return [f"case '{name}': name used twice" for name in sorted({n for n in names if names.count(n) > 1})]
