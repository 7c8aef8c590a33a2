"""Findings that the store could not take: kept encrypted on disk until it can.  Nothing that someone must be told
lives only in memory.

One file a finding, written and synced before the person is answered, sealed with the key that also seals
evidence.  The gateway pays what it owes as soon as the store is back, and again at its next start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from gateway.store.crypto import DecryptionError, Keyring
from gateway.store.errors import StoreError

MAX_OWED: Final = 10_000
MAX_FILE_BYTES: Final = 1_048_576
_SUFFIX: Final = ".owed"
T = TypeVar("T", bound=msgspec.Struct)


class Owed(Generic[T]):
    """A folder of sealed findings, each named by a key of our own making (never by anything a client sent)."""

    def __init__(self, folder: Path, keyring: Keyring, kind: type[T]) -> None:
        self._folder = folder
        self._keyring = keyring
        self._kind = kind

    def keep(self, name: str, finding: T) -> None:
        """Write and sync one finding.  Raises `StoreError` ``full`` or ``unavailable``: then it is lost, and that is an alarm."""
        path = self._folder / f"{name}{_SUFFIX}"
        sealed = self._keyring.encrypt(msgspec.json.encode(finding).decode(), aad=name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sum(1 for _ in self._folder.glob(f"*{_SUFFIX}")) >= MAX_OWED:
                raise StoreError("full", "too many findings are owed")
            descriptor = os.open(path.with_suffix(".part"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            path.with_suffix(".part").replace(path)
            self._sync_folder()
        except OSError as error:
            raise StoreError("unavailable", type(error).__name__) from None

    def all(self) -> Iterator[tuple[str, T | None]]:
        """Every finding owed, oldest first, with its name; None for one that cannot be opened (it stays where it is)."""
        if not self._folder.is_dir():
            return
        paths = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in paths[:MAX_OWED]:
            yield path.stem, self._open(path)

    def paid(self, name: str) -> None:
        """The store has it now."""
        (self._folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)

    def _open(self, path: Path) -> T | None:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                return None
            return msgspec.json.decode(self._keyring.decrypt(path.read_bytes(), aad=path.stem), type=self._kind)
        except (OSError, DecryptionError, msgspec.DecodeError):
            return None

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
