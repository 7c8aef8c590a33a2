"""Run the conformance kit against Havengate, and beside it against other gateways, and write ``docs/results/conformance.{json,md}``.

``scripts/conformance.py [--litellm VENV] [--nemo VENV]``: each VENV is a virtual environment with the product in it
(``litellm[proxy]``, ``nemoguardrails[server]``); one that is not named keeps its column from the last run.  Everything
listens on the loopback interface; each process is ended by its id.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import aiohttp

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conformance import kit, report  # noqa: E402
from tests.conformance.__main__ import check  # noqa: E402
from tests.conformance.case import Phrases  # noqa: E402
from tests.conformance.upstream import MODEL, Upstream  # noqa: E402
from tests.support.gateway import running  # noqa: E402

RESULTS: Final = ROOT / "docs" / "results"
READY_WITHIN_S: Final = 180
STOP_WITHIN_S: Final = 20
KEY: Final = "sk-conformance-" + "0123456789abcdef" * 2
PHRASES: Final = Phrases()
KEYWORDS: Final = sorted({PHRASES.heard.forbidden, PHRASES.told.forbidden, PHRASES.spoken.forbidden})
SIGN: Final[Mapping[str, str]] = {
    "caught": "✔ caught", "refused": "✔ refused", "dropped": "✔ dropped", "error": "! error", "leaked": "✘ leaked"
}  # fmt: skip


GROUPS: Final = {
    "first": "first table *",
    "more": "more places for words",
    "form": "numbers, names, switches ·",
    "hard": "hard ways of writing",
}
KEPT: Final = ("id", "verdict", "echoed", "false_alarm", "status", "done", "sdk")
"""What is kept of a row; the rest stands in the kit."""
MARK: Final = {"first": " *", "more": "", "form": " ·", "hard": ""}
INTRODUCTION: Final = """# One forbidden sentence, in every place

`scripts/conformance.py`, {when}, {machine}; kit version {kit}, n = {n} cases, {first} of which (*) are the places in
which gateways were first compared. Each case runs twice: with a harmless sentence, then with one that the gateway is known to stop.
Places marked (·) are for a number, a name or a switch; words in them leak when they are passed on, though a model is unlikely to
read them there, so they are counted apart.

- **caught**: the harmless sentence goes through this place, the forbidden one does not;
- **refused**: the place itself is a 4xx, whatever stands in it;
- **dropped**: what stands there reaches neither the model nor the client;
- **error**: a 5xx, or no answer in 60 s; the sentence did not go through;
- **leaked**: the sentence reached the model (in), or at least 80 % of it, from its beginning, reached the client (out).

What this is not: a measure of how well anything understands language. The other gateways ran with the keyword guard that they
ship, given these very sentences; guards of theirs that are models may do better on the rows about ways of writing. Which *fields*
are looked at carries over.
"""
ENDINGS: Final = """## How a stopped stream ends

Each stream whose words were caught, read again by OpenAI's Python SDK with usage asked for. Clean: no exception,
`finish_reason: "content_filter"` and usage in the SDK, `[DONE]` on the wire.

| gateway | streams caught | SDK reads to the end | says `content_filter` | usage | `[DONE]` | clean |
|---|---|---|---|---|---|---|"""

HARD: Final = """## Hard ways of writing

Beside the table, and no part of its n: a person's and a model's sentence in ways of writing that no gateway here promises to
read. Where ours leaks, neither the rules nor the trained detector read the sentence, and a determined writer gets past both."""


@dataclass(frozen=True)
class Product:
    """A gateway to compare with: how it is set up for a folder, an upstream and a port, and how it is started."""

    name: str
    package: str
    configured: str
    set_up: Callable[[Path, str], None]
    command: Callable[[Path, Path, int], list[str]]
    ready: str
    model: str
    variables: Mapping[str, str] = field(default_factory=dict)


def _set_up_litellm(folder: Path, upstream: str) -> None:
    words = "\n".join(f"        - {{keyword: {json.dumps(word)}, action: BLOCK}}" for word in KEYWORDS)
    (folder / "config.yaml").write_text(
        f"""model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: {upstream}/v1, api_key: none}}
