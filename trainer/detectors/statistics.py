"""What fitting needs beside the measures of `detectors.evaluate`.  Pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
