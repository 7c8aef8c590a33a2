"""Work that is seen through: cancelled once, twice, by anyio or by asyncio, it still comes to its end."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from gateway.pipeline.shield import MAX_CANCELLATIONS, see_through

WITHIN_S = 10.0


class Work:
    """Waits for its gate, then is done."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.done = False

    async def run(self) -> str:
        self.begun.set()
        await self.gate.wait()
        self.done = True
        return "done"


async def test_a_result_and_an_error_pass_through() -> None:
    work = Work()
    work.gate.set()
    assert await see_through(work.run()) == "done"

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await see_through(fail())


@pytest.mark.parametrize("times", [1, 2, MAX_CANCELLATIONS - 1])
async def test_a_cancelled_task_sees_its_work_through_and_is_cancelled_then(times: int) -> None:
    work = Work()
    task = asyncio.ensure_future(see_through(work.run()))
    await asyncio.wait_for(work.begun.wait(), WITHIN_S)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    work.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, WITHIN_S)
    assert work.done


async def test_an_anyio_scope_that_is_cancelled_waits_too() -> None:
    work = Work()
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        asyncio.get_running_loop().call_later(0.01, work.gate.set)
        await see_through(work.run())
    assert work.done


async def test_a_task_that_is_cancelled_over_and_over_gives_up() -> None:
    work = Work()
    task = asyncio.ensure_future(see_through(work.run()))
    await asyncio.wait_for(work.begun.wait(), WITHIN_S)
    for _ in range(MAX_CANCELLATIONS):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, WITHIN_S)
    assert not work.done
    work.gate.set()
