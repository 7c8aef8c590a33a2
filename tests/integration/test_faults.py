"""When a part fails in the middle of a turn: words for the person, a record that comes through, nothing unbounded."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from backends.api import BackendError, Chunk, Prompt
from backends.scripted import ScriptedTurn
from gateway.errors import Overloaded
from gateway.pipeline.case import Closed, Delta, Opened
from gateway.pipeline.evidence import LEAD_CHARS
from gateway.pipeline.turn import take_turn
from tests.integration.house import Home, home, turn, visit
from tests.support.columns import Column

BENIGN = ("It is good ", "that you asked. ", "Boil it for ", "eight minutes. ", "Then let it ", "cool down.")
WITHIN_S = 10.0


def speech(*chunks: str, **more: Any) -> ScriptedTurn:
    return ScriptedTurn(chunks=chunks, **more)


def with_parts(it: Home, **parts: Any) -> Any:
    """The same house with some parts replaced."""
    known = {name: getattr(it.house, name) for name in it.house.__slots__}
    return type(it.house)(**(known | parts))


# --- the record --------------------------------------------------------------------------------


async def test_a_finding_that_the_store_could_not_take_is_kept_and_committed_later(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        async with it.held():
            got = await asyncio.wait_for(it.visit("a canary sentence [S4 suicide]", conversation_id="c-1"), WITHIN_S)
            assert got.closed.decision.action == "replace"
            assert got.closed.incident_id is None
            assert await it.house.recorder.pay() == 1
        (kept,) = it.owed.iterdir()
        assert b"canary" not in kept.read_bytes()
        assert kept.stat().st_mode & 0o077 == 0
        assert await it.house.recorder.pay() == 0
        (incident,) = await it.incidents()
        assert (incident.severity, incident.route) == (4, "page_two")
        assert len(await it.notices()) == 1
        async with it.store.read() as unit:
            assert "canary" in await unit.incidents.evidence(incident.id)
        # The conversation carries it as if the store had never failed.
        assert (await it.visit("hello", conversation_id="c-1")).closed.decision.severity == 4


async def test_what_was_committed_before_a_crash_is_not_committed_twice(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        async with it.held():
            await it.visit("words [S4 suicide]")
        (kept,) = it.owed.iterdir()
        sealed = kept.read_bytes()
        assert await it.house.recorder.pay() == 0
        kept.write_bytes(sealed)
        assert await it.house.recorder.pay() == 0
        assert len(await it.incidents()) == 1
        assert list(it.owed.iterdir()) == []


async def test_a_kept_finding_that_cannot_be_opened_stays_and_is_counted(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.owed.mkdir()
        (it.owed / "broken.owed").write_bytes(b"not ours")
        assert await it.house.recorder.pay() == 1
        assert (it.owed / "broken.owed").exists()


async def test_a_disk_that_takes_nothing_is_an_error_and_the_person_is_answered(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.owed.write_text("a file where the folder should be")
        async with it.held():
            got = await asyncio.wait_for(it.visit("words [S4 suicide]"), WITHIN_S)
        assert got.text
        assert "store_failed" in it.log.getvalue()


async def test_evidence_of_a_lost_key_does_not_keep_a_new_finding_out(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S3 suicide]", conversation_id="c-1")
        await it.rows("UPDATE incidents SET evidence_encrypted = substr(evidence_encrypted, 2)")
        got = await it.visit("words [S4 suicide]", conversation_id="c-1")
        (incident,) = await it.incidents()
        assert (incident.id, incident.severity) == (got.closed.incident_id, 4)
        async with it.store.read() as unit:
            assert "[S4 suicide]" in await unit.incidents.evidence(incident.id)


async def test_a_risk_that_cannot_be_read_counts_as_grave_as_it_ever_was(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S3 suicide]", conversation_id="c-1")
        await it.rows("""UPDATE conversations SET risk = '{"level": "broken"}'""")
        got = await it.visit("hello", conversation_id="c-1")
        assert (got.closed.decision.severity, got.closed.decision.action) == (3, "replace")


class Broken:
    """A recorder of which one method fails as none should."""

    def __init__(self, recorder: Any, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise ZeroDivisionError("a canary that no log may hold")
        return getattr(self._recorder, name)


@pytest.mark.parametrize("part", ["recall", "close"])
async def test_a_fault_of_our_own_still_ends_in_words(column: Column, part: str) -> None:
    async with home(column, speech(*BENIGN)) as it:
        got = await asyncio.wait_for(visit(with_parts(it, recorder=Broken(it.house.recorder, part)), "hello"), WITHIN_S)
        assert got.opened is not None
        assert got.text
        assert got.outcome is not None
        assert "turn_broke" in it.log.getvalue()
        assert "canary" not in it.log.getvalue()


# --- the backend -------------------------------------------------------------------------------


async def test_a_backend_that_falls_silent_is_given_up(column: Column) -> None:
    async with home(column, speech(*BENIGN, hang_after=4)) as it:
        got = await asyncio.wait_for(visit(with_parts(it, silence_s=0.05), "hello"), WITHIN_S)
        assert got.closed.backend_error == "timeout"
        assert got.text.startswith(BENIGN[0])
        assert it.backend.aborted == 1


async def test_a_gateway_that_must_stop_ends_an_answer_with_words(column: Column) -> None:
    async with home(column, speech(*BENIGN, hang_after=4)) as it:
        pieces = take_turn(it.house, turn("hello"))
        assert isinstance(await anext(pieces), Opened)
        assert isinstance(await asyncio.wait_for(anext(pieces), WITHIN_S), Delta)
        it.house.speeches.fail_all(BackendError("unavailable", "stopping"))
        rest = [piece async for piece in pieces]
        assert isinstance(rest[-1], Closed)
        assert rest[-1].outcome.backend_error == "unavailable"
        assert it.backend.aborted == 1


async def test_an_empty_answer_is_a_failed_one(column: Column) -> None:
    async with home(column, speech(" ")) as it:
        got = await it.visit("hello")
        assert got.closed.decision.stage == "backend"
        assert len(got.text) > 50


class Careless:
    """A plug-in that breaks its contract: no finish reason, or half of a surrogate pair, or far too much at once."""

    def __init__(self, *chunks: Chunk) -> None:
        self._chunks = chunks

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    async def stream(self, prompt: Prompt) -> Any:
        for chunk in self._chunks:
            yield chunk


async def test_an_answer_without_an_end_is_a_failed_one(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        careless: Any = Careless(Chunk("Hello there, this is fine. "), Chunk("And more."))
        careless.info = it.backend.info
        got = await visit(with_parts(it, backend=careless), "hello")
        assert got.closed.backend_error == "protocol"


async def test_what_comes_after_the_end_is_not_said(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        late = Chunk("[harm secrecy] and more of it. ")
        careless: Any = Careless(Chunk("This is all there is. "), Chunk(finish_reason="stop"), late)
        careless.info = it.backend.info
        got = await visit(with_parts(it, backend=careless), "hello")
        assert (got.text, got.closed.finish_reason) == ("This is all there is. ", "stop")


async def test_half_a_character_from_a_plug_in_does_not_break_the_stream(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        careless: Any = Careless(Chunk("Fine \ud83d. "), Chunk(finish_reason="stop"))
        careless.info = it.backend.info
        got = await visit(with_parts(it, backend=careless), "hello")
        assert msgspec.json.encode(got.text)
        assert got.closed.finish_reason == "stop"


async def test_one_endless_chunk_is_bounded(column: Column) -> None:
    async with home(column, speech(*BENIGN), lexicon=False) as it:
        careless: Any = Careless(Chunk("word " * 50_000), Chunk(finish_reason="stop"))
        careless.info = it.backend.info
        got = await visit(with_parts(it, backend=careless), "hello")
        assert got.closed.delivered_chars == 65_536
        assert got.closed.finish_reason == "length"


# --- a full house ------------------------------------------------------------------------------


async def test_a_full_house_sheds_what_can_wait_and_hears_a_crisis_out(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        with pytest.raises(Overloaded) as caught:
            await visit(it.house, "hello", room=False)
        assert caught.value.retry_after_s
        got = await visit(it.house, "words [S3 suicide]", room=False)
        assert got.closed.decision.action == "replace"
        assert len(await it.incidents()) == 1
        assert it.backend.started == 0


# --- what is heard -----------------------------------------------------------------------------


async def test_three_messages_in_a_row_are_one_turn(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        whole = (await it.visit("words [S3 suicide]")).text
        asked = turn("words [S3 suicide]", "-", "hello", "-", "and thanks")
        lines = tuple(line for line in asked.lines if line.role == "user")
        got = await visit(it.house, "x", lines=lines)
        assert got.text == whole


async def test_a_carried_crisis_without_an_id_pages_nobody_again(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S3 suicide]")
        got = await it.visit("words [S3 suicide]", "I am here.", "thanks")
        assert got.closed.decision.action == "replace"
        assert len(await it.incidents()) == 1
        assert len(await it.notices()) == 1


async def test_a_crisis_in_a_history_never_met_before_is_raised_once(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        for words in ("thanks", "and now?"):
            got = await it.visit("words [S3 suicide]", "An answer from elsewhere.", words)
            assert got.closed.decision.action == "replace"
        assert len(await it.incidents()) == 1
        assert len(await it.notices()) == 1


async def test_the_same_turn_sent_again_is_not_another_turn(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        levels = [
            (await it.visit("words [S1 suicide]", conversation_id="c-1")).closed.decision.severity for _ in range(4)
        ]
        assert levels == [1, 1, 1, 1]
        await it.visit("words [S4 suicide]", conversation_id="c-2")
        for _ in range(14):
            assert (await it.visit("hello", conversation_id="c-2")).closed.decision.severity == 4


async def test_an_old_message_that_cannot_be_read_raises_but_does_not_lock(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        history = ["[unreadable]", "ok"]
        it.marked.unreadable = "[unreadable]"
        first = await it.visit(*history, "hello")
        later = await it.visit(*history, "hello", "ok", "how are you", "ok", "fine", "ok", "and you")
        assert first.closed.decision.action == "replace"
        assert later.closed.decision.action == "allow"


async def test_an_unjudged_message_is_an_incident_of_its_own_kind(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.marked.broken = {"user"}
        await it.visit("hello", conversation_id="c-1")
        it.marked.broken = set()
        await it.visit("words [S4 suicide]", conversation_id="c-1")
        assert sorted(incident.kind for incident in await it.incidents()) == ["crisis", "unavailable"]


async def test_a_crisis_inside_a_system_message_is_a_persons(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        got = await it.visit("please go on", system="A patient writes. I am going to kill myself tonight.")
        assert got.closed.decision.action == "replace"
        assert got.closed.decision.severity >= 3


async def test_evidence_begins_with_the_words_that_counted(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        long = "x " * 9_000 + "the words [S4 suicide] " + "y " * 4_000
        await it.visit(long)
        (incident,) = await it.incidents()
        async with it.store.read() as unit:
            evidence = await unit.incidents.evidence(incident.id)
        assert evidence.startswith("user (raised this): ")
        assert "the words [S4 suicide]" in evidence
        assert len(evidence) < 2 * LEAD_CHARS
