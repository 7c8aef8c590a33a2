"""Kill a serving gateway at a chosen kind of moment, start it again on the same home, and look at what is left.

Moments are aimed at, not guaranteed: `Outcome.phases` says where each request really was.  One strike starts
with a gateway that is ready and ends with the next one, which was started on what the killed one had left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from tests.faults import plugins, record, visits
from tests.faults.visits import Crowd, Kind
from tests.support.gateway import DEV_KEY, Gateway, environment, havengate, running, scripted

Moment = Literal["judging", "commit", "first byte", "mid-stream", "any", "after an end", "owing", "paying"]
MOMENTS: Final[tuple[Moment, ...]] = get_args(Moment)
ROOT: Final = Path(__file__).resolve().parents[2]
LOCKED: Final[tuple[Moment, ...]] = ("owing", "paying")
"""Moments that come about only while another program holds the record."""
MADE: Final[Mapping[str, str]] = {
    "a key half written": ".keyring.json.*",
    "the key": "keyring.json",
    "a database": record.DATABASE,
    "a database with its log": f"{record.DATABASE}-wal",
}
"""What a first start leaves in its home, in the order in which it does, as patterns of file names."""
GUESTS: Final = 10
WITHIN_S: Final = 10.0
PAID_WITHIN_S: Final = 30.0
LOOK_EVERY_S: Final = 0.0005
SETTINGS: Final = (
    scripted(visits.SCRIPT) + '\n[detectors.encoder]\nenabled = false\n[detectors.pondering]\nkind = "pondering"\n'
)


@dataclass
class Outcome:
    """One kill: where it was aimed, where it hit, and every promise that was broken."""

    moment: Moment
    phases: Counter[str]
    cared: int
    """Clients that had read at least one byte of care."""
    owed: int
    """Findings that waited on disk when the gateway was dead."""
    broken: list[str]
    unwritten: int
    """Turns that ended while another program held the record, and whose last audit row is therefore missing."""


@dataclass
class House:
    """A home that outlives its gateways.  ``crisis_key`` is the key of an application whose every user is in crisis."""

    home: Path
    path: str
    crisis_key: str = ""
    crisis_app: str = ""
    head: str | None = None

    @classmethod
    def make(cls, folder: Path) -> House:
        """A new home, with the strangers' detectors installed for its gateways and two applications known."""
        path = os.pathsep.join((str(plugins.install(folder / "site")), str(ROOT)))
        house = cls(folder / "home", path)
        house.home.mkdir()
        done = havengate("keys", "create", "--name", "crisis", home=house.home, PYTHONPATH=path)
        house.crisis_key = done.stdout.strip()
        with contextlib.closing(sqlite3.connect(house.home / record.DATABASE)) as database:
            (house.crisis_app,) = database.execute("SELECT id FROM api_keys WHERE name = 'crisis'").fetchone()
        return house

    @property
    def keys(self) -> dict[Kind, str]:
        return {"crisis": self.crisis_key, "turning": DEV_KEY, "story": DEV_KEY, "everyday": DEV_KEY}

    @property
    def owed(self) -> int:
        return len(list((self.home / "owed").glob("*.owed")))

    def serve(self) -> contextlib.AbstractContextManager[Gateway]:
        """A gateway over this home, ready."""
        return running(self.home, settings=SETTINGS, PYTHONPATH=self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Another program writes to the record and does not end."""
        with contextlib.closing(sqlite3.connect(self.home / record.DATABASE, isolation_level=None)) as database:
            database.execute("PRAGMA busy_timeout = 5000")
            database.execute("BEGIN IMMEDIATE")
            yield
            database.execute("ROLLBACK")

    def verify(self) -> list[str]:
        """``havengate audit verify`` from the head that the last run printed: a trail cut short is found too."""
        since = ["--head", self.head] if self.head else []
        done = havengate("audit", "verify", *since, home=self.home, PYTHONPATH=self.path)
        if done.returncode != 0:
            return [f"audit: {done.stderr.strip()}"]
        self.head = done.stdout.strip().rstrip(".").rpartition("head ")[2]
        return []


class Siege:
    """A house whose gateway is killed again and again.  Use as an asynchronous context manager."""

    def __init__(self, house: House, rng: random.Random) -> None:
        self._house = house
        self._rng = rng
        self._serving = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self._serving.close)

    async def strike(self, moment: Moment, tag: str) -> Outcome:
        """Let guests in, kill at ``moment``, start again on what is left, and check every promise."""
        house, rng = self._house, self._rng
        them = visits.crowd(rng, GUESTS, tag)
        with house.locked() if moment in LOCKED else contextlib.nullcontext():
            asking = asyncio.create_task(visits.all_at_once(self.gateway.base_url, house.keys, them))
            await AIM[moment](house, them, rng)
            kill(self.gateway.process)
            await asyncio.wait_for(asking, WITHIN_S)
        if moment == "paying":
            await _kill_while_paying(house, rng)
        left = await asyncio.to_thread(record.read, house.home)
        phases = Counter(record.phase_of(visit, left) for visit in them.visits)
        await self._start()
        broken = await _after(house, self.gateway, them, left)
        unwritten = [one for one in broken if one.startswith(record.UNWRITTEN) and moment in LOCKED]
        return Outcome(
            moment=moment,
            phases=phases,
            cared=sum(visit.cared for visit in them.visits),
            owed=len(left.owed),
            broken=[one for one in broken if one not in unwritten],
            unwritten=len(unwritten),
        )

    async def _start(self) -> None:
        await asyncio.to_thread(self._serving.close)
        self.gateway = await asyncio.to_thread(self._serving.enter_context, self._house.serve())


def kill(process: subprocess.Popen[Any]) -> None:
    """``kill -9`` by process id, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait()


async def first_start(folder: Path, rng: random.Random) -> tuple[str, list[str]]:
    """Kill a gateway while it makes its home; start again.  How far it had come, and every promise that was broken."""
    home = folder / "home"
    home.mkdir()
    (home / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    house = House(home, os.pathsep.join((str(plugins.install(folder / "site")), str(ROOT))))
    awaited = rng.choice(("settings.toml", *MADE.values()))
    starting = _start_unseen(house)
    try:
        await _look(lambda: any(home.glob(awaited)))
        await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0.0, 0.3))))
    finally:
        kill(starting)
    made = next((name for name, pattern in reversed(list(MADE.items())) if any(home.glob(pattern))), "nothing yet")
    with house.serve() as gateway:
        visit = visits.Visit("crisis", stream=True, conversation="after the first start")
        await visits.all_at_once(gateway.base_url, {"crisis": DEV_KEY}, Crowd([visit]))
        now = await asyncio.to_thread(record.read, home)
        heard = [] if visit.cared and visit.ended else ["a crisis is not heard"]
        return made, heard + record.unkept(now, [visit]) + await asyncio.to_thread(house.verify)


