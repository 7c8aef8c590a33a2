"""What an audit entry may hold, and how entries are chained."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.log import GENESIS, AuditRefused, Entry, canonical, chain_hash, check, check_tokens
from gateway.audit.verify import Head, verify
from gateway.errors import UsageError
from tests.unit.store_kit import CANARY, NOW, event


def chain(count: int) -> list[Entry]:
    entries: list[Entry] = []
    prev = GENESIS
    for seq in range(1, count + 1):
        entry_event = event(request_id=f"req-{seq}")
        hashed = chain_hash(prev, seq, entry_event)
        entries.append(Entry(seq, entry_event, prev, hashed))
        prev = hashed
    return entries


def test_the_hash_is_the_one_that_the_docstring_promises() -> None:
    text = (
        '{"actor":"app:test","at":"2026-03-01T12:00:00.000000Z","conversation_id":null,'
        '"data":{"action":"allow","severity":0},"event":"turn.closed","incident_id":null,"request_id":"req-1","seq":1}'
    )
    assert canonical(1, event()) == text.encode()
    leaf = hashlib.sha256(b"\x00" + text.encode()).digest()
    expected = hashlib.sha256(b"\x01" + bytes.fromhex(GENESIS) + leaf).hexdigest()
    assert chain_hash(GENESIS, 1, event()) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"reason": CANARY}},
        {"data": {"reasons": ["level.S3", CANARY]}},
        {"data": {"note": "x"}},
        {"data": {"reason": "x" * 201}},
        {"data": {"reason": "line\nbreak"}},
        {"data": {"reason": "naïve"}},
        {"data": {"reasons": ["a"] * 65}},
        {"data": {"reason": {"nested": "x"}}},
        {"data": {"severity": 0.5}},
        {"data": {"count": 2**60}},
        {"data": {"reason": b"bytes"}},
        {"actor": CANARY},
        {"request_id": CANARY},
        {"at": datetime(2026, 3, 1)},  # noqa: DTZ001 - that is the point
    ],
)
def test_what_could_be_prose_is_refused_without_quoting_it(changes: dict[str, Any]) -> None:
    with pytest.raises(AuditRefused) as caught:
        check(event(**changes))
    assert CANARY not in str(caught.value)


@given(st.text(min_size=1).filter(lambda text: any(c.isspace() or not c.isascii() for c in text)))
def test_no_text_with_a_space_gets_in(text: str) -> None:
    with pytest.raises(AuditRefused):
        check_tokens({"reason": text})


def test_what_the_pipeline_writes_passes() -> None:
    check(event(data={"reasons": ["level.S3", "floor.S4"], "client_gone": False, "kind": None, "delivered_chars": 12}))


def test_an_unbroken_chain_is_good() -> None:
    result = verify(chain(5))
    assert result.ok
    assert result.count == 5
    assert verify(chain(5), result.head).ok
    assert verify(chain(9), result.head).ok, "a head kept from earlier still holds"


def test_an_empty_trail() -> None:
    assert verify([]).ok
    assert verify([], Head(0, GENESIS)).ok
    assert verify([], Head(0, "0" * 64)).reason == "other_head"
    assert verify([], Head(1, "0" * 64)).reason == "truncated"


@given(st.data())
def test_any_single_tampering_is_found(data: st.DataObject) -> None:
    entries = chain(8)
    head = Head(8, entries[-1].hash)
    at = data.draw(st.integers(0, 7))
    other = data.draw(st.integers(0, 7).filter(lambda number: number != at))
    attack = data.draw(st.sampled_from(["edit", "delete", "reorder", "insert", "truncate"]))
    if attack == "edit":
        entries[at] = msgspec.structs.replace(entries[at], event=event("turn.opened", request_id="req-x"))
    elif attack == "delete":
        del entries[at]
    elif attack == "reorder":
        entries[at], entries[other] = entries[other], entries[at]
    elif attack == "insert":
        entries.insert(at, entries[other])
    else:
        del entries[at:]
    result = verify(entries, head)
    assert not result.ok
    assert result.count <= 8


def test_a_rebuilt_chain_is_found_by_a_head_kept_elsewhere_and_only_by_it() -> None:
    kept = Head(3, chain(3)[-1].hash)
    prev, forged = GENESIS, []
    for seq in (1, 2, 3):
        entry_event = event(request_id=f"other-{seq}")
        hashed = chain_hash(prev, seq, entry_event)
        forged.append(Entry(seq, entry_event, prev, hashed))
        prev = hashed
    assert verify(forged).ok
    result = verify(forged, kept)
    assert result.reason == "other_head"
    assert result.first_bad_seq == 3


def test_a_field_of_another_type_is_a_fault_not_a_crash() -> None:
    entry = chain(1)[0]
    strange = Entry(1, msgspec.structs.replace(entry.event, at="yesterday"), entry.prev_hash, entry.hash)
    assert verify([strange]).reason == "unreadable"
    assert verify([msgspec.structs.replace(entry, prev_hash=b"x")]).reason == "unlinked"
    assert verify([msgspec.structs.replace(entry, hash=None)]).reason == "changed"


@pytest.mark.parametrize("text", ["", "1", "1:xyz", "-1:" + "0" * 64, "1:" + "0" * 63])
def test_a_head_that_is_none_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        Head.parse(text)


def test_a_head_reads_back() -> None:
    head = Head(12, "ab" * 32)
    assert Head.parse(str(head)) == head


def test_time_is_hashed_in_utc() -> None:
    from datetime import timedelta, timezone

    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    assert canonical(1, event(at=elsewhere)) == canonical(1, event(at=NOW))