guardrails:
  - guardrail_name: words
    litellm_params:
      guardrail: litellm_content_filter
      mode: [pre_call, post_call]
      default_on: true
      blocked_words:
{words}
general_settings: {{master_key: {KEY}}}
""",
        encoding="utf-8",
    )


def _set_up_nemo(folder: Path, upstream: str) -> None:
    patterns = "\n".join(f"          - {json.dumps(re.escape(word))}" for word in KEYWORDS)
    rails = "\n".join(
        f"      {side}:\n        case_insensitive: true\n        patterns:\n{patterns}" for side in ("input", "output")
    )
    (folder / "words").mkdir()
    (folder / "words" / "config.yml").write_text(
        f"""models:
  - type: main
    engine: openai
    model: {MODEL}
    parameters: {{base_url: {upstream}/v1, api_key: none}}
passthrough: true
rails:
  config:
    regex_detection:
{rails}
  input: {{flows: [regex check input]}}
  output:
    flows: [regex check output]
    streaming: {{enabled: true, stream_first: false}}
""",
        encoding="utf-8",
    )


def _run_litellm(venv: Path, folder: Path, port: int) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [str(venv / "bin" / "litellm"), "--config", str(folder / "config.yaml"), *where]


def _run_nemo(venv: Path, folder: Path, port: int) -> list[str]:
    where = ["--port", str(port), "--config", str(folder), "--default-config-id", "words", "--disable-chat-ui"]
    return [str(venv / "bin" / "nemoguardrails"), "server", *where]


_NEMO_SAID: Final = (
    "`regex check input` and `regex check output` with the kit's sentences as patterns, any case; passthrough; streaming on with "
    "`stream_first: false` (its default shows the text first)"
)
LITELLM: Final = Product(
    "LiteLLM",
    "litellm",
    "`litellm_content_filter`, `mode: [pre_call, post_call]`, `default_on`, the kit's sentences as `blocked_words` with action BLOCK",
    _set_up_litellm,
    _run_litellm,
    "/health/readiness",
    MODEL,
    {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
)
NEMO: Final = tuple(
    Product(
        f"NeMo Guardrails, {engine}",
        "nemoguardrails",
        _NEMO_SAID,
        _set_up_nemo,
        _run_nemo,
        "/v1/rails/configs",
        MODEL,
        {"OPENAI_API_KEY": "none", "NEMO_GUARDRAILS_IORAILS_ENGINE": flag, "DO_NOT_TRACK": "1"},
    )
    for engine, flag in (("LLMRails", "0"), ("IORails", "1"))
)


async def ours(upstream: Upstream) -> dict[str, Any]:
    """Havengate as `make serve` starts it, but for the model's address."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        options = ["--backend", "openai_http", "--backend-url", upstream.url, "--backend-model", MODEL]
        gateway = await asyncio.to_thread(stack.enter_context, running(Path(folder) / "home", *options))
        told = await check(kit.Target(gateway.api_url, gateway.key, "havengate"), upstream, PHRASES)
    configured = "as `make serve` sets it up: the bundled detectors and policy; `openai_http` as the backend"
    return {"name": "Havengate", "version": _own_version(), "configured": configured, **told}


async def theirs(product: Product, venv: Path, upstream: Upstream) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        product.set_up(folder, upstream.url)
        async with _served(product, venv, folder) as url:
            told = await check(kit.Target(f"{url}/v1", KEY, product.model), upstream, PHRASES)
    version = await _version(product.package, venv)
    return {"name": product.name, "version": version, "configured": product.configured, **told}


def _own_version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["version"])


