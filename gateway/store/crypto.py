"""The keys of the house, kept outside the database, and what is done with them.

- Text of a person is encrypted with AES-256-GCM (NIST SP 800-38D) under a random 96-bit nonce.  The
  caller's ``aad`` ties a ciphertext to the row it belongs to: moved to another row it does not open.
- Identifiers of people and conversations are stored as HMAC-SHA256 (RFC 2104), keyed, so that a stolen
  database cannot be searched for a known person.

A blob is ``version (1) | key id (4) | nonce (12) | ciphertext and tag``.  To rotate, put a new key first and
keep the old ones: new text uses the first key, old text still opens.  The index key never rotates, since every
stored hash hangs on it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.errors import StartupError

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES + _NONCE_BYTES
_MAX_FILE_BYTES: Final = 65_536


class DecryptionError(Exception):
    """The blob does not open: wrong key, wrong row, or changed since it was written."""


@dataclass(frozen=True, repr=False)
class Keyring:
    """Encryption keys (newest first, by key id) and the index key.  Its repr shows neither."""

    keys: tuple[tuple[bytes, bytes], ...] = field()
    index_key: bytes

    @classmethod
    def create(cls) -> Keyring:
        """A new ring with one random key."""
        return cls._of([secrets.token_bytes(KEY_BYTES)], secrets.token_bytes(KEY_BYTES))

    @classmethod
    def load_or_create(cls, path: Path) -> Keyring:
        """The ring in ``path``, made (mode 0600) if there is none.  Two processes that start at once get the same one.

        Raises `StartupError` when the file can be read by others, is damaged, or cannot be made.
        """
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _write_new(path, cls.create()._dump())
            return cls.parse(_read_private(path), source=str(path))
        except OSError as error:
            raise StartupError(f"The key file {path} cannot be used: {error.strerror or error}.") from error

    @classmethod
    def from_env(cls, value: str) -> Keyring:
        """The ring in an environment variable: the content of a key file, or 32 bytes in base64."""
        return cls.parse(value, source="the key in the environment")

    @classmethod
    def parse(cls, text: str, *, source: str) -> Keyring:
        """Read a ring; raises `StartupError` naming ``source``, never the content."""
        try:
            stripped = text.strip()
            if not stripped.startswith("{"):
                root = _key(stripped)
                return cls._of([root], _derive(root, "index"))
            document = json.loads(stripped)
            return cls._of([_key(item) for item in document["keys"]], _key(document["index"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StartupError(f"{source} does not hold a valid Havengate key.") from error

    @classmethod
    def _of(cls, keys: list[bytes], index_key: bytes) -> Keyring:
        if not keys:
            raise ValueError("no key")
        return cls(tuple((hashlib.sha256(b"key-id" + key).digest()[:_KEY_ID_BYTES], key) for key in keys), index_key)

    def rotated(self) -> Keyring:
        """The same ring with a new first key."""
        return self._of([secrets.token_bytes(KEY_BYTES), *(key for _, key in self.keys)], self.index_key)

    def encrypt(self, text: str, *, aad: str) -> bytes:
        """Seal ``text``; it opens only with the same ``aad``."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key_id, key = self.keys[0]
        nonce = os.urandom(_NONCE_BYTES)
        head = _VERSION + key_id + nonce
        return head + AESGCM(key).encrypt(nonce, text.encode("utf-8", "surrogatepass"), head + aad.encode())

    def decrypt(self, blob: bytes, *, aad: str) -> str:
        """Open a blob of `encrypt`; raises `DecryptionError`, which does not say which of its reasons holds."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        head, body = blob[:_HEAD_BYTES], blob[_HEAD_BYTES:]
        key = dict(self.keys).get(head[len(_VERSION) : len(_VERSION) + _KEY_ID_BYTES])
        if key is None or head[:1] != _VERSION:
            raise DecryptionError("The stored text does not open with these keys.")
        try:
            plain = AESGCM(key).decrypt(head[-_NONCE_BYTES:], body, head + aad.encode())
        except InvalidTag:
            raise DecryptionError("The stored text does not open with these keys.") from None
        return plain.decode("utf-8", "surrogatepass")

    def blind(self, value: str, *, purpose: str) -> str:
        """Keyed hash of an identifier, in hex.  Hashes of two purposes cannot be compared."""
        message = purpose.encode() + b"\x00" + value.encode("utf-8", "surrogatepass")
        return hmac.digest(self.index_key, message, "sha256").hex()

    def mac_key(self, secret: str) -> str:
        """Keyed hash under which an API key is stored, in hex.

        API keys are long and random, so a fast keyed hash serves; a password would need a slow one.
        """
        return self.blind(secret, purpose="api-key")

    def _dump(self) -> str:
        keys = [base64.b64encode(key).decode() for _, key in self.keys]
        return json.dumps({"keys": keys, "index": base64.b64encode(self.index_key).decode()}) + "\n"


def _derive(root: bytes, purpose: str) -> bytes:
    return hmac.digest(root, b"havengate:" + purpose.encode(), "sha256")


def _key(value: str) -> bytes:
    try:
        key = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(key) != KEY_BYTES:
        raise ValueError("wrong length")
    return key


def _read_private(path: Path) -> str:
    """Read through one descriptor, so that the file checked is the file read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise StartupError(f"The key file {path} is not a regular file.")
        if mode & 0o077:
            raise StartupError(f"The key file {path} can be read by others; run: chmod 600 {path}")
        return file.read(_MAX_FILE_BYTES).decode("utf-8")


def _write_new(path: Path, text: str) -> None:
    """Write aside, then link into place: whoever links first wins, and nobody ever reads half a key."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(aside)
        except FileExistsError:
            return
        _sync_folder(path.parent)
    finally:
        aside.unlink()


def _sync_folder(folder: Path) -> None:
    """The key must outlive a power cut, or everything sealed with it is lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
