"""Measure what each gateway costs, beside others, in one run; write ``docs/results/overhead.{json,md}``.

``scripts/overhead.py [--litellm VENV] [--nemo VENV] [--earlier TREE] [--rounds N]``: each VENV is a virtual environment with the
product in it (``litellm[proxy]``, ``nemoguardrails[server]``; without both the page is only printed), TREE an earlier checkout of
this repository.  All gateways run at the same time in front of one stand-in for a model, on the loopback interface, and are asked
in turn, round after round, so that a busy moment of the machine meets all of them.  Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402
import bench_page  # noqa: E402
import bench_targets as t  # noqa: E402
from bench_load import REQUEST_WITHIN_S, Load, Timing, resident_mib  # noqa: E402

RESULTS: Final = ROOT / "docs" / "results"
PACE_MS: Final = 20
"""Fifty words a second: a model in no hurry."""


@dataclass(frozen=True)
class Plan:
    """How much one round asks of one gateway."""

    plain: int
    streams: int
    paced: int
    rate_per_s: float
    rated: int
    callers: int
    burst_s: float


LIGHT: Final = Plan(plain=100, streams=100, paced=3, rate_per_s=20, rated=60, callers=16, burst_s=2.0)
HEAVY: Final = Plan(plain=25, streams=25, paced=3, rate_per_s=5, rated=20, callers=16, burst_s=3.0)


@dataclass
class Column:
    """What was measured of one gateway: a value a round, and times of single requests."""

    name: str
    said: str
    version: str
    plain_ms: list[float] = field(default_factory=list)
    stream_ms: list[float] = field(default_factory=list)
    busy_ms: list[float] = field(default_factory=list)
    """CPU a plain request with 16 callers."""
    per_s: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    rate_per_s: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    resident_mib: float = 0.0


async def one_round(load: Load, plan: Plan, column: Column, *, warm_up: bool) -> None:
    """Ask one gateway everything but the paced streams."""
    if warm_up:
        await load.cpu_ms(max(4, plan.plain // 5), stream=False)
        await load.cpu_ms(max(4, plan.streams // 5), stream=True)
    column.plain_ms.append(await load.cpu_ms(plan.plain, stream=False))
    column.stream_ms.append(await load.cpu_ms(plan.streams, stream=True))
    column.rate_per_s = plan.rate_per_s
    column.wall_ms += [one.whole_s * 1_000 for one in await load.at_rate(plan.rate_per_s, plan.rated)]
    per_s, busy_ms = await load.throughput(plan.callers, plan.burst_s, stream=False)
    column.per_s.append(per_s)
    column.busy_ms.append(busy_ms)


async def paced(load: Load, count: int) -> list[Timing]:
    return [await load.ask(stream=True) for _ in range(count)]


def note_paced(column: Column, timings: list[Timing]) -> None:
    column.first_ms += [one.first_s * 1_000 for one in timings]
    column.gap_ms += [one.gap_s * 1_000 for one in timings]


async def measure(targets: list[t.Target], rounds: int) -> tuple[list[Column], list[float]]:
    """Every gateway's column, the model's own first; and the machine's load average at each round."""
    loads: list[tuple[Load, Plan, Column, t.Door]] = []
    averages = []
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(t.upstream())
        # Servers drop a connection that idled for 5 s; a pooled one must not be used in that very moment.
        pool = aiohttp.TCPConnector(keepalive_timeout=2)
        timeout = aiohttp.ClientTimeout(total=REQUEST_WITHIN_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=pool, timeout=timeout))
        direct = Column("no gateway", "the stand-in for a model, asked directly", "this tree")
        loads.append((Load(session, upstream), LIGHT, direct, upstream))
        for target in targets:
            door = await stack.enter_async_context(t.served(target, upstream.url))
            column = Column(target.name, target.said, await t.version(target))
            loads.append((Load(session, door), HEAVY if target.heavy else LIGHT, column, door))
            say(f"ready: {target.name}")
        for number in range(rounds):
            averages.append(os.getloadavg()[0])
            for load, plan, column, _ in loads:
                await one_round(load, plan, column, warm_up=number == 0)
            async with session.post(f"{upstream.url}/pace/{PACE_MS}", data=b""):
                for load, plan, column, _ in loads:
                    note_paced(column, await paced(load, plan.paced))
            async with session.post(f"{upstream.url}/pace/0", data=b""):
                say(f"round {number + 1} of {rounds}")
        for _, _, column, door in loads:
            column.resident_mib = resident_mib(door.pid)
    return [column for _, _, column, _ in loads], averages


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def say(line: str) -> None:
    sys.stdout.write(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("litellm", "nemo", "earlier"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="a sentence for the page about the earlier tree")
    given = parser.parse_args()
    venvs = [path.absolute() if path else None for path in (given.litellm, given.nemo, given.earlier)]
    columns, averages = asyncio.run(measure(t.targets(*venvs), given.rounds))
    report: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(),
        "rounds": given.rounds,
        "load_average": averages,
        "note": given.note,
        "plans": {"light": asdict(LIGHT), "heavy": asdict(HEAVY)},
        "heavy": [target.name for target in t.targets(*venvs) if target.heavy],
        "pace_ms": PACE_MS,
        "columns": [asdict(column) for column in columns],
    }
    if not (given.litellm and given.nemo):
        sys.stdout.write(bench_page.page(report))
        say("not written: the page is for a run beside the other gateways (--litellm, --nemo)")
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / "overhead.md").write_text(bench_page.page(report), encoding="utf-8")
    for column in columns:
        say(f"{column.name}: {statistics.median(column.plain_ms):.2f} / {statistics.median(column.stream_ms):.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
