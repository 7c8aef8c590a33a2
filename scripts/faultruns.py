"""Kill a real gateway hundreds of times and measure how soon a backend is let go; write ``docs/results/faults.md``.

``scripts/faultruns.py --runs 300 --seed 1 --output docs/results/faults.md``.  Runs add up: each batch is appended to the
page's JSON twin as it ends, so that a busy machine can do them in pieces (``--fresh`` starts over).  Everything listens
on the loopback interface; each process is ended by its id.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import math
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults import kills, leaving, record  # noqa: E402

BATCH: Final = 24
"""Kills of one home; then a new one, so that a record is killed young and old."""
MAX_RUNS: Final = 5_000
PARTS: Final = ("litestar", "uvicorn", "sqlalchemy", "aiohttp", "msgspec")
MAX_LISTED: Final = 20
Page = dict[str, Any]
INTRODUCTION: Final = """# Faults, provoked

`scripts/faultruns.py`, {when}, {machine};
{versions}.
A real `havengate serve` on the loopback interface: SQLite, the lexicon and a second detector that takes 5 to 50 ms, a scripted model with 10 to 20 ms between its words.
"""
KILLED: Final = """## `kill -9`

Ten clients at once, three streams in four: people in crisis, everyday questions, long answers, answers that turn harmful. The
gateway is killed by its process id at a moment that is aimed at, and started again on what it left. For the kinds
*owing* and *paying* another program holds the record, so that findings go to disk first; *paying* is killed a second
time while it pays them. Where each request really was when the gateway died:

{table}

*Unnamed*: no header had arrived and the request names no conversation, so nothing ties it to a row.

After each restart: who had read a byte of care finds an incident, a notice to people and an audit row; a stream that ended
has its last row; nothing is doubled (incidents of a conversation, notices, findings of a request, turns that an
incident counts); every notice has its incident and its audit row, every incident its notice; what was owed is paid by
itself; no crisis closed as anything but care; no harmful word was delivered; one person of each kill comes back and is still in
crisis for us, in the same conversation; every audit row from before the kill is there unchanged; `havengate audit verify` holds from the
head that the run before printed.

**{broken} broken promises in {kills} kills** ({requests} requests, {cared} of them with care on its way or given, {owed} findings owed on
disk when the gateway died; {minutes} min). With none in n, the rate of kills that break one is below {bound} % (95 %,
exact). {unwritten} plain turns or turns of care ended while another program held the record: their findings
are kept, their last audit row is missing and counted in `havengate_store_errors_total`. Seeds: {seeds}.
"""
STARTED: Final = """## `kill -9` of a first start

A gateway is killed while it makes its home, and started again there; then someone in crisis writes. How far it had come:

{table}

**{broken} broken promises in {n} kills.**
"""
LEFT: Final = """## Clients that leave

From the client's closed connection to the model's server noticing that its own was closed, both in one process beside
the gateway; half of the connections are torn (RST), half closed. Goal: 200 ms.

{table}

{gone} of {n} are on record as left by their client.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help=f"kills, at most {MAX_RUNS}")
    parser.add_argument("--leaves", type=int, default=120, help="clients that leave, over all moments")
    parser.add_argument("--starts", type=int, default=48, help="first starts that are killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "faults.md")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    arguments = parser.parse_args()
    if not all(0 <= count <= MAX_RUNS for count in (arguments.runs, arguments.starts, arguments.leaves)):
        parser.error(f"--runs, --starts and --leaves lie between 0 and {MAX_RUNS}")
    os.chdir(ROOT)
    twin = arguments.output.with_suffix(".json")
    page: Page = {"batches": []}
    if twin.exists() and not arguments.fresh:
        page = json.loads(twin.read_text(encoding="utf-8"))
    for first in range(0, arguments.runs, BATCH):
        seed = arguments.seed * 10_000 + first
        page["batches"].append(asyncio.run(_batch(seed, min(BATCH, arguments.runs - first))))
        _write(page, twin, arguments.output)
        print(f"{len(_kills(page))} kills, {len(_broken(page))} broken promises", flush=True)  # noqa: T201
    if arguments.starts:
        page["starts"] = asyncio.run(_first_starts(arguments.seed, arguments.starts))
    if arguments.leaves:
        page["leaving"] = _leaving(arguments.leaves)
    _write(page, twin, arguments.output)
    return 1 if _broken(page) else 0


async def _batch(seed: int, runs: int) -> Page:
    """Kills over one home, every kind of moment in turn."""
    rng, started = random.Random(seed), time.monotonic()  # noqa: S311 - moments, not secrets
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="havengate-faults-") as folder:
        async with kills.Siege(kills.House.make(Path(folder)), rng) as siege:
            for number in range(runs):
                moment = kills.MOMENTS[number % len(kills.MOMENTS)]
                outcomes.append(await siege.strike(moment, f"visit-{seed}-{number}"))
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "kills": [{**asdict(it), "phases": dict(it.phases)} for it in outcomes],
    }


