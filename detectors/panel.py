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
        self._cheap = tuple(one for one in self._detectors if one.info.cheap)
        self._timeout_s = timeout_s
        self._cache_entries = cache_entries
        self._cache: OrderedDict[bytes, _Verdicts] = OrderedDict()
        self._digest = _digest(self._detectors)
        self._observe = observe or (lambda _name, _seconds, _state: None)

    @property
    def detectors(self) -> tuple[Detector, ...]:
        return self._detectors

    @property
    def digest(self) -> str:
        """One digest for all that shapes a verdict: the same digest means the same verdicts."""
        return self._digest

    async def read(self, passage: Passage, *, only_cheap: bool = False) -> Reading:
        """Return the fused reading of ``passage``; never raises for a detector's fault.

        With ``only_cheap`` the costly detectors are ``skipped``.  Each verdict is kept, so that a whole reading after a
        cheap one asks only who was not asked before; a reading given again has the state ``cached``.
        """
        asked = self._cheap if only_cheap else self._detectors
        key = _cache_key(passage, self._digest)
        kept = self._kept(key)
        if (reading := kept.readings.get(only_cheap)) is not None:
            for one in asked:
                self._observe(one.info.name, 0.0, "cached")
            return reading
        # A copy: a reading of the same passage beside this one may be done first, and clear what was kept.
        known = dict(kept.judgements)
        known |= await self._ask([one for one in asked if one.info.name not in known], passage)
        kept.judgements.update(known)
        answered = {one.info.name: known[one.info.name] for one in asked if one.info.name in known}
        states: dict[str, DetectorState] = {one.info.name: "skipped" for one in self._detectors}
        states.update({one.info.name: "ran" if one.info.name in answered else "unavailable" for one in asked})
        silent = {task for one in asked if one.info.name not in answered for task in one.info.tasks}
        reading = fuse(answered, states, tuple(task for task in _TASKS if task in silent))
        if len(answered) == len(asked):
            kept.readings[only_cheap] = msgspec.structs.replace(
                reading, detectors={name: "cached" if state == "ran" else state for name, state in states.items()}
            )
            if not only_cheap:
                kept.judgements.clear()  # the readings hold all that will be asked for
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

    def _kept(self, key: bytes) -> _Verdicts:
        """What is known of a passage; a new, empty place for it where nothing is."""
        kept = self._cache.get(key)
        if kept is None:
            kept = _Verdicts()
            if self._cache_entries == 0:
                return kept
            self._cache[key] = kept
            if len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return kept


class _Verdicts:
    """Of one passage: each detector's judgement, and the readings made of them, cheap (True) and whole (False)."""

    __slots__ = ("judgements", "readings")

    def __init__(self) -> None:
        self.judgements: dict[str, Judgement] = {}
        self.readings: dict[bool, Reading] = {}


def _digest(detectors: Sequence[Detector]) -> str:
    lines = sorted(f"{one.info.name}\0{one.info.digest}\n" for one in detectors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cache_key(passage: Passage, digest: str) -> bytes:
    # repr() quotes every field, so that no two passages share a form; it also takes lone surrogates.
    framed = [passage.role, passage.text, [[line.role, line.text] for line in passage.context], digest]
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
