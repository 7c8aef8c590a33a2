"""The unit of work: all or nothing, bounded, and silent about what it holds."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
import threading
import traceback
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from gateway.audit.verify import verify_database
from gateway.errors import StartupError
from gateway.store.crypto import DecryptionError, Keyring
from gateway.store.engine import open_channel, parse_url, raw_sqlite
from gateway.store.errors import StoreError, classify
from gateway.store.uow import Store, UnitOfWork
from tests.support.columns import Column
from tests.unit.store_kit import CANARY, NOW, event, incident, opened, save, url_of

VICTIM = """
import asyncio, sys
from gateway.store.crypto import Keyring
from gateway.store.uow import Store
from tests.unit.store_kit import event, incident, NOW

async def main(url):
    store = Store.open(url, Keyring.create())
    while True:
        async with store.begin() as unit:
            ref = await unit.incidents.open_or_update(incident())
            await unit.outbox.enqueue(ref.id, "page", {"severity": 3}, ref.id, NOW)
            await unit.audit.append(event("incident.opened", incident_id=ref.id))
        print(ref.id, flush=True)

asyncio.run(main(sys.argv[1]))
"""


def files_of(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def intervene(unit: UnitOfWork) -> str:
    conversation = await save(unit, peak=3)
    ref = await unit.incidents.open_or_update(incident(conversation_id=conversation))
    await unit.outbox.enqueue(ref.id, "page", {"severity": 3}, "req-1:input", NOW)
    await unit.audit.append(event("incident.opened", incident_id=ref.id))
    return ref.id


async def counts(store: Store) -> tuple[int, int, int, bool]:
    async with store.read() as unit:
        return (
            len(await unit.incidents.list_open()),
            len(await unit.outbox.list_undelivered()),
            len(await unit.audit.page()),
            await unit.conversations.load("app", "c-1") is not None,
        )


async def test_incident_outbox_and_audit_commit_together(column: Column) -> None:
    async with opened(column) as store:
        async with store.begin() as unit:
            await intervene(unit)
        assert await counts(store) == (1, 1, 1, True)


async def test_an_error_in_the_middle_leaves_no_row(column: Column) -> None:
    async with opened(column) as store:
        with pytest.raises(KeyError):  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await intervene(unit)
                raise KeyError
        assert await counts(store) == (0, 0, 0, False)


async def test_an_error_of_the_last_write_leaves_no_row(column: Column) -> None:
    async with opened(column) as store:
        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await intervene(unit)
                await unit.outbox.enqueue("inc_absent", "page", {}, "other", NOW)
        assert caught.value.kind == "conflict"
        assert await counts(store) == (0, 0, 0, False)


async def test_a_failure_that_was_caught_inside_still_undoes_the_unit(column: Column) -> None:
    async with opened(column) as store:
        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await intervene(unit)
                with pytest.raises(StoreError):
                    await unit.incidents.open_or_update(incident(severity=9))
        assert caught.value.kind == "conflict"
        assert await counts(store) == (0, 0, 0, False)


async def test_nothing_more_is_done_in_a_unit_that_failed(column: Column) -> None:
    async with opened(column) as store:
        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                with pytest.raises(StoreError):
                    await unit.run(lambda connection: connection.exec_driver_sql("SELECT * FROM absent"))
                with pytest.raises(StoreError):
                    await unit.incidents.open_or_update(incident())
        assert caught.value.kind == "unavailable"
        assert await counts(store) == (0, 0, 0, False)


async def test_a_transaction_that_sqlite_ended_is_not_taken_for_committed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:

        def end_it(connection: Connection) -> None:
            raw_sqlite(connection).execute("ROLLBACK")

        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await intervene(unit)
                await unit.run(end_it)
        assert (caught.value.kind, caught.value.reason) == ("unavailable", "rolled back")
        with pytest.raises(StoreError):  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await unit.run(end_it)
                await intervene(unit)
        assert await counts(store) == (0, 0, 0, False)


async def test_a_cancelled_unit_leaves_no_row_and_no_lock(column: Column) -> None:
    async with opened(column, lock_timeout_s=2.0) as store:
        inside = asyncio.Event()

        async def unit_of_work() -> None:
            async with store.begin() as unit:
                await intervene(unit)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(unit_of_work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await counts(store) == (0, 0, 0, False)
        async with store.begin() as unit:
            await intervene(unit)
        assert await counts(store) == (1, 1, 1, True)


async def test_a_commit_that_has_begun_outlives_its_caller(tmp_path: Path) -> None:
    async with opened(tmp_path, lock_timeout_s=5.0) as store:
        committing, go_on = threading.Event(), threading.Event()

        def slow(_connection: Connection) -> None:
            committing.set()
            go_on.wait(5)

        async def unit_of_work() -> None:
            async with store.begin() as unit:
                await intervene(unit)
                unit.later(slow)

        task = asyncio.create_task(unit_of_work())
        assert await asyncio.to_thread(committing.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        async with store.begin() as unit:
            await unit.audit.append(event())
        assert await counts(store) == (1, 1, 2, True)


async def test_a_unit_cancelled_twice_still_ends_its_transaction(tmp_path: Path) -> None:
    """The second cancellation comes while the rollback is still queued behind work that runs."""
    async with opened(tmp_path, lock_timeout_s=5.0) as store:
        running, go_on = threading.Event(), threading.Event()

        def slow(_connection: Connection) -> None:
            running.set()
            go_on.wait(5)

        async def unit_of_work() -> None:
            async with store.begin() as unit:
                await intervene(unit)
                await unit.run(slow)

        task = asyncio.create_task(unit_of_work())
        assert await asyncio.to_thread(running.wait, 5)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done(), "it waits for its rollback"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        async with store.begin() as unit:
            await unit.audit.append(event())
        assert await counts(store) == (0, 0, 1, False)


async def test_a_writer_of_another_process_is_waited_for_within_a_bound(tmp_path: Path) -> None:
    async with opened(tmp_path, lock_timeout_s=0.1) as store:
        with closing(sqlite3.connect(tmp_path / "record.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError) as caught:
                async with store.begin() as unit:
                    await unit.audit.append(event())
            assert (caught.value.kind, caught.value.reason) == ("locked", "SQLITE_BUSY")
            with pytest.raises(StoreError):
                await store.health()
            other.execute("ROLLBACK")
        await store.health()
        async with store.begin() as unit:
            await unit.audit.append(event())


async def test_a_unit_of_this_process_is_waited_for_within_a_bound(tmp_path: Path) -> None:
    async with opened(tmp_path, lock_timeout_s=0.05) as store, store.begin():
        with pytest.raises(StoreError) as caught:
            async with store.begin():
                pass
        assert caught.value.kind == "locked"


async def test_reading_does_not_wait_for_a_writer(column: Column) -> None:
    async with opened(column, lock_timeout_s=0.1) as store:
        async with store.begin() as unit:
            await save(unit)
        async with store.begin() as unit:
            await intervene(unit)
            assert await counts(store) == (0, 0, 0, True)


async def test_a_full_disk_is_said_as_such_and_leaves_the_record_whole(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:

        def no_more_pages(connection: Connection) -> None:
            raw_sqlite(connection).execute("PRAGMA max_page_count = 1")

        with pytest.raises(StoreError) as caught:  # noqa: PT012 - the unit is the statement
            async with store.begin() as unit:
                await unit.run(no_more_pages)
                for number in range(40):
                    await unit.incidents.open_or_update(incident(evidence=f"{number} " * 4_000))
        assert caught.value.kind == "full"
        assert (await counts(store))[0] == 0


async def test_what_is_not_there_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'absent' / 'record.sqlite3'}", Keyring.create())
    with pytest.raises(StoreError) as caught:
        await store.health()
    assert caught.value.kind == "unavailable"
    with pytest.raises(StoreError):
        async with store.read() as unit:
            await unit.conversations.load("app", "c-1")
    async with opened(tmp_path) as other:
        await other.health()
    (tmp_path / "absent").mkdir()
    (tmp_path / "record.sqlite3").rename(tmp_path / "absent" / "record.sqlite3")
    await store.health()
    await store.aclose()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "record.sqlite3").write_bytes(b"not a database at all, but long enough to be read as one" * 100)
    store = Store.open(url_of(tmp_path), Keyring.create())
    with pytest.raises(StoreError) as caught:
        await store.health()
    assert (caught.value.kind, caught.value.reason) == ("unavailable", "SQLITE_NOTADB")
    await store.aclose()


async def test_kill_9_loses_nothing_that_was_said_to_be_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VICTIM, url_of(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert victim.stdout is not None
        said = [(await victim.stdout.readline()).decode().strip() for _ in range(20)]
        victim.kill()
        said += (await victim.stdout.read()).decode().split("\n")[:-1]
        await victim.wait()
        async with store.read() as unit:
            open_ids = {found.id for found in await unit.incidents.list_open(500)}
            notices = {notice.incident_id for notice in await unit.outbox.list_undelivered(500)}
            trail = {entry.event.incident_id for entry in await unit.audit.page()}
    assert len(said) >= 20
    assert set(said) <= open_ids
    assert open_ids == notices == trail
    assert (await verify_database(url_of(tmp_path))).ok


async def test_no_word_of_a_person_is_in_the_files(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.begin() as unit:
            conversation = await save(unit, external_id="patient-file-4711", peak=3)
            ref = await unit.incidents.open_or_update(incident(conversation_id=conversation))
            await unit.incidents.open_or_update(incident(conversation_id=conversation))
        files = files_of(tmp_path)
        assert any(file.name.endswith("-wal") for file in files)
        content = b"".join(file.read_bytes() for file in files)
        assert ref.id.encode() in content, "the scan reads what was written"
        assert CANARY.encode() not in content
        assert b"canary" not in content
        assert b"patient-file-4711" not in content


async def test_evidence_opens_with_the_key_and_with_no_other(tmp_path: Path) -> None:
    ring = Keyring.create()
    async with opened(tmp_path, ring) as store, store.begin() as unit:
        ref = await unit.incidents.open_or_update(incident())
        assert await unit.incidents.evidence(ref.id) == CANARY
        assert await unit.incidents.evidence("inc_absent") == ""
    async with opened(tmp_path, Keyring.create()) as thief, thief.read() as unit:
        with pytest.raises(DecryptionError):
            await unit.incidents.evidence(ref.id)


async def test_evidence_moved_to_another_incident_does_not_open(tmp_path: Path) -> None:
    ring = Keyring.create()
    async with opened(tmp_path, ring) as store:
        async with store.begin() as unit:
            first = await unit.incidents.open_or_update(incident())
            second = await unit.incidents.open_or_update(incident(evidence="another"))
        with closing(sqlite3.connect(tmp_path / "record.sqlite3")) as thief, thief:
            thief.execute(
                "UPDATE incidents SET evidence_encrypted = (SELECT evidence_encrypted FROM incidents WHERE id = ?) "
                "WHERE id = ?",
                (first.id, second.id),
            )
        async with store.read() as unit:
            with pytest.raises(DecryptionError):
                await unit.incidents.evidence(second.id)


async def test_errors_hold_no_value_and_no_sql(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError) as caught:
            async with store.begin() as unit:
                await unit.incidents.open_or_update(incident(subject=CANARY))
        error = caught.value
        shown = f"{error!r} {error.reason} {''.join(traceback.format_exception(error))}"
        assert error.kind == "conflict"
        assert CANARY not in shown
        assert "INSERT" not in shown
        assert "CHECK constraint" not in shown


async def test_a_reading_unit_writes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.read() as unit:
            with pytest.raises(RuntimeError):
                await unit.audit.append(event())
            with pytest.raises(StoreError):
                await unit.incidents.open_or_update(incident())
        assert await counts(store) == (0, 0, 0, False)


async def test_a_unit_is_of_no_use_after_its_block(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.begin() as unit:
            await save(unit)
        with pytest.raises(RuntimeError):
            await unit.conversations.load("app", "c-1")
        with pytest.raises(RuntimeError):
            await unit.audit.append(event())


async def test_conversations_are_saved_loaded_and_kept_apart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.begin() as unit:
            first = await save(unit, peak=3, categories=["suicide"])
            again = await save(unit, peak=1, minutes=5)
            other = await save(unit, external_id="c-2")
            assert await unit.conversations.load("app-2", "c-1") is None
            state = await unit.conversations.load("app", "c-1")
        assert first == again != other
        assert state is not None
        assert (state.id, state.severity_peak, state.version) == (first, 3, 2), "the peak never falls"
        assert state.risk == {"level": 1}


async def test_the_file_is_private(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.begin() as unit:
            await save(unit)
        assert {stat.S_IMODE(file.stat().st_mode) for file in files_of(tmp_path)} == {0o600}


async def test_a_naive_time_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError):
            async with store.begin() as unit:
                await unit.incidents.open_or_update(incident(opened_at=NOW.replace(tzinfo=None)))


async def test_times_come_back_in_utc(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, store.begin() as unit:
        ref = await unit.incidents.open_or_update(incident())
        found = await unit.incidents.get(ref.id)
        assert found is not None
        assert found.opened_at == NOW
        assert found.ack_deadline_at == NOW + timedelta(seconds=300)


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://h/d", "sqlite:///"])
def test_a_url_we_cannot_use_refuses_to_start(url: str) -> None:
    with pytest.raises(StartupError):
        open_channel(url)


@pytest.mark.parametrize("url", ["postgresql://u@h/d", "postgresql+asyncpg://u@h/d", "postgresql+psycopg://u@h/d"])
def test_postgres_is_reached_by_asyncpg(url: str) -> None:
    assert parse_url(url).drivername == "postgresql+asyncpg"


async def test_a_postgres_that_is_down_is_unavailable() -> None:
    store = Store.open("postgresql://nobody@127.0.0.1:1/none", Keyring.create())
    with pytest.raises(StoreError) as caught:
        await store.health()
    assert caught.value.kind == "unavailable"
    with pytest.raises(StoreError):
        async with store.read():
            pass
    await store.aclose()


class Postgres(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(CANARY)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Postgres("55P03"), "locked"),
        (Postgres("40P01"), "locked"),
        (Postgres("53100"), "full"),
        (Postgres("23505"), "conflict"),
        (Postgres("22001"), "conflict"),
        (Postgres("40001"), "conflict"),
        (Postgres("57P01"), "unavailable"),
        (TimeoutError(), "unavailable"),
        (ConnectionRefusedError(), "unavailable"),
        (SQLAlchemyError(CANARY), "unavailable"),
    ],
)
def test_every_error_of_a_database_has_a_kind(error: Exception, kind: str) -> None:
    found = classify(error)
    assert found.kind == kind
    assert CANARY not in f"{found} {found.reason}"
    assert found.status == 503
