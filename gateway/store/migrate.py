"""Bring a database to the schema that this version needs.  For the command line and for start-up: not from a coroutine.

A database that is already there costs one small query; Alembic is imported only when there is something to do.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import gateway
from gateway.errors import StartupError
from gateway.store.dialect import lock_record
from gateway.store.engine import parse_url, postgres_engine, raw_sqlite, sqlite_engine
from gateway.store.errors import translated

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD: Final = "0001"
"""The newest revision in ``migrations/versions``; a test holds the two together."""

T = TypeVar("T")


def upgrade(url: str) -> bool:
    """Bring the database to `HEAD`; False when it was there already.  Two processes may call it at once.

    Raises `StoreError`, or `StartupError` when the database is newer than this program.
    """
    found = current(url)
    if found == HEAD:
        return False
    _within(url, lambda connection: _migrate(connection, lambda config: _command().upgrade(config, "head"), found))
    return True


def downgrade(url: str, revision: str) -> None:
    """Take the database back to ``revision`` (``base``: empty).  What the newer tables held is lost."""
    _within(url, lambda connection: _migrate(connection, lambda config: _command().downgrade(config, revision), None))


def current(url: str) -> str | None:
    """The revision the database is at; None for an empty one, or one that is not there."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        with translated():
            return _sqlite_revision(Path(str(parsed.database)))
    return _within(url, _revision)


def check(url: str) -> list[str]:
    """How the database differs from the tables in the code, one line each; empty when it does not."""
    return _within(url, _differences)


def _sqlite_revision(path: Path) -> str | None:
    """Without SQLAlchemy's engine: this runs at every start."""
    if not path.exists():
        return None
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = tables and connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None


def _revision(connection: Connection) -> str | None:
    from sqlalchemy import inspect, text

    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if found is None else str(found)


def _migrate(connection: Connection, step: Callable[[Config], None], expected: str | None) -> None:
    from alembic.util import CommandError

    try:
        step(_config(connection))
    except CommandError as error:
        raise StartupError(
            f"The database is at revision {expected or 'unknown'}, which this version of Havengate does not know."
        ) from error


def _differences(connection: Connection) -> list[str]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from gateway.store.tables import Base

    context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": Base.metadata})
    found: list[Any] = compare_metadata(context, Base.metadata)
    return [repr(difference) for difference in found]


def _command() -> Any:
    from alembic import command

    return command


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def scripts() -> Path:
    """The folder of the migrations: inside the package in a wheel, beside it in a checkout."""
    package = Path(gateway.__file__).parent
    packed = package / "_migrations"
    return packed if packed.is_dir() else package.parent / "migrations"


def _within(url: str, work: Callable[[Connection], T]) -> T:
    """Run ``work`` in one transaction that no other process can enter."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        with translated():
            return _within_sqlite(Path(str(parsed.database)), work)

    async def on_postgres() -> T:
        engine = postgres_engine(parsed)
        try:
            with translated():
                async with engine.begin() as connection:
                    await connection.run_sync(lock_record)
                    return await connection.run_sync(work)
        finally:
            await engine.dispose()

    # In a thread of its own, so that a caller that has an event loop may call this too.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, on_postgres()).result()


def _within_sqlite(path: Path, work: Callable[[Connection], T]) -> T:
    with sqlite_engine(path).connect() as connection:
        raw = raw_sqlite(connection)
        raw.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            raw.commit()
        finally:
            raw.rollback()
        return result
