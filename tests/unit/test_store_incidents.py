"""How findings become incidents, and notices."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.errors import StoreError
from gateway.store.ids import new_id
from gateway.store.repositories.incidents import KEPT_OPENING_CHARS, MAX_EVIDENCE_CHARS, joined
from gateway.store.uow import Store
from tests.support.columns import Column
from tests.unit.store_kit import CANARY, NOW, incident, opened, save

LATER = NOW + timedelta(seconds=60)


async def set_state(store: Store, state: str) -> None:
    """A reviewer's act; the state machine for it is a room of its own."""
    async with store.begin() as unit:
        await unit.run(lambda connection: connection.exec_driver_sql(f"UPDATE incidents SET state = '{state}'"))


async def test_a_second_finding_grows_the_incident(column: Column) -> None:
    async with opened(column) as store, store.begin() as unit:
        conversation = await save(unit)
        first = await unit.incidents.open_or_update(incident(conversation_id=conversation))
        second = await unit.incidents.open_or_update(
            incident(
                conversation_id=conversation,
                severity=4,
                categories=("substance_overdose", "suicide"),
                imminence="now",
                route="page_two",
                ack_within_s=30,
                opened_at=LATER,
                evidence="the second part",
            )
        )
        found = await unit.incidents.get(first.id)
        evidence = await unit.incidents.evidence(first.id)
    assert (first.created, first.severity_rose) == (True, True)
    assert (second.id, second.created, second.severity_rose) == (first.id, False, True)
    assert found is not None
    assert (found.severity, found.imminence, found.route, found.turns, found.version) == (4, "now", "page_two", 2, 2)
    assert found.categories == ("suicide", "substance_overdose")
    assert found.ack_deadline_at == LATER + timedelta(seconds=30)
    assert (found.opened_at, found.updated_at) == (NOW, LATER)
    assert evidence == f"{CANARY}\n\nthe second part"


async def test_a_calmer_finding_lowers_nothing(column: Column) -> None:
    async with opened(column) as store, store.begin() as unit:
        conversation = await save(unit)
        first = await unit.incidents.open_or_update(
            incident(conversation_id=conversation, severity=4, imminence="now", route="page_two", ack_within_s=120)
        )
        second = await unit.incidents.open_or_update(
            incident(
                conversation_id=conversation,
                severity=1,
                imminence="none",
                subject="none",
                route="digest",
                ack_within_s=86_400,
                opened_at=LATER,
                evidence=None,
            )
        )
        found = await unit.incidents.get(first.id)
    assert second.severity_rose is False
    assert found is not None
    assert (found.severity, found.imminence, found.route, found.subject) == (4, "now", "page_two", "self")
    assert found.ack_deadline_at == NOW + timedelta(seconds=120)
    assert found.turns == 2


async def test_kinds_and_conversations_stay_apart(column: Column) -> None:
    async with opened(column) as store, store.begin() as unit:
        conversation, other = await save(unit), await save(unit, "c-2")
        refs = [
            await unit.incidents.open_or_update(incident(conversation_id=conversation)),
            await unit.incidents.open_or_update(incident(conversation_id=conversation, kind="output_harm")),
            await unit.incidents.open_or_update(incident(conversation_id=other)),
            await unit.incidents.open_or_update(incident()),
            await unit.incidents.open_or_update(incident()),
        ]
    assert all(ref.created for ref in refs)
    assert len({ref.id for ref in refs}) == 5


async def test_a_resolved_incident_is_not_woken_a_new_one_opens(column: Column) -> None:
    async with opened(column) as store:
        async with store.begin() as unit:
            conversation = await save(unit)
            first = await unit.incidents.open_or_update(incident(conversation_id=conversation))
        await set_state(store, "resolved")
        async with store.begin() as unit:
            second = await unit.incidents.open_or_update(incident(conversation_id=conversation))
        assert second.created
        assert second.id != first.id


