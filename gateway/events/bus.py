"""Hints that something changed.  A hint carries no content: whoever hears it reads the record.

Losing a hint loses no fact, only time: every reader also polls.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

import msgspec

_KIND: Final = re.compile(r"[a-z][a-z_]{0,31}")
_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Hint(msgspec.Struct, frozen=True):
    """ "The ``kind`` named ``id`` changed": ``Hint("incident", "inc_...")``.

    Both are codes.  Anything else, a person's words above all, raises ``ValueError``.
    """

    kind: str
    id: str

    def __post_init__(self) -> None:
        if _KIND.fullmatch(self.kind) is None or _ID.fullmatch(self.id) is None:
            raise ValueError("a hint holds codes only")


class EventBus(Protocol):
    """Where hints are published and heard."""

    def publish(self, hint: Hint) -> None:
        """Tell every subscriber.  Never blocks, never raises; called from the event loop."""
        ...

    def subscribe(self) -> AbstractContextManager[AsyncIterator[Hint]]:
        """Hear hints published from now on, until the context ends.  A slow listener loses the oldest."""
        ...
