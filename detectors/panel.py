"""The panel: every detector hears the passage at the same time, under one deadline, and none can be silent unnoticed.

A detector that raises, hangs past the deadline or answers with anything but finite numbers in range is
``unavailable``; its tasks are named in the reading, so that policy can raise the level (DESIGN section 1.4).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, get_args

import msgspec

from detectors.api import (
    BIAS_AXES,
    CATEGORIES,
    MAX_SEVERITY,
    OUTPUT_HARMS,
    Detector,
    DetectorError,
    Imminence,
    Judgement,
    Passage,
    Signal,
    Subject,
    Task,
    Time,
)
from detectors.fusion import DetectorState, Reading, fuse

Observe = Callable[[str, float, DetectorState], None]
"""Called once per detector and reading with its name, its seconds and its state."""

_TASKS: Final[tuple[Task, ...]] = ("crisis", "output", "bias")
_LABELS: Final = frozenset(
    [*_TASKS]
    + [f"crisis:{name}" for name in CATEGORIES]
    + [f"output:{name}" for name in OUTPUT_HARMS]
    + [f"bias:{name}" for name in BIAS_AXES]
)
_CANCEL_GRACE_S: Final = 0.05


class Panel:
    """A fixed set of detectors read as one.

    ``timeout_s`` bounds one reading.  ``cache_entries`` bounds the verdict cache (0 turns it off); its keys are hashes, its
    values hold numbers and offsets, never text.  Raises `ValueError` on duplicate names or a bound that is no bound.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        *,
        timeout_s: float,
        cache_entries: int = 4096,
        observe: Observe | None = None,
    ) -> None:
        names = [detector.info.name for detector in detectors]
        if len(set(names)) != len(names):
            raise ValueError(f"two detectors share a name: {sorted(names)}")
        if not (math.isfinite(timeout_s) and timeout_s > 0) or cache_entries < 0:
            raise ValueError("timeout_s must be positive and finite, cache_entries not negative")
        self._detectors = tuple(detectors)
        self._timeout_s = timeout_s
        self._cache_entries = cache_entries
        self._cache: OrderedDict[bytes, Reading] = OrderedDict()
        self._observe = observe or (lambda _name, _seconds, _state: None)

    @property
    def detectors(self) -> tuple[Detector, ...]:
        return self._detectors

    @property
    def digest(self) -> str:
        """One digest for all that shapes a verdict: the same digest means the same verdicts."""
        return _digest(self._detectors)

    async def read(self, passage: Passage, *, only_cheap: bool = False) -> Reading:
        """Return the fused reading of ``passage``; never raises for a detector's fault.

        With ``only_cheap`` the costly detectors are ``skipped``.  A reading in which all that were asked did answer
        is kept, and given again with the state ``cached``.
        """
        asked = [one for one in self._detectors if one.info.cheap or not only_cheap]
        states: dict[str, DetectorState] = {one.info.name: "skipped" for one in self._detectors}
        key = _cache_key(passage, asked)
        if (kept := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            for one in asked:
                self._observe(one.info.name, 0.0, "cached")
            return kept
        judgements = await self._ask(asked, passage)
        states.update({one.info.name: "ran" if one.info.name in judgements else "unavailable" for one in asked})
        silent = {task for one in asked if one.info.name not in judgements for task in one.info.tasks}
        reading = fuse(judgements, states, tuple(task for task in _TASKS if task in silent))
        if len(judgements) == len(asked):
            self._keep(key, reading)
        return reading

    async def aclose(self) -> None:
        """Close every detector, also when one fails to close; the first failure is raised afterwards."""
        self._cache.clear()
        results = await asyncio.gather(*(one.aclose() for one in self._detectors), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _ask(self, asked: Sequence[Detector], passage: Passage) -> dict[str, Judgement]:
        tasks = {asyncio.ensure_future(self._ask_one(one, passage)): one.info.name for one in asked}
        if not tasks:
            return {}
        started = time.perf_counter()
        try:
            await asyncio.wait(tasks, timeout=self._timeout_s)
            answers: dict[str, Judgement] = {}
            for task, name in tasks.items():
                if not task.done() or task.cancelled():  # a detector may cancel itself: that is no answer either
                    self._observe(name, time.perf_counter() - started, "unavailable")
                elif (judgement := task.result()) is not None:
                    answers[name] = judgement
            return answers
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            if late:  # bounded: a detector that will not be cancelled cannot hold the turn
                await asyncio.wait(late, timeout=_CANCEL_GRACE_S)

    async def _ask_one(self, detector: Detector, passage: Passage) -> Judgement | None:
        started = time.perf_counter()
        judgement: Judgement | None = None
        try:
            answer = await detector.judge(passage)
            judgement = answer if _sound(answer, passage) else None
        except DetectorError:
            pass
        except Exception:  # noqa: BLE001, S110 - strangers' code: whatever it raises, the state is "unavailable"
            pass
        self._observe(detector.info.name, time.perf_counter() - started, "unavailable" if judgement is None else "ran")
        return judgement

    def _keep(self, key: bytes, reading: Reading) -> None:
        if self._cache_entries == 0:
            return
        states: dict[str, DetectorState] = {
            name: "cached" if state == "ran" else state for name, state in reading.detectors.items()
        }
        self._cache[key] = msgspec.structs.replace(reading, detectors=states)
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


def _digest(detectors: Sequence[Detector]) -> str:
    lines = sorted(f"{one.info.name}\0{one.info.digest}\n" for one in detectors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cache_key(passage: Passage, asked: Sequence[Detector]) -> bytes:
    # repr() quotes every field, so that no two passages share a form; it also takes lone surrogates.
    framed = [passage.role, passage.text, [[line.role, line.text] for line in passage.context], _digest(asked)]
    return hashlib.sha256(repr(framed).encode("utf-8", "backslashreplace")).digest()


def _sound(judgement: object, passage: Passage) -> bool:
    """True when every number is finite and in range, every word known, every span inside the text."""
    return (
        isinstance(judgement, Judgement)
        and judgement.subject in get_args(Subject)
        and judgement.imminence in get_args(Imminence)
        and judgement.time in get_args(Time)
        and all(_sound_signal(one, len(passage.text)) for one in judgement.signals)
    )


def _sound_signal(signal: Signal, size: int) -> bool:
    return (
        signal.label in _LABELS
        and math.isfinite(signal.score)
        and 0.0 <= signal.score <= 1.0
        and 0 <= signal.severity <= MAX_SEVERITY
        and all(0 <= span.start <= span.end <= size for span in signal.spans)
    )
