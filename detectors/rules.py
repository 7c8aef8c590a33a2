"""The notation of the lexicon: decode a rule file, compile it, match one rule.

The head of ``data/lexicon.toml`` explains the notation.  Phrases have no unbounded repetition, so that matching is
linear in the text; a rule that is wrong is refused when the file is loaded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from detectors.api import CATEGORIES, MAX_SEVERITY, OUTPUT_HARMS, DetectorError, Imminence, Span, Subject, Time

MAX_MATCHES: Final = 8
"""Matches of one rule that are reported in one text."""
_MAX_LOOKED_AT: Final = 64
_SENTENCE_CHARS: Final = 96
_LABELS: Final = frozenset([f"crisis:{name}" for name in CATEGORIES] + [f"output:{name}" for name in OUTPUT_HARMS])


class _GuardSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class RuleSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    labels: tuple[str, ...]
    needs: tuple[str, ...]
    phrases: tuple[str, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    severity: int = 0
    subject: Subject = "none"
    imminence: Imminence = "none"
    time: Time = "ongoing"
    guards: tuple[str, ...] = ()
    after_not: str = ""
    open_start: bool = False
    open_end: bool = False


class _ConfirmationSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    labels: tuple[str, ...]
    severity: int
    question: tuple[str, ...]
    answer: tuple[str, ...]
    subject: Subject = "self"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: str
    macro: dict[str, str]
    guard: dict[str, _GuardSource]
    rule: tuple[RuleSource, ...]
    confirmation: _ConfirmationSource


@dataclass(frozen=True, slots=True)
class Verdict:
    labels: tuple[str, ...]
    severity: int
    subject: Subject
    imminence: Imminence
    time: Time


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    output: bool
    needs: tuple[str, ...]
    pattern: re.Pattern[str]
    together: re.Pattern[str] | None
    """The same phrases without word boundaries, for words written together; None where none has two words."""
    before: tuple[re.Pattern[str], ...]
    after: tuple[re.Pattern[str], ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Lexicon:
    rules: tuple[Rule, ...]
    question: re.Pattern[str]
    answer: re.Pattern[str]
    confirmed: Verdict


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a passage: its text in lower case, and how to look at it."""

    key: str
    dense: str
    """The folded text without blanks: a rule's ``needs`` are looked for here, so that no line break hides them."""
    back: Callable[[int, int], Span]
    """From offsets of ``key`` to a span of the raw text."""
    not_before: int = 0
    """A match must end after this offset."""
    runs: tuple[tuple[int, int], ...] = ()
    """When not empty: ``key`` keeps its doubled letters, and only these ranges of it are read, as words written together."""
    edges: frozenset[int] = frozenset()
    """When not empty: offsets at one of which a match must start and at another end."""


_DOUBLED: Final = re.compile(r"([^\W\d_])\1+")
_DOUBLED_IN_PATTERN: Final = re.compile(r"(\\.|\[[^\]]*\])|([^\W\d_])\2+")


def fold(text: str) -> tuple[str, Sequence[int]]:
    """Lower case, doubled letters written once, and the place in ``text`` of each character that stayed."""
    low = text.lower()
    if len(low) != len(text):
        low = "".join(char if len(char.lower()) != 1 else char.lower() for char in text)
    places: list[int] = []
    parts: list[str] = []
    last = 0
    for match in _DOUBLED.finditer(low):
        parts.append(low[last : match.start() + 1])
        places.extend(range(last, match.start() + 1))
        last = match.end()
    if not parts:
        return low, range(len(low))
    places.extend(range(last, len(low)))
    return "".join(parts) + low[last:], places


_SEPARATORS: Final = str.maketrans("", "", " \n-._/|~")
_BLANK: Final = r"[ \n\-._/|~]?"
_RUN: Final = re.compile(r"[a-z']{9,}")
_MIN_SCATTERED: Final = 5
"""Words, or pieces of words, from which on a text can be called scattered."""
_MIN_TOGETHER: Final = 9
"""Letters of a phrase found inside a longer word: shorter ones stand in harmless words."""


def _needs(source: Sequence[str]) -> tuple[str, ...]:
    """Without blanks, as they stand in `View.dense`; a letter that meets itself where a blank was may be folded there."""
    apart = [fold(need)[0].translate(_SEPARATORS) for need in source]
    return tuple(dict.fromkeys([*apart, *(fold(need)[0] for need in apart)]))


