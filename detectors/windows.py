"""Cut a long text into the pieces an encoder reads: coarse parts that cover it all, and sentence windows.

Pure and linear.  Every token of a text is in some coarse part, so nothing is cut off silently; sentence windows
sharpen the reading at both ends, where they are bounded in number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_COARSE: Final = 24
"""Coarse parts before they grow beyond the usual length."""
MAX_PART_TOKENS: Final = 500
"""Longest part, in tokens: the encoder has 512 positions."""
MAX_FINE: Final = 24
"""Sentence windows: this many in all, half of them at the head and half at the tail of a longer text."""
_OVERLAP: Final = 16
_SENTENCE: Final = re.compile(r"[^.!?\n]*(?:[.!?]+[\"')\]]*|\n+|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's token ids (no special tokens) and the half-open range of code points behind each."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids of a piece, and the half-open range of code points it covers."""

    ids: Sequence[int]
    start: int
    end: int


def encode(tokenizer: Any, text: str) -> Encoded:
    """Tokenise without special tokens; ``tokenizer`` must have truncation and padding off."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return Encoded(encoding.ids, encoding.offsets)


def window(text: Encoded, first: int, last: int) -> Window:
    """The piece of tokens ``[first, last)``; an empty piece covers nothing."""
    if first >= last:
        return Window((), 0, 0)
    return Window(text.ids[first:last], text.offsets[first][0], text.offsets[last - 1][1])


def coarse(text: Encoded, max_tokens: int) -> list[Window]:
    """Cover the whole text in overlapping parts: one when it fits, at most `MAX_COARSE` until a part would pass
    `MAX_PART_TOKENS`, and one per that many tokens beyond."""
    count = len(text.ids)
    if count <= max_tokens:
        return [window(text, 0, count)]
    size = min(max(max_tokens, -(-count // MAX_COARSE) + _OVERLAP), MAX_PART_TOKENS)
    starts = [*range(0, count - size, size - _OVERLAP), count - size]
    return [window(text, start, start + size) for start in starts]


def sentences(source: str, text: Encoded) -> list[tuple[int, int]]:
    """Token ranges of the sentences of ``source``, in order, together covering every token."""
    ranges: list[tuple[int, int]] = []
    first = 0
    for match in _SENTENCE.finditer(source):
        last = first
        while last < len(text.ids) and text.offsets[last][0] < match.end():
            last += 1
        if last > first:
            ranges.append((first, last))
        first = last
    return ranges


def cut(text: Encoded, parts: Sequence[tuple[int, int]], size: int) -> list[Window]:
    """Pack sentences into windows of about ``size`` tokens that share one sentence with their neighbour.

    A sentence longer than a window is cut with a small overlap.  At most `MAX_FINE` windows are given.
    """
    pieces = [piece for part in parts for piece in _split(part, size)]
    packed: list[tuple[int, int]] = []
    index = 0
    while index < len(pieces):
        end = index
        while end + 1 < len(pieces) and pieces[end + 1][1] - pieces[index][0] <= size:
            end += 1
        packed.append((pieces[index][0], pieces[end][1]))
        if end + 1 == len(pieces):
            break
        index = max(end, index + 1)
    return [window(text, first, last) for first, last in ends(packed)]


def ends(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts themselves, or head and tail when they are more than `MAX_FINE`."""
    if len(parts) <= MAX_FINE:
        return list(parts)
    half = MAX_FINE // 2
    return [*parts[:half], *parts[-half:]]


def _split(part: tuple[int, int], size: int) -> list[tuple[int, int]]:
    first, last = part
    if last - first <= size:
        return [part]
    starts = [*range(first, last - size, size - _OVERLAP), last - size]
    return [(start, start + size) for start in starts]
