"""Hints that something changed.  A hint carries no content: whoever hears it reads the record.

Losing a hint loses no fact, only time: every reader also polls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec


class Hint(msgspec.Struct, frozen=True):
    """ "The ``kind`` named ``id`` changed": ``Hint("incident", "inc_...")``."""

    kind: str
    id: str


class EventBus(Protocol):
    """Where hints are published and heard."""

    def publish(self, hint: Hint) -> None:
        """Tell every subscriber.  Never blocks, never raises; called from the event loop."""
        ...

    def subscribe(self) -> AbstractContextManager[AsyncIterator[Hint]]:
        """Hear hints published from now on, until the context ends.  A slow listener loses the oldest."""
        ...
