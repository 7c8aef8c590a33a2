"""Detectors that fail, through the real registry, panel and turn: what they leave unsaid is ``unavailable``, never clean.

The strangers come through the door of every plug-in: a distribution with entry points.  The trained encoder fails on its
own weights, with its session or its files tampered with.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from backends.scripted import ScriptedTurn
from detectors.api import Detector, DetectorError, Judgement, Passage
from detectors.calibrate import LABELS
from detectors.encoder import (
    BUNDLED,
    MODEL_FILE,
    EncoderConfig,
    EncoderDetector,
    model_folder,
    open_session,
    open_tokenizer,
    read_manifest,
)
from detectors.lexicon import LexiconDetector
from detectors.panel import Panel
from gateway.pipeline.case import House
from gateway.registry import load_detectors
from gateway.settings import DetectorSettings
from tests.faults import plugins
from tests.faults.plugins import Fault, Stranger
from tests.integration.house import Home, Visit, home
from tests.integration.test_faults import visit, with_parts

BENIGN = ("It is good ", "that you asked. ", "Boil it for ", "eight minutes.")
SPEECH = ScriptedTurn(chunks=BENIGN)
CRISIS = "I want to end my life tonight."
WITHIN_S = 10.0
FAULTS = [fault for fault in get_args(Fault) if fault != "none"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strangers' distribution is on the path."""
    monkeypatch.syspath_prepend(str(plugins.install(tmp_path / "site")))


@contextlib.asynccontextmanager
async def before(it: Home, detector: Any, *, within_s: float = 5.0) -> AsyncIterator[House]:
    """The same house, judged by the lexicon and ``detector``."""
    lexicon = await LexiconDetector.load("lexicon", LexiconDetector.config_type())
    panel = Panel([lexicon, detector], timeout_s=within_s)
    try:
        house: House = with_parts(it, panel=panel)
        yield house
    finally:
        await panel.aclose()


async def stranger(fault: Fault, role: str = "user", tasks: Sequence[str] = ("crisis", "output", "bias")) -> Detector:
    """One that passes the registry's proof and fails afterwards."""
    options = {"fault": fault, "role": role, "tasks": list(tasks)}
    (detector,) = await load_detectors({"stranger": DetectorSettings(kind="stranger", options=options)})
    return detector


def check_unheard(it: Home, got: Visit, name: str = "stranger") -> None:
    """A message that was not judged whole: a holding message, no model, people who look at it."""
    assert got.closed.decision.action == "replace"
    assert got.closed.decision.severity >= 1
    assert got.closed.detectors[name] == "unavailable"
    assert got.closed.incident_id is not None
    assert "unavailable.crisis" in got.closed.decision.reasons
    assert not any(words.strip() in got.text for words in BENIGN), "no model speaks"
    assert len(got.text) > 50
    # A short answer may be whole before a slow detector has failed; a call that is under way then is given up.
    assert it.backend.started == it.backend.aborted + it.backend.finished


# --- strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_over_a_persons_words_is_never_clean(tmp_path: Path, installed: None, fault: Fault) -> None:
    async with home(tmp_path, SPEECH) as it, before(it, await stranger(fault), within_s=0.1) as house:
        got = await asyncio.wait_for(visit(house, "hello"), WITHIN_S)
        check_unheard(it, got)
        (incident,) = await it.incidents()
        assert incident.kind == "unavailable"
        assert "canary" not in it.log.getvalue()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_beside_a_crisis_does_not_hide_it(tmp_path: Path, installed: None, fault: Fault) -> None:
    """What the others heard counts in full."""
    async with home(tmp_path, SPEECH) as it, before(it, await stranger(fault), within_s=0.1) as house:
        got = await asyncio.wait_for(visit(house, CRISIS), WITHIN_S)
        check_unheard(it, got)
        (incident,) = await it.incidents()
        assert (incident.kind, incident.severity) == ("crisis", got.closed.decision.severity)
        assert incident.severity >= 3


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_over_an_answer_stops_it_before_its_first_word(
    tmp_path: Path, installed: None, fault: Fault
) -> None:
    async with home(tmp_path, SPEECH) as it, before(it, await stranger(fault, "assistant"), within_s=0.1) as house:
        got = await asyncio.wait_for(visit(house, "hello"), WITHIN_S)
        assert BENIGN[0].strip() not in got.text
        assert got.closed.finish_reason == "content_filter"
        assert (got.closed.decision.action, got.closed.decision.stage) == ("replace", "output")
        assert got.closed.detectors["stranger"] == "unavailable"
        (incident,) = await it.incidents()
        assert (incident.kind, incident.id) == ("output_harm", got.closed.incident_id)


async def test_a_verdict_that_failed_is_asked_for_again(tmp_path: Path, installed: None) -> None:
    """Nothing that a detector did not say is remembered."""
    detector = await stranger("raises")
    assert isinstance(detector, Stranger)
    async with home(tmp_path, SPEECH) as it, before(it, detector) as house:
        assert (await visit(house, "hello")).closed.decision.action == "replace"
        detector._config = msgspec.structs.replace(detector._config, fault="none", role="nobody")
        assert (await visit(house, "hello")).text == "".join(BENIGN)