async def _first_starts(seed: int, runs: int) -> Page:
    """Gateways that are killed while they make their home."""
    rng = random.Random(seed)  # noqa: S311 - moments, not secrets
    made: Counter[str] = Counter()
    broken: list[str] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="havengate-faults-") as folder:
            how_far, found = await kills.first_start(Path(folder), rng)
            made[how_far] += 1
            broken += found
    return {"made": dict(made), "broken": broken}


def _leaving(runs: int) -> Page:
    """Clients that leave, and how soon the model was let go."""
    with tempfile.TemporaryDirectory(prefix="havengate-faults-") as folder:
        left, gone = asyncio.run(leaving.measure(Path(folder), runs))
    return {"left": [asdict(one) for one in left], "gone": gone}


# --- the page ------------------------------------------------------------------------------------


def _kills(page: Page) -> list[Page]:
    return [kill for batch in page["batches"] for kill in batch["kills"]]


def _broken(page: Page) -> list[str]:
    broken: list[str] = [one for kill in _kills(page) for one in kill["broken"]]
    return [*broken, *page.get("starts", {"broken": []})["broken"]]


def _write(page: Page, twin: Path, output: Path) -> None:
    page["machine"] = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    page["versions"] = {name: version(name) for name in PARTS} | {"SQLite": sqlite3.sqlite_version}
    page["when"] = dt.datetime.now(tz=dt.UTC).date().isoformat()
    twin.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    parts = [_introduction(page), _killed(page)]
    if "starts" in page:
        parts.append(_started(page["starts"]))
    if "leaving" in page:
        parts.append(_left(page["leaving"]))
    output.write_text("\n".join(parts), encoding="utf-8")


def _introduction(page: Page) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in page["versions"].items())
    return INTRODUCTION.format(when=page["when"], machine=page["machine"], versions=versions)


def _killed(page: Page) -> str:
    """Where the kills hit, and what was broken by them."""
    killed = _kills(page)
    hits: dict[str, Counter[str]] = {moment: Counter() for moment in kills.MOMENTS}
    for kill in killed:
        hits[kill["moment"]] += Counter(kill["phases"]) + Counter(kills=1, owed=kill["owed"])
    rows = [
        [moment, *(str(found[name]) for name in ("kills", *record.PHASES, "owed"))] for moment, found in hits.items()
    ]
    total = sum(hits.values(), Counter())
    rows.append(["**all**", *(f"**{total[name]}**" for name in ("kills", *record.PHASES, "owed"))])
    numbers = {
        "table": _table(["aimed at", "kills", *record.PHASES, "findings owed on disk"], rows),
        "kills": len(killed),
        "requests": sum(sum(kill["phases"].values()) for kill in killed),
        "cared": sum(kill["cared"] for kill in killed),
        "owed": sum(kill["owed"] for kill in killed),
        "unwritten": sum(kill["unwritten"] for kill in killed),
        "broken": len(_broken(page)),
        "bound": f"{100 * (1 - 0.05 ** (1 / max(len(killed), 1))):.1f}",
        "seeds": ", ".join(str(batch["seed"]) for batch in page["batches"]),
        "minutes": f"{sum(batch['seconds'] for batch in page['batches']) / 60:.0f}",
    }
    listed = "".join(f"- {one}\n" for one in sorted(set(_broken(page)))[:MAX_LISTED])
    return KILLED.format(**numbers) + listed


def _started(found: Page) -> str:
    rows = [[name, str(found["made"].get(name, 0))] for name in ("nothing yet", *kills.MADE)]
    table = _table(["the home holds at most", "kills"], rows)
    return STARTED.format(table=table, n=sum(found["made"].values()), broken=len(found["broken"]))


def _left(found: Page) -> str:
    rows = []
    for moment in leaving.MOMENTS:
        delays = sorted(one["delay_ms"] for one in found["left"] if one["moment"] == moment.name)
        rows.append([moment.name, str(len(delays)), *(f"{at:.1f}" for at in _spread(delays))])
    every = sorted(one["delay_ms"] for one in found["left"])
    rows.append(["**all**", f"**{len(every)}**", *(f"**{at:.1f}**" for at in _spread(every))])
    table = _table(["the client leaves", "n", "p50 ms", "p99 ms", "longest ms"], rows)
    return LEFT.format(table=table, n=len(every), gone=found["gone"])


def _spread(delays: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile (nearest rank) and maximum of sorted delays."""
    return statistics.median(delays), delays[math.ceil(0.99 * len(delays)) - 1], delays[-1]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
