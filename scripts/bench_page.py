"""The page of ``scripts/overhead.py``, from its report.  Pure, but for ``bench_page.py REPORT.json``, which prints it anew."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

Column = dict[str, Any]
FLOOR: Final = "Litestar pass-through"
NULL: Final = "Havengate, null detectors"
LEXICON: Final = "Havengate, lexicon"
REAL: Final = "Havengate, as served"
LITELLM: Final = "LiteLLM, keyword guard"
LITELLM_ENCODER: Final = "LiteLLM, our encoder"
IORAILS: Final = "NeMo Guardrails, IORails"
LLMRAILS: Final = "NeMo Guardrails, LLMRails"
SHORT_WINDOW_WORDS: Final = 12
"""Of five characters each: the stand-in's first sentence fills the first window (60 characters)."""
BEFORE: Final = {NULL: "Havengate before, null detectors", REAL: "Havengate before, as served"}

INTRODUCTION: Final = """# What it costs

`scripts/overhead.py`, {when}, {machine}, one worker each, everything on the loopback interface of one shared machine;
load average at the start of each round: {load}. One run of {rounds} rounds: all gateways are up at once, in front of one stand-in for
a model that answers at once (a fixed JSON document, or {chunks} chunks of SSE), and are asked in turn, round after round. Every question
is about sixty tokens long and new, so that no verdict comes from a cache.

**CPU time** of the serving process and its children, from the kernel's per-process clocks, is the figure to trust here: it counts
work, where wall time also counts the machine's other guests. A cell is *min / **median** / max* over the rounds.

What "plain" means for Havengate: it asks its model for a stream also when its client does not want one, so as to stop a bad answer
early; a plain request therefore reads the same chunks as a stream. The other gateways fetch one JSON document for it.
"""


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.{digits}f} / **{middle:.{digits}f}** / {high:.{digits}f}"


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Round by round, so that a busy moment of the machine counts on both sides."""
    return spread([a / b for a, b in zip(over, under, strict=True)], 1) if over and under else "–"


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def page(report: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    columns: dict[str, Column] = {column["name"]: column for column in report["columns"]}
    lines = [
        INTRODUCTION.format(
            when=report["when"],
            machine=report["machine"],
            load=", ".join(f"{value:.1f}" for value in report["load_average"]),
            rounds=report["rounds"],
            chunks=32,
        ),
        *_set_up(report, columns),
        *_cost(columns),
        *_ratios(columns),
        *_waiting(report, columns),
        *_before(report, columns),
        *_goals(report, columns),
        *LIMITS,
    ]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _set_up(report: dict[str, Any], columns: dict[str, Column]) -> list[str]:
    light, heavy = report["plans"]["light"], report["plans"]["heavy"]
    rows = [(column["name"], column["version"], column["said"]) for column in columns.values()]
    asked = (
        f"A round asks each {light['plain']} plain requests and {light['streams']} streams one after another, {light['rated']} plain "
        f"requests at {light['rate_per_s']:g} a second, {light['callers']} callers at once for {light['burst_s']:g} s, and "
        f"{light['paced']} streams of a model that says a word every {report['pace_ms']} ms."
    )
    if report["heavy"]:
        asked += (
            f" Of {', '.join(report['heavy'])}, which need tens of CPU ms a request: {heavy['plain']}, {heavy['streams']}, "
            f"{heavy['rated']} at {heavy['rate_per_s']:g} a second, {heavy['callers']} for {heavy['burst_s']:g} s, {heavy['paced']}."
        )
    return ["## What was compared", "", *_table(("gateway", "version", "set up"), rows), asked, ""]


def _cost(columns: dict[str, Column]) -> list[str]:
    rows = [
        (
            column["name"],
            spread(column["plain_ms"]),
            spread(column["stream_ms"]),
            spread(column["busy_ms"]),
            spread(column["per_s"], 0),
            (
                f"{percentile(column['wall_ms'], 0.5):.1f} / {percentile(column['wall_ms'], 0.99):.1f} "
                f"(n={len(column['wall_ms'])}, {column['rate_per_s']:.0f}/s)"
            ),
            f"{column['resident_mib']:.0f}",
        )
        for column in columns.values()
    ]
    heads = (
        "gateway",
        "CPU ms, plain",
        "CPU ms, 32-chunk stream",
        "CPU ms, plain, 16 callers",
        "plain requests a second, 16 callers",
        "p50 / p99 wall ms, fixed rate",
        "RSS MiB",
    )
    return ["## Cost", "", *_table(heads, rows)]


def _ratios(columns: dict[str, Column]) -> list[str]:
    lines = [
        "## Ratios",
        "",
        "How many times as much CPU each takes as Havengate does; above 1 Havengate is cheaper.",
        "",
    ]
    for own in (NULL, REAL):
        mine = columns[own]
        rows = [
            (
                column["name"],
                ratio(column["plain_ms"], mine["plain_ms"]),
                ratio(column["stream_ms"], mine["stream_ms"]),
                ratio(column["busy_ms"], mine["busy_ms"]),
            )
            for name, column in columns.items()
            if name not in (own, "no gateway", *BEFORE.values())
        ]
        lines += _table((f"against *{own}*", "plain", "stream", "plain, 16 callers"), rows)
    return lines


def _waiting(report: dict[str, Any], columns: dict[str, Column]) -> list[str]:
    direct = columns["no gateway"]
    first, gap = statistics.median(direct["first_ms"]), statistics.median(direct["gap_ms"])
    rows = [
        (
            name,
            spread([value - first for value in column["first_ms"]], 0),
            spread([value - gap for value in column["gap_ms"]], 0),
        )
        for name, column in columns.items()
        if name != "no gateway"
    ]
    return [
        "## What a reader waits for",
        "",
        (
            f"A word every {report['pace_ms']} ms. Without a gateway the first comes after {first:.0f} ms and the longest wait between two is "
            f"{gap:.0f} ms; the table says what each gateway adds. A gateway that shows text before it is judged adds least. n = "
            f"{len(direct['first_ms'])} streams each."
        ),
        "",
        *_table(("gateway", "added to the first word, ms", "added to the longest wait, ms"), rows),
    ]


def _before(report: dict[str, Any], columns: dict[str, Column]) -> list[str]:
    found = [(now, before) for now, before in BEFORE.items() if before in columns]
    if not found:
        return []
    rows = []
    for now, before in found:
        for what, key in (("plain", "plain_ms"), ("stream", "stream_ms"), ("plain, 16 callers", "busy_ms")):
            old, new = columns[before][key], columns[now][key]
            rows.append((now, what, spread(old), spread(new), spread([b / a for a, b in zip(old, new, strict=True)])))
    heads = ("gateway", "request", "CPU ms before", "CPU ms now", "now / before")
    return ["## Before and after", "", *([report["note"], ""] if report["note"] else []), *_table(heads, rows)]


def _goals(report: dict[str, Any], columns: dict[str, Column]) -> list[str]:
    """DESIGN's budgets, each with what was measured; a bound is reached by the median."""
    null, real, direct = columns[NULL], columns[REAL], columns["no gateway"]

    def middle(column: Column, key: str) -> float:
        return statistics.median(column[key])

    def row(goal: str, bound: float, value: float, unit: str, *, least: bool = False) -> tuple[str, str, str, str]:
        met = value >= bound if least else value <= bound
        sign = "≥" if least else "≤"
        return goal, f"{sign} {bound:g}{unit}", f"{value:.2f}{unit}", "reached" if met else "**not reached**"

    rows = [
        row("gateway tax, plain (null detectors)", 1.0, middle(null, "plain_ms"), " ms CPU"),
        row("gateway tax, 32-chunk stream", 2.0, middle(null, "stream_ms"), " ms CPU"),
    ]
    for other, times in ((LITELLM, 12.0), (IORAILS, 1.0)):
        for kind, key in (("plain", "plain_ms"), ("stream", "stream_ms")):
            if other in columns:
                measured = statistics.median([a / b for a, b in zip(columns[other][key], null[key], strict=True)])
                rows.append(row(f"{other}, over null detectors, {kind}", times, measured, " times", least=True))
    window_ms = SHORT_WINDOW_WORDS * float(report["pace_ms"])
    first_ms = middle(real, "first_ms") - middle(direct, "first_ms")
    rows += [
        row("added to the first word, as served: one short window", window_ms, first_ms, " ms"),
        row("resident memory without a local model, as served", 350, real["resident_mib"], " MiB"),
    ]
    judging_ms = middle(real, "plain_ms") - middle(null, "plain_ms")
    return [
        "## Goals",
        "",
        *_table(("goal", "bound", "measured (median)", ""), rows),
        f"Judging a whole turn, the message of 58 tokens and the windows of its answer, takes {judging_ms:.1f} ms CPU, nearly all of it in",
        "the encoder; what one message takes alone is in `bench.md`.",
        "",
    ]


LIMITS: Final = (
    "## What this does not say",
    "",
    "- It measures gateways, not how well they judge: see `conformance.md` and `detectors.md`. A keyword guard costs next to nothing and",
    "  reads next to nothing; the comparison with equal work is *LiteLLM, our encoder*.",
    "- LiteLLM's guardrail interface is given the whole text so far every few chunks of a stream, without the conversation; ours judges",
    "  windows with their context, which is more runs of the encoder. So those two rows differ in what is judged, too.",
    "- A gateway written in a compiled language passes bytes on for about 0.15 ms; no Python gateway will.",
    "- The client and the stand-in for a model share the cores with the gateway under load: requests a second are a lower bound.",
)


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