async def _version(package: str, venv: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    process = await asyncio.create_subprocess_exec(str(venv / "bin" / "python"), "-c", code, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode().strip()


@contextlib.asynccontextmanager
async def _served(product: Product, venv: Path, folder: Path) -> AsyncIterator[str]:
    """The product as a process of its own on a free loopback port, ended by its id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = product.command(venv, folder, port)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=os.environ | product.variables, stdout=log, stderr=log
        )
        try:
            await _ready(process, f"http://127.0.0.1:{port}{product.ready}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    """By its id, and surely."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ready(process: asyncio.subprocess.Process, url: str, log: IO[bytes]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for _ in range(READY_WITHIN_S):
            if process.returncode is not None:
                break
            try:
                async with session.get(url):
                    return
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(1)
    log.seek(0)
    raise SystemExit(f"the gateway did not start; its last words:\n{log.read().decode(errors='replace')[-2000:]}")


# --- the page ----------------------------------------------------------------------------------


def page(columns: list[dict[str, Any]], when: str, machine: str) -> str:
    """The comparison as Markdown."""
    names = [column["name"] for column in columns]
    first = sum(case.group == "first" for case in kit.CASES)
    heads = ["n", *SIGN.values(), "echoed ¹", "false alarms ²"]
    lines = [
        INTRODUCTION.format(when=when, machine=machine, kit=report.KIT_VERSION, n=len(kit.CASES), first=first),
        "| gateway | version | configured |",
        "|---|---|---|",
        *(f"| {column['name']} | {column['version']} | {column['configured']} |" for column in columns),
        "",
        f"| gateway | places | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
        *(_counts(column, group) for group in GROUPS for column in columns),
        "",
        "¹ Stopped, but the error that says so repeats the sentence. ² The harmless sentence got no answer either, under status 200.",
        "",
        *_endings(columns),
    ]
    by_id = [{row["id"]: row for row in column["rows"]} for column in columns]
    for side, title in (("in", "What the model could read"), ("out", "What the client could receive")):
        lines += ["", f"## {title}", "", f"| place | field | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
        for case in kit.CASES:
            if case.side == side:
                cells = " | ".join(_cell(rows.get(case.id)) for rows in by_id)
                lines.append(f"| {case.title}{MARK[case.group]} | `{case.field}` | {cells} |")
    lines += ["", HARD, "", f"| written | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for case in kit.HARD:
        lines.append(f"| {case.title} | {' | '.join(_cell(rows.get(case.id)) for rows in by_id)} |")
    return "\n".join(lines) + "\n"


def _counts(column: dict[str, Any], group: str) -> str:
    members = {case.id for case in kit.CASES + kit.HARD if case.group == group}
    rows = [row for row in column["rows"] if row["id"] in members]
    words = Counter(row["verdict"] for row in rows)
    marks = (sum(row["echoed"] for row in rows), sum(row["false_alarm"] for row in rows))
    counts = [len(rows), *(words[word] for word in SIGN), *marks]
    return f"| {column['name']} | {GROUPS[group]} | {' | '.join(map(str, counts))} |"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    marks = ("¹" if row["echoed"] else "") + ("²" if row["false_alarm"] else "")
    return SIGN[row["verdict"]] + marks


def _endings(columns: list[dict[str, Any]]) -> list[str]:
    lines = [ENDINGS]
    for column in columns:
        rows = [row for row in column["rows"] if "sdk" in row]
        marks = [
            (row["sdk"]["parsed"], row["sdk"]["finish_reason"] == "content_filter", row["sdk"]["usage"], row["done"])
            for row in rows
        ]
        counts = [len(rows), *(sum(mark[place] for mark in marks) for place in range(4)), sum(map(all, marks))]
        lines.append(f"| {column['name']} | {' | '.join(map(str, counts))} |")
    return lines


async def _main(arguments: argparse.Namespace) -> int:
    known = (
        json.loads((RESULTS / "conformance.json").read_text())
        if (RESULTS / "conformance.json").exists()
        else {"gateways": []}
    )
    columns = {column["name"]: column for column in known["gateways"]}
    async with Upstream() as upstream:
        columns["Havengate"] = await ours(upstream)
        for product, venv in [(LITELLM, arguments.litellm), *((nemo, arguments.nemo) for nemo in NEMO)]:
            if venv is not None:
                columns[product.name] = await theirs(product, venv, upstream)
    when, machine = dt.datetime.now(dt.UTC).date().isoformat(), f"{os.cpu_count()} cores"
    found = list(columns.values())
    RESULTS.mkdir(parents=True, exist_ok=True)
    for column in found:
        column["rows"] = [{name: row[name] for name in KEPT if name in row} for row in column["rows"]]
    told = {"date": when, "machine": machine, "gateways": found}
    (RESULTS / "conformance.json").write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / "conformance.md").write_text(page(found, when, machine), encoding="utf-8")
    for column in found:
        sys.stdout.write(f"{column['name']} {column['version']}: n={column['n']} {column['counts']}\n")
    return int("leaked" in columns["Havengate"]["counts"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/conformance.py", description=__doc__)
    parser.add_argument("--litellm", type=Path, help="a virtual environment with litellm[proxy]")
    parser.add_argument("--nemo", type=Path, help="a virtual environment with nemoguardrails[server]")
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
