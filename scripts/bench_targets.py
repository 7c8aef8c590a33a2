"""What ``scripts/overhead.py`` compares: each gateway as a process of its own on the loopback interface, ended by its id.

Settings of the other products are those of the conformance page (``scripts/conformance.py``).  A detector that finds nothing, and
one LiteLLM guardrail that runs our encoder, are written into a temporary folder: they are no part of any product.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import aiohttp
from bench_load import Door
from conformance import KEY, LITELLM, NEMO, Product, stop

ROOT: Final = Path(__file__).resolve().parent.parent
SERVERS: Final = Path(__file__).with_name("bench_servers.py")
READY_WITHIN_S: Final = 180

_NULL: Final = '''
from detectors.api import DetectorInfo, Judgement
import msgspec

class Config(msgspec.Struct, frozen=True):
    """Nothing to choose."""

class Null:
    """Finds nothing, at no cost."""
    config_type = Config

    def __init__(self, name, cheap):
        self.info = DetectorInfo(name, f"null-{cheap}", ("crisis", "output", "bias"), cheap=cheap)

    @classmethod
    async def load(cls, name, config):
        return cls(name, name == "null_cheap")

    async def judge(self, passage):
        return Judgement(())

    async def aclose(self):
        return None
'''
_GUARDRAIL: Final = """
import asyncio, sys
sys.path += {paths!r}
from detectors.api import Passage
from detectors.encoder import EncoderConfig, EncoderDetector
from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail

class Encoder(CustomGuardrail):
    detector = None

    async def apply_guardrail(self, inputs, request_data, input_type, logging_obj=None):
        if self.detector is None:
            type(self).detector = await EncoderDetector.load("encoder", EncoderConfig())
        role = "user" if input_type == "request" else "assistant"
        for text in inputs.get("texts") or []:
            judgement = await self.detector.judge(Passage(text, role))
            if any(signal.flagged for signal in judgement.signals):
                raise HTTPException(status_code=400, detail="blocked")
        return inputs
