"""The few statistics a detector report needs.  Pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """``hits`` of ``n``, with Wilson's 95 % interval (Wilson 1927)."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(0, 1) when nothing was counted."""
        if self.n == 0:
            return 0.0, 1.0
        z, n, p = 1.959964, self.n, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        if self.n == 0:
            return "– (n = 0)"
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] ({self.hits}/{self.n})"


def rate(outcomes: Sequence[bool]) -> Rate:
    return Rate(sum(outcomes), len(outcomes))


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive scores above a negative (ties count half); NaN without both."""
    if not positive or not negative:
        return math.nan
    merged = sorted([(score, 1) for score in positive] + [(score, 0) for score in negative])
    rank_sum, start = 0.0, 0
    while start < len(merged):
        end = start
        while end + 1 < len(merged) and merged[end + 1][0] == merged[start][0]:
            end += 1
        rank_sum += (start + end + 2) / 2 * sum(label for _, label in merged[start : end + 1])
        start = end + 1
    count = len(positive)
    return (rank_sum - count * (count + 1) / 2) / (count * len(negative))


def f_beta(hits: int, false: int, missed: int, beta: float = 1.0) -> float:
    """0 when nothing was found."""
    weight = beta * beta
    whole = (1 + weight) * hits + weight * missed + false
    return (1 + weight) * hits / whole if whole else 0.0


def platt(logits: Sequence[float], truths: Sequence[bool], rounds: int = 100) -> tuple[float, float]:
    """Scale and shift of ``sigmoid(scale * logit + shift)`` by Newton's method with Platt's smoothed targets (1999)."""
    positives = sum(truths)
    high, low = (positives + 1) / (positives + 2), 1 / (len(truths) - positives + 2)
    targets = [high if truth else low for truth in truths]
    scale, shift = 1.0, 0.0
    for _ in range(rounds):
        g0 = g1 = h00 = h01 = h11 = 0.0
        for x, target in zip(logits, targets, strict=True):
            p = 1 / (1 + math.exp(-max(-30.0, min(30.0, scale * x + shift))))
            error, curve = p - target, p * (1 - p) + 1e-9
            g0, g1 = g0 + error * x, g1 + error
            h00, h01, h11 = h00 + curve * x * x, h01 + curve * x, h11 + curve
        h00, h11 = h00 + 1e-3, h11 + 1e-3
        det = h00 * h11 - h01 * h01
        step0, step1 = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
        scale, shift = scale - max(-1.0, min(1.0, step0)), shift - max(-1.0, min(1.0, step1))
        if abs(step0) + abs(step1) < 1e-6:
            break
    return max(scale, 0.05), shift
