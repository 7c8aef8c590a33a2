"""What a repository needs of the unit of work it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")


class Session(Protocol):
    """Runs functions over the connection of one transaction, in the order in which they are given."""

    @property
    def writable(self) -> bool:
        """Whether this transaction may change anything."""
        ...

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` now and give back what it returns.  Raises `StoreError`."""
        ...

    def later(self, work: Callable[[Connection], None]) -> None:
        """Run ``work`` with the next `run` or with the commit, whichever comes first."""
        ...
