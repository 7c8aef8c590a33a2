"""Turn a decision into the words a person reads.  Pure: the caller says what day it is.

Numbers go stale, so an entry past its ``expires_at`` is not shown: the region's emergency number and a
neutral directory take its place.  An unknown region is never taken for one country.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import Final

from gateway.policy.decision import Care, Decision
from gateway.policy.engine import SCRIPT_FROM
from gateway.policy.schema import Entry, Policy

MAX_SHOWN: Final = (2, 2, 3, 3, 3)
"""Places shown at once, by severity.  More is less: a person in crisis should not have to choose from a list."""
UNKNOWN: Final = "unknown"
LAST_RESORT_TEXT: Final = (
    "Please call {emergency} now if you or someone else is in danger.\n\n"
    "You don't have to be alone with this. These are places to turn to:\n{resources}\n\n"
    "I'm an AI. I'm still here, and you can keep writing to me."
)
_UNKNOWN_EMERGENCY: Final = "your local emergency number (112 works in many countries, 911 in North America)"
_EU: Final = frozenset(
    {
        "AT",
        "BE",
        "BG",
        "HR",
        "CY",
        "CZ",
        "DK",
        "EE",
        "FI",
        "FR",
        "DE",
        "GR",
        "HU",
        "IE",
        "IT",
        "LV",
        "LT",
        "LU",
        "MT",
        "NL",
        "PL",
        "PT",
        "RO",
        "SK",
        "SI",
        "ES",
        "SE",
    }
)
"""Member states of the European Union, ISO 3166-1 alpha-2."""
_LANGUAGES: Final = frozenset(
    {
        "bg", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fi", "fr", "ga", "gd", "hi", "hr",
        "hu", "it", "lt", "lv", "mi", "mt", "nl", "pl", "pt", "ro", "sk", "sl", "sv",
    }
)  # fmt: skip
"""Languages of the regions served, ISO 639-1."""
_ALIASES: Final = {
    "UK": "GB", "EL": "GR",
    "USA": "US", "CAN": "CA", "GBR": "GB", "IRL": "IE", "AUS": "AU", "NZL": "NZ", "IND": "IN",
    "FRA": "FR", "DEU": "DE", "ESP": "ES", "NLD": "NL",
}  # fmt: skip


def region_key(policy: Policy, region: str) -> str:
    """The resource table that serves ``region``, or "unknown".

    Read as ISO 3166 alpha-2 in any case, with or without a subdivision ("US-CA"), or as a locale ("en-GB",
    "de_AT": its region part).  "UK" is GB, a few alpha-3 codes are known, and a member state of the European
    Union without its own table is served by "EU".
    """
    first, _, rest = region.strip().replace("_", "-").partition("-")
    # A locale starts with a language in lower case; a subdivision starts with its country.
    part = rest.rpartition("-")[2] if rest and first in _LANGUAGES else first
    code = _ALIASES.get(part.upper(), part.upper())
    if code in policy.rules.resources:
        return code
    return "EU" if code in _EU and "EU" in policy.rules.resources else UNKNOWN


def render(policy: Policy, decision: Decision, region: str, *, today: date) -> Care:
    """The wording of ``decision`` with the places of ``region`` woven in.

    Text is empty when the model speaks (the places are still given where the decision shows them).
    A wording that the policy lacks is answered by one held in code, never by an error.
    """
    code = region_key(policy, region)
    shown = _select(policy, decision, code, today) if decision.show_resources else ()
    resources = tuple(
        entry.shown(code if entry in policy.rules.resources.get(code, ()) else UNKNOWN) for entry in shown
    )
    if decision.wording is None:
        return Care(text="", resources=resources)
    template = policy.rules.wording.get(decision.wording, LAST_RESORT_TEXT)
    return Care(text=_fill(template, policy, code, shown), resources=resources)


def guidance(policy: Policy, decision: Decision, region: str, *, today: date) -> str | None:
    """Instructions added for a model that answers under guidance, or None.

    The places of ``region`` are given word for word, so that the model has no reason to invent a number.
    """
    if decision.guidance is None:
        return None
    code = region_key(policy, region)
    shown = _select(policy, decision, code, today) if decision.show_resources else ()
    parts = (policy.rules.guidance.get("common", ""), policy.rules.guidance.get(decision.guidance, ""))
    return _fill("\n\n".join(part for part in parts if part), policy, code, shown)


def stale(policy: Policy, today: date) -> tuple[str, ...]:
    """Resource entries past their date, as ``region: name``."""
    return tuple(
        f"{region}: {entry.name}"
        for region, entries in sorted(policy.rules.resources.items())
        for entry in entries
        if entry.expires_at < today
    )


def emergency(policy: Policy, region: str) -> str:
    """What to call in an emergency, as it reads within a sentence.  Never expires: a stale one still beats none."""
    code = region_key(policy, region)
    found = next((e.contact for e in policy.rules.resources.get(code, ()) if e.kind == "emergency"), None)
    return found or _UNKNOWN_EMERGENCY


def _fill(template: str, policy: Policy, code: str, shown: tuple[Entry, ...]) -> str:
    """Weave the places in.  What the sentences already say to call is not listed again."""
    named = "{emergency}" in template
    lines = "\n".join(_line(entry) for entry in shown if not (named and entry.kind == "emergency"))
    text = _name_emergency(template.strip(), emergency(policy, code))
    if "{resources}" in text:
        text = text.replace("{resources}", lines)
    elif lines:
        text = f"{text}\n\n{lines}"
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _name_emergency(text: str, contact: str) -> str:
    """The first mention in full, later ones without what stands in brackets."""
    return text.replace("{emergency}", contact, 1).replace("{emergency}", contact.split(" (", 1)[0])


def _line(entry: Entry) -> str:
    hours = "" if entry.kind in ("emergency", "directory") else f" ({entry.hours})"
    return f"- {entry.name}: {entry.contact}{hours}"


def _select(policy: Policy, decision: Decision, code: str, today: date) -> tuple[Entry, ...]:
    """At most `MAX_SHOWN` places in the order a person should read them."""
    most = MAX_SHOWN[decision.severity]
    fresh = [e for e in policy.rules.resources.get(code, ()) if e.kind == "emergency" or e.expires_at >= today]
    chosen: list[Entry] = []
    for entry in _ordered(fresh, decision):
        if entry not in chosen and len(chosen) < most:
            chosen.append(entry)
    if all(entry.kind == "emergency" for entry in chosen):
        neutral = [e for e in policy.rules.resources.get(UNKNOWN, ()) if e.kind == "directory" and e not in chosen]
        emergencies = [e for e in fresh if e.kind == "emergency"]
        chosen = [*emergencies, *neutral][:most]
    return tuple(chosen)


def _ordered(fresh: list[Entry], decision: Decision) -> Iterator[Entry]:
    """S4: emergency, topic, line.  S3: line, topic, emergency (abuse: topic first).  Below: topic, line, text line, emergency."""
    by_kind = {
        kind: [e for e in fresh if e.kind == kind] for kind in ("emergency", "crisis_line", "text_line", "directory")
    }
    topics = [
        entry
        for category in decision.categories
        for entry in fresh
        if category in entry.categories and decision.severity in entry.severities
    ]
    lines = by_kind["crisis_line"]
    # A text stays on the screen, where the person who does the harm may read it.
    texts = [] if "abuse_victim" in decision.categories else by_kind["text_line"]
    if decision.severity > SCRIPT_FROM or "medical_emergency" in decision.categories:
        yield from (*by_kind["emergency"], *topics[:1], *lines[:1], *texts[:1])
    elif decision.severity == SCRIPT_FROM and "abuse_victim" in decision.categories:
        yield from (*topics[:1], *by_kind["emergency"], *lines[:1])
    elif decision.severity == SCRIPT_FROM:
        yield from (*lines[:1], *topics[:1], *by_kind["emergency"], *texts[:1])
    elif decision.severity > 0:
        yield from (*topics[:1], *lines[:1], *texts[:1], *by_kind["emergency"])
    else:
        yield from (*lines[:1], *by_kind["emergency"])
    yield from by_kind["directory"]
