"""A house for tests: real store, real policy, real panel with the real lexicon; the model is a script.

`Marked` is an ordinary detector that reads its verdict from the text, so that a test can say what was
judged without depending on weights: ``[S3 suicide]`` is a crisis of that level, ``[harm secrecy]`` a harmful reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec

from backends.api import ChatBackend, Sampling
from backends.scripted import ScriptedBackend, ScriptedConfig, ScriptedTurn
from detectors.api import DetectorError, DetectorInfo, Judgement, Line, Passage, Signal, Span
from detectors.lexicon import LexiconDetector
from detectors.panel import Panel
from gateway.events.bus import EventBus
from gateway.pipeline.case import Closed, Delta, House, Opened
from gateway.pipeline.holdback import Rules
from gateway.pipeline.observe import Observer
from gateway.pipeline.owed import Owed
from gateway.pipeline.record import Intervention, Recorder
from gateway.pipeline.state import Outcome, Turn
from gateway.pipeline.turn import take_turn
from gateway.policy.loader import PolicyHolder, default_policy_path
from gateway.settings import TelemetrySettings
from gateway.store.crypto import Keyring
from gateway.store.uow import Store
from gateway.telemetry.start import Telemetry
from tests.support.columns import Column, Embedded

_CRISIS = re.compile(r"\[S([1-4]) (\w+)\]")
_HARM = re.compile(r"\[(harm|bias) (\w+)\]")


class NoConfig(msgspec.Struct, frozen=True):
    pass


class Marked:
    """Judges by the marks in a text.  ``gate`` holds every verdict back until it is set; ``broken`` refuses."""

    config_type: ClassVar[type[NoConfig]] = NoConfig

    def __init__(self) -> None:
        self.gate: asyncio.Event | None = None
        self.broken: set[str] = set()
        self.unreadable: str | None = None
        self.asked = asyncio.Event()
        self.passages: list[Passage] = []

    @classmethod
    async def load(cls, name: str, config: Any) -> Self:
        return cls()

    @property
    def info(self) -> DetectorInfo:
        return DetectorInfo(name="marked", digest="marked-1", tasks=("crisis", "output", "bias"))

    async def judge(self, passage: Passage) -> Judgement:
        self.passages.append(passage)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if passage.role in self.broken or passage.text == self.unreadable:
            raise DetectorError("inference", "told to fail")
        signals = []
        if passage.role == "user":
            for level, category in _CRISIS.findall(passage.text):
                signals.append(
                    Signal(f"crisis:{category}", 0.9, flagged=True, severity=int(level), spans=_where(passage))
                )
        for kind, label in _HARM.findall(passage.text):
            task = "output" if kind == "harm" else "bias"
            signals.append(Signal(f"{task}:{label}", 0.9, flagged=True))
        return Judgement(signals=tuple(signals), subject="self" if signals else "none")

    async def aclose(self) -> None:
        return None


def _where(passage: Passage) -> tuple[Span, ...]:
    found = _CRISIS.search(passage.text)
    return (Span(found.start(), found.end()),) if found else ()


class FixedClock:
    """A clock that moves only when told to."""

    def __init__(self, now_s: float = 1_796_000_000.0) -> None:
        self.at_s = now_s

    def now_s(self) -> float:
        return self.at_s

    def monotonic_s(self) -> float:
        return self.at_s


@dataclass
class Visit:
    """What a client got of one turn."""

    opened: Opened | None = None
    deltas: list[str] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def closed(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome


@dataclass
class Home:
    """A house with its parts in reach."""

    house: House
    store: Store
    backend: ScriptedBackend
    marked: Marked
    clock: FixedClock
    log: io.StringIO
    bus: EventBus
    column: Column
    url: str
    owed: Path
    """Where findings wait that the record could not take."""

    async def visit(self, *said: str, **more: Any) -> Visit:
        return await visit(self.house, *said, **more)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read or change the record from outside, as another program would."""
        return await self.column.rows(self.url, query)

    def held(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Another program is writing to the record and does not end."""
        return self.column.held(self.url)

    async def events(self) -> list[str]:
        async with self.store.read() as unit:
            return [entry.event.event for entry in await unit.audit.page()]

    async def last_event(self) -> dict[str, Any]:
        async with self.store.read() as unit:
            return dict((await unit.audit.page())[-1].event.data)

    async def incidents(self) -> list[Any]:
        async with self.store.read() as unit:
            return await unit.incidents.list_open()

    async def notices(self) -> list[Any]:
        async with self.store.read() as unit:
            return await unit.outbox.list_undelivered()


async def visit(house: House, *said: str, room: bool = True, **more: Any) -> Visit:
    """Take one turn as a client that reads to the end."""
    got = Visit()
    async for piece in take_turn(house, turn(*said, **more), room=room):
        match piece:
            case Opened():
                got.opened = piece
            case Delta(text):
                got.deltas.append(text)
            case Closed(outcome):
                got.outcome = outcome
    return got


def turn(*said: str, system: str | None = None, **more: Any) -> Turn:
    """A conversation in which the person and the assistant speak in turns; the last word is the person's."""
    lines = [Line(role="user" if index % 2 == 0 else "assistant", text=text) for index, text in enumerate(said)]
    if system is not None:
        lines.insert(0, Line(role="system", text=system))
    given: dict[str, Any] = {"app_id": "app", "mode": "assistant", "model": "havengate", "sampling": Sampling()}
    return Turn(**(given | {"request_id": uuid.uuid4().hex, "lines": tuple(lines)} | more))


@contextlib.asynccontextmanager
async def home(
    where: Path | Column, *script: ScriptedTurn, trusted_to: int = 0, judge_within_s: float = 5.0, lexicon: bool = True
) -> AsyncIterator[Home]:
    """Open a house over a new record of a column (a folder stands for the embedded one), and close it again."""
    column = Embedded(where) if isinstance(where, Path) else where
    async with (
        column.database() as url,
        column.bus() as bus,
        opened(column, url, bus, *script, trusted_to=trusted_to, judge_within_s=judge_within_s, lexicon=lexicon) as it,
    ):
        yield it


@contextlib.asynccontextmanager
async def opened(
    column: Column,
    url: str,
    bus: EventBus,
    *script: ScriptedTurn,
    keyring: Keyring | None = None,
    trusted_to: int = 0,
    judge_within_s: float = 5.0,
    lexicon: bool = True,
) -> AsyncIterator[Home]:
    """Open a house over the record at ``url``; with the same keyring, several may share one."""
    store = Store.open(url, keyring or Keyring.create(), lock_timeout_s=0.2)
    owed = column.folder / f"owed-{uuid.uuid4().hex[:8]}"
    backend = await ScriptedBackend.load(ScriptedConfig(script=script, trusted_to=trusted_to))
    marked = Marked()
    detectors: list[Any] = [marked]
    if lexicon:
        detectors.insert(0, await LexiconDetector.load("lexicon", LexiconDetector.config_type()))
    panel = Panel(detectors, timeout_s=judge_within_s)
    clock, log = FixedClock(), io.StringIO()
    telemetry = Telemetry.start(TelemetrySettings(), stream=log)
    assert isinstance(backend, ChatBackend)
    house = House(
        panel=panel,
        policy=PolicyHolder(default_policy_path()),
        backend=backend,
        recorder=Recorder(store, bus, clock, Owed(owed, store.keyring, Intervention)),
        clock=clock,
        observer=Observer(telemetry, backend.info),
        persona="You are the persona of this test.",
        holdback=Rules(
            first_chars=30, window_chars=60, first_min_chars=8, window_min_chars=8, overlap_chars=60, lookahead_chars=22
        ),
    )
    try:
        yield Home(house, store, backend, marked, clock, log, bus, column, url, owed)
    finally:
        await panel.aclose()
        await backend.aclose()
        await store.aclose()
        telemetry.shutdown()
