"""Fuse what the detectors said of one passage into one reading.  Pure.

Detectors may disagree; the reading keeps the most careful voice: the highest severity, the union of
what was flagged.  A detector that did not answer is carried as its own state, never as "clean".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from detectors.api import Imminence, Judgement, Span, Subject, Time

DetectorState = Literal["ran", "cached", "unavailable", "skipped"]


class Flags(msgspec.Struct, frozen=True):
    """One yes/no head (output harm or bias): the overall score, and each class's score."""

    flagged: bool = False
    score: float = 0.0
    labels: tuple[str, ...] = ()
    """Classes that passed their threshold, highest score first."""
    scores: Mapping[str, float] = {}


class Crisis(msgspec.Struct, frozen=True):
    severity: int = 0
    score: float = 0.0
    """Calibrated probability that the severity is 2 or higher."""
    categories: tuple[str, ...] = ()
    """Categories that passed their threshold, highest score first; never empty when ``severity`` > 0."""
    scores: Mapping[str, float] = {}
    subject: Subject = "none"
    imminence: Imminence = "none"
    time: Time = "none"
    spans: tuple[Span, ...] = ()


class Reading(msgspec.Struct, frozen=True):
    """The panel's reading of one passage."""

    crisis: Crisis = Crisis()
    output: Flags = Flags()
    bias: Flags = Flags()
    detectors: Mapping[str, DetectorState] = {}
    unavailable_tasks: tuple[str, ...] = ()
    """Tasks ("crisis", "output", "bias") for which a detector named for them did not answer."""


_IMMINENCE: tuple[Imminence, ...] = ("none", "weeks", "days", "hours", "now")


def fuse(
    judgements: Mapping[str, Judgement],
    states: Mapping[str, DetectorState],
    unavailable_tasks: tuple[str, ...] = (),
) -> Reading:
    """Fold judgements (by detector name) into one `Reading`.  Order of the mapping does not matter."""
    return Reading(
        crisis=_crisis(judgements),
        output=_flags("output", judgements),
        bias=_flags("bias", judgements),
        detectors=dict(states),
        unavailable_tasks=unavailable_tasks,
    )


def _class_scores(task: str, judgements: Mapping[str, Judgement]) -> tuple[dict[str, float], list[str]]:
    """Highest score of each class, and the flagged classes by falling score."""
    prefix = task + ":"
    scores: dict[str, float] = {}
    flagged: set[str] = set()
    for judgement in judgements.values():
        for signal in judgement.signals:
            if signal.label.startswith(prefix):
                name = signal.label.removeprefix(prefix)
                scores[name] = max(signal.score, scores.get(name, 0.0))
                if signal.flagged:
                    flagged.add(name)
    return scores, sorted(flagged, key=lambda name: (-scores[name], name))


def _flags(task: str, judgements: Mapping[str, Judgement]) -> Flags:
    scores, labels = _class_scores(task, judgements)
    heads = [s for j in judgements.values() for s in j.signals if s.label == task]
    score = max([s.score for s in heads] + [scores[name] for name in labels], default=0.0)
    flagged = bool(labels) or any(s.flagged for s in heads)
    return Flags(flagged=flagged, score=score, labels=tuple(labels), scores=scores)


def _crisis(judgements: Mapping[str, Judgement]) -> Crisis:
    scores, labels = _class_scores("crisis", judgements)
    leader: Judgement | None = None
    severity, score = 0, 0.0
    spans: list[Span] = []
    for judgement in judgements.values():
        own = [s for s in judgement.signals if s.label == "crisis" or s.label.startswith("crisis:")]
        level = max((s.severity for s in own if s.flagged), default=0)
        if level > severity:
            severity, leader = level, judgement
        score = max(score, max((s.score for s in own if s.label == "crisis"), default=0.0))
        spans.extend(span for s in own if s.flagged for span in s.spans)
    if severity > 0 and not labels:
        labels = [max(scores, key=lambda name: scores[name])] if scores else ["suicide"]
    imminence: Imminence = max((j.imminence for j in judgements.values()), key=_IMMINENCE.index, default="none")
    return Crisis(
        severity=severity,
        score=score,
        categories=tuple(labels) if severity > 0 else (),
        scores=scores,
        subject=leader.subject if leader else "none",
        imminence=imminence if severity > 0 else "none",
        time=leader.time if leader else "none",
        spans=tuple(sorted(set(spans), key=lambda s: (s.start, s.end))),
    )
