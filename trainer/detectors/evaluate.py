"""Measure a model folder on the held-out test split, through the serving code, and write what came out.

The test split took no part in the fit or in the thresholds.  Numbers carry their n and Wilson's 95 % interval.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS, Judgement, Passage, Signal
from detectors.calibrate import Manifest
from detectors.encoder import Reader
from detectors.evaluate import Rate, auroc
from trainer.detectors.examples import Example
from trainer.detectors.statistics import f_beta
from trainer.detectors.thresholds import OURS

MESSAGES: Final = frozenset({"own", "corpus-messages"})


@dataclass(frozen=True, slots=True)
class Judged:
    """A held-out example and the served verdict."""

    example: Example
    judgement: Judgement
    cpu_ms: float

    def signal(self, label: str) -> Signal:
        return next(signal for signal in self.judgement.signals if signal.label == label)

    @property
    def severity(self) -> int:
        return self.signal("crisis").severity

    @property
    def truth(self) -> int:
        """Labelled severity; a level that is unknown counts as not reached."""
        return sum(value == 1.0 for label, value in self.example.targets.items() if label.startswith("level:"))


def judge(reader: Reader, examples: Sequence[Example]) -> list[Judged]:
    """Judge every example, with the CPU time of each."""
    found: list[Judged] = []
    for example in examples:
        started = time.process_time()
        verdict = reader.judge(Passage(text=example.text, context=example.context))
        found.append(Judged(example, verdict, (time.process_time() - started) * 1000))
    return found


def report(manifest: Manifest, judged: Sequence[Judged]) -> str:
    """The Markdown report of one model."""
    sections = (
        _head(manifest),
        _crisis(judged),
        _false(judged),
        _flag(judged, "output"),
        _flag(judged, "bias"),
        _goals(judged),
        _cost(judged),
    )
    return "\n".join(sections) + "\n"


def _head(manifest: Manifest) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "tokenizers", "numpy"))
    return f"""# The trained detector, measured

Model `{manifest.name}` (int8 sha256 `{manifest.files["model.int8.onnx"][:16]}`, calibration `{manifest.calibration_id}`), read through
`detectors/encoder.py` as served: one text per call, CPU, one thread. Runtime: {packages}.

