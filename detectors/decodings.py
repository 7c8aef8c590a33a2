"""Texts that a text carries in another writing: one level of it is undone, and what it says is judged beside the rest.

Pure, total, linear in the text, bounded in what it gives.  A writing inside a writing (base64 of base64) is not undone:
that is a known limit, kept so that no text makes its reader work without end.
Another: a writing so long that a stream's window cuts it is seen in pieces.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from detectors.api import Span
from detectors.canonical import MAX_CHARS

MAX_DECODINGS: Final = 64
"""As many as this may not be all: a detector that gets them must answer "unavailable", for the rest was not judged."""
_BASE64: Final = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{8,}+={0,2}(?![A-Za-z0-9+/_=-])")
_HEX: Final = re.compile(r"(?<![0-9A-Za-z])(?:(?:0x)?[0-9A-Fa-f]{2}[ :,]{0,2}){4,}(?:0x)?[0-9A-Fa-f]{2}(?![0-9A-Fa-f])")
_BITS: Final = re.compile(r"(?<!\d)(?:[01]{8} ?){4,}(?!\d)")
_NUMBERS: Final = re.compile(r"(?<!\d)(?:\d{2,3}[ ,]{1,2}){4,}\d{2,3}(?!\d)")
_PERCENT: Final = re.compile(r"(?<![^\s%])[^\s%]{0,64}(?:%[0-9A-Fa-f]{2}[^\s%]{0,64}){2,}")
_TAGS: Final = re.compile("[\U000e0020-\U000e007e]{4,}")
_SELECTORS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
# One character each: HTML entities, and the escapes of JSON, JavaScript and Python.
_ESCAPE: Final = re.compile(
    r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});|[\\%]u(?:[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\})|\\x[0-9A-Fa-f]{2}"
)
_AROUND: Final = 64
"""Characters about an escape that are read with it: it may hide one letter of a sentence."""
_ROT13: Final = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm",
)
_SENTENCE: Final = re.compile(r"[^.!?\n]{8,512}")
_COMMON: Final = frozenset({
    "i", "you", "my", "me", "myself", "yourself", "the", "to", "and", "of", "want", "it", "is", "am",
    "with", "be", "would", "without", "they", "not", "in", "for", "that",
})  # fmt: skip
_LETTERS: Final = re.compile(r"[A-Za-z']+")


@dataclass(frozen=True, slots=True)
class Decoding:
    """A text found inside another one, and the raw range that carried it."""

    text: str
    span: Span


def decoded_variants(text: str) -> tuple[str, ...]:
    """The texts of `decodings`, without their places."""
    return tuple(found.text for found in decodings(text))


def decodings(text: str) -> tuple[Decoding, ...]:
    """Undo one level of base64, hex, bits, character codes, URL, HTML and JSON escapes, Unicode tags, variation-selector bytes, rot13, reversal.

    Reads the *raw* text, at most `MAX_CHARS` of it; gives at most `MAX_DECODINGS` results, together no longer than a few
    times the text.  Bytes count only when they are printable and look like words, rot13 and reversal (of a sentence, or
    of each of its words) only when more words of theirs are common ones than before.  Never raises.
    """
    found: list[Decoding] = []
    for one in _all(text[:MAX_CHARS]):
        found.append(one)
        if len(found) == MAX_DECODINGS:
            break
    return tuple(found)


def _all(raw: str) -> Iterator[Decoding]:
    yield from _unescaped(raw)
    for pattern, decode in _DECODERS:
        for match in pattern.finditer(raw):
            plain = decode(match.group())
            if _looks_like_words(plain):
                yield Decoding(plain, Span(match.start(), match.end()))
    yield from _turned(raw)


def _unescaped(raw: str) -> Iterator[Decoding]:
    """Each stretch of text in which escapes lie close together."""
    found = list(_ESCAPE.finditer(raw))
    first = 0
    for index, match in enumerate(found):
        if index + 1 == len(found) or found[index + 1].start() - match.end() > 2 * _AROUND:
            start = max(found[first].start() - _AROUND, 0)
            end = min(match.end() + _AROUND, len(raw))
            yield Decoding(_ESCAPE.sub(_character, raw[start:end]), Span(start, end))
            first = index + 1


def _character(match: re.Match[str]) -> str:
    escape = match.group()
    if escape[0] == "&":
        char = html.unescape(escape)
    else:
        code = int(escape[2:].strip("{}"), 16)
        char = chr(code) if code < 0x11_0000 else ""
    return char if char.isprintable() else " "


def _turned(raw: str) -> Iterator[Decoding]:
    """One text for each way, of all sentences that read better so."""
    ways: dict[int, list[tuple[str, int, int]]] = {}
    for match in _SENTENCE.finditer(raw):
        sentence = match.group()
        common, words = _common_words(sentence)
        if common * 6 >= words and common > 1:
            continue
        turned = (sentence.translate(_ROT13), sentence[::-1], " ".join(word[::-1] for word in sentence.split(" ")))
        for way, plain in enumerate(turned):
            if _common_words(plain)[0] > max(common, 1):
                ways.setdefault(way, []).append((plain, match.start(), match.end()))
    for found in ways.values():
        yield Decoding(".\n".join(plain for plain, _, _ in found), Span(found[0][1], found[-1][2]))


def _common_words(text: str) -> tuple[int, int]:
    words = _LETTERS.findall(text.lower())
    return sum(word in _COMMON for word in words), len(words)


def _looks_like_words(text: str) -> bool:
    shown = text.replace("\n", " ")
    letters = sum(char.isalpha() or char == " " for char in shown)
    return len(shown) >= 4 and shown.isprintable() and letters * 10 >= len(shown) * 8


def _from_bytes(data: bytes) -> str:
    """Bytes that are not UTF-8 hold U+FFFD, which `_looks_like_words` counts as no letter."""
    return data.decode("utf-8", "replace")


def _from_base64(token: str) -> str:
    import base64

    body = token.rstrip("=").replace("-", "+").replace("_", "/")
    body = body[: len(body) - 1] if len(body) % 4 == 1 else body
    return _from_bytes(base64.b64decode(body + "=" * (-len(body) % 4)))


def _from_hex(token: str) -> str:
    return _from_bytes(bytes.fromhex(token.replace("0x", "").replace(":", "").replace(",", "")))


def _from_bits(token: str) -> str:
    bits = token.replace(" ", "")
    return _from_bytes(bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)))


def _from_numbers(token: str) -> str:
    return "".join(map(chr, map(int, token.replace(",", " ").split())))


def _from_percent(token: str) -> str:
    from urllib.parse import unquote_plus

    return unquote_plus(token, errors="replace")


def _from_tags(token: str) -> str:
    return "".join(chr(ord(char) - 0xE0000) for char in token)


def _from_selectors(token: str) -> str:
    """Bytes 0-15 ride on U+FE00.., bytes 16-255 on U+E0100.. ("emoji smuggling")."""
    return _from_bytes(bytes(ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16 for c in token))


_DECODERS: Final[tuple[tuple[re.Pattern[str], Callable[[str], str]], ...]] = (
    (_BASE64, _from_base64),
    (_HEX, _from_hex),
    (_BITS, _from_bits),
    (_NUMBERS, _from_numbers),
    (_PERCENT, _from_percent),
    (_TAGS, _from_tags),
    (_SELECTORS, _from_selectors),
)
