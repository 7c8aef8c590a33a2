"""The chain in a real database, and attacks on the file."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gateway.audit.verify import Head, verify_database
from gateway.store.crypto import Keyring
from gateway.store.errors import StoreError
from tests.unit.store_kit import CANARY, append_many, event, opened, url_of

WRITER = """
import asyncio, sys
from pathlib import Path
from gateway.store.crypto import Keyring
from gateway.store.uow import Store
from tests.unit.store_kit import event

async def main(url, count):
    store = Store.open(url, Keyring.create(), lock_timeout_s=30.0)
    await store.health()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(count):
        async with store.begin() as unit:
            await unit.audit.append(event(request_id=f"req-{number}"))
    await store.aclose()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def attack(folder: Path, *statements: str) -> None:
    """Someone with the file and without scruples."""
    with closing(sqlite3.connect(folder / "record.sqlite3", isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            connection.execute(statement)


async def kept_head(folder: Path, count: int = 6) -> Head:
    async with opened(folder) as store:
        await append_many(store, count)
    result = await verify_database(url_of(folder))
    assert result.ok
    assert result.count == count
    return result.head


@pytest.mark.parametrize(
    ("statement", "reason", "first_bad"),
    [
        ('UPDATE audit SET data = \'{"action": "refuse", "severity": 0}\' WHERE seq = 3', "changed", 3),
        ("UPDATE audit SET actor = 'app:other' WHERE seq = 1", "changed", 1),
        ("UPDATE audit SET at = '2020-01-01 00:00:00.000000' WHERE seq = 6", "changed", 6),
        ("UPDATE audit SET hash = substr(hash, 2) || 'f' WHERE seq = 4", "changed", 4),
        ("UPDATE audit SET prev_hash = hash WHERE seq = 4", "unlinked", 4),
        ("DELETE FROM audit WHERE seq = 3", "missing", 4),
        ("DELETE FROM audit WHERE seq = 1", "missing", 2),
        ("UPDATE audit SET data = 'not json' WHERE seq = 5", "unreadable", 5),
        ("UPDATE audit SET at = 'never' WHERE seq = 2", "unreadable", 2),
        ("UPDATE audit SET actor = x'ff00' WHERE seq = 2", "changed", 2),
        ("DELETE FROM audit WHERE seq > 4", "truncated", 5),
        ("DELETE FROM audit", "truncated", 1),
        (
            "INSERT INTO audit SELECT 7, at, actor, event, request_id, conversation_id, incident_id, data, prev_hash, "
            "'" + "0" * 64 + "' FROM audit WHERE seq = 6",
            "unlinked",
            7,
        ),
        (
            "INSERT INTO audit SELECT 0, at, actor, event, request_id, conversation_id, incident_id, data, prev_hash, "
            "'" + "0" * 64 + "' FROM audit WHERE seq = 1",
            "out_of_order",
            0,
        ),
    ],
)
async def test_every_attack_is_found_where_it_happened(
    tmp_path: Path, statement: str, reason: str, first_bad: int
) -> None:
    head = await kept_head(tmp_path)
    attack(tmp_path, statement)
    result = await verify_database(url_of(tmp_path), head)
    assert not result.ok
    assert (result.reason, result.first_bad_seq) == (reason, first_bad)


async def test_two_entries_that_changed_places_are_found(tmp_path: Path) -> None:
    head = await kept_head(tmp_path)
    attack(
        tmp_path,
        "UPDATE audit SET seq = 100 WHERE seq = 3",
        "UPDATE audit SET seq = 3 WHERE seq = 4",
        "UPDATE audit SET seq = 4 WHERE seq = 100",
    )
    result = await verify_database(url_of(tmp_path), head)
    assert (result.reason, result.first_bad_seq) == ("unlinked", 3)


async def test_a_trail_longer_than_a_page_is_checked_to_its_end(tmp_path: Path) -> None:
    head = await kept_head(tmp_path, 2_050)
    attack(tmp_path, "UPDATE audit SET event = 'x' WHERE seq = 2049")
    result = await verify_database(url_of(tmp_path), head)
    assert result.first_bad_seq == 2_049
    assert result.count == 2_048


async def test_checking_touches_nothing(tmp_path: Path) -> None:
    await kept_head(tmp_path)
    before = (tmp_path / "record.sqlite3").read_bytes()
    await verify_database(url_of(tmp_path))
    assert (tmp_path / "record.sqlite3").read_bytes() == before
    with pytest.raises(StoreError) as caught:
        await verify_database(f"sqlite:///{tmp_path / 'absent.sqlite3'}")
    assert caught.value.kind == "unavailable"
    assert not (tmp_path / "absent.sqlite3").exists()


async def test_prose_is_refused_and_undoes_the_unit(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await unit.audit.append(event())
                await unit.audit.append(event(data={"reason": CANARY}))
        assert caught.value.kind == "refused"
        assert CANARY not in f"{caught.value} {caught.value.reason}"
        async with store.read() as unit:
            assert await unit.audit.page() == []


async def test_many_tasks_keep_one_chain(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await asyncio.gather(*(append_many(store, 3) for _ in range(20)))
    result = await verify_database(url_of(tmp_path))
    assert result.ok
    assert result.count == 60


async def test_two_processes_keep_one_chain(tmp_path: Path) -> None:
    await kept_head(tmp_path, 1)
    pipe = asyncio.subprocess.PIPE
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, url_of(tmp_path), "150", stdin=pipe, stdout=pipe
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert await writer.stdout.readline() == b"ready\n"
    await asyncio.gather(*(writer.communicate(b"go\n") for writer in writers))
    assert [writer.returncode for writer in writers] == [0, 0]
    result = await verify_database(url_of(tmp_path))
    assert result.ok
    assert result.count == 301


async def test_pages_are_bounded_and_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path, Keyring.create()) as store:
        await append_many(store, 5)
        async with store.read() as unit:
            assert [entry.seq for entry in await unit.audit.page(limit=2)] == [1, 2]
            assert [entry.seq for entry in await unit.audit.page(after=3, limit=10**9)] == [4, 5]
            assert [entry.seq for entry in await unit.audit.page(after=4, limit=-1)] == [5]