def view_of(text: str, outer: Callable[[int, int], Span], not_before: int = 0) -> View:
    """Fold ``text``; ``outer`` maps its offsets to raw ones.  A match must end after offset ``not_before`` of it."""
    key, places = fold(text)

    def back(start: int, end: int) -> Span:
        return outer(places[start], places[end - 1] + 1)

    start = next((index for index, place in enumerate(places) if place >= not_before), 0) if not_before else 0
    return View(key, key.translate(_SEPARATORS), back, start)


_WORD: Final = re.compile(r"[^\W\d_]+")
_ODD_GAP: Final = re.compile(r"[^\w\s']")


def scattered_of(text: str, outer: Callable[[int, int], Span]) -> View | None:
    """A view of the bare letters of ``text``, where signs stand between most words or letters; None for usual writing."""
    words = len(_WORD.findall(text))
    letters = [place for place, char in enumerate(text) if char.isalpha()] if words >= _MIN_SCATTERED else []
    if not letters or (len(letters) * 2 >= words * 5 and len(_ODD_GAP.findall(text)) * 2 < words):
        return None
    low = "".join(text[place] for place in letters).lower()
    if len(low) != len(letters):
        return None

    def back(start: int, end: int) -> Span:
        return outer(letters[start], letters[end - 1] + 1)

    edges = {place for place in range(1, len(low)) if letters[place] - letters[place - 1] > 1} | {0, len(low)}
    return View(low, fold(low)[0], back, runs=((0, len(low)),), edges=frozenset(edges))


def together_of(text: str, outer: Callable[[int, int], Span]) -> View | None:
    """A view of the long words of ``text``, in which phrases may have been written without blanks; None without any."""
    low = text.lower()
    runs = tuple(match.span() for match in _RUN.finditer(low))
    return View(low, fold(low)[0].translate(_SEPARATORS), outer, runs=runs) if runs and len(low) == len(text) else None


def _squeeze_pattern(source: str) -> str:
    return _DOUBLED_IN_PATTERN.sub(lambda m: m.group(1) or m.group(2), source)


class _Compiler:
    """Turns the notation of the rule file into patterns.  Errors name the rule, as `DetectorError` ("load")."""

    def __init__(self, source: Source) -> None:
        self._macros = source.macro
        self._guards = source.guard

    def phrases(self, owner: str, sources: Sequence[str], *, start: str, end: str) -> re.Pattern[str]:
        return self.pattern(owner, f"{start}(?:{'|'.join(self._phrase(owner, one) for one in sources)}){end}")

    def together(self, owner: str, sources: Sequence[str]) -> re.Pattern[str] | None:
        several = [self._phrase(owner, one) for one in sources if " " in one]
        return re.compile("|".join(several).replace(r"(?!\w)", "")) if several else None

    def pattern(self, owner: str, source: str) -> re.Pattern[str]:
        try:
            return re.compile(_squeeze_pattern(source))
        except re.error as error:
            raise DetectorError("load", f"lexicon: {owner}: {error}") from error

    def guard(self, name: str, owner: str) -> _GuardSource:
        if name not in self._guards:
            raise DetectorError("load", f"lexicon: {owner}: unknown guard {name!r}")
        return self._guards[name]

    def _phrase(self, owner: str, source: str) -> str:
        for _ in range(4):  # macros may name macros, four deep at most
            source = re.sub(r"<(\w+)>", lambda match: self._macro(owner, match.group(1)), source)
        if re.search(r"(?<!\\)[*+{]", source):
            raise DetectorError("load", f"lexicon: {owner}: a phrase may not use '*', '+' or '{{'")
        # A blank that is itself optional ("foo ?") already says so.
        return re.sub(r" \??", lambda _: _BLANK, source)

    def _macro(self, owner: str, name: str) -> str:
        if name not in self._macros:
            raise DetectorError("load", f"lexicon: {owner}: unknown macro {name!r}")
        return self._macros[name]


def decode_rules(data: bytes) -> Source:
    """Decode a rule file; `DetectorError` ("load") says what is wrong with its shape."""
    try:
        return msgspec.toml.decode(data, type=Source)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DetectorError("load", f"lexicon: {error}") from error


