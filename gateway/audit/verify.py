"""Check the audit chain.  Needs no key and trusts nothing but the bytes it reads.

It reads in pages, so a trail of any length is checked in bounded memory.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Final, Literal

import msgspec

from gateway.audit.log import GENESIS, Entry, chain_hash
from gateway.errors import UsageError

_HEAD: Final = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")

Fault = Literal["changed", "missing", "out_of_order", "unlinked", "unreadable", "truncated", "other_head"]


class Head(msgspec.Struct, frozen=True):
    """A point of the chain, kept outside the database."""

    seq: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``SEQ:HASH``; raises `UsageError`."""
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise UsageError("A head is written SEQ:HASH, as 'audit verify' prints it.")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


class VerifyResult(msgspec.Struct, frozen=True):
    """What was found.  ``reason`` is empty when ``ok``:

    - ``changed``: an entry no longer gives its hash;
    - ``missing``: entries are gone before ``first_bad_seq``;
    - ``out_of_order``: a number that is not the next one (an inserted or repeated entry);
    - ``unlinked``: an entry does not follow from the one before it;
    - ``unreadable``: an entry is not an entry at all;
    - ``truncated``: the trail ends before the given head;
    - ``other_head``: the entry at the given head is not the one that was kept.
    """

    ok: bool
    count: int
    """Good entries read."""
    head: Head
    """Last good entry; ``0:GENESIS`` for none."""
    first_bad_seq: int | None = None
    reason: Fault | Literal[""] = ""


class Verifier:
    """Feed it entries in order; it stops at the first fault."""

    def __init__(self, expected: Head | None = None) -> None:
        self._expected = expected
        self._head = Head(0, GENESIS)
        self._failed: VerifyResult | None = None
        if expected is not None and expected.seq == 0:
            self._compare_head()

    def feed(self, entry: Entry) -> bool:
        """Check one entry; False once a fault was found."""
        if self._failed is None:
            fault = self._fault(entry)
            if fault is not None:
                self.fail(entry.seq, fault)
            else:
                self._head = Head(entry.seq, entry.hash)
                self._compare_head()
        return self._failed is None

    def fail(self, seq: int, reason: Fault) -> None:
        """Note a fault at ``seq``."""
        self._failed = VerifyResult(ok=False, count=self._head.seq, head=self._head, first_bad_seq=seq, reason=reason)

    def result(self) -> VerifyResult:
        """The finding, once everything was fed."""
        if self._failed is None and self._expected is not None and self._expected.seq > self._head.seq:
            self.fail(self._head.seq + 1, "truncated")
        return self._failed or VerifyResult(ok=True, count=self._head.seq, head=self._head)

    @property
    def next_seq(self) -> int:
        return self._head.seq + 1

    def _fault(self, entry: Entry) -> Fault | None:
        if entry.seq != self.next_seq:
            return "missing" if entry.seq > self.next_seq else "out_of_order"
        if not _same(entry.prev_hash, self._head.hash):
            return "unlinked"
        try:
            hashed = chain_hash(self._head.hash, entry.seq, entry.event)
        except (TypeError, ValueError, AttributeError):
            # A field of another type than we ever write: msgspec or strftime cannot read it.
            return "unreadable"
        return None if _same(hashed, entry.hash) else "changed"

    def _compare_head(self) -> None:
        expected = self._expected
        if expected is not None and expected.seq == self._head.seq and not _same(expected.hash, self._head.hash):
            self.fail(expected.seq, "other_head")


def _same(left: object, right: object) -> bool:
    """Equal strings; a field that is not one, as a hostile row may have, equals nothing."""
    return isinstance(left, str) and isinstance(right, str) and left == right


def verify(rows: Iterable[Entry], head: Head | None = None) -> VerifyResult:
    """Check entries that are already in hand, in the order of their ``seq``."""
    verifier = Verifier(head)
    for row in rows:
        if not verifier.feed(row):
            break
    return verifier.result()


async def verify_stream(rows: AsyncGenerator[Entry, None], head: Head | None = None) -> VerifyResult:
    """Check entries as they are read.  ``ValueError`` from the reader is an entry that cannot be decoded."""
    verifier = Verifier(head)
    async with aclosing(rows):
        try:
            async for row in rows:
                if not verifier.feed(row):
                    break
        except ValueError:
            verifier.fail(verifier.next_seq, "unreadable")
    return verifier.result()


async def verify_database(url: str, head: Head | None = None) -> VerifyResult:
    """Check the trail in a database, read only and without its keys.  Raises `StoreError` if it cannot be read."""
    from gateway.store.reading import audit_entries

    return await verify_stream(audit_entries(url), head)
