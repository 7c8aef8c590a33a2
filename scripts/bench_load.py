"""Load on one OpenAI-compatible gateway, and what it cost: the client's side of ``scripts/overhead.py``.

CPU time is read from the kernel's per-process clocks (``clock_getcpuclockid(3)``: nanoseconds, where ``/proc`` counts ticks of
10 ms), over the process and all its children.  It is robust on a shared machine; wall time is not.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

QUESTION: Final = (
    "I have been thinking about what to cook this weekend for my family, maybe a potato and leek soup with bread, "
    "because the weather turned cold and everyone comes home tired from work; could you tell me in which order to do "
    "things so that it is ready by seven? Question {n}."
)
"""58 tokens of our encoder's; the number makes each one new, so that no verdict comes from a cache."""
REQUEST_WITHIN_S: Final = 60.0
_NUMBERS: Final = itertools.count(1)
_CPUCLOCK_SCHED: Final = 2


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text(encoding="ascii").split():
            yield from family(int(child))


def cpu_s(pid: int) -> float:
    """User and system time so far of a process and its descendants."""
    return sum(time.clock_gettime((~one << 3) | _CPUCLOCK_SCHED) for one in family(pid))


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its descendants."""
    total_kib = 0
    for one in family(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Rss:"):
                total_kib += int(line.split()[1])
    return total_kib / 1024


@dataclass(frozen=True)
class Door:
    """Where a gateway listens, and as whom it is called."""

    url: str
    key: str
    model: str
    pid: int


@dataclass(frozen=True)
class Timing:
    """One request: seconds to its first content and to its end, and the longest wait between two contents."""

    first_s: float
    whole_s: float
    gap_s: float


class Load:
    """Requests to one gateway over pooled connections."""

    def __init__(self, session: aiohttp.ClientSession, door: Door) -> None:
        self._session = session
        self._door = door
        self._url = f"{door.url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {door.key}"}

    async def ask(self, *, stream: bool) -> Timing:
        """One new question, read to its end.  Raises `RuntimeError` for anything but an answer."""
        message = {"role": "user", "content": QUESTION.format(n=next(_NUMBERS))}
        body = {"model": self._door.model, "messages": [message], "stream": stream}
        began_s = time.perf_counter()
        async with self._session.post(self._url, json=body, headers=self._headers) as response:
            if response.status != 200:
                raise RuntimeError(f"{self._door.url} answered {response.status}")
            if stream:
                return await _read_stream(response, began_s)
            answer = json.loads(await response.read())
        if not answer["choices"][0]["message"]["content"]:
            raise RuntimeError(f"{self._door.url} said nothing")
        whole_s = time.perf_counter() - began_s
        return Timing(whole_s, whole_s, 0.0)

    async def cpu_ms(self, count: int, *, stream: bool) -> float:
        """The server's CPU ms a request, one at a time."""
        before_s = cpu_s(self._door.pid)
        for _ in range(count):
            await self.ask(stream=stream)
        return (cpu_s(self._door.pid) - before_s) * 1_000 / count

    async def at_rate(self, per_s: float, count: int) -> list[Timing]:
        """Plain requests started at fixed moments, whether or not earlier ones are answered (no coordinated omission)."""
        began_s = time.perf_counter()

        async def one(number: int) -> Timing:
            due_s = began_s + number / per_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            late_s = time.perf_counter() - due_s
            timing = await self.ask(stream=False)
            return Timing(timing.first_s + late_s, timing.whole_s + late_s, 0.0)

        return list(await asyncio.gather(*(one(number) for number in range(count))))

    async def throughput(self, callers: int, seconds: float, *, stream: bool) -> tuple[float, float]:
        """Answers a second with so many callers who never wait, and the server's CPU ms for each."""
        end_s = time.perf_counter() + seconds
        before_s, began_s = cpu_s(self._door.pid), time.perf_counter()

        async def caller() -> int:
            done = 0
            while time.perf_counter() < end_s:
                await self.ask(stream=stream)
                done += 1
            return done

        done = sum(await asyncio.gather(*(caller() for _ in range(callers))))
        took_s = time.perf_counter() - began_s
        return done / took_s, (cpu_s(self._door.pid) - before_s) * 1_000 / done


async def _read_stream(response: aiohttp.ClientResponse, began_s: float) -> Timing:
    first_s = last_s = None
    gap_s, rest, said = 0.0, b"", ""
    async for piece in response.content.iter_any():
        now_s = time.perf_counter()
        *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        text = "".join(_content(event) for event in events)
        if not text:
            continue
        said += text
        gap_s = max(gap_s, 0.0 if last_s is None else now_s - last_s)
        first_s, last_s = now_s if first_s is None else first_s, now_s
    if first_s is None:
        raise RuntimeError("a stream without a word")
    return Timing(first_s - began_s, time.perf_counter() - began_s, gap_s)


def _content(event: bytes) -> str:
    if not event.startswith(b"data:") or event[5:].strip() == b"[DONE]":
        return ""
    payload: dict[str, Any] = json.loads(event[5:])
    choices = payload.get("choices") or []
    return str(choices[0].get("delta", {}).get("content") or "") if choices else ""