"""


@dataclass(frozen=True)
class Target:
    """One row of the page."""

    name: str
    said: str
    """How it is set up."""
    prepare: Callable[[Path, str, int], tuple[list[str], Mapping[str, str]]]
    """Folder, upstream and port to a command and its variables."""
    ready: str = "/readyz"
    key: str = KEY
    model: str = "havengate"
    heavy: bool = False
    """Tens of CPU ms a request: fewer requests make a round."""
    version: tuple[str, Path] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def _ours(
    settings: str, *, null: bool = False, tree: Path = ROOT
) -> Callable[[Path, str, int], tuple[list[str], Mapping[str, str]]]:
    def prepare(folder: Path, upstream: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        (folder / "settings.toml").write_text(settings, encoding="utf-8")
        if null:
            (folder / "null_detector.py").write_text(_NULL, encoding="utf-8")
            info = folder / "null_detector-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: null-detector\nVersion: 1\n", encoding="utf-8")
            (info / "entry_points.txt").write_text(
                "[havengate.detectors]\nnull_cheap = null_detector:Null\nnull_costly = null_detector:Null\n",
                encoding="utf-8",
            )
        serve = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port)]
        backend = ["--backend", "openai_http", "--backend-url", upstream, "--backend-model", "conformance"]
        variables = {
            "HAVENGATE_HOME": str(folder / "home"),
            "HAVENGATE_DEV_API_KEY": KEY,
            "PYTHONPATH": f"{tree}{os.pathsep}{folder}",
        }
        return [*serve, *backend, "--config", str(folder / "settings.toml")], variables

    return prepare


def _floor(_folder: Path, upstream: str, port: int) -> tuple[list[str], Mapping[str, str]]:
    return [sys.executable, str(SERVERS), "floor", str(port), upstream], {}


def _other(product: Product, venv: Path) -> Callable[[Path, str, int], tuple[list[str], Mapping[str, str]]]:
    def prepare(folder: Path, upstream: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        product.set_up(folder, upstream)
        return product.command(venv, folder, port), product.variables

    return prepare


def _litellm_with_encoder(venv: Path) -> Callable[[Path, str, int], tuple[list[str], Mapping[str, str]]]:
    def prepare(folder: Path, upstream: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        LITELLM.set_up(folder, upstream)
        config = folder / "config.yaml"
        before, _, _ = config.read_text(encoding="utf-8").partition("guardrails:")
        config.write_text(
            f"{before}guardrails:\n  - guardrail_name: encoder\n    litellm_params:\n      guardrail: encoder_guard.Encoder\n"
            f"      mode: [pre_call, post_call]\n      default_on: true\ngeneral_settings: {{master_key: {KEY}}}\n",
            encoding="utf-8",
        )
        # At the end of the path: only what LiteLLM's own environment lacks comes from ours.
        paths = [str(ROOT), *site.getsitepackages()]
        (folder / "encoder_guard.py").write_text(_GUARDRAIL.format(paths=paths), encoding="utf-8")
        return LITELLM.command(venv, folder, port), LITELLM.variables

    return prepare


_NO_DETECTORS: Final = """
[detectors.lexicon]
enabled = false
[detectors.encoder]
enabled = false
[detectors.null_cheap]
[detectors.null_costly]
"""
_LEXICON: Final = "[detectors.encoder]\nenabled = false\n"
FLOOR: Final = Target(
    "Litestar pass-through", "Litestar and aiohttp, bytes in and out, no key, no guard, no record", _floor
)
NULL: Final = Target(
    "Havengate, null detectors",
    "key, limits, policy, hold-back, conversation record, hash-chained audit, metrics; a cheap and a costly detector that find nothing",
    _ours(_NO_DETECTORS, null=True),
)
LEXICON: Final = Target("Havengate, lexicon", "as above, with the bundled rules alone", _ours(_LEXICON))
REAL: Final = Target("Havengate, as served", "as `make serve` sets it up: rules and the int8 encoder", _ours(""))
EARLIER_NULL: Final = "Havengate before, null detectors"
EARLIER_REAL: Final = "Havengate before, as served"


def targets(litellm: Path | None, nemo: Path | None, earlier: Path | None = None) -> list[Target]:
    """Every row that can be run here: the others need their environments, or an earlier tree of Havengate's."""
    found = [FLOOR, NULL, LEXICON, REAL]
    if earlier is not None:
        found += [
            Target(EARLIER_NULL, "an earlier tree, set up as now", _ours(_NO_DETECTORS, null=True, tree=earlier)),
            Target(EARLIER_REAL, "an earlier tree, set up as now", _ours("", tree=earlier)),
        ]
    if litellm is not None:
        more = {"ready": LITELLM.ready, "model": LITELLM.model, "heavy": True, "version": ("litellm", litellm)}
        found.append(Target("LiteLLM, keyword guard", LITELLM.configured, _other(LITELLM, litellm), **more))
        said = "our encoder in a `CustomGuardrail.apply_guardrail`, `mode: [pre_call, post_call]`"
        found.append(Target("LiteLLM, our encoder", said, _litellm_with_encoder(litellm), **more))
    if nemo is not None:
        found += [
            Target(
                product.name,
                product.configured,
                _other(product, nemo),
                ready=product.ready,
                model=product.model,
                heavy=product.name.endswith("LLMRails"),
                version=(product.package, nemo),
            )
            for product in NEMO
        ]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[Door]:
    """The model's stand-in."""
    port = free_port()
    async with _process([sys.executable, str(SERVERS), "upstream", str(port)], {}, ROOT, port, "/v1/models") as pid:
        yield Door(f"http://127.0.0.1:{port}", "none", "conformance", pid)


@contextlib.asynccontextmanager
async def served(target: Target, upstream_url: str) -> AsyncIterator[Door]:
    """One gateway, ready, until the block ends."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        command, variables = target.prepare(Path(name), upstream_url, port)
        async with _process(command, variables, Path(name), port, target.ready) as pid:
            yield Door(f"http://127.0.0.1:{port}", target.key, target.model, pid)


@contextlib.asynccontextmanager
async def _process(
    command: list[str], variables: Mapping[str, str], folder: Path, port: int, ready: str
) -> AsyncIterator[int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAVENGATE") and name != "PORT"}
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={**kept, **variables}, stdout=log, stderr=log
        )
        try:
            await _ready(process, f"http://127.0.0.1:{port}{ready}", log)
            yield process.pid
        finally:
            await stop(process)


async def _ready(process: asyncio.subprocess.Process, url: str, log: IO[bytes]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for _ in range(READY_WITHIN_S * 4):
            if process.returncode is not None:
                break
            try:
                async with session.get(url) as response:
                    if response.status < 500:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.25)
    log.seek(0)
    raise SystemExit(f"a gateway did not start; its last words:\n{log.read().decode(errors='replace')[-2000:]}")


async def version(target: Target) -> str:
    """Of the other products, as their environments say it."""
    if target.version is None:
        return "this tree"
    package, venv = target.version
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    process = await asyncio.create_subprocess_exec(str(venv / "bin" / "python"), "-c", code, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode().strip()