def compile_rules(source: Source) -> Lexicon:
    """Compile every rule; `DetectorError` ("load") names the rule that is wrong."""
    compiler = _Compiler(source)
    confirmed = source.confirmation
    return Lexicon(
        rules=tuple(_compile_rule(compiler, rule) for rule in source.rule),
        question=compiler.phrases("confirmation", confirmed.question, start=r"(?<!\w)", end=r"(?!\w)"),
        answer=compiler.phrases("confirmation", confirmed.answer, start=r"\W{0,4}", end=r"\W{0,4}\Z"),
        confirmed=_verdict("confirmation", confirmed.labels, confirmed.severity, confirmed.subject, "none", "ongoing"),
    )


def _compile_rule(compiler: _Compiler, rule: RuleSource) -> Rule:
    guards = [compiler.guard(name, rule.id) for name in rule.guards]
    after = [one for guard in guards for one in guard.after] + ([f"^{rule.after_not}"] if rule.after_not else [])
    return Rule(
        id=rule.id,
        output=rule.labels[:1] != () and rule.labels[0].startswith("output:"),
        needs=_needs(rule.needs),
        pattern=compiler.phrases(
            rule.id,
            rule.phrases,
            start="" if rule.open_start else r"(?<!\w)",
            end="" if rule.open_end else r"(?!\w)",
        ),
        together=compiler.together(rule.id, rule.phrases),
        before=tuple(compiler.pattern(rule.id, one) for guard in guards for one in guard.before),
        after=tuple(compiler.pattern(rule.id, one) for one in after),
        verdict=_verdict(rule.id, rule.labels, rule.severity, rule.subject, rule.imminence, rule.time),
    )


def _verdict(
    owner: str, labels: tuple[str, ...], severity: int, subject: Subject, imminence: Imminence, time: Time
) -> Verdict:
    unknown = [label for label in labels if label not in _LABELS]
    crisis = bool(labels) and labels[0].startswith("crisis:")
    if unknown or not labels or not (1 <= severity <= MAX_SEVERITY if crisis else severity == 0):
        raise DetectorError(
            "load", f"lexicon: {owner}: labels {unknown or labels} or severity {severity} are not valid"
        )
    return Verdict(labels, severity, subject, imminence, time)


def matches(rule: Rule, view: View) -> list[Span]:
    """Raw spans of the matches of ``rule`` that no guard excuses, at most `MAX_MATCHES`."""
    if not any(need in view.dense for need in rule.needs):
        return []
    spans: list[Span] = []
    for match in itertools.islice(_found(rule, view), _MAX_LOOKED_AT):
        if match.end() > match.start() and match.end() > view.not_before and not _excused(rule, view, match):
            spans.append(view.back(match.start(), match.end()))
            if len(spans) == MAX_MATCHES:
                break
    return spans


_SENTENCE_END: Final = re.compile(r"[.!?;\n](?![.!?])|[。！？]")


# Written together, no guard of a rule can be read; a denial or a joke right beside the match can.
_DENIED: Final = re.compile(r"(?:n'?t|not|never|stopped)(?:really|actually|even)?$")
_JOKED: Final = re.compile(r"(?:laughing|of(?:boredom|embarrassment|cringe|hunger)|lol|lmao|haha|jk)")


def _found(rule: Rule, view: View) -> Iterator[re.Match[str]]:
    if not view.runs:
        yield from rule.pattern.finditer(view.key)
    elif rule.together is not None:
        for start, end in view.runs:
            for match in rule.together.finditer(view.key, start, end):
                whole = not view.edges or view.edges.issuperset(match.span())
                if whole and match.end() - match.start() >= _MIN_TOGETHER:
                    yield match


def _excused(rule: Rule, view: View, match: re.Match[str]) -> bool:
    key = view.key
    start, end = match.span()
    if view.runs:
        beside = key[max(start - _SENTENCE_CHARS, 0) : start]
        return _DENIED.search(beside) is not None or _JOKED.match(key, end) is not None
    before = _last_sentence(key[max(start - _SENTENCE_CHARS, 0) : start])
    after = _first_sentence(key[end : end + _SENTENCE_CHARS])
    return any(p.search(before) for p in rule.before) or any(p.search(after) for p in rule.after)


def _last_sentence(text: str) -> str:
    ends = [stop.end() for stop in _SENTENCE_END.finditer(text)]
    return text[ends[-1] :].lstrip() if ends else text


def _first_sentence(text: str) -> str:
    stop = _SENTENCE_END.search(text)
    return text[: stop.end()] if stop else text
