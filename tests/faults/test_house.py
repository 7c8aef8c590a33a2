"""Faults inside the house: a bus that breaks its promise, a clock that goes back, a finding that cannot be paid."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.scripted import ScriptedTurn
from gateway import main
from gateway.events.bus import Hint
from gateway.pipeline.owed import Owed
from gateway.pipeline.record import Intervention, Recorder
from tests.integration.house import Home, home
from tests.integration.test_faults import visit, with_parts

SPEECH = ScriptedTurn(chunks=("Boil it for ", "eight minutes."))
HOUR_S = 3600.0
WITHIN_S = 10.0


class Gone:
    """A stranger's event bus whose server is away, and which says so by raising."""

    def __init__(self) -> None:
        self.asked = 0

    def publish(self, hint: Hint) -> None:
        self.asked += 1
        raise ConnectionError("the server is away")

    def subscribe(self) -> AbstractContextManager[Any]:
        raise ConnectionError("the server is away")


def recorder(it: Home, bus: Any, folder: Path) -> Recorder:
    """The house's recorder with another bus and another folder for what it owes."""
    return Recorder(it.store, bus, it.clock, Owed(folder, it.store.keyring, Intervention))


async def test_a_bus_that_raises_costs_a_hint_and_nothing_else(tmp_path: Path) -> None:
    async with home(tmp_path, SPEECH) as it:
        bus = Gone()
        house = with_parts(it, recorder=recorder(it, bus, tmp_path / "owed"))
        got = await visit(house, "words [S4 suicide]", conversation_id="c-1")
        assert bus.asked == 1
        (incident,) = await it.incidents()
        assert got.closed.incident_id == incident.id
        assert incident.turns == 1
        assert not (tmp_path / "owed").exists()


async def held_up(it: Home, house: Any, *said: str) -> None:
    """A crisis for each text while the record is locked: all are owed."""
    async with it.held():
        for text in said:
            got = await asyncio.wait_for(visit(house, text), WITHIN_S)
            assert got.closed.incident_id is None


async def test_a_bus_that_raises_keeps_nothing_from_being_paid(tmp_path: Path) -> None:
    async with home(tmp_path, SPEECH) as it:
        owing = recorder(it, Gone(), tmp_path / "owed")
        await held_up(it, with_parts(it, recorder=owing), "words [S4 suicide]", "words [S3 suicide]")
        assert await owing.pay() == 0
        assert len(await it.incidents()) == 2
        assert len(await it.notices()) == 2


async def test_a_finding_that_the_record_refuses_does_not_hold_up_the_next(tmp_path: Path) -> None:
    """It stays owed, is counted at every round, and waits alone."""
    async with home(tmp_path, SPEECH) as it:
        folder = tmp_path / "owed"
        owed = Owed(folder, it.store.keyring, Intervention)
        owing = recorder(it, it.bus, folder)
        await held_up(it, with_parts(it, recorder=owing), "words [S4 suicide]")
        ((name, finding),) = owed.all()
        assert finding is not None
        prose = msgspec.structs.replace(finding.finding.decision, reasons=("prose that no audit row may hold",))
        refused = msgspec.structs.replace(finding, finding=msgspec.structs.replace(finding.finding, decision=prose))
        owed.keep(name, refused)
        await held_up(it, with_parts(it, recorder=owing), "words [S3 suicide]")
        assert await owing.pay() == 1
        assert await owing.pay() == 1
        (incident,) = await it.incidents()
        assert incident.severity == 3
        assert [kept.name for kept in folder.iterdir()] == [f"{name}.owed"]


class Unpayable:
    """A recorder whose first round of payment fails as none should."""

    def __init__(self) -> None:
        self.rounds = 0
        self.tried_again = asyncio.Event()

    async def pay(self) -> int:
        self.rounds += 1
        if self.rounds == 1:
            raise PermissionError("a folder that may not be written")
        self.tried_again.set()
        return 0


async def test_what_is_owed_is_tried_again_whatever_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "PAY_EVERY_S", 0.0)
    async with home(tmp_path, SPEECH) as it:
        owing: Any = Unpayable()
        paying = asyncio.create_task(main._pay_what_is_owed(owing, it.house.observer))
        await asyncio.wait_for(owing.tried_again.wait(), WITHIN_S)
        paying.cancel()
        await asyncio.wait({paying})
        assert "store_failed" in it.log.getvalue()
        assert "may not be written" not in it.log.getvalue()


async def test_a_clock_that_goes_back_forgets_no_crisis(tmp_path: Path) -> None:
    """No time has passed: the level is held, the record goes on in its order, and the trail stays whole."""
    async with home(tmp_path, SPEECH) as it:
        first = await it.visit("words [S3 suicide]", conversation_id="c-1")
        it.clock.at_s -= 400 * 24 * HOUR_S
        again = await it.visit("hello", conversation_id="c-1")
        assert (again.closed.decision.action, again.closed.decision.severity) == ("replace", 3)
        assert again.closed.incident_id == first.closed.incident_id
        (incident,) = await it.incidents()
        assert (incident.turns, incident.severity) == (2, 3)
        it.clock.at_s += 400 * 24 * HOUR_S
        assert (await it.visit("hello", conversation_id="c-1")).closed.decision.severity == 3
        async with it.store.read() as unit:
            entries = await unit.audit.page()
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))


async def test_a_clock_that_goes_back_lets_a_new_crisis_be_heard_and_owed(tmp_path: Path) -> None:
    async with home(tmp_path, SPEECH) as it:
        await it.visit("hello", conversation_id="c-1")
        it.clock.at_s -= HOUR_S
        await held_up(it, it.house, "words [S4 suicide]")
        it.clock.at_s -= HOUR_S
        assert await it.house.recorder.pay() == 0
        (incident,) = await it.incidents()
        assert incident.severity == 4
        assert len(await it.notices()) == 1
