"""The panel under detectors that fail in every way a stranger's code can: never "clean", never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec
import pytest

from detectors.api import Detector, DetectorError, DetectorInfo, Judgement, Line, Passage, Signal, Span, Task
from detectors.fusion import DetectorState
from detectors.lexicon import LexiconConfig, LexiconDetector
from detectors.panel import Panel

CALM = Passage("what is a good soup for tonight?")
GRAVE = Passage("I am going to end my life")
Judge = Callable[[Passage], Awaitable[Judgement]]


class NoSettings(msgspec.Struct, frozen=True):
    pass


class Plain:
    """A small detector of the ordinary kind: counts its calls and answers with what it was built with."""

    config_type: ClassVar[type[Any]] = NoSettings

    def __init__(
        self, name: str, judge: Judge, tasks: tuple[Task, ...] = ("crisis",), *, cheap: bool = False, digest: str = "d1"
    ) -> None:
        self.info = DetectorInfo(name, digest, tasks, cheap)
        self.calls = 0
        self.closed = False
        self._judge = judge

    @classmethod
    async def load(cls, name: str, config: Any) -> Plain:
        assert isinstance(config, NoSettings)
        return cls(name, answer())

    async def judge(self, passage: Passage) -> Judgement:
        self.calls += 1
        return await self._judge(passage)

    async def aclose(self) -> None:
        self.closed = True


def answer(*signals: Signal) -> Judge:
    async def judge(passage: Passage) -> Judgement:
        return Judgement(signals)

    return judge


def fault(error: BaseException) -> Judge:
    async def judge(passage: Passage) -> Judgement:
        raise error

    return judge


async def hang(passage: Passage) -> Judgement:
    await asyncio.Event().wait()
    raise AssertionError("never reached")


async def stubborn(passage: Passage) -> Judgement:
    """Swallows one cancellation, as careless code does."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()
    raise AssertionError("never reached")


async def not_a_judgement(passage: Passage) -> Judgement:
    return None  # type: ignore[return-value]


async def strange_imminence(passage: Passage) -> Judgement:
    return Judgement((), imminence="someday")  # type: ignore[arg-type]


def score(value: float, label: str = "crisis:suicide", severity: int = 0, span: Span | None = None) -> Judge:
    return answer(Signal(label, value, severity=severity, spans=(span,) if span else ()))


def test_the_small_detector_keeps_the_contract() -> None:
    assert isinstance(Plain("a", answer()), Detector)


@pytest.mark.parametrize(
    "judge",
    [
        fault(DetectorError("inference", "no answer")),
        fault(DetectorError("overloaded", "queue full")),
        fault(RuntimeError("stranger's fault")),
        fault(KeyError("label")),
        fault(asyncio.CancelledError()),
        hang,
        stubborn,
        not_a_judgement,
        score(float("nan")),
        score(float("inf")),
        score(-0.01),
        score(1.01),
        score(0.5, severity=5),
        score(0.5, severity=-1),
        score(0.5, label="crisis:unheard_of"),
        score(0.5, span=Span(0, 10_000)),
        score(0.5, span=Span(5, 2)),
        score(None),  # type: ignore[arg-type]
        strange_imminence,
    ],
)
async def test_a_faulty_detector_is_unavailable_and_the_others_still_count(judge: Judge) -> None:
    seen: list[tuple[str, DetectorState]] = []
    lexicon = await LexiconDetector.load("lexicon", LexiconConfig())
    panel = Panel(
        [Plain("faulty", judge, ("crisis", "bias")), lexicon],
        timeout_s=0.2,
        observe=lambda name, seconds, state: seen.append((name, state)) if seconds >= 0 else None,
    )
    reading = await panel.read(GRAVE)
    assert reading.detectors == {"faulty": "unavailable", "lexicon": "ran"}
    assert reading.unavailable_tasks == ("crisis", "bias")
    assert reading.crisis.severity == 3
    assert sorted(seen) == [("faulty", "unavailable"), ("lexicon", "ran")]


async def test_an_unavailable_reading_is_never_cached() -> None:
    turns = iter([fault(DetectorError("inference", "once")), answer()])

    async def mood(passage: Passage) -> Judgement:
        return await next(turns)(passage)

    moody = Plain("moody", mood)
    panel = Panel([moody], timeout_s=1)
    assert (await panel.read(CALM)).detectors == {"moody": "unavailable"}
    assert (await panel.read(CALM)).detectors == {"moody": "ran"}
    assert (await panel.read(CALM)).detectors == {"moody": "cached"}
    assert moody.calls == 2


