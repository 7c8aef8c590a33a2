"""Calibration and thresholds from the validation split, on the scores that are served (int8, all readings).

The rule for each threshold is written here once and fixed before the test split is looked at: the best F-beta
on validation among the thresholds that keep false alarms within stated bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from detectors.api import DetectorError, Passage
from detectors.calibrate import DECIDED, INDEX, LABELS, LEVELS, Manifest, Platt, scores
from detectors.encoder import INPUT_FORMAT, MODEL_FILE, TOKENIZER_FILE, Reader, open_session, open_tokenizer
from trainer.detectors.examples import Example
from trainer.detectors.statistics import f_beta, platt

MAX_TOKENS: Final = 128
WINDOW_TOKENS: Final = 64
MIN_POSITIVES: Final = 10
"""Fewer known positives in validation than this: no calibration, and a default threshold."""
DEFAULT_THRESHOLD: Final = 0.5
CLASS_BOUNDS: Final = (0.15, 0.6)
"""Class thresholds stay in between: a dozen positives say little about the far ends."""
EVERYDAY: Final = frozenset({"clinc150", "goemotions", "sad"})
OURS: Final = frozenset({"own", "corpus-messages", "corpus-replies"})


@dataclass(frozen=True, slots=True)
class Rule:
    """``beta`` weighs recall; the bounds are false-alarm rates on everyday talk and on our own (mostly hard) negatives."""

    beta: float
    everyday: float
    ours: float
    on: frozenset[str] = OURS
    """Sources that F-beta is counted on."""


RULES: Final = {
    "level:1": Rule(2.0, 0.015, 0.15),
    "level:2": Rule(2.0, 0.006, 0.10),
    "level:3": Rule(1.5, 0.003, 0.06),
    "level:4": Rule(1.5, 0.002, 0.04),
    "crisis": Rule(1.0, 1.0, 1.0),
    "bias": Rule(1.0, 0.02, 0.06, OURS | {"toxigen"}),
    "bias:": Rule(1.0, 1.0, 1.0),
    "output": Rule(1.5, 0.02, 0.10),
    "output:": Rule(1.0, 1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Scored:
    """An example and its served logits."""

    example: Example
    logits: list[float]


def reader(folder: Path, manifest: Manifest | None = None) -> Reader:
    """The serving code's own reader over a model folder that may not have a manifest yet."""
    tokenizer, run = open_tokenizer(folder / TOKENIZER_FILE), open_session(folder / MODEL_FILE)
    return Reader(manifest or blank(folder.name, {}), tokenizer, run)


def blank(name: str, files: dict[str, str]) -> Manifest:
    """A manifest before calibration: default thresholds, scores as trained."""
    return Manifest(
        name=name,
        files=files,
        labels=LABELS,
        thresholds=dict.fromkeys(DECIDED, DEFAULT_THRESHOLD),
        calibration_id="none",
        calibration={},
        input_format=INPUT_FORMAT,
        max_tokens=MAX_TOKENS,
        window_tokens=WINDOW_TOKENS,
    )


def score(judge: Reader, examples: Sequence[Example]) -> list[Scored]:
    """Served logits of each example; one the detector cannot read is an error here."""
    found: list[Scored] = []
    for example in examples:
        try:
            logits, _ = judge.read(Passage(text=example.text, context=example.context))
        except DetectorError as error:
            raise ValueError(f"example {example.id}: {error.detail}") from error
        found.append(Scored(example, logits))
    return found


def known(scored: Sequence[Scored], label: str) -> list[tuple[Scored, bool]]:
    """Rows that know a label, with its truth."""
    return [(row, row.example.targets[label] == 1.0) for row in scored if label in row.example.targets]


def calibrate(scored: Sequence[Scored]) -> dict[str, Platt]:
    """A Platt pair for every decided label with enough positives and negatives."""
    found: dict[str, Platt] = {}
    for label in DECIDED:
        rows = known(scored, label)
        truths = [truth for _, truth in rows]
        if min(sum(truths), len(truths) - sum(truths)) >= MIN_POSITIVES:
            scale, shift = platt([row.logits[INDEX[label]] for row, _ in rows], truths)
            found[label] = Platt(round(scale, 5), round(shift, 5))
    return found


def rule_of(label: str) -> Rule:
    head, colon, _ = label.partition(":")
    if label in LEVELS:
        return RULES[label]
    return RULES[head + colon if head in ("bias", "output") else head]


def threshold(rows: Sequence[tuple[str, float, bool]], rule: Rule) -> float:
    """The best threshold for (source, score, truth) rows under a rule; ties go to the lower one.

    When no threshold keeps the bounds, the highest score seen, so that almost nothing is flagged.
    """
    bounds = [(EVERYDAY, rule.everyday), (OURS, rule.ours)]
    negatives = [
        (sorted(s for source, s, truth in rows if not truth and source in names), cap) for names, cap in bounds
    ]
    ours = [(s, truth) for source, s, truth in rows if source in rule.on] or [(s, truth) for _, s, truth in rows]
    candidates = sorted({s for _, s, _ in rows})
    best, chosen = -1.0, candidates[-1]
    for cut in candidates:
        if any(found and sum(s >= cut for s in found) > cap * len(found) for found, cap in negatives):
            continue
        hits = sum(s >= cut and truth for s, truth in ours)
        false = sum(s >= cut and not truth for s, truth in ours)
        value = f_beta(hits, false, sum(truth for _, truth in ours) - hits, rule.beta)
        if value > best:
            best, chosen = value, cut
    return min(max(round(chosen, 6), 1e-6), 1 - 1e-6)


def thresholds(scored: Sequence[Scored], calibration: dict[str, Platt]) -> dict[str, float]:
    """One threshold per decided label."""
    found: dict[str, float] = {}
    for label in DECIDED:
        pairs = _where_it_counts(scored, label)
        if sum(truth for _, truth in pairs) < MIN_POSITIVES:
            found[label] = DEFAULT_THRESHOLD
            continue
        rows = [(row.example.source, scores(calibration, row.logits)[label], truth) for row, truth in pairs]
        found[label] = threshold(_thinned(rows), rule_of(label))
        if ":" in label and label not in LEVELS:
            found[label] = min(max(found[label], CLASS_BOUNDS[0]), CLASS_BOUNDS[1])
    return found


def _where_it_counts(scored: Sequence[Scored], label: str) -> list[tuple[Scored, bool]]:
    """A class is read only under a raised total, so its threshold is fitted on the rows whose total is truly raised."""
    head, colon, _ = label.partition(":")
    pairs = known(scored, label)
    if not colon or label in LEVELS:
        return pairs
    total = LEVELS[0] if head == "crisis" else head
    return [(row, truth) for row, truth in pairs if row.example.targets.get(total) == 1.0]


def _thinned(rows: Sequence[tuple[str, float, bool]], places: int = 3) -> list[tuple[str, float, bool]]:
    """Scores to three places, so that there are at most a thousand candidates."""
    return [(source, round(value, places), truth) for source, value, truth in rows]


def manifest(name: str, files: dict[str, str], scored: Sequence[Scored], provenance: dict[str, Any]) -> Manifest:
    """The finished manifest; the calibration's id is a digest of its numbers."""
    pairs = calibrate(scored)
    digest = hashlib.sha256(msgspec.json.encode(pairs, order="deterministic")).hexdigest()[:12]
    return msgspec.structs.replace(
        blank(name, files),
        calibration=pairs,
        calibration_id=f"platt-{digest}",
        thresholds=thresholds(scored, pairs),
        provenance=provenance,
    )
