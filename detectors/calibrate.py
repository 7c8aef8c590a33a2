"""From raw logits to verdicts: the label layout, the calibration and the thresholds of an encoder model.

Pure arithmetic shared by serving (`detectors/encoder.py`) and fitting (`trainer/detectors/`), so that a
threshold means the same on both sides.  Nothing here reads a file or imports numpy.

Calibration is Platt's (Platt 1999): ``p = sigmoid(scale * logit + shift)`` per label, fitted on the
validation split's *served* scores (int8, maximum over windows).  ``scale`` 1 and ``shift`` 0 mean "as trained".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final, get_args

import msgspec

from detectors.api import BIAS_AXES, CATEGORIES, MAX_SEVERITY, OUTPUT_HARMS, Imminence, Judgement, Signal, Span, Subject
from detectors.api import Time as TimeLabel

SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)
IMMINENCES: Final[tuple[Imminence, ...]] = get_args(Imminence)
TIMES: Final[tuple[TimeLabel, ...]] = get_args(TimeLabel)

LEVELS: Final = tuple(f"level:{level}" for level in range(1, MAX_SEVERITY + 1))
"""``level:k`` is the logit of P(severity >= k)."""

LABELS: Final[tuple[str, ...]] = (
    *LEVELS,
    *(f"crisis:{name}" for name in CATEGORIES),
    *(f"subject:{name}" for name in SUBJECTS),
    *(f"imminence:{name}" for name in IMMINENCES),
    *(f"time:{name}" for name in TIMES),
    "bias",
    *(f"bias:{name}" for name in BIAS_AXES),
    "output",
    *(f"output:{name}" for name in OUTPUT_HARMS),
)
"""Order of the model's logits.  A model folder whose manifest differs is refused."""

INDEX: Final[Mapping[str, int]] = {label: index for index, label in enumerate(LABELS)}

DECIDED: Final[tuple[str, ...]] = (
    *LEVELS,
    *(label for label in LABELS if label.split(":")[0] in ("crisis", "bias", "output")),
)
"""Labels that carry a threshold."""

MAX_PASS_TOKENS: Final = 448
"""The encoder has 512 positions; context and special tokens need the rest."""

NO_CALIBRATION: Final = "none"


class Platt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sigmoid(scale * logit + shift)``."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, logit: float) -> float:
        """Probability in [0, 1]; NaN stays NaN."""
        return sigmoid(self.scale * logit + self.shift)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``manifest.json`` of a model folder: what the files are and how their numbers are read."""

    name: str
    files: Mapping[str, str]
    """File name to sha256, for every file the detector opens."""
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    """Label to threshold on the calibrated score, strictly inside (0, 1); one for each of `DECIDED`."""
    calibration_id: str
    calibration: Mapping[str, Platt]
    """Labels without an entry are read as trained and say ``calibration="none"``."""
    input_format: str
    max_tokens: int
    window_tokens: int
    provenance: Mapping[str, object] = {}
    """Seeds, data hashes and versions of the fit.  For people; serving ignores it."""


class ManifestError(ValueError):
    """A manifest that must not be served.  The message names the field."""


def verify(manifest: Manifest, input_format: str) -> None:
    """Refuse (`ManifestError`) a foreign label order, a threshold outside (0, 1), a calibration that is not finite."""
    if manifest.labels != LABELS:
        raise ManifestError("label order differs from detectors.api")
    if manifest.input_format != input_format:
        raise ManifestError(f"input format {manifest.input_format!r} is not {input_format!r}")
    if set(manifest.thresholds) != set(DECIDED):
        raise ManifestError("thresholds are not one per decided label")
    for label, threshold in manifest.thresholds.items():
        if not (math.isfinite(threshold) and 0.0 < threshold < 1.0):
            raise ManifestError(f"threshold of {label} is not inside (0, 1)")
    for label, platt in manifest.calibration.items():
        if label not in INDEX or not (math.isfinite(platt.shift) and math.isfinite(platt.scale) and platt.scale > 0):
            raise ManifestError(f"calibration of {label} is unusable")
    if not 8 <= manifest.window_tokens <= manifest.max_tokens <= MAX_PASS_TOKENS:
        raise ManifestError("max_tokens or window_tokens is outside the encoder's positions")


def sigmoid(value: float) -> float:
    """Logistic function without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-min(value, 700.0)))
    grown = math.exp(max(value, -700.0))
    return grown / (1.0 + grown)