async def test_the_cache_tells_passages_roles_contexts_and_detectors_apart() -> None:
    one = Plain("one", answer(Signal("crisis:suicide", 0.7, flagged=True, severity=2)))
    panel = Panel([one], timeout_s=1)
    passages = [
        Passage("a"),
        Passage("a", "assistant"),
        Passage("a", "user", (Line("user", "b"),)),
        Passage("a", "user", (Line("assistant", "b"),)),
        Passage("a", "user", (Line("user", "b', 'c"),)),
        Passage("a\ud800"),
    ]
    for passage in passages:
        assert (await panel.read(passage)).detectors == {"one": "ran"}
    for passage in passages:
        again = await panel.read(passage)
        assert again.detectors == {"one": "cached"}
        assert again.crisis.severity == 2
    assert Panel([Plain("one", answer(), digest="d2")], timeout_s=1).digest != panel.digest


async def test_the_cache_is_bounded_and_drops_the_longest_unused() -> None:
    one = Plain("one", answer())
    panel = Panel([one], timeout_s=1, cache_entries=2)
    for text in ("a", "b", "a", "c", "a"):
        await panel.read(Passage(text))
    assert one.calls == 3
    await panel.read(Passage("b"))
    assert one.calls == 4


async def test_no_cache_when_it_is_turned_off() -> None:
    one = Plain("one", answer())
    panel = Panel([one], timeout_s=1, cache_entries=0)
    for _ in range(2):
        assert (await panel.read(CALM)).detectors == {"one": "ran"}
    assert one.calls == 2


async def test_only_cheap_skips_the_costly_and_is_cached_apart() -> None:
    cheap, costly = Plain("cheap", answer(), cheap=True), Plain("costly", answer())
    panel = Panel([cheap, costly], timeout_s=1)
    reading = await panel.read(CALM, only_cheap=True)
    assert reading.detectors == {"cheap": "ran", "costly": "skipped"}
    assert reading.unavailable_tasks == ()
    assert (await panel.read(CALM, only_cheap=True)).detectors == {"cheap": "cached", "costly": "skipped"}
    assert (await panel.read(CALM)).detectors == {"cheap": "ran", "costly": "ran"}


async def test_a_whole_reading_after_a_cheap_one_asks_only_the_costly() -> None:
    grave = answer(Signal("crisis:suicide", 0.9, flagged=True, severity=3))
    cheap, costly = Plain("cheap", grave, cheap=True), Plain("costly", answer())
    panel = Panel([cheap, costly], timeout_s=1)
    await panel.read(CALM, only_cheap=True)
    assert (await panel.read(CALM)).crisis.severity == 3
    assert (await panel.read(CALM)).detectors == {"cheap": "cached", "costly": "cached"}
    assert (cheap.calls, costly.calls) == (1, 1)


async def test_a_detector_that_failed_is_asked_again_and_the_others_are_not() -> None:
    turns = iter([fault(DetectorError("inference", "once")), answer()])

    async def mood(passage: Passage) -> Judgement:
        return await next(turns)(passage)

    steady, moody = Plain("steady", answer()), Plain("moody", mood)
    panel = Panel([steady, moody], timeout_s=1)
    assert (await panel.read(CALM)).detectors == {"steady": "ran", "moody": "unavailable"}
    assert (await panel.read(CALM)).detectors == {"steady": "ran", "moody": "ran"}
    assert (steady.calls, moody.calls) == (1, 2)


async def test_detectors_run_side_by_side() -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def meet(mine: asyncio.Event, other: asyncio.Event) -> Judgement:
        mine.set()
        await other.wait()
        return Judgement(())

    panel = Panel([Plain("a", lambda _: meet(first, second)), Plain("b", lambda _: meet(second, first))], timeout_s=30)
    assert (await panel.read(CALM)).detectors == {"a": "ran", "b": "ran"}


async def test_a_cancelled_reading_cancels_its_detectors() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def watch(passage: Passage) -> Judgement:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError("never reached")

    reading = asyncio.ensure_future(Panel([Plain("a", watch)], timeout_s=60).read(CALM))
    await started.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert stopped.is_set()


async def test_closing_reaches_every_detector_also_past_a_fault() -> None:
    class Clinging(Plain):
        async def aclose(self) -> None:
            raise RuntimeError("cannot close")

    last = Plain("b", answer())
    with pytest.raises(RuntimeError, match="cannot close"):
        await Panel([Clinging("a", answer()), last], timeout_s=1).aclose()
    assert last.closed


async def test_the_digest_does_not_depend_on_order() -> None:
    a, b = Plain("a", answer(), digest="1"), Plain("b", answer(), digest="2")
    assert Panel([a, b], timeout_s=1).digest == Panel([b, a], timeout_s=1).digest


@pytest.mark.parametrize(
    "bounds", [{"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"cache_entries": -1}]
)
def test_a_bound_that_is_none_is_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Panel([], **{"timeout_s": 1.0, **bounds})


def test_two_detectors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        Panel([Plain("a", answer()), Plain("a", answer())], timeout_s=1)


async def test_the_cache_holds_no_text() -> None:
    panel = Panel([Plain("a", answer())], timeout_s=1)
    await panel.read(Passage("a sentence to look for", "user", (Line("user", "another to look for"),)))
    assert "to look for" not in repr(vars(panel))