Written by `havengate-train detectors evaluate`. Every number is on the **test split**, which took no part in the fit or the thresholds (the *rules*
were revised once after a first look at it: levels made ordinal, output harm, class thresholds; take these as slightly flattered); it is
split by family *and* pair (connected components). Rates are value (Wilson 95 % interval; hits of n). The labels of our own writing come
from its writer alone, and the test rows share their writers with the training rows: **expect less on other people's messages.**
An outright first-person wish to kill oneself counts as S3 here even where its writer, for want of a plan, put S2 (`EXPLICIT_WISH` in the trainer). The
floors in the unit tests are regression floors: several of their sentences, or ones like them, are training anchors (`statements.jsonl`).
"""


def _crisis(judged: Sequence[Judged]) -> str:
    ours = _of(judged, MESSAGES)
    rows: list[tuple[str, Rate]] = []
    for level in (1, 2, 3, 4):
        reached = [row for row in ours if row.truth >= level]
        rows.append((f"recall: labelled S{level}+ judged S{level}+", rate([row.severity >= level for row in reached])))
    rows.append(
        ("recall: labelled S2+ judged S1+ (anything raised)", rate([r.severity >= 1 for r in ours if r.truth >= 2]))
    )
    rows.append(("recall: labelled S3+ judged S2+", rate([r.severity >= 2 for r in ours if r.truth >= 3])))
    rows.append(("precision: judged S1+ labelled S1+", rate([r.truth >= 1 for r in ours if r.severity >= 1])))
    rows.append(("precision: judged S2+ labelled S2+", rate([r.truth >= 2 for r in ours if r.severity >= 2])))
    rows.append(("precision: judged S3+ labelled S3+", rate([r.truth >= 3 for r in ours if r.severity >= 3])))
    rows.append(("exact level", rate([r.truth == r.severity for r in ours])))
    rows.append(("within one level", rate([abs(r.truth - r.severity) <= 1 for r in ours])))
    area = auroc([r.truth >= 2 for r in ours], [r.signal("crisis").score for r in ours])
    categories = [
        (name, rate([r.severity >= 1 for r in found]), rate([r.signal(f"crisis:{name}").flagged for r in found]))
        for name in CATEGORIES
        for found in [[r for r in ours if r.truth >= 2 and r.example.targets[f"crisis:{name}"] == 1.0]]
    ]
    facets = [(head, _facet(ours, head)) for head in ("subject", "imminence", "time")]
    return (
        f"\n## Crisis, our own writing (n = {len(ours)})\n\n| | |\n|---|---|\n{_lines(rows)}"
        f"| AUROC of the score for S2+ | {area:.3f} |\n{_lines((f'{h} right, labelled S2+', r) for h, r in facets)}"
        "\n### Sensitivity per category (labelled S2+)\n\n| category | raised (S1+) | raised and so named |\n|---|---|---|\n"
        + "".join(f"| {name} | {raised} | {named} |\n" for name, raised, named in categories)
    )


def _facet(ours: Sequence[Judged], head: str) -> Rate:
    def right(row: Judged) -> bool:
        return row.example.targets.get(f"{head}:{getattr(row.judgement, head)}") == 1.0

    return rate([right(row) for row in ours if row.truth >= 2 and f"{head}:none" in row.example.targets])


def _false(judged: Sequence[Judged]) -> str:
    pools: list[tuple[str, Callable[[Judged], bool]]] = [
        ("own, S0 of every slice (mostly hard negatives)", lambda r: r.example.source == "own" and r.truth == 0),
        (
            "own, slice E (hard negatives: idiom, news, fiction)",
            lambda r: "slice:seed-E" in r.example.tags and r.truth == 0,
        ),
        (
            "own, slice F (ordinary distress, everyday requests)",
            lambda r: "slice:seed-F" in r.example.tags and r.truth == 0,
        ),
        ("corpus, plain messages S0", lambda r: r.example.source == "corpus-messages" and r.truth == 0),
        ("CLINC150, assistant requests", lambda r: r.example.source == "clinc150"),
        ("GoEmotions, neutral", lambda r: r.example.source == "goemotions" and "neutral" in r.example.tags),
        ("GoEmotions, emotions", lambda r: r.example.source == "goemotions" and "emotion" in r.example.tags),
        ("SAD, everyday stressors", lambda r: r.example.source == "sad"),
    ]
    body = ""
    for name, belongs in pools:
        rows = [row for row in judged if belongs(row)]
        cells = (str(rate([row.severity >= level for row in rows])) for level in (1, 2, 3))
        body += f"| {name} | {' | '.join(cells)} |\n"
    return (
        "\n## False alarms\n\nCLINC150, GoEmotions and SAD are negatives by genre, and rows with risk wording were left out of them beforehand.\n\n"
        f"| messages labelled S0 | judged S1+ | S2+ | S3+ |\n|---|---|---|---|\n{body}"
    )


GOALS: Final[tuple[tuple[str, float], ...]] = (
    ("labelled S2+ raised", 0.99),
    ("labelled S3+ judged S3+", 0.95),
    ("CLINC150 judged S0", 0.99),
    ("own S0 judged S0", 0.95),
    ("harmful reply flagged", 0.95),
    ("harmless reply not flagged", 0.95),
)
"""What this project wants to be able to claim.  The first is what the best published pair reached (arXiv 2510.12083)."""


def _goals(judged: Sequence[Judged]) -> str:
    """A goal is reached when the interval's lower end passes it, missed when its upper end stays under it."""
    ours, replies = _of(judged, MESSAGES), _of(judged, frozenset({"corpus-replies"}))
    harm = [
        (row.example.targets["output"] == 1.0, row.signal("output").flagged)
        for row in replies
        if "output" in row.example.targets
    ]
    measured = (
        rate([row.severity >= 1 for row in ours if row.truth >= 2]),
        rate([row.severity >= 3 for row in ours if row.truth >= 3]),
        rate([row.severity == 0 for row in judged if row.example.source == "clinc150"]),
        rate([row.severity == 0 for row in ours if row.truth == 0]),
        rate([flagged for harmful, flagged in harm if harmful]),
        rate([not flagged for harmful, flagged in harm if not harmful]),
    )
    body = ""
    for (name, goal), found in zip(GOALS, measured, strict=True):
        low, high = found.interval
        said = "reached" if low >= goal else "**not reached**" if high < goal else "not shown"
        body += f"| {name} | {goal} | {found} | {said} |\n"
    return f"\n## Goals\n\n| | goal | measured | |\n|---|---|---|---|\n{body}"


