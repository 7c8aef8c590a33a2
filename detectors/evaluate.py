"""Numbers about detectors, each with its n and its interval.  Pure; the files are opened by the caller.

Sources: Wilson (1927) for proportions; Clopper and Pearson (1934) for the exact bound; AUROC as the Mann-Whitney
statistic (Hanley and McNeil, 1982).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from detectors.api import CATEGORIES, MAX_SEVERITY, Line, Passage, Role
from detectors.fusion import Reading

_Z95: Final = 1.959963984540054


class Labelled(msgspec.Struct, frozen=True):
    """One labelled row: a text or a conversation, and what a careful reader says of it.

    ``output`` and ``bias`` are None where the row is not labelled for them; likewise ``severity``.
    ``family`` groups paraphrases of one template, which count as one unit.
    """

    id: str | int
    text: str = ""
    messages: tuple[Line, ...] = ()
    severity: int | None = None
    categories: tuple[str, ...] = ()
    output: bool | None = None
    bias: bool | None = None
    family: str = ""

    def passage(self) -> Passage:
        """What is to be read: the message that the labels speak of, with what was said before it.

        That is the last message, but the user's last one where only crisis is labelled; a bare text is a user's unless
        it is labelled as a reply.
        """
        if not self.messages:
            role: Role = "assistant" if self.output is not None else "user"
            return Passage(self.text, role)
        index = len(self.messages) - 1
        if self.severity is not None and self.output is None and self.bias is None:
            index = max((i for i, line in enumerate(self.messages) if line.role == "user"), default=index)
        line = self.messages[index]
        return Passage(line.text, line.role, self.messages[:index])


@dataclass(frozen=True, slots=True)
class Rate:
    """A proportion ``hits / n`` with its 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.n)

    def __str__(self) -> str:
        if not self.n:
            return "no rows"
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f}; {self.hits} of {self.n})"


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at one threshold."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> Rate:
        return Rate(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Rate:
        return Rate(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> Rate:
        return Rate(self.true_positive, self.true_positive + self.false_positive)


@dataclass(frozen=True, slots=True)
class Head:
    """One yes/no question: its confusion at the operating point and how well its score ranks."""

    name: str
    confusion: Confusion
    auroc: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured.  ``unavailable`` counts rows in which some detector did not answer."""

    rows: int
    families: int
    unavailable: int
    heads: tuple[Head, ...]
    severities: tuple[tuple[int, ...], ...]
    """``severities[true][read]``: how many rows of each true level were read as each level."""
    missed: tuple[str, ...]
    """Ids of rows of level 2 or higher that were read as level 0."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of ``hits / n``; (0, 1) when nothing was counted."""
    _check_counts(hits, n)
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the edges the formula gives 0 and 1 but for the last bit.
    return (middle - half if hits else 0.0), (middle + half if hits < n else 1.0)


def miss_rate_bound(misses: int, n: int, confidence: float = 0.95) -> float:
    """One-sided exact (Clopper-Pearson) upper bound of a miss rate: 0 misses of 598 rows bound it below 0.5 %."""
    _check_counts(misses, n)
    if not 0.0 < confidence < 1.0:
        raise ValueError("confidence must lie between 0 and 1")
    if misses == n:
        return 1.0
    if misses == 0:
        return float(1.0 - (1.0 - confidence) ** (1.0 / n))
    low, high = misses / n, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(misses, n, middle) > 1.0 - confidence else (low, middle)
    return high


def _at_most(hits: int, n: int, share: float) -> float:
    """P(X <= hits) of a binomial, summed in logarithms so that large n does not overflow."""
    if share >= 1.0:
        return 0.0
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(share)
        + (n - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]
    return math.fsum(math.exp(one) for one in logs)


def _check_counts(hits: int, n: int) -> None:
    if not 0 <= hits <= n:
        raise ValueError("a count must lie between 0 and n")


def confusion(truth: Sequence[bool], scores: Sequence[float], threshold: float) -> Confusion:
    """Count at ``score >= threshold``.  Raises `ValueError` when lengths differ or a score is NaN."""
    _check_scores(truth, scores)
    said = [score >= threshold for score in scores]
    return Confusion(
        true_positive=sum(t and s for t, s in zip(truth, said, strict=True)),
        false_positive=sum(s and not t for t, s in zip(truth, said, strict=True)),
        true_negative=sum(not t and not s for t, s in zip(truth, said, strict=True)),
        false_negative=sum(t and not s for t, s in zip(truth, said, strict=True)),
    )


def auroc(truth: Sequence[bool], scores: Sequence[float]) -> float:
    """Chance that a positive row scores above a negative one, ties counting half; NaN when one class is missing."""
    _check_scores(truth, scores)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    positives = sum(truth)
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    rank_sum, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        rank_sum += (start + 1 + end) / 2 * sum(truth[i] for i in order[start:end])
        start = end
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _check_scores(truth: Sequence[bool], scores: Sequence[float]) -> None:
    if len(truth) != len(scores):
        raise ValueError("truth and scores differ in length")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")


def read_labelled(lines: Iterable[bytes]) -> list[Labelled]:
    """Decode labelled JSON Lines.  Raises `ValueError` that names the line, without its text."""
    rows: list[Labelled] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(_as_lines(line), type=Labelled)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ValueError(f"line {number}: not a labelled row") from None
        if not row.text and not row.messages:
            raise ValueError(f"line {number}: needs 'text' or 'messages'")
        if row.severity is not None and not 0 <= row.severity <= MAX_SEVERITY:
            raise ValueError(f"line {number}: severity must lie between 0 and {MAX_SEVERITY}")
        rows.append(row)
    return rows


def _as_lines(line: bytes) -> bytes:
    """Messages come in OpenAI's words (``content``); `Line` calls it ``text``."""
    row = msgspec.json.decode(line)
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        row["messages"] = [
            {"role": one.get("role"), "text": one.get("content")} if isinstance(one, dict) else one
            for one in row["messages"]
        ]
    return msgspec.json.encode(row)


def evaluate(rows: Sequence[Labelled], readings: Sequence[Reading]) -> Report:
    """Compare labels with readings of the same rows in the same order.  Raises `ValueError` on unequal lengths."""
    if len(rows) != len(readings):
        raise ValueError("rows and readings differ in number")
    pairs = list(zip(rows, readings, strict=True))
    graded = [(row, reading, row.severity) for row, reading in pairs if row.severity is not None]
    levels = [[0] * (MAX_SEVERITY + 1) for _ in range(MAX_SEVERITY + 1)]
    for _, reading, severity in graded:
        levels[severity][reading.crisis.severity] += 1
    heads = [
        _head(
            f"crisis, level {level} or higher",
            [
                (severity >= level, reading.crisis.severity >= level, reading.crisis.score)
                for _, reading, severity in graded
            ],
        )
        for level in range(1, MAX_SEVERITY + 1)
    ]
    heads += [
        _head(
            f"category {name}",
            [
                (name in row.categories, name in one.crisis.categories, one.crisis.scores.get(name, 0.0))
                for row, one, _ in graded
            ],
        )
        for name in CATEGORIES
        if any(name in row.categories for row, _, _ in graded)
    ]
    heads += [
        _head(
            "harm in a reply",
            [(row.output, one.output.flagged, one.output.score) for row, one in pairs if row.output is not None],
        ),
        _head("bias", [(row.bias, one.bias.flagged, one.bias.score) for row, one in pairs if row.bias is not None]),
    ]
    return Report(
        rows=len(rows),
        families=len({row.family or f"\0{index}" for index, row in enumerate(rows)}),
        unavailable=sum("unavailable" in one.detectors.values() for one in readings),
        heads=tuple(head for head in heads if head is not None),
        severities=tuple(tuple(row) for row in levels),
        missed=tuple(str(row.id) for row, one, severity in graded if severity >= 2 and one.crisis.severity == 0),
    )


def _head(name: str, judged: Sequence[tuple[bool, bool, float]]) -> Head | None:
    """None where no row is labelled for this head."""
    if not judged:
        return None
    truth = [one[0] for one in judged]
    return Head(
        name, confusion(truth, [float(one[1]) for one in judged], 0.5), auroc(truth, [one[2] for one in judged])
    )


def markdown(report: Report, *, title: str, data: str, detectors: str) -> str:
    """The report as Markdown.  ``data`` names the set and its digest, ``detectors`` what was measured."""
    lines = [
        f"# {title}",
        "",
        f"Data: {data}. Detectors: {detectors}.",
        f"Rows: {report.rows} in {report.families} families; in {report.unavailable} a detector did not answer.",
        "Each rate is followed by its 95 % Wilson interval and its counts. Rows of one family are not independent.",
        "",
        "| question | sensitivity | specificity | precision | AUROC | miss rate at most (exact, 95 %) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for head in report.heads:
        table, found = head.confusion, head.confusion.sensitivity
        bound = f"{miss_rate_bound(table.false_negative, found.n):.4f}" if found.n else "no rows"
        ranked = "no rows" if math.isnan(head.auroc) else f"{head.auroc:.3f}"
        lines.append(f"| {head.name} | {found} | {table.specificity} | {table.precision} | {ranked} | {bound} |")
    lines += ["", "| true level | " + " | ".join(f"read as {n}" for n in range(MAX_SEVERITY + 1)) + " |"]
    lines.append("| --- " * (MAX_SEVERITY + 2) + "|")
    lines += [f"| {level} | " + " | ".join(map(str, row)) + " |" for level, row in enumerate(report.severities)]
    missed = ", ".join(report.missed[:200]) or "none"
    lines += ["", f"Rows of level 2 or higher read as level 0: {len(report.missed)} ({missed})", ""]
    return "\n".join(lines)
