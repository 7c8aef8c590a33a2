"""The registry, with strangers' plugins that are really installed: modules and ``.dist-info`` folders on the path."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.registry import load_backend, load_detectors
from gateway.settings import DetectorSettings, TelemetrySettings
from gateway.telemetry.start import Telemetry

PLUGIN = '''
import msgspec
from backends.api import BackendError, BackendInfo, Chunk
from detectors.api import DetectorError, DetectorInfo, Judgement

class Options(msgspec.Struct, frozen=True):
    threads: int = 1
    api_key: str = ""
    fail: str = ""

class Quiet:
    """Finds nothing."""
    config_type = Options
    closed = []

    def __init__(self, name, options):
        self.name, self.options = name, options

    @classmethod
    async def load(cls, name, config):
        if config.fail == "load":
            raise DetectorError("load", "the weights are damaged")
        return cls(name, config)

    @property
    def info(self):
        return DetectorInfo(self.name, "d1", ("crisis",))

    async def judge(self, passage):
        if self.options.fail == "judge":
            raise DetectorError("inference", "the session is gone")
        return Judgement(())

    async def aclose(self):
        self.closed.append(self.name)

class Echo:
    config_type = Options

    @classmethod
    async def load(cls, config):
        if config.fail == "load":
            raise BackendError("unavailable", "no model file")
        return cls()

    @property
    def info(self):
        return BackendInfo("echo", "echo-1", 128)

    async def stream(self, prompt):
        yield Chunk(finish_reason="stop")

    async def health(self):
        return None

    async def aclose(self):
        return None

class Half:
    config_type = Options

    @classmethod
    async def load(cls, *_):
        return cls()

class Loose:
    config_type = dict

    @classmethod
    async def load(cls, *_):
        return cls()

nothing = object()
'''


def install(folder: Path, distribution: str, module: str, **kinds: str) -> None:
    """Put a distribution on the path as pip would leave it."""
    (folder / f"{module}.py").write_text(PLUGIN, encoding="utf-8")
    info = folder / f"{distribution}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n", encoding="utf-8")
    lines = ["[havengate.detectors]"]
    lines += [f"{kind} = {module}:{name}" for kind, name in kinds.items() if kind.startswith("d_")]
    lines += ["[havengate.backends]"]
    lines += [f"{kind} = {module}:{name}" for kind, name in kinds.items() if kind.startswith("b_")]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(
        tmp_path,
        "stranger",
        "stranger_plugin",
        d_quiet="Quiet",
        d_half="Half",
        d_loose="Loose",
        d_nothing="nothing",
        d_absent="Missing",
        b_echo="Echo",
        b_half="Half",
    )
    yield tmp_path
    for module in ("stranger_plugin", "rival_plugin"):
        sys.modules.pop(module, None)


async def load(kind: str, options: dict[str, object]) -> None:
    if kind.startswith("b_"):
        await load_backend(kind, options)
    else:
        await load_detectors({"mine": DetectorSettings(kind=kind, options=options)})


async def refused(kind: str, **options: object) -> str:
    with pytest.raises(StartupError) as caught:
        await load(kind, options)
    assert "\n" not in caught.value.message
    return caught.value.message


async def test_a_strangers_parts_load_like_our_own_and_are_logged(strangers: Path) -> None:
    stream = io.StringIO()
    telemetry = Telemetry.start(TelemetrySettings(), stream=stream)
    try:
        backend = await load_backend("b_echo", {"threads": 2}, log=telemetry.log)
        named = {
            "one": DetectorSettings(kind="d_quiet", options={"threads": 3}),
            "off": DetectorSettings(kind="d_not_installed", enabled=False),
            "two": DetectorSettings(kind="d_quiet"),
        }
        detectors = await load_detectors(named, log=telemetry.log)
    finally:
        telemetry.shutdown()
    assert backend.info.model == "echo-1"
    assert [detector.info.name for detector in detectors] == ["one", "two"]
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["name"]) for line in lines] == [
        ("backend_loaded", "b_echo"),
        ("detector_loaded", "one"),
        ("detector_loaded", "two"),
    ]
    assert {(line["distribution"], line["version"]) for line in lines} == {("stranger", "1.2")}


async def test_a_kind_that_is_not_installed(strangers: Path) -> None:
    assert "Did you mean d_quiet?" in await refused("d_quite")
    assert "No backend of kind b_xyzzy_unheard_of is installed" in await refused("b_xyzzy_unheard_of")


async def test_a_kind_that_two_distributions_claim(strangers: Path) -> None:
    install(strangers, "rival", "rival_plugin", d_quiet="Quiet")
    message = await refused("d_quiet")
    assert "offered more than once (rival, stranger)" in message


@pytest.mark.parametrize("group_kind", ["d_quiet", "b_echo"])
async def test_options_are_decoded_strictly_and_never_shown(strangers: Path, group_kind: str) -> None:
    assert "Unknown option thread for" in await refused(group_kind, thread=1)
    message = await refused(group_kind, api_key=["hidden-value"])
    assert "$.api_key" in message
    assert "hidden-value" not in message
    assert "Expected `int`, got `str`" in await refused(group_kind, threads="2")


async def test_parts_that_break_the_contract(strangers: Path) -> None:
    assert "does not keep the contract" in await refused("d_half")
    assert "does not keep the contract" in await refused("b_half")
    assert "not a msgspec Struct" in await refused("d_loose")
    assert "no load or no config_type" in await refused("d_nothing")
    assert "cannot be imported" in await refused("d_absent")


async def test_parts_that_cannot_start_say_why_in_one_line(strangers: Path) -> None:
    assert await refused("d_quiet", fail="load") == "Detector mine cannot start (load): the weights are damaged"
    assert "failed its first verdict (inference)" in await refused("d_quiet", fail="judge")
    assert await refused("b_echo", fail="load") == "Backend b_echo cannot start (unavailable): no model file"


async def test_what_was_loaded_before_a_fault_is_closed(strangers: Path) -> None:
    named = {
        "first": DetectorSettings(kind="d_quiet"),
        "broken": DetectorSettings(kind="d_quiet", options={"fail": "judge"}),
    }
    with pytest.raises(StartupError):
        await load_detectors(named)
    from stranger_plugin import Quiet  # type: ignore[import-not-found]

    assert sorted(Quiet.closed) == ["broken", "first"]