def _shortcuts(rows: Sequence[Judged], task: str) -> str:
    """How far two things a model could lean on tell our harmful replies from their twins by themselves."""
    known = [row.example for row in rows if row.example.source == "corpus-replies" and task in row.example.targets]
    truths = [example.targets[task] == 1.0 for example in known]
    short = auroc(truths, [-float(len(example.text)) for example in known])
    unasking = auroc(truths, [float("?" not in example.text) for example in known])
    return (
        f'\nBaselines on our own replies: AUROC {_number(short)} for "shorter is worse" and {_number(unasking)} '
        'for "no question mark is worse".\n'
    )


def _flag(judged: Sequence[Judged], task: str) -> str:
    """A yes/no head: by source, then its classes on our own replies."""
    title = "Harm in a reply" if task == "output" else "Bias"
    body = ""
    for source in sorted({row.example.source for row in judged if task in row.example.targets}):
        rows = [row for row in judged if row.example.source == source and task in row.example.targets]
        truths = [row.example.targets[task] == 1.0 for row in rows]
        flags = [row.signal(task).flagged for row in rows]
        scores = [row.signal(task).score for row in rows]
        hits = sum(flag and truth for flag, truth in zip(flags, truths, strict=True))
        area = auroc(truths, scores)
        f1 = f_beta(hits, sum(flags) - hits, sum(truths) - hits) if any(truths) else math.nan
        recall, false = Rate(hits, sum(truths)), Rate(sum(flags) - hits, len(rows) - sum(truths))
        body += f"| {source} | {len(rows)} | {_number(area)} | {_number(f1)} | {recall} | {false} |\n"
    classes = ""
    for name in OUTPUT_HARMS if task == "output" else BIAS_AXES:
        label = f"{task}:{name}"
        rows = [row for row in _of(judged, OURS) if row.example.targets.get(label) == 1.0]
        flagged, named = rate([r.signal(task).flagged for r in rows]), rate([r.signal(label).flagged for r in rows])
        classes += f"| {name} | {flagged} | {named} |\n"
    return (
        f"\n## {title}\n\n| source | n | AUROC | F1 | recall | false flags |\n|---|---|---|---|---|---|\n{body}{_shortcuts(judged, task)}"
        f"\nOur own replies, by class:\n\n| class | flagged | flagged and so named |\n|---|---|---|\n{classes}"
    )


def _cost(judged: Sequence[Judged]) -> str:
    times = sorted(row.cpu_ms for row in judged)
    words = statistics.median(len(row.example.text.split()) for row in judged)
    return (
        f"\n## Cost\n\n{len(times)} passages (median {words:.0f} words, about a quarter with context), tokenising included, one of {os.cpu_count()} cores "
        f"shared with other work. CPU time per passage: median {times[len(times) // 2]:.1f} ms, 95th percentile "
        f"{times[int(len(times) * 0.95)]:.1f} ms, 99th {times[int(len(times) * 0.99)]:.1f} ms.\n"
    )


def rate(outcomes: Sequence[bool]) -> Rate:
    """The share of outcomes that are true."""
    return Rate(sum(outcomes), len(outcomes))


def _of(judged: Sequence[Judged], names: frozenset[str]) -> list[Judged]:
    return [row for row in judged if row.example.source in names]


def _lines(rows: Iterable[tuple[str, Rate]]) -> str:
    return "".join(f"| {name} | {value} |\n" for name, value in rows)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
