"""Detectors of a stranger: installed as any distribution is, found through its entry points, faulty as settings say."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import msgspec

from detectors.api import DetectorError, DetectorInfo, Judgement, Passage, Signal, Span, Task

Fault = Literal[
    "none",
    "raises",
    "raises_own",
    "hangs",
    "will_not_be_cancelled",
    "cancels_itself",
    "nan",
    "infinite",
    "past_one",
    "unknown_label",
    "severity_past_four",
    "span_outside",
    "no_judgement",
]
ENTRY_POINTS: Final = """[havengate.detectors]
stranger = tests.faults.plugins:Stranger
pondering = tests.faults.plugins:Pondering
"""
METADATA: Final = "Metadata-Version: 2.1\nName: strangers-detectors\nVersion: 1.0\n"


def install(folder: Path) -> Path:
    """Write the distribution's metadata into ``folder``, which then belongs on the path; returns it."""
    info = folder / "strangers_detectors-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA, encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return folder


class StrangerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fault: Fault = "none"
    role: str = "user"
    """Whose words meet the fault; the others' are judged as clean."""
    tasks: tuple[Task, ...] = ("crisis", "output", "bias")


class Stranger:
    """Finds nothing, and for one role fails in the way that its settings name.  It judges the registry's probe well."""

    config_type: ClassVar[type[Any]] = StrangerConfig

    def __init__(self, name: str, config: StrangerConfig) -> None:
        self._name = name
        self._config = config
        self._proven = False
        self.let_go = asyncio.Event()

    @classmethod
    async def load(cls, name: str, config: Any) -> Self:
        return cls(name, config)

    @property
    def info(self) -> DetectorInfo:
        return DetectorInfo(self._name, f"stranger-{self._config.fault}", self._config.tasks)

    async def judge(self, passage: Passage) -> Judgement:
        proven, self._proven = self._proven, True
        if not proven or passage.role != self._config.role:
            return Judgement(signals=())
        return await self._fail(passage)

    async def aclose(self) -> None:
        self.let_go.set()

    async def _fail(self, passage: Passage) -> Judgement:
        match self._config.fault:
            case "raises":
                raise DetectorError("inference", "told to fail")
            case "raises_own":
                raise ZeroDivisionError("a canary that no log may hold")
            case "hangs":
                await self.let_go.wait()
            case "will_not_be_cancelled":
                await self._stay()
            case "cancels_itself":
                raise asyncio.CancelledError
            case "no_judgement":
                nothing: Any = None
                return nothing  # type: ignore[no-any-return]
            case _:
                return Judgement(signals=(unsound(self._config.fault, passage),))
        return Judgement(signals=())

    async def _stay(self) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue


def unsound(fault: Fault, passage: Passage) -> Signal:
    """A signal that no sound detector gives."""
    sound: dict[str, Any] = {"label": "crisis", "score": 0.1}
    wrong: dict[Fault, dict[str, Any]] = {
        "none": {},
        "nan": {"score": math.nan},
        "infinite": {"score": math.inf},
        "past_one": {"score": 1.5},
        "unknown_label": {"label": "crisis:weather"},
        "severity_past_four": {"severity": 5},
        "span_outside": {"spans": (Span(0, len(passage.text) + 1),)},
    }
    return Signal(**(sound | wrong[fault]))


class PonderingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    over: str = ""
    """It takes its time over texts with this in them."""
    least_s: float = 0.005
    most_s: float = 0.05


class Pondering:
    """Finds nothing, and takes its time over it, so that something can happen while a message is judged."""

    config_type: ClassVar[type[Any]] = PonderingConfig

    def __init__(self, name: str, config: PonderingConfig) -> None:
        self._name = name
        self._config = config
        self._random = random.Random(1)

    @classmethod
    async def load(cls, name: str, config: Any) -> Self:
        return cls(name, config)

    @property
    def info(self) -> DetectorInfo:
        return DetectorInfo(self._name, "pondering-1", ("crisis", "output", "bias"))

    async def judge(self, passage: Passage) -> Judgement:
        if self._config.over in passage.text:
            await asyncio.sleep(self._random.uniform(self._config.least_s, self._config.most_s))
        return Judgement(signals=())

    async def aclose(self) -> None:
        return None
