"""The schema, up and down, and the cheap look at start-up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.store import migrate
from gateway.store.crypto import Keyring
from gateway.store.errors import StoreError
from gateway.store.uow import Store
from tests.support.columns import Column, Production
from tests.support.servers import Databases, Valkey
from tests.unit.store_kit import append_many, opened, url_of

WARM = """
import sys
from gateway.store import migrate
assert migrate.upgrade(sys.argv[1]) is False
assert "alembic" not in sys.modules, "a warm start imported Alembic"
"""


async def tables(column: Column, url: str) -> set[str]:
    """Every table of ours."""
    lite, postgres = "name FROM sqlite_master", "tablename FROM pg_tables WHERE schemaname = 'public'"
    query = f"SELECT {lite} WHERE type = 'table'" if url.startswith("sqlite") else f"SELECT {postgres}"
    return {name for (name,) in await column.rows(url, query)}


async def test_up_check_down_up(column: Column) -> None:
    async with column.database(empty=True) as url:
        assert migrate.current(url) is None
        assert migrate.upgrade(url) is True
        assert migrate.current(url) == migrate.HEAD
        assert migrate.check(url) == []
        assert migrate.upgrade(url) is False
        assert {"api_keys", "audit", "conversations", "incidents", "outbox"} <= await tables(column, url)
        migrate.downgrade(url, "base")
        assert migrate.current(url) is None
        assert await tables(column, url) == {"alembic_version"}
        assert migrate.upgrade(url) is True
        assert migrate.check(url) == []


async def test_check_finds_a_difference(column: Column) -> None:
    async with column.database() as url:
        await column.rows(url, "DROP INDEX ix_outbox_due")
        await column.rows(url, "ALTER TABLE audit ADD COLUMN stray TEXT")
        found = "\n".join(migrate.check(url))
        assert "ix_outbox_due" in found
        assert "stray" in found


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrate.scripts()))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_a_warm_start_does_not_import_alembic(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path))
    subprocess.run([sys.executable, "-c", WARM, url_of(tmp_path)], check=True, timeout=60)


async def test_many_who_start_at_once(column: Column) -> None:
    code = "import sys; from gateway.store import migrate; migrate.upgrade(sys.argv[1])"
    async with column.database(empty=True) as url:
        processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, url) for _ in range(3)]
        assert [await asyncio.wait_for(process.wait(), 60) for process in processes] == [0, 0, 0]
        assert migrate.check(url) == []


async def test_a_step_that_fails_leaves_the_schema_as_it_was(column: Column) -> None:
    """The last table of the migration is in the way, so all the earlier ones must go again."""
    async with column.database(empty=True) as url:
        await column.rows(url, "CREATE TABLE outbox (id TEXT)")
        with pytest.raises(StoreError):
            migrate.upgrade(url)
        assert await tables(column, url) == {"outbox"}


async def test_a_database_from_the_future_refuses_to_start(column: Column) -> None:
    async with column.database() as url:
        await column.rows(url, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(StartupError, match="9999"):
            migrate.upgrade(url)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "record.sqlite3").write_bytes(b"no database" * 1_000)
    with pytest.raises(StoreError) as caught:
        migrate.upgrade(url_of(tmp_path))
    assert caught.value.kind == "unavailable"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        migrate.upgrade(f"sqlite:///{tmp_path / 'absent' / 'record.sqlite3'}")
    assert caught.value.kind == "unavailable"


def test_a_postgres_that_is_down() -> None:
    with pytest.raises(StoreError) as caught:
        migrate.upgrade("postgresql://nobody@127.0.0.1:1/none")
    assert caught.value.kind == "unavailable"


async def test_it_can_be_called_beside_a_running_loop(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(migrate.upgrade, url_of(tmp_path)).result(60)
    async with opened(tmp_path) as store:
        await store.health()


async def test_health_needs_the_schema(tmp_path: Path) -> None:
    (tmp_path / "record.sqlite3").touch()
    store = Store.open(url_of(tmp_path), Keyring.create())
    with pytest.raises(StoreError):
        await store.health()
    await store.aclose()


async def test_what_was_written_survives_an_upgrade_that_has_nothing_to_do(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await append_many(store, 3)
    assert migrate.upgrade(url_of(tmp_path)) is False
    async with opened(tmp_path) as store, store.read() as unit:
        assert len(await unit.audit.page()) == 3


async def test_postgres_has_its_own_types(postgres: Databases, tmp_path: Path) -> None:
    """JSON that can be searched, times with their zone, bytes, and an index of the unresolved incidents alone."""
    column = Production(tmp_path, postgres, Valkey(started=False))
    async with column.database() as url:
        found = await column.rows(
            url, "SELECT table_name || '.' || column_name, data_type FROM information_schema.columns"
        )
        types = dict(found)
        assert types["audit.data"] == types["conversations.risk"] == "jsonb"
        assert types["audit.at"] == types["outbox.next_attempt_at"] == "timestamp with time zone"
        assert (types["incidents.evidence_encrypted"], types["audit.seq"]) == ("bytea", "bigint")
        indexes = await column.rows(url, "SELECT indexdef FROM pg_indexes WHERE tablename = 'incidents'")
        assert any("<> 'resolved'" in definition for (definition,) in indexes)
