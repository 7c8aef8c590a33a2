"""Read the audit trail of any database, without its keys and without the right to write."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from gateway.audit.log import Entry
from gateway.store.engine import Runner, open_channel
from gateway.store.repositories.audit import MAX_PAGE, read_page


async def audit_entries(url: str) -> AsyncGenerator[Entry, None]:
    """Every entry in order of its number, a page at a time.

    Raises ``ValueError`` at a row that cannot be decoded, after every row before it.
    """
    channel = open_channel(url, read_only=True)
    try:
        async with channel.read() as run:
            after: int | None = None
            while entries := await _page(run, after):
                for entry in entries:
                    yield entry
                after = entries[-1].seq
    finally:
        await channel.aclose()


async def _page(run: Runner, after: int | None) -> list[Entry]:
    try:
        return await run(lambda connection: read_page(connection, after, MAX_PAGE))
    except ValueError:
        # Somewhere in this page; one at a time finds where.
        return await run(lambda connection: read_page(connection, after, 1))
