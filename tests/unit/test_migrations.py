"""The schema, up and down, and the cheap look at start-up."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.store import migrate
from gateway.store.crypto import Keyring
from gateway.store.errors import StoreError
from gateway.store.uow import Store
from tests.unit.store_kit import append_many, opened, url_of

WARM = """
import sys
from gateway.store import migrate
assert migrate.upgrade(sys.argv[1]) is False
assert "alembic" not in sys.modules, "a warm start imported Alembic"
"""


def statements(folder: Path, *lines: str) -> None:
    with closing(sqlite3.connect(folder / "record.sqlite3")) as connection, connection:
        for line in lines:
            connection.execute(line)


def tables(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / "record.sqlite3")) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_up_check_down_up(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    assert migrate.current(url) is None
    assert migrate.upgrade(url) is True
    assert migrate.current(url) == migrate.HEAD
    assert migrate.check(url) == []
    migrate.downgrade(url, "base")
    assert migrate.current(url) is None
    assert tables(tmp_path) == {"alembic_version"}
    assert migrate.upgrade(url) is True
    assert migrate.check(url) == []


def test_check_finds_a_difference(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path))
    statements(tmp_path, "DROP INDEX ix_outbox_due", "ALTER TABLE audit ADD COLUMN stray TEXT")
    found = "\n".join(migrate.check(url_of(tmp_path)))
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


def test_many_who_start_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys; from gateway.store import migrate; migrate.upgrade(sys.argv[1])", url]
        )
        for url in [url_of(tmp_path)] * 3
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert migrate.check(url_of(tmp_path)) == []


def test_a_step_that_fails_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    """The last table of the migration is in the way, so all the earlier ones must go again."""
    statements(tmp_path, "CREATE TABLE outbox (id TEXT)")
    with pytest.raises(StoreError):
        migrate.upgrade(url_of(tmp_path))
    assert tables(tmp_path) == {"outbox"}


def test_a_database_from_the_future_refuses_to_start(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path))
    statements(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError, match="9999"):
        migrate.upgrade(url_of(tmp_path))


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


def test_the_first_migration_runs_on_postgres_too() -> None:
    """Its SQL, written out for PostgreSQL: the types are PostgreSQL's, and the partial index keeps its condition."""
    from io import StringIO

    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    written = StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written, "target_metadata": None}
    )
    script = ScriptDirectory(str(migrate.scripts())).get_revision("head")
    assert script is not None
    with Operations.context(context):
        script.module.upgrade()
    sql = written.getvalue()
    for part in ("JSONB", "TIMESTAMP WITH TIME ZONE", "BYTEA", "seq BIGINT", "WHERE state <> 'resolved'"):
        assert part in sql
