"""One canonical form of a text, so that a detector cannot be talked past with look-alike letters.

Pure, total, linear in the text and idempotent.  Folding (NFKC, invisible characters, accents that no
language writes) is the only stage that may lengthen the text; every later stage keeps the length and writes
`_GONE` over what it removes, so that one list of offsets follows each character back to the raw text.

Sources: Unicode UAX #15 (NFKC), UAX #44 (Default_Ignorable_Code_Point), UTS #39 (confusables).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from detectors.api import Span

MAX_CHARS: Final = 32_768
"""Longest text, in code points, that is read; also the bound of the canonical text.

What lies beyond is cut *before* normalising and ``Canonical.truncated`` says so: a detector that
sees it must answer "unavailable", for the rest was not judged.
"""

_GONE: Final = "\0"

# Default ignorables, bidi controls, tags, variation selectors, and every control but TAB, LF, VT, FF, CR, NEL.
_IGNORABLE: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Blocks of marks that decorate a letter; one that no composed letter holds is noise ("zalgo").
_MARK: Final = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_SINGLES: Final = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u02b9\u0060\u00b4\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2028\u2029\u0085\x0b\x0c\r", "\n"),
        **dict.fromkeys("\t\u1680", " "),
        # Small capitals and enclosed letters that NFKC leaves alone.
        **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),
        **{chr(0x1F150 + i): chr(0x41 + i) for i in range(26)},
        **{chr(0x1F170 + i): chr(0x41 + i) for i in range(26)},
    }
)
_LATIN: Final = "A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_ACCENTED: Final = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_FOREIGN: Final = "\u0370-\u03ff\u0400-\u052f\u1f00-\u1fff\u0531-\u0587"  # Greek, Cyrillic, Armenian
_LOOKS_LATIN: Final = dict(
    zip(
        "аеорсухіјѕһԁԛԝӏкАВЕЅІЈКМНОРСТУХԌԚԜαοριυνκετχγΑΒΕΖΗΙΚΜΝΟΡΤΥΧοօսհ",
        "aeopcyxijshdqwlkABESIJKMHOPCTYXGQWaopiuvketxyABEZHIKMNOPTYXoouh",
        strict=True,
    )
)
_TO_LATIN: Final = str.maketrans(_LOOKS_LATIN)
_HAS_FOREIGN: Final = re.compile(f"[{_FOREIGN}]")
_HAS_LATIN: Final = re.compile(f"[{_LATIN}]")
_TRUE_FOREIGN: Final = re.compile(f"(?![{''.join(_LOOKS_LATIN)}])[{_FOREIGN}]")
_WORD: Final = re.compile(f"[{_LATIN}{_FOREIGN}]+")

_LEET: Final = str.maketrans("013457@$!", "oieastasi")
_LEET_CLASS: Final = "013457@$!"
# A whole run of letters and signs, unless an address goes on after it.
_LEET_TOKEN: Final = re.compile(f"(?<![^\\W_]|[@$!])[A-Za-z{_LEET_CLASS}]++(?![^\\W_]|[.@]\\w)")
_LEET_ANY: Final = re.compile(f"[{_LEET_CLASS}][A-Za-z]")
_LEET_INSIDE: Final = re.compile(f"(?<=[A-Za-z])[{_LEET_CLASS}]{{1,2}}(?=[A-Za-z])")
_LEET_LAST: Final = re.compile(f"(?<=[A-Za-z])[{_LEET_CLASS}]{{1,2}}$")
_LEET_FIRST: Final = re.compile("^[013457@$]{1,2}(?=[A-Za-z])")
_LEET_LAST_SURE: Final = re.compile("(?<=[A-Za-z])[013457@$]{1,2}$")

# Blanks written as underscores.
_SCORED: Final = re.compile(r"(?<=[^\W_]|[@$!])_+(?=[^\W_]|[@$!])")

_ONE: Final = f"[{_LATIN}{_FOREIGN}{_LEET_CLASS}]"
_SPACED: Final = re.compile(f"(?<![\\w@$!]){_ONE}(?:(?: +|[._*-]){_ONE}(?![\\w@$!])){{2,}}")
_GAP: Final = re.compile(" +|[._*-]")
_SPACE_RUN: Final = re.compile(r"[ \n]{2,}")
_REPEATED: Final = re.compile(r"([^\W\d_])\1{2,}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Canonical:
    """A canonical text and the way back to the raw one."""

    text: str
    changed: bool
    """True when the canonical text differs from the raw one."""
    truncated: bool
    """True when the raw text, or what it expands to, passes `MAX_CHARS` and was cut."""
    starts: Sequence[int]
    ends: Sequence[int]

    def to_raw(self, start: int, end: int) -> Span:
        """Map the half-open range ``[start, end)`` of ``text`` to code points of the raw text.

        Offsets outside the text are drawn in; an empty range gives an empty span.
        """
        size = len(self.starts)
        first = min(max(start, 0), size)
        last = min(max(end, first), size)
        if first == last:
            here = self.starts[first] if first < size else (self.ends[-1] if size else 0)
            return Span(here, here)
        return Span(self.starts[first], self.ends[last - 1])


def canonicalise(text: str) -> Canonical:
    """Return the canonical form of ``text``.  Never raises; case is kept (detectors fold case themselves).

    In order: cut at `MAX_CHARS`; NFKC and typographic characters, invisible ones dropped; underscores between words
    become blanks; letters written apart are joined; runs of white space become one; Cyrillic, Greek and Armenian look-alikes become Latin, but only in
    words that mix scripts or in text that has no true letter of those scripts; digits and signs inside a Latin
    word become the letters they stand for, and at its ends too where two words are so disguised; a letter repeated three times or more is written twice.
    """
    draft, starts, ends, truncated = _fold(text)
    for stage in (_part_scored, _join_spaced, _collapse_space, _latinise, _unleet, _squeeze):
        staged = stage(draft)
        if _GONE in staged:
            kept = [index for index, char in enumerate(staged) if char != _GONE]
            starts, ends = [starts[i] for i in kept], [ends[i] for i in kept]
            staged = staged.replace(_GONE, "")
        draft = staged
    return Canonical(draft, draft != text, truncated, starts, ends)


def without_accents(text: str) -> str:
    """``text`` with the bare letter in place of each accented Latin one: the same length.  Some languages need them."""
    return _ACCENTED.sub(lambda match: unicodedata.normalize("NFD", match.group())[0], text)


def _fold(text: str) -> tuple[str, Sequence[int], Sequence[int], bool]:
    """NFKC character by character with pairwise composition: linear, also for a letter under 30,000 marks."""
    raw = text[:MAX_CHARS]
    truncated = len(text) > MAX_CHARS
    if raw.isascii() and not _IGNORABLE.search(raw):
        return raw.translate(_SINGLES), range(len(raw)), range(1, len(raw) + 1), truncated
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for index, char in enumerate(raw):
        if len(out) > MAX_CHARS:
            break
        if _IGNORABLE.match(char):
            continue
        for piece in unicodedata.normalize("NFKC", char.translate(_SINGLES)).translate(_SINGLES):
            if _IGNORABLE.match(piece):
                continue
            joined = unicodedata.normalize("NFC", out[-1] + piece) if out and piece > "\u02ff" else ""
            if len(joined) == 1:
                out[-1], ends[-1] = joined, index + 1
            elif not _MARK.match(piece):
                out.append(piece)
                starts.append(index)
                ends.append(index + 1)
    truncated = truncated or len(out) > MAX_CHARS
    return "".join(out[:MAX_CHARS]), starts[:MAX_CHARS], ends[:MAX_CHARS], truncated


def _part_scored(text: str) -> str:
    return _SCORED.sub(lambda match: " " * len(match.group()), text) if "_" in text else text


def _join_spaced(text: str) -> str:
    return _SPACED.sub(_join_one, text)


def _join_one(match: re.Match[str]) -> str:
    """Join letters that stand apart; a wider gap between them parts two words.

    Three letters are enough when dots or dashes part them ("k.m.s"), four when spaces do ("a b c" is a list).
    """
    run = match.group()
    gaps = _GAP.findall(run)
    letters = sum(char.isalpha() for char in run)
    if letters < (4 if any(gap[0] == " " for gap in gaps) else 3) or letters * 2 <= len(gaps) + 1:
        return run
    # Where signs part the letters a space parts the words; elsewhere a space wider than one does.
    wide = 1 if any(gap[0] != " " for gap in gaps) else 2
    words = [_GAP.sub("", part) for part in re.split(f" {{{wide},}}", run)]
    if any(len(a) + len(b) == 2 for a, b in itertools.pairwise(words)):
        wide = len(run)  # two single letters side by side would be a run again: here no space parts words
    return _GAP.sub(lambda gap: _gap(gap.group(), wide), run)


def _gap(gap: str, wide: int) -> str:
    return " " + _GONE * (len(gap) - 1) if gap[0] == " " and len(gap) >= wide else _GONE * len(gap)


def _collapse_space(text: str) -> str:
    head = len(text) - len(text.lstrip(" \n"))
    tail = len(text.rstrip(" \n"))
    if head >= tail:
        return _GONE * len(text)
    body = _SPACE_RUN.sub(_one_space, text[head:tail])
    return _GONE * head + body + _GONE * (len(text) - tail)


def _one_space(match: re.Match[str]) -> str:
    run = match.group()
    return ("\n" if "\n" in run else " ") + _GONE * (len(run) - 1)


def _latinise(text: str) -> str:
    if not _HAS_FOREIGN.search(text) or not _HAS_LATIN.search(text):
        return text
    mixed = _WORD.sub(_latinise_mixed, text)
    return mixed if _TRUE_FOREIGN.search(mixed) else mixed.translate(_TO_LATIN)


def _latinise_mixed(match: re.Match[str]) -> str:
    word = match.group()
    return word.translate(_TO_LATIN) if _HAS_LATIN.search(word) and not _TRUE_FOREIGN.search(word) else word


def _unleet(text: str) -> str:
    if not _LEET_ANY.search(text):  # most text: what follows costs ten times as much
        return text
    disguised = sum(map(_is_disguised, _LEET_TOKEN.findall(text)))
    return _LEET_TOKEN.sub(_unleet_all if disguised > 1 else _unleet_token, text)


def _is_disguised(token: str) -> bool:
    """True for "su1c1d3"; "mp3", "covid19" and "me!" have no sign between letters."""
    signs = _LEET_INSIDE.findall(token)
    return bool(signs) and signs != ["!"]  # "help!please" is far more often a missing space than a disguise


def _unleet_token(match: re.Match[str]) -> str:
    token = match.group()
    return _LEET_LAST.sub(_plain, _LEET_INSIDE.sub(_plain, token)) if _is_disguised(token) else token


def _unleet_all(match: re.Match[str]) -> str:
    """Where the whole sentence is so written, a word is read at its ends too: "t0", "3nd"; an exclamation mark stays one."""
    inside = _unleet_token(match)
    return _LEET_FIRST.sub(_plain, _LEET_LAST_SURE.sub(_plain, inside))


def _plain(match: re.Match[str]) -> str:
    return match.group().translate(_LEET)


def _squeeze(text: str) -> str:
    return _REPEATED.sub(lambda m: m.group()[:2] + _GONE * (len(m.group()) - 2), text)
