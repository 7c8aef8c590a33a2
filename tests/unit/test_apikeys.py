"""API keys: made, imported, revoked, checked."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.auth import apikeys
from gateway.auth.apikeys import ApiKeyAuthenticator, ApiKeyInfo
from gateway.auth.principal import SCOPES
from gateway.errors import UsageError
from gateway.store.crypto import Keyring
from gateway.store.errors import StoreError
from gateway.store.uow import Store
from tests.unit.store_kit import NOW, opened

DEV_KEY = "a-dev-key-that-somebody-typed"


class Clock:
    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as found:
        yield found


async def made(store: Store, scopes: tuple[str, ...] = ("chat",), name: str = "app") -> tuple[ApiKeyInfo, str]:
    async with store.begin() as unit:
        return await apikeys.create(unit, store.keyring, name=name, scopes=scopes, region="GB", now=NOW)


async def imported(store: Store, plaintext: str = DEV_KEY) -> ApiKeyInfo:
    async with store.begin() as unit:
        return await apikeys.import_key(
            unit, store.keyring, plaintext, name="dev", scopes=("chat", "models"), region="unknown", now=NOW
        )


async def revoked(store: Store, key_id: str) -> bool:
    async with store.begin() as unit:
        return await apikeys.revoke(unit, key_id, now=NOW)


def authenticator(store: Store, clock: Clock | None = None, **options: int) -> ApiKeyAuthenticator:
    return ApiKeyAuthenticator(store, store.keyring, 10.0, monotonic_s=clock or Clock(), **options)


async def test_a_made_key_has_its_form_and_opens_the_door(store: Store) -> None:
    info, plaintext = await made(store)
    assert re.fullmatch(r"hg_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", plaintext)
    assert plaintext.startswith(f"hg_{info.id}_")
    principal = await authenticator(store).authenticate(plaintext)
    assert principal is not None
    assert (principal.key_id, principal.name, principal.region) == (info.id, "app", "GB")
    assert principal.scopes == {"chat"}
    assert principal.mode == "assistant"


async def test_the_database_holds_no_key(store: Store, tmp_path: Path) -> None:
    _, plaintext = await made(store)
    await imported(store)
    content = b"".join(file.read_bytes() for file in (tmp_path / "record.sqlite3", tmp_path / "record.sqlite3-wal"))
    assert plaintext[12:].encode() not in content
    assert DEV_KEY.encode() not in content


async def test_a_hash_stolen_from_the_database_is_no_key(store: Store, tmp_path: Path) -> None:
    await made(store)
    with closing(sqlite3.connect(tmp_path / "record.sqlite3")) as thief:
        ((stolen,),) = thief.execute("SELECT hash FROM api_keys").fetchall()
    assert await authenticator(store).authenticate(stolen) is None


async def test_wrong_keys_are_nobody(store: Store) -> None:
    info, plaintext = await made(store)
    door = authenticator(store)
    for wrong in (
        plaintext[:-1] + ("A" if plaintext[-1] != "A" else "B"),
        f"hg_{info.id}_{'x' * 43}",
        f"hg_zzzzzzzz_{plaintext[12:]}",
        plaintext.upper(),
        plaintext + "x",
        "",
        "x" * 7,
        "x" * 257,
        "' OR 1=1 -- " + "x" * 20,
        "hg_" + "%" * 8 + "_" + "x" * 43,
        "\x00" * 40,
        "é" * 40,
        "\ud800" * 40,
    ):
        assert await door.authenticate(wrong) is None
    assert await door.authenticate(plaintext) is not None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=300))
async def test_nothing_that_was_not_given_out_opens(store: Store, presented: str) -> None:
    assert await authenticator(store).authenticate(presented) is None


async def test_an_imported_key_works_and_a_second_import_changes_nothing(store: Store) -> None:
    first = await imported(store)
    assert await imported(store) == first
    principal = await authenticator(store).authenticate(DEV_KEY)
    assert principal is not None
    assert principal.key_id == first.id
    async with store.read() as unit:
        assert len(await unit.api_keys.list_all()) == 1


async def test_a_key_made_elsewhere_can_be_imported(store: Store) -> None:
    plaintext = f"hg_abcdefgh_{'s' * 43}"
    assert (await imported(store, plaintext)).id == "abcdefgh"
    assert await authenticator(store).authenticate(plaintext) is not None
    with pytest.raises(UsageError):
        await imported(store, f"hg_abcdefgh_{'t' * 43}")


@pytest.mark.parametrize("plaintext", ["", "x" * 7, "x" * 257, "with\nline break and more", "é" * 20])
async def test_what_is_no_key_is_not_imported(store: Store, plaintext: str) -> None:
    with pytest.raises(UsageError) as caught:
        await imported(store, plaintext)
    assert not plaintext or plaintext not in str(caught.value)


async def test_a_revoked_key_is_nobody_at_once_without_a_cache_entry(store: Store) -> None:
    info, plaintext = await made(store)
    assert await revoked(store, info.id)
    assert not await revoked(store, info.id)
    assert not await revoked(store, "absent00")
    assert await authenticator(store).authenticate(plaintext) is None


async def test_a_revoked_key_is_not_imported_again(store: Store) -> None:
    info = await imported(store)
    await revoked(store, info.id)
    with pytest.raises(UsageError, match="revoked"):
        await imported(store)


async def test_a_revocation_is_seen_within_the_cache_time(store: Store) -> None:
    clock = Clock()
    door = authenticator(store, clock)
    info, plaintext = await made(store)
    assert await door.authenticate(plaintext) is not None
    await revoked(store, info.id)
    clock.at_s = 9.9
    assert await door.authenticate(plaintext) is not None, "still remembered"
    clock.at_s = 10.0
    assert await door.authenticate(plaintext) is None
    assert await door.authenticate(plaintext) is None


async def test_a_remembered_key_needs_no_database(store: Store, tmp_path: Path) -> None:
    clock = Clock()
    door = authenticator(store, clock)
    _, plaintext = await made(store)
    principal = await door.authenticate(plaintext)
    with closing(sqlite3.connect(tmp_path / "record.sqlite3")) as connection:
        connection.execute("DROP TABLE api_keys")
    assert await door.authenticate(plaintext) == principal
    clock.at_s = 10.0 + apikeys.STALE_FOR_S
    with pytest.raises(StoreError):
        await door.authenticate(plaintext)


async def test_the_cache_is_bounded_and_bad_keys_evict_nothing(store: Store, tmp_path: Path) -> None:
    door = authenticator(store, max_cached=2)
    keys = [(await made(store))[1] for _ in range(3)]
    for plaintext in keys:
        assert await door.authenticate(plaintext) is not None
    for number in range(20):
        assert await door.authenticate(f"a-bad-key-number-{number}") is None
    with closing(sqlite3.connect(tmp_path / "record.sqlite3")) as connection:
        connection.execute("DROP TABLE api_keys")
    assert await door.authenticate(keys[1]) is not None
    assert await door.authenticate(keys[2]) is not None
    with pytest.raises(StoreError):
        await door.authenticate(keys[0])


@pytest.mark.parametrize(
    "changes",
    [{"scopes": ()}, {"scopes": ("chat", "root")}, {"name": ""}, {"name": "x" * 101}, {"name": "two\nlines"}],
)
async def test_a_key_with_bad_particulars_is_wrong_usage(store: Store, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        await made(store, **changes)  # type: ignore[arg-type]
    async with store.read() as unit:
        assert await unit.api_keys.list_all() == []
        assert await unit.audit.page() == []


async def test_making_and_revoking_are_on_record(store: Store) -> None:
    info, plaintext = await made(store, tuple(SCOPES))
    await revoked(store, info.id)
    async with store.read() as unit:
        entries = await unit.audit.page()
    assert [entry.event.event for entry in entries] == ["api_key.created", "api_key.revoked"]
    assert all(entry.event.data["key_id"] == info.id for entry in entries)
    assert plaintext[12:] not in repr(entries)


async def test_two_keys_at_once(store: Store) -> None:
    (_, first), (_, second) = await asyncio.gather(made(store), made(store))
    door = authenticator(store)
    found = await asyncio.gather(*(door.authenticate(key) for key in (first, second) * 10))
    assert len({principal.key_id for principal in found if principal}) == 2


async def test_keys_hang_on_the_keyring(store: Store) -> None:
    _, plaintext = await made(store)
    assert await ApiKeyAuthenticator(store, Keyring.create()).authenticate(plaintext) is None
    rotated = store.keyring.rotated()
    assert await ApiKeyAuthenticator(store, rotated).authenticate(plaintext) is not None


class Unreachable:
    """A store that fails from a moment on."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.down = False

    def read(self) -> Any:
        if self.down:
            raise StoreError("unavailable")
        return self._store.read()


async def test_a_key_that_was_good_lately_still_is_while_the_store_is_down(store: Store) -> None:
    _, plaintext = await made(store)
    clock, flaky = Clock(), Unreachable(store)
    keys = ApiKeyAuthenticator(cast("Store", flaky), store.keyring, 10.0, monotonic_s=clock)
    assert await keys.authenticate(plaintext) is not None
    flaky.down, clock.at_s = True, 100.0
    assert await keys.authenticate(plaintext) is not None
    with pytest.raises(StoreError):
        await keys.authenticate(DEV_KEY)
    clock.at_s = 2_000.0
    with pytest.raises(StoreError):
        await keys.authenticate(plaintext)
