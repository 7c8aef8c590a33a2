"""Keys and what is done with them."""

from __future__ import annotations

import base64
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StartupError
from gateway.store.crypto import DecryptionError, Keyring
from tests.unit.store_kit import CANARY


def test_opens_what_it_sealed() -> None:
    ring = Keyring.create()
    blob = ring.encrypt(CANARY, aad="incident:1")
    assert ring.decrypt(blob, aad="incident:1") == CANARY
    assert CANARY.encode() not in blob


@given(st.text())
def test_any_text_survives(text: str) -> None:
    ring = Keyring.create()
    assert ring.decrypt(ring.encrypt(text, aad="a"), aad="a") == text


def test_lone_surrogates_survive() -> None:
    ring = Keyring.create()
    assert ring.decrypt(ring.encrypt("\ud83d", aad="a"), aad="a") == "\ud83d"


def test_the_same_text_never_looks_the_same() -> None:
    ring = Keyring.create()
    assert len({ring.encrypt(CANARY, aad="a") for _ in range(50)}) == 50


def test_another_row_does_not_open_it() -> None:
    ring = Keyring.create()
    with pytest.raises(DecryptionError):
        ring.decrypt(ring.encrypt(CANARY, aad="incident:1"), aad="incident:2")


def test_another_key_does_not_open_it() -> None:
    blob = Keyring.create().encrypt(CANARY, aad="a")
    with pytest.raises(DecryptionError) as caught:
        Keyring.create().decrypt(blob, aad="a")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("position", [0, 1, 5, 17, -1])
def test_one_changed_bit_is_found(position: int) -> None:
    ring = Keyring.create()
    blob = bytearray(ring.encrypt(CANARY, aad="a"))
    blob[position] ^= 1
    with pytest.raises(DecryptionError):
        ring.decrypt(bytes(blob), aad="a")


@pytest.mark.parametrize("blob", [b"", b"\x01", b"\x01" * 20])
def test_a_fragment_does_not_open(blob: bytes) -> None:
    with pytest.raises(DecryptionError):
        Keyring.create().decrypt(blob, aad="a")


def test_rotation_keeps_old_text_and_hashes() -> None:
    old = Keyring.create()
    blob = old.encrypt(CANARY, aad="a")
    new = old.rotated()
    assert new.decrypt(blob, aad="a") == CANARY
    assert new.blind("person", purpose="user") == old.blind("person", purpose="user")
    with pytest.raises(DecryptionError):
        old.decrypt(new.encrypt(CANARY, aad="a"), aad="a")


def test_hashes_depend_on_key_purpose_and_value() -> None:
    ring = Keyring.create()
    hashes = {
        ring.blind("a", purpose="user"),
        ring.blind("b", purpose="user"),
        ring.blind("a", purpose="conversation"),
        Keyring.create().blind("a", purpose="user"),
    }
    assert len(hashes) == 4
    assert ring.blind("a", purpose="user") == ring.blind("a", purpose="user")


def test_repr_shows_no_key() -> None:
    ring = Keyring.create()
    assert repr(ring.index_key) not in repr(ring)
    assert repr(ring.keys[0][1]) not in repr(ring)


def test_the_file_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.json"
    first = Keyring.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Keyring.load_or_create(path) == first
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    Keyring.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(StartupError, match="chmod 600"):
        Keyring.load_or_create(path)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        Keyring.load_or_create(tmp_path)


def test_no_place_for_the_file_is_one_clear_line(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StartupError, match="cannot be used") as caught:
        Keyring.load_or_create(blocker / "keys.json")
    assert "\n" not in str(caught.value)


def test_many_who_start_at_once_get_one_ring(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as threads:
        rings = list(threads.map(lambda _: Keyring.load_or_create(path), range(32)))
    assert all(ring == rings[0] for ring in rings)


def test_the_environment_holds_a_key_or_a_whole_ring(tmp_path: Path) -> None:
    raw = base64.b64encode(os.urandom(32)).decode()
    assert Keyring.from_env(raw) == Keyring.from_env(f" {raw}\n")
    path = tmp_path / "keys.json"
    ring = Keyring.load_or_create(path)
    assert Keyring.from_env(path.read_text()) == ring


@pytest.mark.parametrize(
    "value",
    [
        "",
        "short",
        base64.b64encode(b"x" * 31).decode(),
        "{",
        "{}",
        '{"keys": [], "index": ""}',
        json.dumps({"keys": 3}),
    ],
)
def test_a_damaged_key_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(StartupError) as caught:
        Keyring.from_env(value)
    assert not value or value not in str(caught.value)
