"""One training example, and how its labels are said.

A target is 1, 0 or absent; an absent label is unknown and costs nothing.  That lets one encoder learn from
sources that each know only a part: a bias set says nothing of a crisis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS, Line
from detectors.calibrate import IMMINENCES, LEVELS, SUBJECTS, TIMES

Split = Literal["train", "validation", "test"]
Targets = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Example:
    """A text in its context with what is known of it."""

    id: str
    source: str
    text: str
    targets: Targets
    keys: tuple[str, ...]
    """Examples that share a key stay on one side of the split."""
    context: tuple[Line, ...] = ()
    weight: float = 1.0
    split: Split = "train"
    tags: frozenset[str] = field(default_factory=frozenset)


def level_targets(severity: int, known_from: int = 1) -> Targets:
    """``level:k`` for a severity; levels under ``known_from`` stay unknown."""
    return {label: float(severity >= k) for k, label in enumerate(LEVELS, 1) if k >= known_from}


def crisis_targets(severity: int, categories: Iterable[str], known_from: int = 1) -> dict[str, float]:
    """Levels and categories of a message.  With severity 0 a category is no alarm, so all are 0."""
    named = set(categories) if severity else set()
    return {**level_targets(severity, known_from), **{f"crisis:{name}": float(name in named) for name in CATEGORIES}}


def one_of(head: str, names: Iterable[str], value: str) -> dict[str, float]:
    """One head of mutually exclusive classes."""
    return {f"{head}:{name}": float(name == value) for name in names}


def facet_targets(subject: str, imminence: str, time: str) -> dict[str, float]:
    return {
        **one_of("subject", SUBJECTS, subject),
        **one_of("imminence", IMMINENCES, imminence),
        **one_of("time", TIMES, time),
    }


def bias_targets(flag: bool, axes: Iterable[str] | None) -> dict[str, float]:
    """The bias flag and, when known, its axes; an unbiased text has none of them."""
    return _flag_targets("bias", BIAS_AXES, flag, axes)


def output_targets(flag: bool, harms: Iterable[str] | None) -> dict[str, float]:
    """The output flag and, when known, its harms; a harmless reply has none of them."""
    return _flag_targets("output", OUTPUT_HARMS, flag, harms)


def _flag_targets(task: str, names: tuple[str, ...], flag: bool, classes: Iterable[str] | None) -> dict[str, float]:
    targets = {task: float(flag)}
    if classes is not None or not flag:
        present = set(classes or ())
        targets.update({f"{task}:{name}": float(name in present) for name in names})
    return targets