def scores(calibration: Mapping[str, Platt], logits: Sequence[float]) -> dict[str, float]:
    """Calibrated score of every decided label; a level is never likelier than the level under it."""
    raw = Platt()
    found = {label: calibration.get(label, raw)(logits[INDEX[label]]) for label in DECIDED}
    for lower, upper in itertools.pairwise(LEVELS):
        found[upper] = min(found[upper], found[lower])
    return found


def severity(manifest: Manifest, read: Mapping[str, float]) -> int:
    """The highest level whose own threshold is passed, 0 when none is."""
    return max((k for k, label in enumerate(LEVELS, 1) if read[label] >= manifest.thresholds[label]), default=0)


def judgement(
    manifest: Manifest, logits: Sequence[float], leader: Sequence[float], spans: tuple[Span, ...] = ()
) -> Judgement:
    """The verdict on one passage.

    ``logits`` holds, per label, the maximum over the passage's readings (whole, windows); ``leader`` the logits
    of the one reading with the highest P(severity >= 2), which alone says subject, imminence and time.
    ``spans`` go on the overall crisis signal when it is flagged.
    """
    read = scores(manifest.calibration, logits)
    signals = (*_crisis(manifest, read, spans), *_flags(manifest, "output", read), *_flags(manifest, "bias", read))
    return Judgement(
        signals=signals,
        subject=SUBJECTS[_argmax(leader, "subject", SUBJECTS)],
        imminence=IMMINENCES[_argmax(leader, "imminence", IMMINENCES)],
        time=TIMES[_argmax(leader, "time", TIMES)],
    )


def _argmax(logits: Sequence[float], head: str, names: Sequence[str]) -> int:
    return max(range(len(names)), key=lambda i: logits[INDEX[f"{head}:{names[i]}"]])


def _calibration(manifest: Manifest, label: str) -> str:
    return manifest.calibration_id if label in manifest.calibration else NO_CALIBRATION


def _chosen(manifest: Manifest, labels: Sequence[str], read: Mapping[str, float]) -> set[str]:
    """Classes over their threshold; when none is, the one that comes nearest to it."""
    over = {label for label in labels if read[label] >= manifest.thresholds[label]}
    return over or {max(labels, key=lambda label: read[label] / manifest.thresholds[label])}


def _crisis(manifest: Manifest, read: Mapping[str, float], spans: tuple[Span, ...]) -> list[Signal]:
    level = severity(manifest, read)
    labels = [f"crisis:{name}" for name in CATEGORIES]
    chosen = _chosen(manifest, labels, read) if level else set()
    total = Signal(
        label="crisis",
        score=read["level:2"],
        flagged=level >= 1,
        severity=level,
        spans=spans if level else (),
        calibration=_calibration(manifest, "level:2"),
    )
    classes = [
        Signal(
            label=label,
            score=read[label],
            flagged=label in chosen,
            severity=level if label in chosen else 0,
            calibration=_calibration(manifest, label),
        )
        for label in labels
    ]
    return [total, *classes]


def _flags(manifest: Manifest, task: str, read: Mapping[str, float]) -> list[Signal]:
    """A yes/no head: its total decides alone, and a flagged total always names at least one class."""
    flagged = read[task] >= manifest.thresholds[task]
    labels = [label for label in DECIDED if label.startswith(task + ":")]
    chosen = _chosen(manifest, labels, read) if flagged else set()
    return [
        Signal(
            label=label,
            score=read[label],
            flagged=flagged if label == task else label in chosen,
            calibration=_calibration(manifest, label),
        )
        for label in (task, *labels)
    ]
