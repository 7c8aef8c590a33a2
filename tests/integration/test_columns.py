"""Several gateways are one house: one record, one chain, one conversation, whichever of them a person meets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, Self

import pytest

from backends.scripted import ScriptedTurn
from gateway.audit.verify import verify_database
from gateway.events.bus import Hint
from gateway.events.redis import RedisBus
from gateway.pipeline.case import Opened
from gateway.pipeline.turn import take_turn
from gateway.session.repository import RiskRepository
from gateway.session.risk import Risk
from gateway.store.crypto import Keyring
from gateway.store.engine import open_channel
from gateway.store.errors import StoreError
from gateway.store.uow import Store
from tests.integration.house import Home, opened, turn
from tests.support import scripts
from tests.support.calls import call, chat
from tests.support.columns import Column, Production, ignore
from tests.support.gateway import Gateway, havengate, running, scripted
from tests.support.servers import Databases, Postgres, Valkey
from tests.unit.store_kit import NOW, append_many, incident, opened_at, save

WITHIN_S: Final = 20.0
BENIGN: Final = ("It is good ", "that you asked. ", "Boil it for ", "eight minutes. ", "Then let it ", "cool down.")
CRISIS: Final = "I am going to kill myself tonight"
PLAIN: Final = "What goes well with pasta?"
SETTINGS: Final = scripted(scripts.SCRIPT) + "\n[detectors.encoder]\nenabled = false\n"


# --- one record --------------------------------------------------------------------------------


@pytest.fixture
def production(postgres: Databases, valkey: Valkey, tmp_path: Path) -> Production:
    return Production(tmp_path, postgres, valkey)


async def test_two_stores_keep_one_chain(column: Column) -> None:
    async with column.database() as url, opened_at(url) as first, opened_at(url) as second:
        await asyncio.gather(*(append_many(store, 3) for store in (first, second) for _ in range(15)))
        result = await verify_database(url)
        assert (result.ok, result.count) == (True, 90)


async def test_a_chain_that_was_tampered_with_is_found_out(column: Column) -> None:
    async with column.database() as url:
        async with opened_at(url) as store:
            await append_many(store, 5)
        kept = await verify_database(url)
        assert kept.ok
        await column.rows(url, "DELETE FROM audit WHERE seq = 5")
        cut = await verify_database(url, kept.head)
        assert (cut.ok, cut.reason) == (False, "truncated")
        await column.rows(url, "UPDATE audit SET actor = 'app:other' WHERE seq = 3")
        changed = await verify_database(url)
        assert (changed.reason, changed.first_bad_seq) == ("changed", 3)


async def test_whoever_verifies_cannot_write(column: Column) -> None:
    async with column.database() as url:
        channel = open_channel(url, read_only=True)
        with pytest.raises(StoreError):
            async with channel.write(durable=True) as transaction:
                await transaction.run(lambda connection: connection.exec_driver_sql("DELETE FROM audit"))
        await channel.aclose()


async def test_two_gateways_that_find_the_same_make_one_incident(column: Column) -> None:
    ring = Keyring.create()
    async with column.database() as url, opened_at(url, ring) as first, opened_at(url, ring) as second:

        async def find(store: Store) -> str:
            async with store.begin() as unit:
                conversation = await save(unit)
                return (await unit.incidents.open_or_update(incident(conversation_id=conversation))).id

        ids = await asyncio.gather(*(find(store) for store in (first, second) for _ in range(8)))
        async with first.read() as unit:
            (found,) = await unit.incidents.list_open()
        assert set(ids) == {found.id}
        assert found.turns == 16


async def test_a_quiet_turn_at_one_gateway_does_not_overwrite_a_crisis_at_another(production: Production) -> None:
    """The quiet turn has read the conversation and not yet saved it; the crisis must wait for it, not lose to it."""
    ring = Keyring.create()
    async with production.database() as url, opened_at(url, ring) as first, opened_at(url, ring) as second:

        async def crisis() -> None:
            async with second.begin() as unit:
                risks = RiskRepository(unit)
                assert await risks.load("app", "c-1") == Risk(level=1, peak=1), "what the quiet turn saved"
                await risks.save("app", "c-1", Risk(level=4, peak=4), end_user_hash=None, now=NOW)

        async with first.begin() as unit:
            risks = RiskRepository(unit)
            assert await risks.load("app", "c-1") is None
            beside = asyncio.create_task(crisis())
            await _until_someone_waits(production, url)
            await risks.save("app", "c-1", Risk(level=1, peak=1), end_user_hash=None, now=NOW)
        await asyncio.wait_for(beside, WITHIN_S)
        async with first.read() as reading:
            assert await RiskRepository(reading).load("app", "c-1") == Risk(level=4, peak=4)


async def _until_someone_waits(production: Production, url: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await production.rows(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            await asyncio.sleep(0.01)


# --- one house ---------------------------------------------------------------------------------


def speech(*chunks: str) -> ScriptedTurn:
    return ScriptedTurn(chunks=chunks)


async def test_a_hint_of_one_gateway_is_heard_at_another(production: Production) -> None:
    ring = Keyring.create()
    channel = f"hints-{secrets.token_hex(4)}"
    async with (
        production.database() as url,
        RedisBus(production.valkey.url, channel, ignore) as here,
        RedisBus(production.valkey.url, channel, ignore) as there,
        opened(production, url, here, speech(*BENIGN), keyring=ring) as first,
        opened(production, url, there, speech(*BENIGN), keyring=ring) as second,
    ):
        await asyncio.wait_for(asyncio.gather(here.listening.wait(), there.listening.wait()), WITHIN_S)
        with second.bus.subscribe() as hints:
            visit = await first.visit("words [S3 suicide]", conversation_id="c-1")
            assert await asyncio.wait_for(anext(hints), WITHIN_S) == Hint("incident", str(visit.closed.incident_id))
        carried = await second.visit("hello", conversation_id="c-1")
        assert carried.closed.decision.action == "replace"
        assert "carried" in carried.closed.decision.reasons
        assert carried.closed.incident_id == visit.closed.incident_id
        (view,) = await second.incidents()
        async with second.store.read() as unit:
            assert "[S3 suicide]" in await unit.incidents.evidence(view.id)


@pytest.mark.parametrize("when", ["at the start", "in the middle"])
async def test_without_a_valkey_turns_are_answered_and_recorded(
    production: Production, tmp_path: Path, when: str
) -> None:
    server = Valkey(started=when == "in the middle")
    try:
        async with (
            production.database() as url,
            RedisBus(server.url, "alone", ignore) as bus,
            opened(production, url, bus, speech(*BENIGN)) as it,
        ):
            if when == "in the middle":
                await asyncio.wait_for(bus.listening.wait(), WITHIN_S)
                await asyncio.to_thread(server.stop)
            with bus.subscribe() as hints:
                visit = await it.visit("words [S4 suicide]")
                assert await asyncio.wait_for(anext(hints), WITHIN_S) == Hint("incident", str(visit.closed.incident_id))
            assert (await it.visit("hello")).text == "".join(BENIGN)
            assert await it.events() == ["incident.opened", "turn.closed", "turn.closed"]
            assert len(await it.notices()) == 1
    finally:
        server.close()


# --- a PostgreSQL that goes and comes back -----------------------------------------------------


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, to stop and start."""
    server = Postgres()
    yield server
    server.close()