async def _after(house: House, gateway: Gateway, them: Crowd, left: record.Record) -> list[str]:
    """Every promise, checked on the gateway that was started on what the killed one left."""
    broken = [] if await _paid(house) else ["owed findings are not paid"]
    broken += ["an owed finding cannot be opened" for finding in left.owed if finding is None]
    broken += await _carried(house, gateway, them)
    now = await asyncio.to_thread(record.read, house.home)
    broken += record.faults_of(now, crisis_app=house.crisis_app) + record.unkept(now, them.visits)
    known = {row["dedupe_key"] for row in now.outbox} | {
        f"{row['request_id']}-{record.stage_of(row)}" for row in now.findings()
    }
    broken += [f"owed and lost: {finding.key}" for finding in left.owed if finding and finding.key not in known]
    rows = {row["seq"]: row["hash"] for row in now.audit}
    broken += [f"audit row gone: {row['seq']}" for row in left.audit if rows.get(row["seq"]) != row["hash"]]
    return broken + await asyncio.to_thread(house.verify)


async def _paid(house: House) -> bool:
    """Whether what was owed is paid by itself, soon after the start."""
    try:
        async with asyncio.timeout(PAID_WITHIN_S):
            while house.owed:
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


async def _carried(house: House, gateway: Gateway, them: Crowd) -> list[str]:
    """Who read care and comes back is still in crisis for us, in the same incident."""
    back = next((visit for visit in visits.crises(them.visits) if visit.cared and visit.conversation), None)
    if back is None:
        return []
    again = visits.Visit("crisis", stream=False, conversation=back.conversation)
    await visits.all_at_once(gateway.base_url, house.keys, Crowd([again]))
    return [] if again.decision == "replace" and again.ended else [f"forgotten after the kill: {back.request_id}"]


# --- where a kill is aimed -----------------------------------------------------------------------


async def _judging(house: House, them: Crowd, rng: random.Random) -> None:
    await asyncio.sleep(rng.uniform(0.0, 0.12))


async def _commit(house: House, them: Crowd, rng: random.Random) -> None:
    """The moment after the database's log begins to grow, or a few milliseconds later."""
    log = house.home / f"{record.DATABASE}-wal"
    before = _stamp(log)
    await _look(lambda: _stamp(log) != before)
    await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.02))))


async def _first_byte(house: House, them: Crowd, rng: random.Random) -> None:
    nth = rng.randint(1, 4)
    await them.until(lambda it: it.headers >= nth, WITHIN_S)


async def _mid_stream(house: House, them: Crowd, rng: random.Random) -> None:
    nth = rng.randint(GUESTS, 3 * GUESTS)
    await them.until(lambda it: it.deltas >= nth, 1.5)


async def _any(house: House, them: Crowd, rng: random.Random) -> None:
    await asyncio.sleep(rng.uniform(0.0, 0.4))


async def _after_an_end(house: House, them: Crowd, rng: random.Random) -> None:
    nth = rng.randint(1, GUESTS // 2)
    await them.until(lambda it: it.ends >= nth, WITHIN_S)


async def _owing(house: House, them: Crowd, rng: random.Random) -> None:
    """While findings that the store cannot take are written to disk."""
    nth = rng.randint(1, 4)
    folder = house.home / "owed"
    await _look(lambda: folder.is_dir() and len(list(folder.iterdir())) >= nth)
    await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.02))))


async def _paying(house: House, them: Crowd, rng: random.Random) -> None:
    await _look(lambda: house.owed >= len(visits.crises(them.visits)))


AIM: Final[Mapping[Moment, Callable[[House, Crowd, random.Random], Awaitable[None]]]] = {
    "judging": _judging,
    "commit": _commit,
    "first byte": _first_byte,
    "mid-stream": _mid_stream,
    "any": _any,
    "after an end": _after_an_end,
    "owing": _owing,
    "paying": _paying,
}


async def _kill_while_paying(house: House, rng: random.Random) -> None:
    """Start a gateway that owes, and kill it when it has paid a part: it pays before it says that it is ready."""
    leave = rng.randint(1, max(house.owed - 1, 1))
    debtor = _start_unseen(house)
    try:
        await _look(lambda: house.owed <= leave)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.003))))
    finally:
        kill(debtor)


def _start_unseen(house: House) -> subprocess.Popen[bytes]:
    """Start a gateway and do not wait until it is ready."""
    settings = str(house.home / "settings.toml")
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--config", settings],
        env=environment(house.home, PYTHONPATH=house.path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )


async def _look(happened: Callable[[], bool]) -> None:
    """Watch the disk closely, for a while."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not happened():
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        return


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)