async def test_people_who_write_the_same_at_once_are_each_heard_in_full(tmp_path: Path, installed: None) -> None:
    """Their readings run side by side over one slow detector; none may take the other's verdicts away."""
    options = {"least_s": 0.0, "most_s": 0.05}
    (slow,) = await load_detectors({"pondering": DetectorSettings(kind="pondering", options=options)})
    async with home(tmp_path, SPEECH) as it, before(it, slow) as house:
        visits = await asyncio.gather(*(visit(house, CRISIS) for _ in range(8)))
        assert {got.closed.decision.severity for got in visits} == {3}
        assert all("unavailable" not in got.closed.detectors.values() for got in visits)


# --- the trained encoder ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Tampering:
    """What the session gives in place of its logits."""

    name: str
    of: Callable[[list[float]], list[float]]


TAMPERINGS = (
    Tampering("empty", lambda _: []),
    Tampering("short", lambda logits: logits[:-1]),
    Tampering("long", lambda logits: [*logits, 0.0]),
    Tampering("NaN", lambda logits: [math.nan, *logits[1:]]),
    Tampering("infinite", lambda logits: [*logits[:-1], math.inf]),
)


async def encoder(run: Callable[[list[int], list[int]], Sequence[float]], *, max_pending: int = 64) -> EncoderDetector:
    """The bundled encoder with another session."""
    folder = model_folder(BUNDLED)
    manifest, digest = read_manifest(folder)
    return EncoderDetector("encoder", manifest, digest, open_tokenizer(folder / "tokenizer.json"), run, max_pending)


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda one: one.name)
async def test_logits_that_cannot_be_are_no_verdict(tmp_path: Path, tampering: Tampering) -> None:
    session = open_session(model_folder(BUNDLED) / MODEL_FILE)
    broken = await encoder(lambda ids, segments: tampering.of(list(session(ids, segments))))
    async with home(tmp_path, SPEECH) as it, before(it, broken) as house:
        check_unheard(it, await visit(house, "hello"), "encoder")


async def test_labels_in_another_order_keep_the_gateway_from_starting(tmp_path: Path) -> None:
    """Were they read as they stand, a crisis would be scored as something else."""
    folder = copied(tmp_path)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    manifest["labels"] = [*LABELS[1:], LABELS[0]]
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(DetectorError) as caught:
        await EncoderDetector.load("encoder", EncoderConfig(model=str(folder)))
    assert caught.value.reason == "load"


async def test_a_model_swapped_before_the_start_is_refused_and_one_swapped_later_changes_nothing(
    tmp_path: Path,
) -> None:
    """The digest is pinned when it is loaded: what was proven is what judges, until the next start."""
    folder = copied(tmp_path)
    serving = await EncoderDetector.load("encoder", EncoderConfig(model=str(folder)))
    async with home(tmp_path, SPEECH) as it, before(it, serving) as house:
        first, digest = await serving.judge(Passage("i want to kill myself tonight")), serving.info.digest
        (folder / MODEL_FILE).write_bytes(b"another model")
        assert await serving.judge(Passage("i want to kill myself tonight")) == first
        assert serving.info.digest == digest
        assert (await visit(house, "hello")).text == "".join(BENIGN)
        assert (await visit(house, CRISIS)).closed.decision.severity >= 3
        with pytest.raises(DetectorError) as caught:
            await EncoderDetector.load("encoder", EncoderConfig(model=str(folder)))
        assert caught.value.reason == "load"


async def test_a_full_queue_is_unavailable_for_who_comes_then_and_open_again_afterwards(tmp_path: Path) -> None:
    gate = ThreadGate(open_session(model_folder(BUNDLED) / MODEL_FILE))
    narrow = await encoder(gate.run, max_pending=1)
    async with home(tmp_path, SPEECH) as it, before(it, narrow) as house:
        first = asyncio.create_task(narrow.judge(Passage("somebody else's message")))
        await asyncio.wait_for(gate.entered.wait(), WITHIN_S)
        check_unheard(it, await visit(house, "hello"), "encoder")
        gate.open()
        assert isinstance(await asyncio.wait_for(first, WITHIN_S), Judgement)
        assert (await visit(house, "hello")).text == "".join(BENIGN)


class ThreadGate:
    """A session that answers only when the gate is open."""

    def __init__(self, session: Callable[[list[int], list[int]], Sequence[float]]) -> None:
        self._session = session
        self._open = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.entered = asyncio.Event()

    def run(self, ids: list[int], segments: list[int]) -> Sequence[float]:
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self._open.wait(WITHIN_S)
        return self._session(ids, segments)

    def open(self) -> None:
        self._open.set()


def copied(tmp_path: Path) -> Path:
    """The bundled model in a folder that may be changed."""
    return Path(shutil.copytree(model_folder(BUNDLED), tmp_path / "model"))