@contextlib.asynccontextmanager
async def over(server: Postgres, valkey: Valkey, folder: Path) -> AsyncIterator[Home]:
    databases = await asyncio.to_thread(Databases, server.url)
    column = Production(folder, databases, valkey)
    async with column.database() as url, column.bus() as bus, opened(column, url, bus, speech(*BENIGN)) as it:
        try:
            yield it
        finally:
            await asyncio.to_thread(server.start)


async def test_a_restart_in_the_middle_of_a_turn_costs_care_and_nothing_else(
    own_postgres: Postgres, valkey: Valkey, tmp_path: Path
) -> None:
    async with over(own_postgres, valkey, tmp_path) as it:
        pieces = take_turn(it.house, turn("hello", conversation_id="c-1"))
        assert isinstance(await anext(pieces), Opened)
        await asyncio.to_thread(own_postgres.stop)
        assert [piece async for piece in pieces], "the answer that was begun is given whole"

        met = await asyncio.wait_for(it.visit("hello", conversation_id="c-1"), WITHIN_S)
        assert met.closed.decision.action == "replace", "a conversation that cannot be recalled is not calm"
        assert met.text
        crisis = await asyncio.wait_for(it.visit("words [S4 suicide]", conversation_id="c-2"), WITHIN_S)
        assert (crisis.closed.decision.severity, crisis.closed.incident_id) == (4, None)
        assert crisis.text
        assert '"operation":"recall"' in it.log.getvalue()
        assert "suicide]" not in it.log.getvalue()

        await asyncio.to_thread(own_postgres.start)
        assert await it.house.recorder.pay() == 0, "what the record could not take is in it now"
        assert 4 in {view.severity for view in await it.incidents()}
        assert (await it.visit("hello", conversation_id="c-2")).closed.decision.severity == 4
        assert (await it.visit("hello", conversation_id="c-3")).text == "".join(BENIGN)
        assert (await verify_database(it.url)).ok


# --- two processes -----------------------------------------------------------------------------


class Fleet:
    """``havengate serve --profile production``, several times over the same servers and keys."""

    def __init__(self, url: str, valkey: Valkey, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.secret = base64.b64encode(secrets.token_bytes(32)).decode()
        self.channel = f"fleet-{secrets.token_hex(4)}"
        self.variables = {
            "HAVENGATE__STORE__URL": url,
            "HAVENGATE__EVENTS__URL": valkey.url,
            "HAVENGATE__EVENTS__CHANNEL": self.channel,
            "HAVENGATE_KEYRING": self.secret,
            "HAVENGATE_DEV_API_KEY": "",
        }
        self.key = ""

    def make_key(self) -> Self:
        """An API key, valid at every gateway of the fleet."""
        done = self.command("keys", "create", "--name", "fleet")
        assert done.returncode == 0, done.stderr
        self.key = done.stdout.strip()
        return self

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        home = self.folder / "commands"
        return havengate(*arguments, "--profile", "production", home=home, **self.variables)

    @contextlib.asynccontextmanager
    async def gateway(self, name: str) -> AsyncIterator[Gateway]:
        home = self.folder / name
        started = running(home, "--profile", "production", settings=SETTINGS, **self.variables)
        gateway = await asyncio.to_thread(started.__enter__)
        gateway.key = self.key
        try:
            yield gateway
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)


