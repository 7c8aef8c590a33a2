"""Where an answer may be cut into windows, so that no character leaves before a verdict covers it.  Pure.

A boundary depends on the text before it and one character after it, never on how the backend chunked
the stream: the same answer always gives the same windows and so the same verdicts.  The first window
is short (time to the first word), later ones end at sentences; a window that finds no sentence end is
cut at white space, or between two grapheme clusters, so that no character is ever split (UAX #29).
A cut in mid-sentence is judged together with what follows it, for half a sentence says little of its end.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

_SENTENCE_END: Final = frozenset(".!?…。！？\n")
_CLAUSE_END: Final = frozenset(",;:—–")
_CLOSERS: Final = frozenset("\"'”’»)]*_")
_ZWJ: Final = "\u200d"
_MAX_WORD_CHARS: Final = 24
_FULL_WIDTH_END: Final = frozenset("。！？")
_MAY_END: Final = re.compile(r"[\s。！？]")
"""The last character before a cut: what `_ends_sentence` need not look at is passed over at once."""


class Rules(msgspec.Struct, frozen=True):
    """Sizes in characters.

    ``overlap_chars`` is how much already released text is judged again with a window, ``lookahead_chars``
    how much text after a cut in mid-sentence is judged before the cut is released.
    """

    first_chars: int = 60
    first_min_chars: int = 24
    window_chars: int = 280
    window_min_chars: int = 80
    """Short sentences share a window: a verdict for each would cost ten times as much and say less."""
    overlap_chars: int = 140
    lookahead_chars: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.first_min_chars <= self.first_chars <= self.window_chars:
            raise ValueError("hold-back sizes must satisfy 0 < first_min_chars <= first_chars <= window_chars")
        if not 0 < self.window_min_chars <= self.window_chars:
            raise ValueError("hold-back sizes must satisfy 0 < window_min_chars <= window_chars")
        if not 0 <= self.lookahead_chars < self.first_chars:
            raise ValueError("hold-back sizes must satisfy 0 <= lookahead_chars < first_chars")
        if self.overlap_chars < 0:
            raise ValueError("overlap_chars must not be negative")


class Window(msgspec.Struct, frozen=True):
    """``text[start:end]`` is released if ``text[judged_from:judged_to]``, which contains it, is found fit."""

    start: int
    end: int
    judged_from: int
    judged_to: int


def next_window(text: str, start: int, rules: Rules, *, finished: bool) -> Window | None:
    """The next window of ``text`` (the whole answer so far) after ``start``, or None: wait for more text.

    With ``finished`` the rest of the text is cut too, so that every character is in exactly one window.
    """
    if not 0 <= start <= len(text):
        raise ValueError("start is outside the text")
    judged_from = _overlap_start(text, start, rules.overlap_chars)
    limit = rules.first_chars if start == 0 else rules.window_chars
    end = _sentence_boundary(text, start, limit, rules)
    if end is not None:
        return Window(start, end, judged_from, end)
    if len(text) > start + limit:
        return Window(start, _forced_cut(text, start, limit - rules.lookahead_chars), judged_from, start + limit)
    return Window(start, len(text), judged_from, len(text)) if finished and start < len(text) else None


def _sentence_boundary(text: str, start: int, limit: int, rules: Rules) -> int | None:
    """The first end of a sentence (in the first window: of a clause) within the limit."""
    # One character of look-ahead: a mark that joins the last character must be seen before the cut.
    least = rules.first_min_chars if start == 0 else rules.window_min_chars
    first, last = start + least, min(start + limit, len(text) - 1)
    for found in _MAY_END.finditer(text, first - 1, last):
        end = found.end()
        if _ends_sentence(text, end, clause=start == 0) and is_cluster_boundary(text, end):
            return end
    return None


def _ends_sentence(text: str, end: int, *, clause: bool) -> bool:
    """True when ``text[:end]`` ends with a sentence (or clause) end and the white space after it."""
    if text[end - 1] in _FULL_WIDTH_END:
        return True
    if not text[end - 1].isspace():
        return False
    if text[end - 1] == "\n":
        return True
    last = end - 2
    while last >= 0 and end - last < 5 and text[last] in _CLOSERS:
        last -= 1
    return last >= 0 and (text[last] in _SENTENCE_END or (clause and text[last] in _CLAUSE_END))


def _forced_cut(text: str, start: int, limit: int) -> int:
    """No sentence end within the limit: after the last white space, else between two clusters, else at the limit.

    The last case needs one "character" of hundreds of combining marks; memory must stay bounded even then.
    """
    for end in range(start + limit, start, -1):
        if text[end - 1].isspace() and is_cluster_boundary(text, end):
            return end
    for end in range(start + limit, start, -1):
        if is_cluster_boundary(text, end):
            return end
    return start + limit


def _overlap_start(text: str, start: int, overlap_chars: int) -> int:
    """Where judging begins: at most ``overlap_chars`` back, moved forward to the start of a word.

    A script without spaces has no such start near by; there judging begins between two clusters.
    """
    begin = max(0, start - overlap_chars)
    if begin == 0:
        return 0
    for word in range(begin, min(begin + _MAX_WORD_CHARS, start)):
        if text[word - 1].isspace():
            return word
    return next((at for at in range(begin, start) if is_cluster_boundary(text, at)), start)


def is_cluster_boundary(text: str, at: int) -> bool:
    """True when a cut before ``text[at]`` splits no grapheme cluster.

    Conservative reading of UAX #29 without its tables: marks, joiners, emoji modifiers, tag characters,
    regional indicators, Hangul jamo and CR LF stay with what precedes them.
    """
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if before == _ZWJ or (before == "\r" and after == "\n"):
        return False
    return not _joins(after)


def _joins(character: str) -> bool:
    point = ord(character)
    if point < 0x300:
        return False
    return (
        unicodedata.category(character) in ("Mn", "Mc", "Me")
        or character in (_ZWJ, "\u200c")
        or 0x1F3FB <= point <= 0x1F3FF
        or 0x1F1E6 <= point <= 0x1F1FF
        or 0xE0020 <= point <= 0xE007F
        or 0x1160 <= point <= 0x11FF
    )
