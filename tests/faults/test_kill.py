"""``kill -9`` of a gateway that serves, at a moment of every kind: nothing lost, nothing doubled, the trail whole.

A few here; `scripts/faultruns.py` does hundreds with the same checks and writes ``docs/results/faults.md``.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.kills import House, Moment, Siege, first_start

SEED = 20261125
AIMED: tuple[Moment, ...] = ("judging", "commit", "first byte", "mid-stream", "owing", "paying")


@pytest.mark.timeout(180)
async def test_nothing_is_lost_or_doubled_by_a_kill(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    house = House.make(tmp_path)
    async with Siege(house, rng) as siege:
        for number, moment in enumerate(AIMED):
            outcome = await siege.strike(moment, f"visit-{number}")
            assert outcome.broken == [], moment
            assert outcome.phases.total() > 0


async def test_a_first_start_that_is_killed_leaves_a_home_that_serves(tmp_path: Path) -> None:
    _, broken = await first_start(tmp_path, random.Random(SEED))
    assert broken == []
