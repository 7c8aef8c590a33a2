"""Measure the gateway on this machine and write ``docs/results/bench.{json,md}``.  Run by ``make bench``.

What is measured is the gateway, not a model: a scripted backend answers at once, in some thirty chunks of a token, and every message is
new, so that no verdict comes from the cache.  CPU time is the serving process's own (`bench_load.cpu_s`); it counts the
work, where wall time would count the machine's other guests too.  Each median carries its n and a 95 % bootstrap interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.client
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench_load import QUESTION, cpu_s, resident_mib

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "docs" / "results"
KEY: Final = "bench-key-for-one-run"
READY_WITHIN_S: Final = 60.0
BATCHES, BATCH, STARTS, VERDICTS, RESAMPLES = 20, 10, 5, 200, 2_000
REPLY: Final = (
    "Start with the leeks, they want slow heat and a little butter. Add the potatoes and the stock after ten minutes, "
    "and let it simmer while the bread warms."
)
CHUNKS: Final = tuple(REPLY[at : at + 5] for at in range(0, len(REPLY), 5))
"""About a token each, as a model would send them."""
Row = dict[str, Any]


def summary(name: str, unit: str, values: list[float]) -> Row:
    """Median with a percentile bootstrap interval (Efron, 1979); the seed is fixed so that a rerun of it agrees."""
    rng = random.Random(7)  # noqa: S311 - resampling, not secrets
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return {
        "name": name,
        "unit": unit,
        "n": len(values),
        "median": statistics.median(values),
        "low": medians[int(0.025 * RESAMPLES)],
        "high": medians[int(0.975 * RESAMPLES) - 1],
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def gateway(home: Path) -> Iterator[tuple[int, int, float]]:
    """A gateway with a scripted backend: its process id, its port, and how long it took to be ready."""
    port = free_port()
    home.mkdir(exist_ok=True)
    config = home / "bench.toml"
    chunks = json.dumps(CHUNKS)
    config.write_text(
        f'[backend]\nkind = "scripted"\n[[backend.options.script]]\nchunks = {chunks}\n', encoding="utf-8"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAVENGATE") and name != "PORT"}
    began_s = time.monotonic()
    server = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), "--config", str(config)],
        cwd=ROOT,
        env={**kept, "HAVENGATE_HOME": str(home), "HAVENGATE_DEV_API_KEY": KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not is_ready(port):
            if server.poll() is not None or time.monotonic() - began_s > READY_WITHIN_S:
                raise RuntimeError("the gateway did not become ready; try `make serve` to see why")
            time.sleep(0.01)
        yield server.pid, port, time.monotonic() - began_s
    finally:
        server.terminate()
        server.wait(READY_WITHIN_S)


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, number: int, *, stream: bool) -> float:
    """One chat request, read to its end.  Returns seconds to the first byte of the body."""
    message = {"role": "user", "content": QUESTION.format(n=number)}
    body = json.dumps({"model": "havengate", "messages": [message], "stream": stream})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    began_s = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    response.read(1)
    first_s = time.perf_counter() - began_s
    response.read()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"the gateway answered {response.status}")
    return first_s


def requests(pid: int, port: int, *, stream: bool, start: int) -> tuple[list[float], list[float]]:
    """CPU ms per request (one value per batch) and wall ms to the first byte (one per request)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    cpu_ms, first_ms = [], []
    numbers = iter(range(start, start + (BATCHES + 1) * BATCH))
    for batch in range(BATCHES + 1):
        before_s = cpu_s(pid)
        first = [ask(connection, next(numbers), stream=stream) * 1000 for _ in range(BATCH)]
        if batch:  # the first batch warms up
            cpu_ms.append((cpu_s(pid) - before_s) * 1000 / BATCH)
            first_ms += first
    connection.close()
    return cpu_ms, first_ms


async def verdicts() -> list[float]:
    """CPU ms of one verdict of the whole panel on a new message of some sixty tokens, in this process."""
    from detectors.api import Passage
    from detectors.panel import Panel
    from gateway.registry import load_detectors
    from gateway.settings import Settings
    from gateway.telemetry.logging import make_logger

    panel = Panel(
        await load_detectors(Settings().detectors, log=make_logger("warning", "json", sys.stderr)),
        timeout_s=30.0,
        cache_entries=0,
    )
    spent_ms = []
    for number in range(VERDICTS + 1):
        before_s = time.process_time()
        reading = await panel.read(Passage(QUESTION.format(n=number)))
        if reading.unavailable_tasks:
            raise RuntimeError("a detector did not answer")
        if number:
            spent_ms.append((time.process_time() - before_s) * 1000)
    await panel.aclose()
    return spent_ms


def imports() -> list[float]:
    command = [sys.executable, "-c", "import gateway.main"]
    return [timed(lambda: subprocess.run(command, cwd=ROOT, check=True)) for _ in range(STARTS)]  # noqa: S603


def timed(work: Callable[[], object]) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s


def measure() -> list[Row]:
    rows = [summary("import gateway.main, a new process", "s", imports())]
    with tempfile.TemporaryDirectory() as folder:
        ready_s = []
        for _ in range(STARTS):
            with gateway(Path(folder)) as (_, _, took_s):
                ready_s.append(took_s)
        rows.append(summary("start until /readyz, warm, scripted backend", "s", ready_s[1:]))
        with gateway(Path(folder)) as (pid, port, _):
            plain_cpu_ms, plain_first_ms = requests(pid, port, stream=False, start=0)
            stream_cpu_ms, stream_first_ms = requests(pid, port, stream=True, start=10_000)
            rows += [
                summary(f"CPU per plain request, judged, on record (mean of {BATCH})", "ms", plain_cpu_ms),
                summary(
                    f"CPU per {len(CHUNKS)}-chunk stream, judged, on record (mean of {BATCH})", "ms", stream_cpu_ms
                ),
                summary("wall time to the answer, plain", "ms", plain_first_ms),
                summary("wall time to the first byte, stream", "ms", stream_first_ms),
                summary("resident memory after the load", "MiB", [resident_mib(pid)]),
            ]
    rows.append(summary("CPU per verdict of the whole panel, 60 tokens", "ms", asyncio.run(verdicts())))
    return rows


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def render(rows: list[Row], when: str, load_average: float) -> str:
    """The Markdown table."""
    lines = [
        "# The gateway, measured",
        "",
        f"`make bench`, {when}, {machine()}. Medians with 95 % bootstrap intervals; the load came from one client on the",
        f"same machine, which had a load average of {load_average:.1f} before. The backend is scripted, so these are the gateway's own costs,",
        "detectors and record included. What the same gateway costs beside others is in `overhead.md`.",
        "",
        "| what | median | 95 % interval | n |",
        "|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{row['low']:.2f}–{row['high']:.2f}" if row["n"] > 1 else "–"
        lines.append(f"| {row['name']} | {row['median']:.2f} {row['unit']} | {interval} | {row['n']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    load_average = os.getloadavg()[0]
    try:
        rows = measure()
    except RuntimeError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    when = dt.datetime.now(tz=dt.UTC).date().isoformat()
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = {"when": when, "machine": machine(), "load_average": load_average, "rows": rows}
    (RESULTS / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "bench.md").write_text(render(rows, when, load_average), encoding="utf-8")
    sys.stdout.write(render(rows, when, load_average))
    return 0


if __name__ == "__main__":
    sys.exit(main())
