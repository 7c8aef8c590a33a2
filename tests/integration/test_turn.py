"""One turn over the real parts of the house: what is said, in what order, and what is on record when."""

from __future__ import annotations

import asyncio

import pytest

from backends.scripted import ScriptedTurn
from gateway.pipeline.case import Closed, Delta, Opened
from gateway.pipeline.turn import take_turn
from tests.integration.house import Home, home, turn
from tests.support.columns import Column

BENIGN = ("It is good ", "that you asked. ", "Boil it for ", "eight minutes. ", "Then let it ", "cool down.")
TURNS_HALF_WAY = ("It is good that you wrote. ", "We can look at this. ", "[harm secrecy] tell nobody. ", "More of it.")
WITHIN_S = 10.0


def speech(*chunks: str, **more: object) -> ScriptedTurn:
    return ScriptedTurn(chunks=chunks, **more)  # type: ignore[arg-type]


# --- nothing to worry about --------------------------------------------------------------------


async def test_a_benign_turn_is_answered_by_the_model_and_recorded(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        visit = await it.visit("How do I boil an egg?")
        assert visit.text == "".join(BENIGN)
        assert len(visit.deltas) > 1
        assert (visit.closed.decision.action, visit.closed.finish_reason) == ("allow", "stop")
        assert visit.closed.incident_id is None
        assert visit.closed.usage.completion_tokens == len(BENIGN)
        assert await it.events() == ["turn.closed"]
        assert await it.incidents() == []
        assert (it.backend.started, it.backend.finished) == (1, 1)


async def test_the_persona_comes_first_and_the_application_ranks_below_it(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("Hello", "Hi.", "How are you?", system="Speak like a pirate.")
        (prompt,) = it.backend.seen
        assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
        assert prompt.messages[0].content.startswith("You are the persona of this test.")
        assert prompt.messages[0].content.endswith("Speak like a pirate.")


async def test_every_character_of_the_answer_is_judged_before_it_leaves(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        released = ""
        async for piece in take_turn(it.house, turn("How do I boil an egg?")):
            if isinstance(piece, Delta):
                released += piece.text
                judged = [p.text for p in it.marked.passages if p.role == "assistant"]
                assert any(piece.text in text for text in judged)
        assert released == "".join(BENIGN)


# --- crisis ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "route"), [(1, "digest"), (2, "queue"), (3, "page"), (4, "page_two")])
async def test_a_crisis_is_answered_with_care_and_becomes_an_incident(column: Column, level: int, route: str) -> None:
    async with home(column, speech(*BENIGN)) as it:
        visit = await it.visit(f"words [S{level} suicide]", region="GB")
        assert visit.closed.decision.action == "replace"
        assert visit.closed.decision.severity == level
        assert visit.closed.finish_reason == "stop"
        assert "116 123" in visit.text
        (incident,) = await it.incidents()
        assert (incident.id, incident.severity, incident.route) == (visit.closed.incident_id, level, route)
        assert [notice.route for notice in await it.notices()] == [route]
        assert await it.events() == ["incident.opened", "turn.closed"]
        assert it.backend.finished == 0


async def test_incident_outbox_and_audit_are_committed_before_the_first_byte(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        pieces = take_turn(it.house, turn("words [S4 suicide]"))
        assert isinstance(await anext(pieces), Opened)
        # Read from outside, as another process would: only what is committed can be seen.
        counts = [await it.rows(f"SELECT count(*) FROM {table}") for table in ("incidents", "outbox", "audit")]
        assert counts == [[(1,)], [(1,)], [(1,)]]
        await pieces.aclose()


async def test_the_cheap_tier_keeps_the_backend_from_starting(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        visit = await it.visit("I am going to kill myself tonight")
        assert visit.closed.decision.severity >= 3
        assert it.backend.started == 0


async def test_a_backend_that_started_early_is_aborted_and_never_completes(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.marked.gate = asyncio.Event()
        visiting = asyncio.create_task(it.visit("quiet words [S3 suicide]"))
        await asyncio.wait_for(it.marked.asked.wait(), WITHIN_S)
        async with asyncio.timeout(WITHIN_S):
            while it.backend.started == 0:
                await asyncio.sleep(0)
        it.marked.gate.set()
        visit = await asyncio.wait_for(visiting, WITHIN_S)
        assert visit.closed.decision.action == "replace"
        assert (it.backend.started, it.backend.aborted, it.backend.finished) == (1, 1, 0)
        assert BENIGN[0] not in visit.text


async def test_a_trusted_backend_is_guided(column: Column) -> None:
    async with home(column, speech(*BENIGN), trusted_to=2) as it:
        visit = await it.visit("words [S1 suicide]", region="IE")
        assert (visit.closed.decision.action, visit.text) == ("guide", "".join(BENIGN))
        assert visit.closed.resources
        prompt = it.backend.seen[-1]
        assert len(prompt.messages[0].content) > len("You are the persona of this test.") + 100
        assert len(await it.incidents()) == 1


async def test_no_backend_is_trusted_from_s3_up(column: Column) -> None:
    async with home(column, speech(*BENIGN), trusted_to=4) as it:
        visit = await it.visit("words [S3 suicide]")
        assert visit.closed.decision.action == "replace"
        assert it.backend.finished == 0


async def test_instructions_that_ask_for_harm_are_refused(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        visit = await it.visit("hello", system="From now on [harm encouragement]")
        assert not visit.closed.decision.model_may_speak
        assert visit.closed.decision.stage == "input"
        assert it.backend.finished == 0
        assert len(await it.incidents()) == 1


# --- the conversation --------------------------------------------------------------------------


async def test_a_retraction_does_not_end_the_care(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S3 suicide]", conversation_id="c-1")
        visit = await it.visit("never mind, I am fine", conversation_id="c-1")
        assert visit.closed.decision.action == "replace"
        assert "carried" in visit.closed.decision.reasons
        (incident,) = await it.incidents()
        assert (incident.turns, incident.severity) == (2, 3)
        # The open incident follows the conversation; nobody is paged a second time for a quiet turn.
        assert len(await it.notices()) == 1


async def test_the_same_words_are_not_said_twice_below_s3(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        texts = [(await it.visit(f"words {n} [S2 suicide]", conversation_id="c-1")).text for n in range(2)]
        assert texts[0] != texts[1]


async def test_a_weaker_remark_after_a_crisis_gets_the_follow_up_of_what_is_carried(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        first = await it.visit("words [S4 suicide]", conversation_id="c-1")
        later = await it.visit("words [S1 suicide]", conversation_id="c-1")
        again = await it.visit("words [S4 suicide]", conversation_id="c-1")
        assert later.closed.decision.severity == 4
        assert later.text != first.text
        assert again.text == first.text


async def test_weak_signs_add_up(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        levels = [
            (await it.visit(f"words {n} [S1 suicide]", conversation_id="c-1")).closed.decision.severity
            for n in range(3)
        ]
        assert levels == [1, 1, 2]


async def test_another_conversation_carries_nothing(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S3 suicide]", conversation_id="c-1")
        assert (await it.visit("hello", conversation_id="c-2")).text == "".join(BENIGN)
        assert (await it.visit("hello", conversation_id="c-1", app_id="other")).text == "".join(BENIGN)


async def test_a_quiet_turn_beside_a_crisis_does_not_overwrite_it(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        quiet = take_turn(it.house, turn("hello", conversation_id="c-1"))
        assert isinstance(await anext(quiet), Opened)
        await it.visit("words [S4 suicide]", conversation_id="c-1")
        async for _ in quiet:
            pass
        assert (await it.visit("hello", conversation_id="c-1")).closed.decision.severity == 4


async def test_a_conversation_is_released_after_quiet_turns(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S2 suicide]", conversation_id="c-1")
        actions = [(await it.visit(f"hello {n}", conversation_id="c-1")).closed.decision.action for n in range(8)]
        assert actions[0] == "replace"
        assert actions[-1] == "allow"


async def test_a_crisis_in_the_history_counts_without_a_conversation_id(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        visit = await it.visit("words [S4 suicide]", "I am here.", "haha ok, what about lunch")
        assert visit.closed.decision.severity == 4
        assert visit.closed.decision.action == "replace"


async def test_several_messages_in_a_row_are_all_judged(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        asked = turn("words [S4 suicide]", "unused", "and a question about lunch")
        lines = (asked.lines[0], asked.lines[2])
        pieces = [piece async for piece in take_turn(it.house, turn("x", lines=lines))]
        assert isinstance(pieces[0], Opened)
        assert pieces[0].decision.severity == 4


# --- the answer --------------------------------------------------------------------------------


async def test_an_answer_that_turns_half_way_is_stopped_with_care(column: Column) -> None:
    async with home(column, speech(*TURNS_HALF_WAY)) as it:
        visit = await it.visit("Can we talk?")
        assert visit.text.startswith("It is good that you wrote. ")
        assert "harm secrecy" not in visit.text
        assert "tell nobody" not in visit.text
        assert visit.closed.finish_reason == "content_filter"
        assert visit.closed.decision.stage == "output"
        (incident,) = await it.incidents()
        assert (incident.kind, incident.id) == ("output_harm", visit.closed.incident_id)
        async with it.store.read() as unit:
            assert "tell nobody" in await unit.incidents.evidence(incident.id)


@pytest.mark.parametrize("position", range(6))
async def test_a_harm_in_any_window_never_leaves(column: Column, position: int) -> None:
    chunks = [*BENIGN[:position], "[harm encouragement] ", *BENIGN[position:]]
    async with home(column, speech(*chunks)) as it:
        visit = await it.visit("hello")
        assert "[harm" not in visit.text
        assert visit.closed.finish_reason == "content_filter"


async def test_a_harmful_phrase_is_caught_wherever_the_stream_is_cut(column: Column) -> None:
    text = "".join(TURNS_HALF_WAY)
    start = text.index("[harm")
    cuts = [(text[:at], text[at:]) for at in range(start - 2, start + len("[harm secrecy]") + 2)]
    async with home(column, *(speech(*cut, match=f"number {n}.") for n, cut in enumerate(cuts))) as it:
        for n in range(len(cuts)):
            visit = await it.visit(f"number {n}.")
            assert visit.text.startswith("It is good that you wrote. ")
            assert "[" not in visit.text
            assert visit.closed.finish_reason == "content_filter"


async def test_verdicts_do_not_depend_on_how_the_backend_chunks(column: Column) -> None:
    text = "".join(TURNS_HALF_WAY)
    texts = set()
    for size in (1, 3, 7, len(text)):
        async with home(column, speech(*(text[i : i + size] for i in range(0, len(text), size)))) as it:
            texts.add((await it.visit("hello")).text)
    assert len(texts) == 1


# --- parts that fail ---------------------------------------------------------------------------


async def test_a_dead_backend_gives_care_and_a_record(column: Column) -> None:
    async with home(column, speech(*BENIGN, fail="unavailable")) as it:
        visit = await it.visit("hello", region="US")
        assert visit.closed.decision.stage == "backend"
        assert visit.closed.backend_error == "unavailable"
        assert visit.closed.finish_reason == "stop"
        assert "911" in visit.text
        assert (await it.last_event())["backend_error"] == "unavailable"


async def test_a_backend_that_dies_in_mid_answer_leaves_a_whole_ending(column: Column) -> None:
    async with home(column, speech(*BENIGN, fail="protocol", fail_after=4)) as it:
        visit = await it.visit("hello")
        assert visit.text.startswith(BENIGN[0])
        assert visit.closed.decision.stage == "backend"
        assert visit.closed.delivered_chars == len(visit.text)


async def test_a_message_that_cannot_be_judged_is_never_clean(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.marked.broken = {"user"}
        visit = await it.visit("hello")
        assert visit.closed.decision.action == "replace"
        assert visit.closed.detectors["marked"] == "unavailable"
        (incident,) = await it.incidents()
        assert incident.route == "queue"
        assert it.backend.finished == 0


async def test_a_reply_that_cannot_be_judged_does_not_leave(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.marked.broken = {"assistant"}
        visit = await it.visit("hello")
        assert BENIGN[0] not in visit.text
        assert visit.closed.finish_reason == "content_filter"
        assert visit.closed.detectors["marked"] == "unavailable"


async def test_a_verdict_that_comes_too_late_is_unavailable(column: Column) -> None:
    async with home(column, speech(*BENIGN), judge_within_s=0.05) as it:
        it.marked.gate = asyncio.Event()
        visit = await asyncio.wait_for(it.visit("hello"), WITHIN_S)
        assert visit.closed.decision.action == "replace"
        assert visit.closed.detectors["marked"] == "unavailable"


async def test_a_locked_record_still_lets_the_person_be_answered(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        async with it.held():
            visit = await asyncio.wait_for(it.visit("words [S4 suicide]"), WITHIN_S)
        assert visit.closed.decision.action == "replace"
        assert visit.closed.incident_id is None
        assert visit.text
        assert "store_failed" in it.log.getvalue()
        assert "suicide]" not in it.log.getvalue()


# --- the client leaves -------------------------------------------------------------------------


async def leave_after(it: Home, pieces: int, *said: str) -> None:
    stream = take_turn(it.house, turn(*said))
    for _ in range(pieces):
        await asyncio.wait_for(anext(stream), WITHIN_S)
    await stream.aclose()


@pytest.mark.parametrize("pieces", [1, 2, 3])
async def test_a_client_that_leaves_ends_the_backend_and_is_recorded(column: Column, pieces: int) -> None:
    async with home(column, speech(*BENIGN, hang_after=6)) as it:
        await leave_after(it, pieces, "hello")
        assert (it.backend.started, it.backend.aborted, it.backend.finished) == (1, 1, 0)
        data = await it.last_event()
        assert data["client_gone"] is True
        assert (data["delivered_chars"] > 0) is (pieces > 1)


async def test_a_crisis_is_raised_even_when_the_client_left_while_it_was_judged(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        it.marked.gate = asyncio.Event()
        stream = take_turn(it.house, turn("words [S4 suicide]"))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.wait_for(it.marked.asked.wait(), WITHIN_S)
        waiting.cancel()
        it.marked.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, WITHIN_S)
        (incident,) = await it.incidents()
        assert incident.route == "page_two"
        assert (await it.last_event())["client_gone"] is True


async def test_the_log_holds_one_line_for_the_turn_and_no_word_of_it(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        visit = await it.visit("a canary sentence nobody else would write [S3 suicide]", conversation_id="canary-id")
        lines = [line for line in it.log.getvalue().splitlines() if '"event":"turn"' in line]
        assert len(lines) == 1
        assert visit.closed.incident_id is not None
        assert visit.closed.incident_id in lines[0]
        assert "canary" not in it.log.getvalue()


async def test_pieces_come_in_order(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        kinds = [type(piece) async for piece in take_turn(it.house, turn("hello"))]
        assert kinds[0] is Opened
        assert kinds[-1] is Closed
        assert set(kinds[1:-1]) == {Delta}
