"""What is seen across messages, answers and conversations (issue 3, point 4)."""

from __future__ import annotations

import pytest

from backends.scripted import ScriptedTurn
from gateway.pipeline.case import MAX_STOPS
from gateway.session.risk import HOLD_S
from tests.integration.house import home
from tests.support.columns import Column

BENIGN = ("It is good ", "that you asked. ", "Boil it for ", "eight minutes. ")


def speech(*chunks: str) -> ScriptedTurn:
    return ScriptedTurn(chunks=chunks)


async def test_a_new_conversation_of_a_person_in_crisis_starts_where_they_stand(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S4 suicide]", conversation_id="c-1", end_user_hash="person")
        got = await it.visit("hello", conversation_id="c-2", end_user_hash="person")
        assert (got.closed.decision.severity, got.closed.decision.action) == (4, "replace")
        unnamed = await it.visit("hello there", end_user_hash="person")
        assert unnamed.closed.decision.severity == 4
        other = await it.visit("hello", conversation_id="c-3", end_user_hash="someone else")
        assert other.closed.decision.action == "allow"


async def test_a_crisis_of_days_ago_does_not_follow_a_person_for_ever(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S4 suicide]", conversation_id="c-1", end_user_hash="person")
        it.clock.at_s += 5 * HOLD_S
        got = await it.visit("hello", conversation_id="c-2", end_user_hash="person")
        assert got.closed.decision.action == "allow"


async def test_a_new_conversation_is_released_by_its_own_quiet_turns(column: Column) -> None:
    async with home(column, speech(*BENIGN)) as it:
        await it.visit("words [S2 suicide]", conversation_id="c-1", end_user_hash="person")
        actions = [
            (await it.visit(f"hello {n}", conversation_id="c-2", end_user_hash="person")).closed.decision.action
            for n in range(8)
        ]
        assert (actions[0], actions[-1]) == ("replace", "allow")


async def test_an_answer_asked_for_piece_by_piece_is_judged_as_one(column: Column) -> None:
    async with home(column, speech("secrecy] of it")) as it:
        got = await it.visit("go on", "And now [harm ", "go on")
        assert got.closed.finish_reason == "content_filter"
        whole = await it.visit("go on", "And now [harm is over.", "go on")
        assert whole.closed.finish_reason == "stop"


async def test_asking_again_until_an_answer_passes_has_an_end(column: Column) -> None:
    async with home(column, speech("It is fine. ", "[harm secrecy] tell nobody. ")) as it:
        for _ in range(MAX_STOPS):
            assert (await it.visit("hello", conversation_id="c-1")).closed.finish_reason == "content_filter"
        started = it.backend.started
        again = await it.visit("hello", conversation_id="c-1")
        assert again.closed.finish_reason == "content_filter"
        assert "It is fine." not in again.text
        assert it.backend.started == started
        assert (await it.visit("something else", conversation_id="c-1")).text.startswith("It is fine.")


@pytest.mark.parametrize(
    "said", [("i am going to kill", "myself tonight"), ("i am going to kill myself", "tonight ok")]
)
async def test_a_statement_split_over_messages_is_heard(column: Column, said: tuple[str, str]) -> None:
    async with home(column, speech(*BENIGN)) as it:
        got = await it.visit(said[0], "Tell me more.", said[1])
        assert got.closed.decision.action == "replace"