async def test_two_processes_are_one_house(production: Production, valkey: Valkey, tmp_path: Path) -> None:
    async with production.database() as url:
        fleet = await asyncio.to_thread(Fleet(url, valkey, tmp_path).make_key)
        async with (
            fleet.gateway("first") as first,
            fleet.gateway("second") as second,
            RedisBus(valkey.url, fleet.channel, ignore) as bus,
        ):
            await asyncio.wait_for(bus.listening.wait(), WITHIN_S)
            with bus.subscribe() as hints:
                told = await asyncio.to_thread(chat, first, CRISIS, metadata={"conversation_id": "c-1"})
                assert told.havengate["severity"] >= 3
                assert await asyncio.wait_for(anext(hints), WITHIN_S) == Hint("incident", told.havengate["incident_id"])
            after = await asyncio.to_thread(chat, second, PLAIN, metadata={"conversation_id": "c-1"})
            assert after.havengate["severity"] == told.havengate["severity"]
            assert after.havengate["incident_id"] == told.havengate["incident_id"]
            calm = await asyncio.to_thread(chat, second, PLAIN, metadata={"conversation_id": "c-2"})
            assert calm.havengate["decision"] == "allow"

            await asyncio.gather(*(asyncio.to_thread(chat, it, CRISIS) for it in (first, second) for _ in range(6)))
            done = await asyncio.to_thread(fleet.command, "audit", "verify")
            assert done.returncode == 0, done.stderr
            counted = await production.rows(url, "SELECT count(*) FROM audit WHERE event = 'turn.closed'")
            assert counted == [(15,)]
            for table in ("api_keys", "audit", "conversations", "incidents", "outbox"):
                rows = await production.rows(url, f"SELECT row_to_json({table})::text FROM {table}")
                assert rows, "a search of an empty table says nothing"
                assert not [row for row in rows if "kill myself" in row[0] or "c-1" in row[0]]
        async with opened_at(url, Keyring.from_env(fleet.secret)) as store, store.read() as unit:
            assert CRISIS in await unit.incidents.evidence(told.havengate["incident_id"])
        for gateway in (first, second):
            assert not (gateway.home / "keyring.json").exists(), "the keys are in the environment only"
            assert fleet.secret not in gateway.output.text
            assert CRISIS not in gateway.output.text


async def test_the_doctor_looks_at_the_servers(production: Production, valkey: Valkey, tmp_path: Path) -> None:
    away = Valkey(started=False)
    config = tmp_path / "settings.toml"
    config.write_text(SETTINGS)
    async with production.database() as url:
        for server, said in ((valkey, "ok   events: channel fleet-"), (away, "FAIL events: ")):
            fleet = Fleet(url, server, tmp_path)
            done = await asyncio.to_thread(fleet.command, "doctor", "--config", str(config))
            assert said in done.stdout
            assert "ok   store: " in done.stdout
            assert fleet.secret not in done.stdout + done.stderr


def test_a_production_gateway_without_keys_says_what_to_do(tmp_path: Path) -> None:
    done = havengate(
        "serve",
        "--profile",
        "production",
        "--port",
        "0",
        home=tmp_path,
        HAVENGATE__STORE__URL="postgresql://nobody@127.0.0.1:1/none",
        HAVENGATE__EVENTS__URL="redis://127.0.0.1:1",
        HAVENGATE_DEV_API_KEY="",
    )
    assert done.returncode == 1
    assert "HAVENGATE_KEYRING" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


async def test_a_process_outlives_its_servers(own_postgres: Postgres, tmp_path: Path) -> None:
    databases = await asyncio.to_thread(Databases, own_postgres.url)
    away = Valkey(started=False)
    async with databases.database() as url:
        fleet = await asyncio.to_thread(Fleet(url, away, tmp_path).make_key)
        async with fleet.gateway("only") as gateway:
            assert '"event":"events_lost"' in await asyncio.to_thread(gateway.output.wait_for, "events_lost")
            told = await asyncio.to_thread(chat, gateway, CRISIS)
            assert told.havengate["incident_id"]
            await asyncio.to_thread(own_postgres.stop)
            met = await asyncio.to_thread(chat, gateway, CRISIS)
            assert met.havengate["incident_id"] is None
            assert met.text == told.text, "the same care"
            assert (await asyncio.to_thread(call, gateway, "GET", "/readyz")).status == 503
            await asyncio.to_thread(own_postgres.start)
            again = await asyncio.to_thread(chat, gateway, CRISIS)
            assert again.havengate["incident_id"]
            assert "Traceback" not in gateway.output.text
