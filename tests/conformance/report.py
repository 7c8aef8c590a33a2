"""The outcome of a run as JSON, for a page or another tool."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.conformance.kit import Row
from tests.conformance.sdk import Stopped

KIT_VERSION = 1


def document(rows: list[Row], stopped: dict[str, Stopped]) -> dict[str, Any]:
    """One object: a summary, and a row for each case."""
    table = [row for row in rows if row.case.group != "hard"]
    hard = [row for row in rows if row.case.group == "hard"]
    return {
        "kit": KIT_VERSION,
        "n": len(table),
        "counts": _counts(table),
        "n_hard": len(hard),
        "counts_hard": _counts(hard),
        "rows": [_row(row, stopped.get(row.case.id)) for row in rows],
    }


def _counts(rows: list[Row]) -> dict[str, int]:
    return dict(sorted(Counter(row.verdict.word for row in rows).items()))


def _row(row: Row, stopped: Stopped | None) -> dict[str, Any]:
    case, verdict = row.case, row.verdict
    told = {
        "id": case.id,
        "title": case.title,
        "field": case.field,
        "side": case.side,
        "group": case.group,
        "verdict": verdict.word,
        "echoed": verdict.echoed,
        "false_alarm": verdict.false_alarm,
        "status": row.status,
        "finish_reasons": list(row.ending.finish_reasons),
        "done": row.ending.done,
        "error_frame": row.ending.error and row.status == 200,
    }
    if stopped is not None:
        told["sdk"] = {"parsed": stopped.parsed, "finish_reason": stopped.finish_reason, "usage": stopped.usage}
    return told
