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
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults import kills  # noqa: E402

BATCH: Final = 24
"""Kills of one home; then a new one, so that a record is killed young and old."""
MAX_RUNS: Final = 5_000
PARTS: Final = ("litestar", "uvicorn", "sqlalchemy", "aiohttp", "msgspec")
Page = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help=f"kills, at most {MAX_RUNS}")
    parser.add_argument("--leaves", type=int, default=120, help="clients that leave, over all moments")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "faults.md")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    arguments = parser.parse_args()
    if not 0 <= arguments.runs <= MAX_RUNS or not 0 <= arguments.leaves <= MAX_RUNS:
        parser.error(f"--runs and --leaves lie between 0 and {MAX_RUNS}")
    os.chdir(ROOT)
    twin = arguments.output.with_suffix(".json")
    page: Page = {"batches": [], "leaves": []}
    if twin.exists() and not arguments.fresh:
        page = json.loads(twin.read_text(encoding="utf-8"))
    for first in range(0, arguments.runs, BATCH):
        seed = arguments.seed * 10_000 + first
        page["batches"].append(asyncio.run(_batch(seed, min(BATCH, arguments.runs - first))))
        _write(page, twin, arguments.output)
        print(f"{_runs(page)} kills, {len(_broken(page))} broken promises", flush=True)  # noqa: T201
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
        "kills": [
            {
                "moment": it.moment,
                "phases": dict(it.phases),
                "owed": it.owed,
                "unwritten": it.unwritten,
                "broken": it.broken,
            }
            for it in outcomes
        ],
    }


def _kills(page: Page) -> Iterable[Page]:
    return (kill for batch in page["batches"] for kill in batch["kills"])


def _runs(page: Page) -> int:
    return sum(1 for _ in _kills(page))


def _broken(page: Page) -> list[str]:
    return [one for kill in _kills(page) for one in kill["broken"]]


def _write(page: Page, twin: Path, output: Path) -> None:
    page["machine"] = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    page["versions"] = {name: version(name) for name in PARTS}
    page["when"] = dt.datetime.now(tz=dt.UTC).date().isoformat()
    twin.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    output.write_text(str(Counter(k["moment"] for k in _kills(page))), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