async def test_an_acknowledged_incident_opens_again_only_when_it_grows_worse(column: Column) -> None:
    async with opened(column) as store:
        async with store.begin() as unit:
            conversation = await save(unit)
            ref = await unit.incidents.open_or_update(incident(conversation_id=conversation))
        await set_state(store, "acknowledged")
        async with store.begin() as unit:
            await unit.incidents.open_or_update(incident(conversation_id=conversation, opened_at=LATER))
            same = await unit.incidents.get(ref.id)
            await unit.incidents.open_or_update(
                incident(conversation_id=conversation, severity=4, ack_within_s=600, opened_at=LATER)
            )
            worse = await unit.incidents.get(ref.id)
    assert same is not None
    assert worse is not None
    assert (same.state, same.ack_deadline_at) == ("acknowledged", NOW + timedelta(seconds=300))
    assert (worse.state, worse.ack_deadline_at) == ("open", LATER + timedelta(seconds=600))


async def test_findings_that_come_at_once_make_one_incident(column: Column) -> None:
    async with opened(column) as store:

        async def find() -> str:
            async with store.begin() as unit:
                conversation = await save(unit)
                return (await unit.incidents.open_or_update(incident(conversation_id=conversation))).id

        ids = await asyncio.gather(*(find() for _ in range(20)))
        async with store.read() as unit:
            (found,) = await unit.incidents.list_open()
    assert set(ids) == {found.id}
    assert found.turns == 20


async def test_the_worst_comes_first_then_the_nearest_deadline(column: Column) -> None:
    async with opened(column) as store, store.begin() as unit:
        for severity, ack_within_s in ((2, 10), (4, 900), (4, 60), (0, 1)):
            await unit.incidents.open_or_update(incident(severity=severity, ack_within_s=ack_within_s))
        found = await unit.incidents.list_open()
        assert [view.severity for view in found] == [4, 4, 2, 0]
        assert found[0].ack_deadline_at < found[1].ack_deadline_at
        assert len(await unit.incidents.list_open(limit=2)) == 2
        assert await unit.incidents.get("inc_absent") is None


@pytest.mark.parametrize(
    "changes",
    [{"severity": 5}, {"severity": -1}, {"kind": "other"}, {"imminence": "soon"}, {"subject": "dog"}],
)
async def test_the_table_holds_its_own_bounds(column: Column, changes: dict[str, object]) -> None:
    async with opened(column) as store:
        with pytest.raises(StoreError) as caught:
            async with store.begin() as unit:
                await unit.incidents.open_or_update(incident(**changes))
        assert caught.value.kind == "conflict"


@given(st.text(max_size=50), st.lists(st.integers(0, 30_000), max_size=8))
def test_evidence_is_bounded_and_keeps_its_opening_and_its_end(opening: str, lengths: list[int]) -> None:
    text = opening + "o" * 100
    start = text
    for number, length in enumerate(lengths):
        text = joined(text, f"{number}" * length)
        assert len(text) <= MAX_EVIDENCE_CHARS
    assert text.startswith(start[:KEPT_OPENING_CHARS])
    if lengths and lengths[-1]:
        last = len(lengths) - 1
        assert text.endswith(f"{last}" * lengths[-1])


async def test_a_notice_is_written_once(column: Column) -> None:
    async with opened(column) as store:
        async with store.begin() as unit:
            ref = await unit.incidents.open_or_update(incident())
        for _ in range(3):
            async with store.begin() as unit:
                await unit.outbox.enqueue(ref.id, "page", {"severity": 3}, "req-1:input", NOW)
        async with store.read() as unit:
            (notice,) = await unit.outbox.list_undelivered()
        assert (notice.incident_id, notice.route, notice.state, notice.attempts) == (ref.id, "page", "pending", 0)
        assert notice.payload == {"severity": 3}


async def test_a_notice_takes_no_prose(column: Column) -> None:
    async with opened(column) as store:
        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                ref = await unit.incidents.open_or_update(incident())
                await unit.outbox.enqueue(ref.id, "page", {"summary": CANARY}, "key", NOW)
        assert caught.value.kind == "refused"
        async with store.read() as unit:
            assert await unit.incidents.list_open() == []


def test_ids_sort_by_time() -> None:
    ids = [new_id("inc", NOW + timedelta(milliseconds=number)) for number in range(200)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 200
    assert all(len(found) == 30 for found in ids)
