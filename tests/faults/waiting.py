"""Waiting for what another process does to files: there is no event for it here, so it is looked at, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

WITHIN_S: Final = 30.0
LOOK_EVERY_S: Final = 0.02


def until(happened: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Look until it has happened; an AssertionError when it never does."""
    end_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(LOOK_EVERY_S)
